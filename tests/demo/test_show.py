import io

import pytest
from rich.console import Console

from reptool.demo import show
from reptool.demo.measure import Measurement


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


def test_the_table_gives_both_numbers_and_their_ratio(console):
    before = Measurement(10, 8, 4000, 2000, 3.0, 1e-7)
    after = Measurement(5, 0, 1000, 1500, 1.5, 2e-7)
    console.print(show.comparison(before, after, batch=4))
    rows = [line.replace("│", "").split() for line in console.file.getvalue().splitlines()]
    assert ["convolution", "layers", "run", "10", "5", "0.50"] in rows
    assert ["parameters", "2,000", "1,500", "0.75"] in rows
    assert ["ms", "for", "a", "batch", "of", "4", "3.00", "1.50", "0.50"] in rows
    assert ["error", "against", "float64", "1.0e-07", "2.0e-07", "2.00"] in rows


def test_nothing_before_has_no_ratio(console):
    nothing = Measurement(1, 0, 1, 0, 1.0, 0.0)
    console.print(show.comparison(nothing, nothing, batch=1))
    assert [line.count(" - ") for line in console.file.getvalue().splitlines() if "norm" in line] == [1]


def test_the_verdict_is_what_it_says(console):
    assert show.verdict(console, "PyTorch", 3, 3)
    assert not show.verdict(console, "PyTorch", 2, 3)
    same, different = console.file.getvalue().splitlines()
    assert same == "PyTorch: 3 of 3 predictions are the same"
    assert "2 of 3" in different
    assert "differ" in different
