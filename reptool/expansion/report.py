"""What `expand` replaced, with what, and what it left alone and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from torch import nn

from reptool.errors import InputError
from reptool.frontends.given import names_itself


@dataclass(frozen=True)
class Replaced:
    """One convolution that became a block.

    Args:
        path: where it is.
        kernel: its kernel size.
        parameters: trainable parameters before (with the norm taken over) and after.
        norm: path of the batch normalization that the block took over, None if it took none.
        note: why a batch normalization stays behind the block, or what the block stands behind; "" for neither.
    """

    path: str
    kernel: tuple[int, ...]
    parameters: tuple[int, int]
    norm: str | None = None
    note: str = ""


@dataclass
class Expansion:
    """The report of one `expand`.

    Args:
        model: class of the model.
        block: name of the block.
        replaced: the convolutions that became blocks.
        skipped: path -> why a convolution was left alone.
        parameters: trainable parameters of the model before and after.
    """

    model: str
    block: str
    replaced: list[Replaced] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it."""
        return asdict(self)

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, after = self.parameters
        title = f"{self.model}: {len(self.replaced)} convolutions became {self.block}"
        table = Table(title=f"{title}, {before:,} -> {after:,} trainable parameters", title_justify="left")
        for name in ("convolution", "kernel", "parameters", "norm"):
            table.add_column(name, overflow="fold")
        for site in self.replaced:
            kernel = "x".join(map(str, site.kernel))
            count = f"{site.parameters[0]:,} -> {site.parameters[1]:,}"
            table.add_row(site.path, kernel, count, f"took over {site.norm}" if site.norm else site.note)
        skipped = Table(title=f"{len(self.skipped)} left alone", title_justify="left")
        for name in ("convolution", "why"):
            skipped.add_column(name, overflow="fold")
        for path, why in self.skipped.items():
            skipped.add_row(path, why)
        yield Group(table, skipped) if self.skipped else table

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


@names_itself
def expansion_report(model: nn.Module) -> Expansion:
    """The report of the last `expand` of `model`.

    Args:
        model: a model returned by `expand`.

    Raises:
        InputError: the model was not expanded.

    Example:
        >>> from reptool.blocks import RefConv
        >>> from reptool.expansion import expand
        >>> grown = expand(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)), RefConv)
        >>> [site.path for site in expansion_report(grown).replaced], list(expansion_report(grown).skipped)
        (['0'], ['1'])
    """
    found = model.__dict__.get("_reptool_expansion")
    if not isinstance(found, Expansion):
        raise InputError(f"this {type(model).__name__} was not returned by reptool.expand.")
    return found
