"""A recipe makes the same model again: with the values of its weights, without them, and on the meta device."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.api.replay import replay
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.errors import RecipeError
from reptool.recipes.outcome import difference, outcome
from reptool.recipes.step import RECIPE
from reptool.testing import randomize
from tests.ir.test_decisions import BY_VALUES


class Picky(nn.Module):
    """A region whose check fails: it is given up, and stays given up."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.odd = RepVGGBlock(3, 4), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.block(x))


def recipe_of(model: nn.Module) -> list[Any]:
    """The recipe, as a file brings it."""
    found: list[Any] = json.loads(json.dumps(model.__dict__[RECIPE]))
    return found


@pytest.mark.parametrize("name", BY_VALUES)
def test_without_values_everything_is_where_it_was(name: str) -> None:
    deployed = reptool.deploy(BY_VALUES[name]().eval())
    for device in ("cpu", "meta"):
        made = replay(randomize(BY_VALUES[name]().eval()).to(device), recipe_of(deployed), fold=False)
        assert difference(outcome(made), outcome(deployed)) == ""
        assert made.__dict__[RECIPE] == deployed.__dict__[RECIPE]
    assert any(t.is_meta for t in made.parameters())


def test_with_values_they_are_folded_by_the_recipe() -> None:
    deployed = reptool.deploy(randomize(DiverseBranchBlock(3, 4).eval()))
    other = randomize(DiverseBranchBlock(3, 4).eval(), seed=3)
    x = torch.randn(1, 3, 8, 8)
    wanted = other(x)
    made = replay(other, recipe_of(deployed), fold=True)
    torch.testing.assert_close(made(x), wanted, rtol=1e-4, atol=1e-5)
    assert [r.error for r in reptool.report(made).regions if r.error is not None]


def test_what_was_given_up_is_given_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.verify import regions

    measure = regions.measure

    def worse(region: Any, *rest: Any) -> Any:
        found: Any = measure(region, *rest)
        found.exact = 1.0 if "odd" in region.value.name else found.exact
        return found

    monkeypatch.setattr(regions, "measure", worse)
    with pytest.warns(reptool.errors.RegionWarning, match="odd"):
        deployed = reptool.deploy(randomize(Picky().eval()))
    monkeypatch.undo()
    assert isinstance(deployed.odd[1], nn.BatchNorm2d)
    for fold in (True, False):
        made = replay(randomize(Picky().eval()), recipe_of(deployed), fold)
        assert isinstance(made.odd[1], nn.BatchNorm2d)
        assert difference(outcome(made), outcome(deployed)) == ""


def test_another_model_is_refused_before_anything_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(reptool.deploy(randomize(Picky().eval())))
    monkeypatch.setattr("reptool.api.replay.make_plan", lambda *_: pytest.fail("it was planned"))
    with pytest.raises(RecipeError, match=r"another architecture: '<root>' is a .*Sequential here"):
        replay(nn.Sequential(Picky()).eval(), recipe, fold=False)


def test_options_that_do_not_fit_are_an_error_of_the_recipe() -> None:
    recipe = recipe_of(reptool.deploy(randomize(Picky().eval())))
    recipe[0]["options"]["rules"] = ["fold everything"]
    with pytest.raises(RecipeError, match="does not hold for this model: unknown rules"):
        replay(Picky().eval(), recipe, fold=False)
