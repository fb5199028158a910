"""How the demo's results look: tables in, nothing computed but ratios."""

import platform

import torch
from rich.console import Console
from rich.table import Table

from reptool.demo.measure import Measurement

__all__ = ["comparison", "environment", "verdict"]


def environment(console: Console) -> None:
    """Say what the numbers that follow were measured on."""
    console.print(
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"{torch.get_num_threads()} threads on {platform.machine()}"
    )


def comparison(before: Measurement, after: Measurement, batch: int) -> Table:
    """The table before / after / ratio for two measurements on a batch of `batch` images."""
    table = Table(title="Before and after")
    table.add_column("")
    for heading in ("before", "after", "after / before"):
        table.add_column(heading, justify="right")
    counts = (
        ("convolution layers run", before.convolutions, after.convolutions),
        ("batch norm layers run", before.norms, after.norms),
        ("operations run in all", before.operations, after.operations),
        ("parameters", before.parameters, after.parameters),
    )
    for name, old, new in counts:
        table.add_row(name, f"{old:,}", f"{new:,}", _ratio(old, new))
    latency = before.milliseconds, after.milliseconds
    table.add_row(f"ms for a batch of {batch}", *(f"{ms:.2f}" for ms in latency), _ratio(*latency))
    error = before.error, after.error
    table.add_row("error against float64", *(f"{e:.1e}" for e in error), _ratio(*error))
    return table


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.2f}" if before else "-"


def verdict(console: Console, what: str, same: int, total: int) -> bool:
    """Say how many of `total` predictions are the same and return whether all are."""
    good = same == total
    colour, word = ("green", "the same") if good else ("red", "the same, [bold]the others differ[/bold]")
    console.print(f"[{colour}]{what}: {same} of {total} predictions are {word}[/{colour}]")
    return good
