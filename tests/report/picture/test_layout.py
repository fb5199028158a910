"""No two boxes overlap, what is read stands above, and branches stay apart."""

from __future__ import annotations

import itertools
import random

import pytest

from reptool.report.picture.layout import GAP, HEIGHT, WIDTH, layout


def graph(seed: int, count: int) -> list[list[int]]:
    """A random graph, sources first."""
    drawn = random.Random(seed)
    return [
        sorted({drawn.randrange(max(0, i - 6), i) for _ in range(drawn.randint(1, 3))}) if i else []
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 40, 500])
def test_boxes_do_not_overlap_and_lie_inside(count: int) -> None:
    sources = graph(count, count)
    made = layout(sources)
    assert len(made.at) == count
    rows: dict[float, list[float]] = {}
    for x, y in made.at:
        assert 0 <= x <= made.width - WIDTH
        assert 0 <= y <= made.height - HEIGHT
        rows.setdefault(y, []).append(x)
    for row in rows.values():
        row.sort()
        assert all(b - a >= WIDTH + GAP for a, b in itertools.pairwise(row))


def test_what_is_read_stands_above() -> None:
    sources = graph(3, 200)
    at = layout(sources).at
    assert all(at[s][1] < at[i][1] for i, read in enumerate(sources) for s in read)


def test_two_branches_do_not_cross() -> None:
    at = layout([[], [0], [0], [1], [2], [3, 4]]).at
    assert at[1][0] < at[2][0]
    assert at[3][0] < at[4][0]


def test_nothing_has_a_size() -> None:
    assert layout([]).at == []
