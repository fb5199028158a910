"""`assert_rule` passes right rules, and catches each of the planted wrong ones within its default budget."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool.rules import CarryShortcut, Conv, DropDeadChannels, MergeSiblings, PositiveScale, Rule
from reptool.rules.lifting import LIFTS
from reptool.testing import assert_rule
from tests.rules.networks import Scaled
from tests.rules.planted import PLANTED, Own, Planted, owns, pruned, said, scaled, shortcuts, siblings
from tests.sparse import sparse


@pytest.fixture(autouse=True)
def _no_rules_are_left() -> Iterator[None]:
    lifts = dict(LIFTS)
    yield
    for name in LIFTS.keys() - lifts.keys():
        LIFTS[name].remove()


@pytest.mark.parametrize("planted", sparse(PLANTED), ids=lambda p: p.name)
def test_a_wrong_rule_is_caught(planted: Planted) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_rule(planted.rule(), planted.examples, planted.near_misses)
    told = str(caught.value)
    assert re.search(planted.told, told), told
    assert "network: " in told
    assert re.search(r"again: assert_rule\(\.\.\., picks=\[[\d, ]*\]\)", told)


def test_as_many_as_promised_are_planted() -> None:
    assert len(PLANTED) >= 25
    assert len({p.name for p in PLANTED}) == len(PLANTED)


RIGHT: dict[str, tuple[Rule, Any]] = {
    "a scale behind an activation": (PositiveScale(), scaled),
    "dead channels": (DropDeadChannels(), pruned),
    "a carried shortcut": (CarryShortcut(dearer=True), shortcuts),
    "siblings": (MergeSiblings(), siblings),
}


@pytest.mark.parametrize("count", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RIGHT)
def test_right_rules_pass(name: str, count: int) -> None:
    rule, makes = RIGHT[name]
    assert_rule(rule, makes, max_examples=count)


def test_a_right_lift_passes() -> None:
    assert_rule(reptool.lifts(Own)(said), owns)


def test_a_failure_is_seen_again() -> None:
    lift = reptool.lifts(Own, name="planted")(lambda m: Conv(said(m).weight))
    with pytest.raises(AssertionError) as caught:
        assert_rule(lift, owns)
    (picks,) = re.findall(r"picks=(\[[\d, ]*\])", str(caught.value))
    with pytest.raises(AssertionError, match="rule 'planted'"):
        assert_rule(lift, owns, picks=eval(picks))


def test_a_rule_that_fires_on_a_near_miss_fails() -> None:
    def also(pick: Any) -> nn.Module:
        return Scaled(nn.Conv2d(2, 3, 1), nn.ReLU(), torch.rand(3, 1, 1) + 0.1)

    with pytest.raises(AssertionError, match="a near miss fired"):
        assert_rule(PositiveScale(), scaled, also, max_examples=1)


def test_a_rule_brings_its_own_examples() -> None:
    class With(PositiveScale):
        def examples(self, pick: Any) -> nn.Module:
            return scaled(pick)

    assert_rule(With(), max_examples=1)
    with pytest.raises(ValueError, match="give examples"):
        assert_rule(PositiveScale())
