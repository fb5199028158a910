"""Which layers are chosen for random programs, against trying every choice."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import fx

from reptool.plan.cost import Price
from reptool.plan.select import Choice, Chooser, Region
from reptool.refusal import Code, Refusal
from tests.plan.programs import C, analysed, program

MOST = 30_000


def chooser_of(seed: int, force: bool = False) -> Chooser:
    found = analysed(program(seed, 6), torch.randn(1, C, 9, 9, dtype=torch.float64))
    return Chooser(found, lambda node, form: None, force)


def price_of(chooser: Chooser, island: list[fx.Node], choice: Choice) -> Price:
    """What it costs to compute all that is wanted of an island."""
    needed = {n for n in island if n in chooser.found.wanted}
    total, done = Price(), set[fx.Node]()
    while needed - done:
        node = (needed - done).pop()
        done.add(node)
        if node in chooser.found.ops and node in set(island):
            option = choice[node]
            total = total + option.standing + sum((chooser.prices.layer(f) for _, f in option.layers), Price())
            needed |= set(option.needs)
    return total


def best(chooser: Chooser, island: list[fx.Node]) -> Price | None:
    """The least price of all choices whose multiplications do not rise; None where there are too many."""
    ways = [chooser._ways(n) for n in island]
    count = 1
    for options in ways:
        count *= len(options)
    if count > MOST:
        return None
    stand = price_of(chooser, island, {n: w[0] for n, w in zip(island, ways, strict=True)})
    prices = (price_of(chooser, island, dict(zip(island, options, strict=True))) for options in product(*ways))
    return min((p for p in prices if p.mixing <= stand.mixing), key=lambda p: p.total)


def chosen(chooser: Chooser, island: list[fx.Node], regions: list[Region]) -> Price:
    """What the chosen regions cost."""
    by_value = {r.value: r for r in regions}
    choice: Choice = {}
    for node in island:
        options = chooser._ways(node)
        region = by_value.get(node)
        choice[node] = next(
            o for o in options if (not o.layers if region is None else o.layers == ((node, region.form),))
        )
    return price_of(chooser, island, choice)


@pytest.mark.parametrize("seed", range(50))
def test_a_plan_costs_no_more_than_what_stands_and_multiplies_no_more(seed: int) -> None:
    chooser = chooser_of(seed)
    for region in chooser.regions():
        assert region.after.mixing <= region.before.mixing or region.after.total < region.before.total
    for island in chooser._all:
        values = set(island)
        regions = [r for r in chooser.regions() if r.value in values]
        stand = price_of(chooser, island, {n: chooser._ways(n)[0] for n in island})
        if any("parts" in r.value.meta for r in regions):
            continue  # a part of a sum is no value of the graph
        found = chosen(chooser, island, regions)
        assert found.total <= stand.total
        assert found.mixing <= stand.mixing


def test_the_plan_is_the_best_there_is_on_small_islands() -> None:
    tried = missed = 0
    for seed in range(80):
        chooser = chooser_of(seed)
        regions = chooser.regions()
        for island in chooser._all:
            held = [r for r in regions if r.value in set(island)]
            least = best(chooser, island)
            if least is None or any("parts" in r.value.meta for r in regions):
                continue
            tried += 1
            missed += chosen(chooser, island, held).total > least.total * (1 + 1e-9)
    assert tried > 40
    assert missed == 0


@pytest.mark.parametrize("seed", range(20))
def test_regions_stand_in_the_order_of_the_graph_and_do_not_compute_what_another_computes(seed: int) -> None:
    chooser = chooser_of(seed)
    regions = chooser.regions()
    position = chooser.found.reads.position
    assert [position[r.value] for r in regions] == sorted(position[r.value] for r in regions)
    assert len({r.value for r in regions}) == len(regions)
    assert chooser.regions() == regions


def test_what_is_not_allowed_is_not_chosen() -> None:
    chooser = chooser_of(3)
    regions = chooser.regions()
    assert regions
    first = regions[0].value
    refused = Refusal(Code.SHARED, "it is shared", (first.name,))
    again = Chooser(chooser.found, lambda node, form: refused if node is first else None, False)
    assert first not in {r.value for r in again.regions()}
    island = chooser.island_of(first)
    assert first in chooser.give_up(island)
    assert first not in {r.value for r in chooser.regions()}
    chooser.choose_again(island)
    assert first in {r.value for r in chooser.regions()}
