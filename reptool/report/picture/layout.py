"""Where each operation stands: rows by the longest way from the inputs (networkx), neighbours above one another.

Within a row operations are ordered by the mean place of what they read, which keeps branches apart from each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx

WIDTH, HEIGHT, GAP, ROW = 172, 38, 14, 62
"""Of a box, the space between two of one row, and from one row to the next."""


@dataclass
class Layout:
    """Places of boxes.

    Args:
        at: left and upper edge of each box, by index.
        width: of the whole.
        height: of the whole.
    """

    at: list[tuple[float, float]]
    width: float
    height: float


def layout(sources: list[list[int]]) -> Layout:
    """A place for each operation; no two boxes overlap.

    Args:
        sources: what each reads, by index; earlier ones alone.

    >>> layout([[], [0], [0], [1, 2]]).at
    [(93.0, 0.0), (0.0, 62.0), (186.0, 62.0), (93.0, 124.0)]
    """
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(sources)))
    graph.add_edges_from((s, i) for i, read in enumerate(sources) for s in read)
    rows = [sorted(row) for row in networkx.topological_generations(graph)]
    place: dict[int, float] = {}
    for row in rows:
        row.sort(key=lambda i: sum(place[s] for s in sources[i]) / len(sources[i]) if sources[i] else 0.0)
        place |= {i: column - (len(row) - 1) / 2 for column, i in enumerate(row)}
    step, most = WIDTH + GAP, max(map(len, rows), default=0)
    middle = (most - 1) / 2 * step
    at = {i: (middle + place[i] * step, float(number * ROW)) for number, row in enumerate(rows) for i in row}
    width = max(most * step - GAP, WIDTH)
    return Layout([at[i] for i in range(len(sources))], float(width), float(max(len(rows), 1) * ROW))
