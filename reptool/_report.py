"""The report: what was fused, what was refused and why, what it saved, how exact it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from reptool.refusal import Refusal


@dataclass
class FusedRegion:
    """One region that became one layer.

    Args:
        layer: path (or ``path (functional)``) of the layer.
        kind: what the layer is, in words.
        absorbed: paths of the modules and parameters that went into it.
        rules: the paradigms used.
        multiplications: of convolution and linear layers, before and after, at the nominal image size.
        price: weighted price before and after.
        error: largest error in float64 before the cast, relative to ``sum |W||x|`` (None when not verified).
        error_cast: the same after the cast.
        sizes: input sizes tried.
    """

    layer: str
    kind: str
    absorbed: list[str]
    rules: list[str]
    multiplications: tuple[int, int]
    price: tuple[float, float]
    error: float | None = None
    error_cast: float | None = None
    sizes: int = 0


@dataclass
class Report:
    """What `deploy` did or `explain` would do.

    Args:
        model: the model's class name.
        regions: what was fused.
        refusals: what was left alone, and why.
        names: new parameter name -> the old names it was made of.
        layers: convolution and linear layers, before and after.
        norms: batch normalizations, before and after.
        parameters: number of parameters before and after.
        untraced: modules whose code could not be followed, and why.
        impulses: modules whose code was not read but measured: by whose word, how they were tested, the largest error.
        specialized: questions the model's code asked while it was captured.
        fallbacks: method that was specialized -> the arguments it was specialized for; for others it runs as it was.
        kept: weights and bytes kept for that, which are not among `parameters`.
        rehearsed: modules with regenerated methods that were run beside the original ones on made-up inputs.
        model_error: whole-model error on the example inputs: (deployed, original) against float64.
        model_error_float64: that of the model deployed in float64, where `model_error` alone tells nothing, as in
            outputs that hang on rounding.
    """

    model: str
    regions: list[FusedRegion] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    layers: tuple[int, int] = (0, 0)
    norms: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)
    untraced: dict[str, str] = field(default_factory=dict)
    impulses: dict[str, str] = field(default_factory=dict)
    specialized: list[str] = field(default_factory=list)
    fallbacks: dict[str, list[str]] = field(default_factory=dict)
    kept: tuple[int, int] = (0, 0)
    rehearsed: int = 0
    model_error: tuple[float, float] | None = None
    model_error_float64: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it."""
        out = asdict(self)
        out["refusals"] = [r.to_dict() for r in self.refusals]
        return out

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*self._tables())

    def _tables(self) -> Iterator[Any]:
        head = Table(title=f"reptool: {self.model}", show_header=True, title_justify="left")
        for name in ("", "before", "after"):
            head.add_column(name, justify="left" if not name else "right")
        head.add_row("convolution and linear layers", *map(str, self.layers))
        head.add_row("batch normalizations", *map(str, self.norms))
        head.add_row("parameters", *(f"{n:,}" for n in self.parameters))
        if self.kept[0]:
            head.add_row("weights kept for fallbacks", "0", f"{self.kept[0]:,} ({_bytes(self.kept[1])})")
        yield head
        if self.regions:
            table = Table(title=f"{len(self.regions)} regions fused", title_justify="left")
            for name in ("layer", "is now", "rules", "MACs", "error (float64)", "error (cast)"):
                table.add_column(name, overflow="fold")
            for r in self.regions:
                saved = _saved(*r.multiplications)
                table.add_row(r.layer, r.kind, ", ".join(r.rules), saved, _number(r.error), _number(r.error_cast))
            yield table
        if self.refusals:
            table = Table(title=f"{len(self.refusals)} sites left as they are", title_justify="left")
            for name in ("code", "why", "where"):
                table.add_column(name, overflow="fold")
            for refusal in self.refusals:
                table.add_row(refusal.code.value, refusal.sentence, ", ".join(refusal.nodes))
            yield table
        if self.fallbacks:
            table = Table(title=f"{len(self.fallbacks)} methods specialized, with a fallback", title_justify="left")
            for name in ("method", "for", "otherwise"):
                table.add_column(name, overflow="fold")
            for method, calls in self.fallbacks.items():
                table.add_row(method, " or ".join(calls) or "no call", "the original code and layers")
            yield table
        for path, why in self.untraced.items():
            yield Text(f"could not follow {path or 'the model itself'}: {why}", overflow="fold")
        for path, how in self.impulses.items():
            yield Text(f"{path}: {how}", overflow="fold")
        if self.model_error is not None:
            yield Text(
                f"whole model against float64: deployed {self.model_error[0]:.2e}, original {self.model_error[1]:.2e}"
            )
        if self.model_error_float64 is not None:
            yield Text(f"deployed in float64 {self.model_error_float64:.2e}: the output hangs on rounding")

    def __str__(self) -> str:
        console = Console(width=140, record=True, file=StringIO())
        console.print(self)
        return console.export_text()


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count} bytes"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _saved(before: int, after: int) -> str:
    if not before or not after or before == after:
        return "same" if before == after else "-"
    return f"{before / after:.2f}x fewer" if before > after else f"{after / before:.2f}x more"
