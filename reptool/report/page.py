"""The report as a page: Markdown for issues, HTML for notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from reptool.report.fields import Found, reasons
from reptool.report.words import HEADINGS, counted, left, multiplications, notes, number, summary


def _regions(report: Found, mark: str = "") -> Iterator[tuple[str, ...]]:
    for r in report.regions:
        numbers = multiplications(r), number(r.error), number(r.error_cast)
        yield f"{mark}{r.layer}{mark}", r.kind, *numbers, ", ".join(r.rules)


def _left(report: Found, mark: str = "") -> Iterator[tuple[str, str, str, str]]:
    for reason in reasons(report.refusals):
        places = ", ".join(f"{mark}{p}{mark}" for p in reason.places)
        yield reason.code.value, f"{reason.count:,}", reason.sentence, places


def markdown(report: Found) -> str:
    """A report as Markdown.

    Args:
        report: what to say.
    """
    parts = [f"### reptool: {_plain(report.model)}", _table(("", "before", "after"), summary(report))]
    if report.regions:
        parts += [f"**{counted(len(report.regions), 'region')} fused**", _table(HEADINGS, _regions(report, "`"))]
    if report.refusals:
        parts.append(f"**{left(report)}**")
        parts.append(_table(("code", "count", "why", "where"), _left(report, "`")))
    said = [f"- {_plain(note)}" for note in notes(report)]
    return "\n\n".join([*parts, *(["\n".join(said)] if said else [])]) + "\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Text in which nothing is markup but what stands between backticks, as it is."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([\\<>*_\[\]])", r"\\\1", parts[i])
    return "`".join(parts).replace("|", "\\|")


def html(report: Found) -> str:
    """A report as a piece of HTML.

    Args:
        report: what to say.
    """
    parts = [f"<p><b>reptool: {escape(report.model)}</b></p>", _html_table(("", "before", "after"), summary(report))]
    if report.regions:
        parts.append(f"<p>{counted(len(report.regions), 'region')} fused</p>")
        parts.append(_html_table(HEADINGS, _regions(report)))
    if report.refusals:
        parts.append(f"<p>{left(report)}</p>")
        parts.append(_html_table(("code", "count", "why", "where"), _left(report)))
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(report))
    return f"<div>{''.join(parts)}{f'<ul>{said}</ul>' if said else ''}</div>"


def _html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_foldable(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _foldable(text: str) -> str:
    """Text that a browser may break behind the dots of a path."""
    return escape(text).replace(".", ".<wbr>") if " " not in text else escape(text)
