"""Nothing that a deployed model still runs is silent, judged from the operations that run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import reptool
from reptool.frontends.inputs import example_arguments
from reptool.testing import executed_sites, randomize, unnamed_sites
from tests.networks import random_network
from tests.report.test_left import CASES as LEFT
from tests.sparse import sparse
from tests.test_refusals import CASES, Code, conv, images, net


def kinds(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Kind and path of what runs."""
    return [(s.kind, s.path) for s in executed_sites(model.eval(), x)]


def scaled(self: Any, x: Tensor) -> Tensor:
    """Scales and shifts of all kinds; only those by the module's own constants along one axis are sites."""
    y = x * self.scale + self.shift.exp()
    y = y * 2.0 + x.mean() + torch.ones(4, 1, 1)
    return y + self.position


def test_norms_scales_and_computed_weights_are_seen_where_they_run() -> None:
    norms = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.InstanceNorm2d(4))
    assert kinds(norms, images()) == [("norm", "0"), ("norm", "1"), ("norm", "2")]
    weights = nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8), weight_norm(conv(4, 4)))
    assert kinds(weights, images()) == [("weight", "0"), ("weight", "2")]
    constants = {"scale": nn.Parameter(torch.rand(4, 1, 1)), "shift": nn.Parameter(torch.rand(1))}
    model = nn.Sequential(net(scaled, **constants, position=nn.Parameter(torch.rand(1, 4, 10, 8))))
    assert kinds(model, images()) == [("scale", "0"), ("scale", "0")]
    transposed = net(lambda self, x: self.linear(x.transpose(1, 3)), linear=nn.Linear(4, 4))
    assert kinds(transposed, images()) == [], "the bias of a layer is a part of it"


def test_what_a_report_does_not_say_is_found() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.GELU(), nn.BatchNorm2d(4), nn.GELU()).eval()
    deployed, x = reptool.deploy(model), images()
    report = reptool.report(deployed)
    assert unnamed_sites(deployed, report, x) == []
    report.refusals.pop()
    assert [s.path for s in unnamed_sites(deployed, report, x)] == ["3"]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.code.value} {c.id}".strip())
def test_models_that_provoke_refusals_have_no_silent_site(case: Any, given: bool) -> None:
    model, x = randomize(case.build(), 1), case.inputs()
    if case.code is not Code.TRAINING_NORM:
        model.eval()
    deployed = reptool.deploy(model, x if given or case.given else None, **case.options)
    assert unnamed_sites(deployed, reptool.report(deployed), x) == []


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("case", LEFT)
def test_models_that_keep_something_have_no_silent_site(case: str, given: bool) -> None:
    model, x = randomize(LEFT[case][0](), 1).eval(), images()
    deployed = reptool.deploy(model, x if given else None)
    assert executed_sites(deployed, x) or case.startswith("number"), "numbers are no constants of the model"
    assert unnamed_sites(deployed, reptool.report(deployed), x) == []


@pytest.mark.parametrize("first", sparse(range(0, 60, 10)))
def test_random_networks_have_no_silent_site(first: int) -> None:
    seen = 0
    for seed in range(first, first + 10):
        model, inputs = random_network(seed)
        args, kwargs = example_arguments(inputs, model)
        assert args is not None
        for given in (None, inputs):
            deployed = reptool.deploy(model, given, verify=False)
            assert unnamed_sites(deployed, reptool.report(deployed), *args, **kwargs) == [], (seed, given is None)
            seen += len(executed_sites(deployed, *args, **kwargs))
    assert seen


def by_parts(self: Any, x: Tensor) -> Tensor:
    """A norm, a weight and a scale in code that cannot be followed."""
    if float(x.sum()) > 1e9:
        return x
    y = F.conv2d(x, self.weight * self.gain)
    return self.norm(y.relu()) * self.scale + F.batch_norm(y.relu(), self.mean, self.var)


def test_code_that_cannot_be_followed_is_named_by_its_norms() -> None:
    vector = {n: nn.Parameter(torch.rand(4)) for n in ("mean", "var")}
    scale = {n: nn.Parameter(torch.rand(4, 1, 1)) for n in ("scale",)}
    weight = {"weight": nn.Parameter(torch.rand(4, 4, 1, 1)), "gain": nn.Parameter(torch.rand(4, 1, 1, 1))}
    model = nn.Sequential(net(by_parts, norm=nn.BatchNorm2d(4), **vector, **scale, **weight)).eval()
    deployed = reptool.deploy(model, images())
    report = reptool.report(deployed)
    assert unnamed_sites(deployed, report, images()) == []
    assert {r.nodes for r in report.refusals} == {("0",), ("0.norm",)}
    (own,) = [r.sentence for r in report.refusals if r.nodes == ("0",)]
    assert "what it does with mean, var, scale, weight, gain was not seen" in own
