"""`bench`: a model and its deployed form, timed side by side by `torch.utils.benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.benchmark import Timer

import reptool
from reptool.report.data import Report

ROUNDS = 4


@dataclass
class Timed:
    """What was measured.

    Args:
        milliseconds: for one call, before and after; medians.
        parameters: before and after.
        multiplications: before and after, None where they are not known.
        threads: that PyTorch used.
    """

    milliseconds: tuple[float, float]
    parameters: tuple[int, int]
    multiplications: tuple[int, int | None] | None
    threads: int

    def table(self) -> Table:
        """As a table."""
        table = Table(title=f"{self.threads} thread{'s' * (self.threads != 1)}")
        for column in ("", "before", "after", "after / before"):
            table.add_column(column, justify="left" if not column else "right")
        rows: list[tuple[str, float, float | None, str]] = [
            ("milliseconds", *self.milliseconds, ",.2f"), ("parameters", *self.parameters, ",d"),
        ]  # fmt: skip
        if self.multiplications is not None:
            rows.append(("multiplications", *self.multiplications, ",d"))
        for name, before, after, form in rows:
            shown = ("?", "?") if after is None else (format(after, form), f"{after / max(before, 1e-9):.2f}")
            table.add_row(name, format(before, form), *shown)
        return table


def bench(model: nn.Module, inputs: Any, seconds: float, threads: int) -> Timed:
    """Time a model before and after, in turns, so that a busy machine slows both alike.

    Args:
        model: in eval mode.
        inputs: a tuple or a dict of tensors.
        seconds: how long each is timed, at least.
        threads: that PyTorch may use.
    """
    deployed = reptool.deploy(model, inputs)
    found: Report = reptool.report(deployed)
    statement = "model(**inputs)" if isinstance(inputs, dict) else "model(*inputs)"
    both = [Timer(statement, globals={"model": m, "inputs": inputs}, num_threads=threads) for m in (model, deployed)]
    taken: list[list[float]] = [[], []]
    with torch.no_grad():
        for _ in range(ROUNDS):
            for timer, times in zip(both, taken, strict=True):
                times += timer.blocked_autorange(min_run_time=seconds / ROUNDS).times
    before, after = (1e3 * sorted(times)[len(times) // 2] for times in taken)
    return Timed((before, after), found.parameters, found.multiplications, threads)
