"""The page: what was saved, both graphs, what each region is, and the tables of the report."""

from __future__ import annotations

import inspect
import json
import re
from html import escape
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from reptool.report.fields import Found, FusedRegion
from reptool.report.page import html
from reptool.report.picture.svg import hue, svg
from reptool.report.words import counted, multiplications, number

PAGE = (
    "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    "<title>{title}</title><style>{css}</style></head><body><main><h1>{title}</h1>{body}</main>{script}</body></html>\n"
)
TOOLS = (
    "<div class=tools><input id=search type=search placeholder='Search operations, paths, rules'"
    " aria-label='Search operations, paths, rules'><span id=count role=status></span>"
    "<button id=smaller type=button aria-label='Smaller'>&minus;</button>"
    "<button id=larger type=button aria-label='Larger'>+</button></div>"
)
START = "<div id=told role=status aria-live=polite>Choose a region or an operation.</div>"


def whole_page(report: Found) -> str:
    """A report as one self-contained HTML page, which asks no network for anything.

    Args:
        report: what to say.
    """
    own = files(__package__)
    parts = [TOOLS, _buttons(report), START, *map(_pair, report.graphs)] if report.graphs else []
    body = "".join([*parts, f"<h2>The report</h2><div class=tables>{html(report)}</div>"])
    data = json.dumps([_region(r) for r in report.regions]).replace("<", "\\u003c")
    code = (own / "picture.js").read_text("utf-8")
    script = f"<script id=data type=application/json>{data}</script><script>{code}</script>"
    title, css = escape(f"reptool: {report.model}"), (own / "picture.css").read_text("utf-8")
    return PAGE.format(title=title, css=css, body=body, script=script if report.graphs else "")


def _buttons(report: Found) -> str:
    made = (
        f'<button type=button data-region="{i}" style="--hue:{hue(i)}">{escape(r.layer)}</button>'
        for i, r in enumerate(report.regions)
    )
    return f"<div class=regions aria-label='Regions'>{''.join(made)}</div>"


def _pair(graph: Any) -> str:
    head = f"<h2>{escape(graph.place)}</h2>" if graph.place else ""
    figures = (
        f"<figure><figcaption>{name}: {counted(len(found), 'operation')}</figcaption><div class=view tabindex=-1>"
        f"{svg(found, f'{name} {graph.place}'.strip())}</div></figure>"
        for name, found in (("before", graph.before), ("after", graph.after))
    )
    return f"{head}<div class=pair>{''.join(figures)}</div>"


def _region(region: FusedRegion) -> dict[str, Any]:
    before, after = (f"{p:,.0f}" for p in region.price)
    return {
        "layer": region.layer, "kind": region.kind, "absorbed": region.absorbed, "rules": region.rules,
        "multiplications": multiplications(region), "price": f"{before} -> {after}",
        "error": number(region.error), "cast": number(region.error_cast),
        "formulas": [f for f in map(formula, region.rules) if f],
    }  # fmt: skip


def formula(rule: str) -> str:
    """The formula of a rule, as the file of its paradigm states it; empty where it is no paradigm.

    Args:
        rule: its name.

    >>> print(formula("branch_add"))
    sum_i (W_i * x + b_i)  =  (sum_i W_i) * x + sum_i b_i
    """
    name = f"reptool.fusions.{rule}"
    if not rule.isidentifier() or find_spec(name) is None:
        return ""
    told = inspect.getdoc(import_module(name)) or ""
    found = re.search(r"::\n\n((?: {4}.*\n|\n)+)", f"{told}\n")
    return "" if found is None else inspect.cleandoc(found[1]).strip()
