"""A graph as SVG: boxes that can be reached by keyboard, arrows that pass beside the boxes between two rows."""

from __future__ import annotations

from html import escape

from reptool.report.picture.graph import Operation
from reptool.report.picture.layout import HEIGHT, ROW, WIDTH, Layout, layout

MARGIN, SIGNS = 24, 23
"""Space around the boxes, and how many signs of a path fit into one."""


def svg(operations: list[Operation], label: str) -> str:
    """A picture.

    Args:
        operations: of one graph, sources first.
        label: what the picture is called to those who do not see it.
    """
    placed = layout([o.sources for o in operations])
    edges = [_edge(placed, s, i) for i, o in enumerate(operations) for s in o.sources]
    boxes = [_box(o, *placed.at[i]) for i, o in enumerate(operations)]
    size = f"{placed.width + 2 * MARGIN:.0f} {placed.height + 2 * MARGIN:.0f}"
    view = f'viewBox="{-MARGIN} {-MARGIN} {size}" data-size="{size}" role="group" aria-label="{escape(label)}"'
    return f'<svg {view}><g class="edges">{"".join(edges)}</g>{"".join(boxes)}</svg>'


def _edge(placed: Layout, source: int, target: int) -> str:
    (x, y), (to, below) = placed.at[source], placed.at[target]
    start, end = (x + WIDTH / 2, y + HEIGHT), (to + WIDTH / 2, below)
    rows = round((below - y) / ROW)
    if rows == 1:
        turn = (start[1] + end[1]) / 2
        return f'<path d="M{_p(*start)}C{_p(start[0], turn)} {_p(end[0], turn)} {_p(*end)}"/>'
    side = max(x, to) + WIDTH + 9 if x >= to else min(x, to) - 9
    first, last = start[1] + 14, end[1] - 14
    bend = f"C{_p(start[0], first)} {_p(side, start[1])} {_p(side, first)}L{_p(side, last)}"
    return f'<path d="M{_p(*start)}{bend}C{_p(side, end[1])} {_p(end[0], last)} {_p(*end)}"/>'


def _p(x: float, y: float) -> str:
    return f"{x:g} {y:g}"


def _box(operation: Operation, x: float, y: float) -> str:
    place, kind, region = operation.place, operation.kind, operation.region
    said = f"{kind} {place}" + (f", region {region + 1}" if region is not None else "")
    said += f", left: {operation.refused}" if operation.refused else ""
    names = ["box", *(["fused"] if region is not None else []), *(["left"] if operation.refused else [])]
    attributes = {
        "tabindex": "0", "role": "button", "aria-label": said, "transform": f"translate({x:g} {y:g})",
        "class": " ".join(names), "data-text": said, "data-refused": operation.refused,
    }  # fmt: skip
    if region is not None:
        attributes |= {"data-region": str(region), "style": f"--hue:{hue(region)}"}
    written = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
    shown = place if len(place) <= SIGNS else f"…{place[-SIGNS + 1 :]}"
    text = f'<text x="10" y="16">{escape(kind)}</text><text x="10" y="30" class="place">{escape(shown)}</text>'
    return f'<g {written}><rect width="{WIDTH}" height="{HEIGHT}" rx="5"/>{text}</g>'


def hue(region: int) -> int:
    """A colour for each region, as far as possible from those of its neighbours.

    >>> [hue(i) for i in range(3)]
    [0, 138, 275]
    """
    return round(region * 137.508) % 360
