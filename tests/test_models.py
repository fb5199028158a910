"""timm models, deployed: the same outputs, fewer operations, and everything people do with a model afterwards."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.demo.others import calibrate
from reptool.ship.runtimes import RUNTIMES, onnx_operators
from reptool.testing import count_operations, randomize, tensors_in, unnamed_sites
from tests.pysource.test_places import assert_no_graph_names
from tests.report.test_counting import counted

pytestmark = pytest.mark.models

SIZES = {
    "repvgg_a0": 64,
    "mobileone_s0": 64,
    "resnet18": 64,
    "fastvit_t8": 64,
    "levit_128s": 224,
    "nfnet_l0": 64,
    "mixnet_s": 64,
}
MAIN = ("repvgg_a0", "mobileone_s0", "resnet18")
CONVOLUTIONS = {"repvgg_a0": (44, 22), "mobileone_s0": (191, 43), "resnet18": (20, 20), "fastvit_t8": (68, 52)}


def images(name: str, batch: int = 2, seed: int = 0) -> Tensor:
    """Random images of the size that `name` is tested at."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, SIZES[name], SIZES[name], generator=generator)


@cache
def original(name: str) -> Any:
    """A model with statistics as after training; nobody may change it."""
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    calibrate(model, images(name))
    return model


@cache
def deployed(name: str) -> Any:
    """The same, deployed without having seen an input."""
    return reptool.deploy(original(name))


@cache
def double(name: str) -> Any:
    """The original in float64."""
    return copy.deepcopy(original(name)).double()


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def error(found: Tensor, exact: Tensor) -> float:
    """The largest error as a fraction of the largest value."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("name", SIZES)
def test_outputs_are_those_of_float64(name: str) -> None:
    before = {k: v.clone() for k, v in original(name).state_dict().items()}
    x = images(name, 3, seed=1)
    exact = double(name)(x.double())
    own = error(original(name)(x), exact)
    assert error(copy.deepcopy(deployed(name)).double()(x.double()), exact) <= max(3 * own, 1e-6)
    assert error(deployed(name)(x), exact) <= max(3 * own, 2e-6)
    assert all(torch.equal(v, before[k]) for k, v in original(name).state_dict().items())
    assert type(deployed(name)).__name__ == type(original(name)).__name__
    assert isinstance(deployed(name), type(original(name)))
    assert not reptool.report(deployed(name)).untraced


@pytest.mark.parametrize("name", SIZES)
def test_the_operations_that_run(name: str) -> None:
    x = images(name)
    before, after = count_operations(original(name), x), count_operations(deployed(name), x)
    assert before["batch norm"] > 0
    assert after["batch norm"] == 0
    assert all(after[kind] <= before[kind] for kind in ("convolution", "linear", "multiplication", "concatenation"))
    if name in CONVOLUTIONS:
        assert (before["convolution"], after["convolution"]) == CONVOLUTIONS[name]
    if name in ("repvgg_a0", "mobileone_s0"):
        assert set(after) <= {"convolution", "relu_", "relu", "mean", "view", "t", "linear"}
    if name == "resnet18":
        assert after["addition"] == before["addition"] == 8
    assert sum(after.values()) < sum(before.values())


def test_names_are_those_of_the_original() -> None:
    names = set(deployed("resnet18").state_dict())
    assert {"conv1.weight", "conv1.bias", "layer1.0.conv1.weight", "layer4.1.conv2.bias", "fc.weight"} <= names
    assert not any("bn" in n or "_tensor" in n or "constant" in n for n in names)
    layers = {n.rpartition(".")[0] for n in names}
    assert layers <= {n for n, _ in original("resnet18").named_modules()}
    for name in MAIN:
        assert reptool.report(deployed(name)).layers[1] == CONVOLUTIONS[name][1] + 1
        assert reptool.report(deployed(name)).norms[1] == 0


@pytest.mark.parametrize("name", SIZES)
def test_other_methods_work(name: str) -> None:
    x = images(name)
    features, wanted = deployed(name).forward_features(x), original(name).forward_features(x)
    torch.testing.assert_close(features, wanted, rtol=1e-3, atol=2e-4 * float(wanted.abs().max()))
    torch.testing.assert_close(deployed(name).forward_head(features), deployed(name)(x))
    assert deployed(name).num_features == original(name).num_features
    narrow = copy.deepcopy(deployed(name))
    narrow.reset_classifier(7)
    assert narrow(x).shape == (2, 7)


@pytest.mark.parametrize("name", SIZES)
def test_timms_own_conversion_is_a_no_op(name: str) -> None:
    from timm.utils import reparameterize_model

    x = images(name)
    again = reparameterize_model(copy.deepcopy(deployed(name)))
    assert torch.equal(again(x), deployed(name)(x))
    assert list(again.state_dict()) == list(deployed(name).state_dict())
    twice = reptool.deploy(deployed(name))
    assert all(torch.equal(v, deployed(name).state_dict()[k]) for k, v in twice.state_dict().items())


@pytest.mark.parametrize("shown", [False, True])
def test_feature_extractors_stay_in_their_mode(shown: bool) -> None:
    from timm import create_model
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    x = torch.randn(2, 3, 64, 64)
    extractors = [
        create_feature_extractor(randomize(resnet18()).eval(), ["layer2", "layer4"]),
        create_model("resnet18", features_only=True, feature_cls="fx"),
    ]
    for extractor in (randomize(e).eval() for e in extractors):
        with torch.no_grad():
            found = reptool.deploy(extractor, x if shown else None)
            assert not found.training
            assert reptool.report(found).norms == (20, 0)
            wanted, given = ([t for _, t in tensors_in(m(x))] for m in (extractor, found))
            for a, b in zip(wanted, given, strict=True):
                assert float((a - b).abs().max()) < 1e-4 * float(a.abs().max())


@pytest.mark.parametrize("name", SIZES)
def test_copies_and_pickles(name: str) -> None:
    x = images(name)
    expected = deployed(name)(x)
    for other in (copy.deepcopy(deployed(name)), pickle.loads(pickle.dumps(deployed(name)))):
        assert torch.equal(other(x), expected)
        assert isinstance(other, type(original(name)))


@pytest.mark.parametrize("name", SIZES)
def test_it_can_be_traced_compiled_and_exported(name: str) -> None:
    x, other = images(name), images(name, 3, seed=2)
    expected = deployed(name)(other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.trace(deployed(name), x)(other), expected)
        torch.testing.assert_close(torch.compile(deployed(name), backend="eager")(other), expected)
        dynamic: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
        wider = other
        if name in MAIN:
            dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
            wider = torch.randn(3, 3, 96, 128)
        program = torch.export.export(deployed(name), (x,), dynamic_shapes=(dynamic,))
    torch.testing.assert_close(program.module()(wider), deployed(name)(wider), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*MAIN, "fastvit_t8"])
def test_onnx_there_and_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    reptool.export(copy.deepcopy(deployed(name)), images(name), path)
    run = RUNTIMES[".onnx"].open(path)
    for batch in (2, 5):
        x = images(name, batch, seed=batch)
        (found,) = run([x])
        exact = double(name)(x.double())
        assert error(found, exact) <= max(5 * error(original(name)(x), exact), 5e-6)
    operators = onnx_operators(path)
    assert not operators["BatchNormalization"]
    assert not operators["Identity"]
    if name == "repvgg_a0":
        assert operators["Conv"] == 22
        assert not operators["Add"], operators
    if name == "resnet18":
        assert (operators["Conv"], operators["Add"]) == (20, 8)


def test_explain_on_the_meta_device_is_the_same_plan() -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model("repvgg_a0").eval()
    plan, real = reptool.explain(model), reptool.report(deployed("repvgg_a0"))
    assert [(r.layer, r.kind, r.price) for r in plan.regions] == [(r.layer, r.kind, r.price) for r in real.regions]


def test_one_graph() -> None:
    x = images("repvgg_a0")
    flat = reptool.deploy(original("repvgg_a0"), x, flatten=True)
    assert isinstance(flat, torch.fx.GraphModule)
    assert sum(isinstance(m, nn.Conv2d) for m in flat.modules()) == 22
    assert error(flat(x), double("repvgg_a0")(x.double())) < 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_nothing_that_still_runs_is_silent(name: str) -> None:
    x = images(name)
    with_inputs = reptool.deploy(original(name), x, verify=False)
    for model in (deployed(name), with_inputs):
        assert unnamed_sites(model, reptool.report(model), x) == []
    assert_no_graph_names(original(name), x)


@pytest.mark.parametrize("name", MAIN)
def test_multiplications_are_those_that_torch_counts(name: str) -> None:
    x = images(name)
    model = reptool.deploy(original(name), x, verify=False)
    report = reptool.report(model)
    assert report.multiplications == (counted(original(name), x), counted(model, x))
    assert {r.at for r in report.regions} == {"example_inputs"}
