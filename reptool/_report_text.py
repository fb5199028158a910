"""The report as text: as wide as the console, and no path is cut in two.

Words are kept whole where they fit into a line. A path that does not is folded behind a dot or a slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from reptool._report import Report, reasons
from reptool._report_words import HEADINGS, counted, multiplications, notes, number, summary

MOST_PLACES = 12
_TEXTS = 3  # how many of the columns are folded; the others are numbers


def folded(words: str, width: int, indent: str = "", deeper: str | None = None) -> list[str]:
    """A text as lines of at most this width, broken between words, and in a longer word behind a dot or a slash.

    Args:
        words: the text.
        width: of a line.
        indent: what each line begins with.
        deeper: what each but the first begins with.

    >>> folded("left at features.block.conv", 16)
    ['left at', 'features.block.', 'conv']
    """
    lead = indent if deeper is None else deeper
    lines, line = [], indent
    for word in words.split():
        pieces = [word] if len(lead) + len(word) <= width else _pieces(word, width - len(lead))
        for i, piece in enumerate(pieces):
            between = " " if i == 0 and line.strip() else ""
            if line.strip() and len(line) + len(between) + len(piece) > width:
                lines.append(line)
                line, between = lead, ""
            line += between + piece
    return [*lines, line] if line.strip() else lines


def _pieces(word: str, width: int) -> list[str]:
    """A file's name in its folders, a module's path in its parts."""
    parts = re.split(r"(?<=/)(?!$)", word)
    return [p for part in parts for p in ([part] if len(part) <= width else re.split(r"(?<=\.)(?!$)", part))]


def lines(report: Report, width: int) -> Iterator[Any]:
    """Everything a report says.

    Args:
        report: what to say.
        width: of the console.
    """
    yield Text(f"reptool: {report.model}", style="italic", no_wrap=True, overflow="ignore")
    head = Table(show_header=True)
    for name in ("", "before", "after"):
        head.add_column(name, justify="right" if name else "left")
    for row in summary(report):
        head.add_row(*row)
    yield head
    if report.regions:
        yield Text(f"{counted(len(report.regions), 'region')} fused", style="italic")
        yield from _regions(report, width)
    if report.refusals:
        yield Text(f"{counted(len(report.refusals), 'site')} left as they are", style="italic")
        yield from _texts(_left(report, width))
    yield from _texts(line for note in notes(report) for line in folded(note, width, "", "  "))


def _texts(found: Iterable[str]) -> Iterator[Text]:
    return (Text(line, no_wrap=True, overflow="ignore", end="\n") for line in found)


def _left(report: Report, width: int) -> Iterator[str]:
    for reason in reasons(report.refusals):
        count = f" ({reason.count} times)" if reason.count > 1 else ""
        yield from folded(f"{reason.code.value}: {reason.sentence}{count}", width, "", "  ")
        places = [f"{p} ({n} times)" if n > 1 else p for p, n in reason.places.items()]
        shown = [f"{p}," for p in places[: MOST_PLACES - 1]] + places[MOST_PLACES - 1 : MOST_PLACES]
        rest = f", and {len(places) - MOST_PLACES:,} more" if len(places) > MOST_PLACES else ""
        yield from folded(" ".join(shown).rstrip(",") + rest, width, "    ")


def _regions(report: Report, width: int) -> Iterator[Any]:
    rows = [
        (r.layer, r.kind, ", ".join(r.rules), multiplications(r), number(r.error), number(r.error_cast))
        for r in report.regions
    ]
    widths = _widths(rows, width)
    if widths is None:
        yield from _texts(line for row in rows for line in _stacked(row, width))
        return
    table = Table()
    for name, column in zip(HEADINGS, widths, strict=True):
        table.add_column(name, width=column, no_wrap=True, justify="left" if column is not None else "right")
    for row in rows:
        cells = ["\n".join(folded(c, w)) if w is not None else c for c, w in zip(row, widths, strict=True)]
        table.add_row(*cells)
    yield table


def _stacked(row: tuple[str, ...], width: int) -> Iterator[str]:
    layer, kind, rules, count, error, cast = row
    yield from folded(layer, width)
    for line in (kind, rules, f"{count} multiplications", f"error {error} in float64, {cast} after the cast"):
        yield from folded(line, width, "    ")


def _height(cells: Sequence[str], width: int) -> int:
    return max(len(folded(cell, width)) for cell in cells)


def _widths(rows: Sequence[tuple[str, ...]], width: int) -> list[int | None] | None:
    """A width for each column of text, None for those of numbers; None where a table does not fit."""
    columns = list(zip(HEADINGS, *rows, strict=True))
    natural = [max(map(len, column)) for column in columns]
    free = width - sum(natural[_TEXTS:]) - (3 * len(columns) + 1)
    least = [max(len(w) for cell in column for w in cell.split()) for column in columns[:_TEXTS]]
    if sum(least) > free:
        return None
    widths = list(least)
    while sum(widths) < free and any(w < n for w, n in zip(widths, natural, strict=False)):
        open_ = [i for i in range(_TEXTS) if widths[i] < natural[i]]
        widest = max(open_, key=lambda i: (_height(columns[i], widths[i]), -i))  # whoever makes the rows high
        widths[widest] += 1
    return [*widths, *[None] * (len(columns) - _TEXTS)]
