"""The report as text: as wide as the console, and no path is cut in two.

Words are kept whole where they fit into a line. A path that does not is folded behind a dot or a slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from reptool.report.fields import Found, reasons
from reptool.report.words import HEADINGS, counted, left, multiplications, notes, number, summary

MOST_PLACES = 12


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


def lines(report: Found, width: int) -> Iterator[Any]:
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
        yield Text(left(report), style="italic")
        yield from _texts(_left(report, width))
    yield from _texts(line for note in notes(report) for line in folded(note, width, "", "  "))


def _texts(found: Iterable[str]) -> Iterator[Text]:
    return (Text(line, no_wrap=True, overflow="ignore", end="\n") for line in found)


def _left(report: Found, width: int) -> Iterator[str]:
    for reason in reasons(report.refusals):
        count = f" ({reason.count} times)" if reason.count > 1 else ""
        yield from folded(f"{reason.code.value}: {reason.sentence}{count}", width, "", "  ")
        places = [f"{p} ({n} times)" if n > 1 else p for p, n in reason.places.items()]
        shown = [f"{p}," for p in places[: MOST_PLACES - 1]] + places[MOST_PLACES - 1 : MOST_PLACES]
        rest = f", and {len(places) - MOST_PLACES:,} more" if len(places) > MOST_PLACES else ""
        yield from folded(" ".join(shown).rstrip(",") + rest, width, "    ")


def _regions(report: Found, width: int) -> Iterator[Any]:
    rows = [
        (r.layer, r.kind, multiplications(r), number(r.error), number(r.error_cast), ", ".join(r.rules))
        for r in report.regions
    ]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    rules = width - sum(widths[:-1]) - (3 * len(widths) + 1)
    if rules < max(len(word) for row in rows for word in (*row[-1].split(), HEADINGS[-1])):
        yield from _texts(line for row in rows for line in _in_sentences(row, width))
        return
    table = Table()
    for i, name in enumerate(HEADINGS):
        table.add_column(name, no_wrap=True, justify="right" if 2 <= i <= 4 else "left")
    for row in rows:
        table.add_row(*row[:-1], "\n".join(folded(row[-1], rules)))
    yield table


def _in_sentences(row: tuple[str, ...], width: int) -> Iterator[str]:
    """One region where a table is too wide."""
    layer, kind, count, error, cast, rules = row
    yield from folded(f"{layer} is now {kind}", width, "", "    ")
    errors = "" if error == "-" else f"; error {error}, {cast} after the cast"
    yield from folded(f"{count} multiplications{errors}; {rules}", width, "    ")
