"""Refocusing Learning from a trained model to the original's state dict."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import RefConv, parametrizations
from reptool.errors import InputError
from reptool.refocus import Refocusing, load_refconv_checkpoint, once_per_step
from reptool.testing import count_operations, randomize


def network() -> nn.Sequential:
    """Dense, depthwise with a bias, and pointwise."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


def steps(model: nn.Module, optimizer: Any, count: int, seed: int = 1) -> list[float]:
    """Train on random images and return the losses."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    for _ in range(count):
        images = torch.randn(8, 3, 9, 9, generator=generator)
        labels = torch.randint(0, 4, (8,), generator=generator)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(pipeline: Refocusing, decay: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(pipeline.parameter_groups(decay), lr=0.1, momentum=0.9)


def test_only_what_refocuses_is_trained() -> None:
    net = randomize(network())
    pipeline = Refocusing(net)
    assert list(pipeline.layers) == ["0", "3"]
    buffers = dict(pipeline.model.named_buffers())
    before = {path: buffers[f"{path}.weight"].clone() for path in pipeline.layers}
    optimizer = sgd(pipeline)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(buffers[f"{path}.weight"]) for path in pipeline.layers}
    steps(pipeline.model, optimizer, 3)
    for path, basis in before.items():
        assert torch.equal(pipeline.model.get_buffer(f"{path}.weight"), basis)
        assert torch.equal(basis, net.get_parameter(f"{path}.weight"))


def test_groups() -> None:
    groups = Refocusing(network()).parameter_groups(1e-3, rest_decay=1e-4)
    assert [(g["name"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("refocusing", 1e-3, 2),
        ("rest", 1e-4, 9),
    ]
    frozen = Refocusing(network(), rest="frozen")
    assert [name for name, _ in frozen.trainable()] == ["0.convmap.weight", "3.bias", "3.convmap.weight"]


@pytest.mark.parametrize("train_basis", [False, True])
@pytest.mark.parametrize("basis", ["inherited", "random"])
@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("init", ["xavier", "zeros"])
def test_ablations_and_the_way_back(train_basis: bool, basis: Any, identity: bool, init: Any) -> None:
    net = randomize(network())
    pipeline = Refocusing(net, train_basis=train_basis, basis=basis, identity=identity, init=init)
    for path, layer in pipeline.layers.items():
        assert isinstance(layer.weight, nn.Parameter) == train_basis
        assert torch.equal(layer.weight, net.get_parameter(f"{path}.weight")) == (basis == "inherited")
        starts_as_basis = torch.allclose(layer.transformed_weight(), layer.weight)
        assert starts_as_basis == (identity and init == "zeros")
    before = {path: layer.weight.clone() for path, layer in pipeline.layers.items()}
    steps(pipeline.model, sgd(pipeline), 3)
    moved = [not torch.equal(layer.weight, before[path]) for path, layer in pipeline.layers.items()]
    assert moved == [train_basis] * 2
    state = pipeline.finish()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in net.state_dict().items()}
    images = torch.randn(2, 3, 9, 9)
    net.load_state_dict(state)
    torch.testing.assert_close(net.eval()(images), pipeline.model.eval()(images), rtol=1e-5, atol=1e-6)


def test_deploy_agrees_with_finish() -> None:
    net = randomize(network())
    pipeline = Refocusing(net)
    steps(pipeline.model, sgd(pipeline), 2)
    net.load_state_dict(pipeline.finish())
    images = torch.randn(2, 3, 9, 9)
    plain = reptool.deploy(pipeline.model.eval())
    wanted = reptool.deploy(net.eval())
    torch.testing.assert_close(plain(images), wanted(images), rtol=1e-4, atol=1e-5)
    assert count_operations(pipeline.model, images)["convolution"] == 5  # two of them maps of kernels
    assert count_operations(plain, images)["convolution"] == 3
    assert [type(m).__qualname__ for m in plain] == [type(m).__qualname__ for m in wanted]  # type: ignore[attr-defined]


def test_interrupted_training_is_the_same_training(tmp_path: Path) -> None:
    def start() -> tuple[Refocusing, torch.optim.SGD, Any]:
        torch.manual_seed(0)
        pipeline = Refocusing(network())
        optimizer = sgd(pipeline)
        return pipeline, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    whole, optimizer, scheduler = start()
    steps(whole.model, optimizer, 2)
    scheduler.step()
    whole.save(tmp_path / "half.pt", optimizer=optimizer, scheduler=scheduler, epoch=1)
    losses = steps(whole.model, optimizer, 3, seed=2)
    torch.manual_seed(5)
    other = Refocusing(network())
    optimizer = sgd(other)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    assert other.resume(tmp_path / "half.pt", optimizer=optimizer, scheduler=scheduler) == {"epoch": 1}
    assert scheduler.last_epoch == 1
    assert steps(other.model, optimizer, 3, seed=2) == losses
    torch.testing.assert_close(other.finish(), whole.finish(), rtol=0, atol=0)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    pipeline = Refocusing(network())
    pipeline.save(tmp_path / "a.pt")
    before = {k: v.clone() for k, v in pipeline.model.state_dict().items()}
    with pytest.raises(InputError, match="holds no optimizer"):
        pipeline.resume(tmp_path / "a.pt", optimizer=sgd(pipeline))
    with pytest.raises(InputError, match="other options"):
        Refocusing(network(), identity=False).resume(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"unknown names.*1 other shapes"):
        Refocusing(nn.Sequential(nn.Conv2d(3, 8, 5))).resume(tmp_path / "a.pt")
    torch.save(pipeline.model.state_dict(), tmp_path / "b.pt")
    with pytest.raises(InputError, match="is no checkpoint of"):
        pipeline.resume(tmp_path / "b.pt")
    torch.testing.assert_close(dict(pipeline.model.state_dict()), before, rtol=0, atol=0)


def test_bad_options() -> None:
    with pytest.raises(InputError, match="basis='learned'"):
        Refocusing(network(), basis="learned")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rest='half'"):
        Refocusing(network(), rest="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="init='ones'"):
        Refocusing(network(), init="ones")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="can become RefConv"):
        Refocusing(nn.Sequential(nn.Conv2d(3, 3, 1)))


def theirs() -> dict[str, Tensor]:
    """A checkpoint under the authors' names: `weight` is a buffer, `convmap.weight` a parameter."""
    return {
        "features.0.weight": torch.randn(8, 3, 3, 3),
        "features.0.convmap.weight": torch.randn(24, 1, 3, 3),
        "features.1.weight": torch.randn(8, 1, 3, 3),
        "features.1.convmap.weight": torch.randn(8, 8, 3, 3),
    }


def ours() -> nn.ModuleDict:
    convs = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    )
    model = nn.Sequential()
    model.features = convs
    pipeline = Refocusing(model)
    found: Any = pipeline.model
    return found


def apply_theirs(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """W_b + W_b * W_r, written out: each slice is filtered (dense) or all are mixed (depthwise)."""
    for name, groups in (("features.0", 1), ("features.1", 8)):
        basis, mixing = state[f"{name}.weight"], state[f"{name}.convmap.weight"]
        image = basis.reshape(1, -1, 3, 3)
        kernel = basis + nn.functional.conv2d(
            image, mixing, padding=1, groups=image.shape[1] // mixing.shape[1]
        ).reshape(basis.shape)
        x = nn.functional.conv2d(x, kernel, padding=1, groups=groups)
    return x


@pytest.mark.parametrize("form", ["plain", "parallel", "wrapped", "renamed", "file"])
def test_the_authors_checkpoints_load(form: str, tmp_path: Path) -> None:
    model, state, images = ours(), theirs(), torch.randn(2, 3, 6, 6)
    given: Any = state
    rename = None
    if form == "parallel":
        given = {f"module.{k}": v for k, v in state.items()}
    if form == "wrapped":
        given = {"state_dict": state}
    if form == "renamed":
        given = {k.replace("features", "stages"): v for k, v in state.items()}

        def rename(name: str) -> str:
            return name.replace("stages", "features")

    if form == "file":
        given = tmp_path / "refconv.pth"
        torch.save(state, given)
    load_refconv_checkpoint(model, given, rename=rename)
    found = model.get_submodule("features")(images)
    torch.testing.assert_close(found, apply_theirs(images, state), rtol=1e-4, atol=1e-4)


def test_baselines_load_as_bases_and_others_do_not_fit() -> None:
    model = ours()
    baseline = {k: v for k, v in theirs().items() if "convmap" not in k}
    with pytest.raises(InputError, match="2 names missing"):
        load_refconv_checkpoint(model, baseline)
    load_refconv_checkpoint(model, baseline, maps=False)
    assert torch.equal(model.get_buffer("features.0.weight"), baseline["features.0.weight"])
    wrong = {**theirs(), "features.1.weight": torch.zeros(9, 1, 3, 3), "head.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"1 unknown names \(head.weight\); 1 other shapes"):
        load_refconv_checkpoint(model, wrong)
    assert torch.equal(model.get_buffer("features.0.weight"), baseline["features.0.weight"])
    with pytest.raises(InputError, match="no RefConv layers"):
        load_refconv_checkpoint(nn.Linear(2, 2), {})
    with pytest.raises(InputError, match="no state dict"):
        load_refconv_checkpoint(model, {"epoch": 3})


def test_once_per_step_gives_the_same_gradients() -> None:
    pipeline = Refocusing(randomize(network()).eval())
    model, images = pipeline.model.eval(), torch.randn(6, 3, 9, 9)

    def gradients() -> dict[str, Tensor]:
        found = {name: p.grad.clone() for name, p in pipeline.trainable() if p.grad is not None}
        model.zero_grad()
        return found

    for part in images.split(2):
        model(part).square().sum().backward()
    wanted = gradients()
    calls: list[int] = []
    for layer in pipeline.layers.values():
        layer.convmap.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    with once_per_step(model):
        for part in images.split(2):
            model(part).square().sum().backward()
    assert len(calls) == 2
    torch.testing.assert_close(gradients(), wanted, rtol=1e-4, atol=1e-4)
    model(images)
    assert len(calls) == 4


def test_once_per_step_with_parametrizations() -> None:
    model, images = parametrizations.refconv(nn.Conv2d(4, 4, 3, groups=2)), torch.randn(6, 4, 5, 5)
    map_weight = model.get_parameter("parametrizations.weight.0.convmap.weight")
    calls: list[int] = []
    model.get_submodule("parametrizations.weight.0.convmap").register_forward_hook(lambda *_: calls.append(1))
    found = []
    for cached in (False, True):
        map_weight.grad = None
        with once_per_step(model) if cached else nullcontext():
            for part in images.split(2):
                model(part).square().sum().backward()
        assert map_weight.grad is not None
        found.append(map_weight.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert len(calls) == 3 + 1
    model(images)
    assert len(calls) == 5


def test_once_per_step_ends_after_an_error() -> None:
    layer = RefConv(4, 4, 3)
    with pytest.raises(RuntimeError), once_per_step(layer):
        layer(torch.randn(1, 3, 5, 5))
    assert "transformed_weight" not in layer.__dict__
