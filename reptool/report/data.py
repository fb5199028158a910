"""The report: what was fused, what was refused and why, what it saved, how exact it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, fields
from io import StringIO
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult

from reptool.report import page, text
from reptool.report.fields import Found
from reptool.report.fields import FusedRegion as FusedRegion  # pickles of earlier releases look for it here
from reptool.report.picture.whole import whole_page


@dataclass(repr=False)
class Report(Found):
    """What `deploy` did or `explain` would do: print it, or take it as data (`to_dict`), JSON, Markdown or a page.

    Args: as `Found`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "graphs"}
        out["regions"], out["rewritten"] = [asdict(r) for r in self.regions], [asdict(r) for r in self.rewritten]
        out["refusals"] = [r.to_dict() for r in self.refusals]
        return out

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_markdown(self) -> str:
        """The report as Markdown, for an issue or a pull request."""
        return page.markdown(self)

    def to_html(self) -> str:
        """The report as one self-contained page: the graph before and after, each region with its formula, refusals."""
        return whole_page(self)

    def _repr_html_(self) -> str:
        return page.html(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from text.lines(self, options.max_width)

    def __str__(self) -> str:
        console = Console(width=shutil.get_terminal_size((120, 24)).columns, file=StringIO(), record=True)
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Reports that an earlier release pickled have fewer fields."""
        vars(self).update(vars(Report(state["model"])))
        vars(self).update(state)

    def __repr__(self) -> str:
        fused, left = f"{len(self.regions)} regions fused", f"{len(self.refusals)} sites left"
        return f"<Report on {self.model}: {fused}, {left}, batch normalizations {self.norms[0]} -> {self.norms[1]}>"
