"""A deployed model keeps how it was made, as plain data."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock
from reptool.errors import RecipeError
from reptool.recipes.step import RECIPE, Step
from reptool.refusal import Code, Refusal


def made(**options: Any) -> Step:
    """The step of a block."""
    deployed = reptool.deploy(nn.Sequential(DiverseBranchBlock(3, 4)).eval(), **options)
    (data,) = json.loads(json.dumps(deployed.__dict__[RECIPE]))
    return Step.from_data(data)


def test_a_deployment_is_written_down() -> None:
    shown = torch.ones(1, 3, 8, 8)
    step = made(example_inputs=shown, rules=["conv_bn", "branch_add"], exclude=nn.AvgPool2d, force=True)
    args, kwargs = step.arguments()
    assert args is not None
    assert (args[0].shape, kwargs) == ((1, 3, 8, 8), {})
    chosen = step.chosen()
    assert chosen["rules"] == ["branch_add", "conv_bn"]
    assert chosen["force"] is True
    assert chosen["include"] is None
    assert step.layers
    assert set(step.layers.values()) == {True}
    assert list(step.code) == [""]
    assert step.before["0.branches.origin.bn"]["class"].endswith("BatchNorm2d")


def test_rules_that_are_forced_and_the_numbers_of_the_price_are_written_down() -> None:
    costs = reptool.Costs(layer=1.0)
    chosen = made(force=["kernel_size", "branch_add"], price=costs).chosen()
    assert chosen["force"] == ["branch_add", "kernel_size"]
    assert reptool.Costs(**chosen["price"]) == costs
    assert reptool.Costs(**made().chosen()["price"]) == reptool.Costs()
    earlier = made()
    earlier.options.pop("price")
    assert earlier.chosen()["price"] is None


def test_no_example_inputs_and_none_are_told_apart() -> None:
    assert made().arguments() == (None, {})
    assert Step(inputs={"tuple": [{"tuple": []}, {"dict": []}]}).arguments() == ((), {})


def test_what_was_given_up_comes_back() -> None:
    why = {"refusal": [Code.UNVERIFIED.value, "it is off", []]}
    step = Step(given_up=[{"tuple": ["region", "a", ["x", "y"], why]}, {"tuple": ["method", "b", ["forward"], why]}])
    found = step.failed()
    assert found.regions == {("a", frozenset("xy")): Refusal(Code.UNVERIFIED, "it is off")}
    assert found.methods == {("b", "forward"): Refusal(Code.UNVERIFIED, "it is off")}


def test_a_second_deployment_that_changes_nothing_is_no_step() -> None:
    deployed = reptool.deploy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    again = reptool.deploy(deployed, torch.ones(1, 3, 8, 8))
    assert len(again.__dict__[RECIPE]) == 1


def test_no_recipe_says_why() -> None:
    class Odd:
        pass

    class Takes(nn.Sequential):
        def forward(self, x: Tensor, odd: Any = None) -> Tensor:
            return super().forward(x)

    model = Takes(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    deployed = reptool.deploy(model, (torch.ones(1, 3, 8, 8), Odd()))
    assert "example_inputs hold a Odd" in deployed.__dict__[RECIPE]
    assert "example_inputs hold a Odd" in reptool.deploy(deployed).__dict__[RECIPE]


GOOD = made().to_data()


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {**GOOD, "source": "import os"}, {**GOOD, "code": []}, {**GOOD, "layers": None}],
    ids=lambda d: str(d)[:30],
)
def test_what_is_no_step_is_an_error_of_ours(data: Any) -> None:
    assert Step.from_data(GOOD) == Step(**GOOD)
    with pytest.raises(RecipeError):
        Step.from_data(data)


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": 3}, {"inputs": {"tuple": [[], {"dict": []}]}}, {"options": {}},
        {"options": {**GOOD["options"], "rules": "conv_bn"}}, {"options": {**GOOD["options"], "force": 1}},
        {"options": {**GOOD["options"], "price": 1.0}},
        {"options": {**GOOD["options"], "exclude": [3]}}, {"options": {**GOOD["options"], "inplace": True}},
        {"given_up": [3]}, {"given_up": [{"tuple": ["region", "a", [], {"refusal": ["stride", "", []]}]}]},
        {"decisions": {"a": {"eval": "1"}}},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_hold_something_else_are_errors_of_ours(changed: Any) -> None:
    step = Step.from_data({**GOOD, **changed})
    with pytest.raises(RecipeError):
        (step.arguments(), step.chosen(), step.failed(), step.answers())
