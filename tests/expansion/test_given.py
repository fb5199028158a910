"""What is given to `expand` stays as it was, and what it cannot be is said."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RefConv, RepVGGBlock, parametrizations
from reptool.errors import InputError, UnsupportedModelError
from reptool.testing import randomize


def network() -> nn.Sequential:
    layers = [nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return randomize(nn.Sequential(*layers)).eval()


def mapping(slices: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(slices, slices, 3, padding=1), nn.Tanh(), nn.Conv2d(slices, slices, 1))


class Map(nn.Module):
    """A map that is made of a kernel's shape and groups."""

    def __init__(self, shape: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0] * shape[1], shape[0] * shape[1], 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def state(module: nn.Module) -> list[Any]:
    return [(n, p.device, p.dtype, p.clone(), p.requires_grad) for n, p in module.named_parameters()] + [
        (n, m.training) for n, m in module.named_modules()
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(
        all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(p, q, strict=True))
        for p, q in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("block", [RefConv, parametrizations.refconv])
@pytest.mark.parametrize("wrapped", [lambda m: m, lambda m: functools.partial(m), lambda m: m.forward])
def test_a_module_as_transform_is_copied_for_each_layer(block: Any, wrapped: Any) -> None:
    given = mapping(4).train()
    before = state(given)
    grown = reptool.expand(network(), block, where="0", preserve=False, transform=wrapped(given))
    grown(torch.randn(2, 4, 13, 12))
    reptool.expand(network().double(), block, where="0", preserve=False, transform=given)
    assert same(state(given), before)
    assert not {id(p) for p in given.parameters()} & {id(p) for p in grown.parameters()}


def test_each_layer_has_a_transform_of_its_own() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    grown = reptool.expand(net, RefConv, preserve=False, transform=mapping(4))
    first, second = (list(grown[i].convmap.parameters()) for i in (0, 2))  # type: ignore[union-attr]
    assert len(first) == len(second) == 4
    assert not {id(p) for p in first} & {id(p) for p in second}
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("block", [RefConv, parametrizations.refconv])
@pytest.mark.parametrize("factory", [lambda shape, groups: Map(shape, groups), Map])
def test_a_factory_makes_the_map_of_each_kernel(block: Any, factory: Any) -> None:
    grown = reptool.expand(network(), block, preserve=False, transform=factory)
    found = [m.conv for m in grown.modules() if isinstance(m, Map)]
    assert [(m.in_channels, m.groups) for m in found] == [(4, 4), (16, 2), (64, 1)]
    grown(torch.randn(2, 4, 13, 12)).sum().backward()
    assert all(m.weight.grad is not None for m in found)


@pytest.mark.parametrize("block", [RefConv, parametrizations.refconv])
def test_groups_and_the_start_of_a_map_may_be_functions(block: Any) -> None:
    seen: list[Any] = []

    def groups(shape: tuple[int, ...], groups: int) -> int:
        seen.append((shape, groups))
        return shape[0]

    grown = reptool.expand(
        network(), block, preserve=False, map_groups=groups, init=lambda w: nn.init.constant_(w, 0.25)
    )
    maps = [m for n, m in grown.named_modules() if n.endswith("convmap")]
    assert [m.groups for m in maps] == [4, 8, 8]
    assert all(bool((m.weight == 0.25).all()) for m in maps)  # type: ignore[operator]
    assert set(seen) == {((4, 1, 3, 3), 4), ((8, 2, 3, 3), 2), ((8, 8, 3, 3), 1)}


def test_refocusing_takes_all_three(tmp_path: Any) -> None:
    net, x = network(), torch.randn(2, 4, 13, 12)
    by_function = reptool.Refocusing(net, map_groups=lambda shape, groups: shape[0], init=torch.nn.init.zeros_)
    assert torch.allclose(by_function.model(x), net(x), atol=1e-5)
    pipeline = reptool.Refocusing(net, transform=Map)
    pipeline.save(tmp_path / "map.pt")
    again = reptool.Refocusing(net, transform=Map)
    again.resume(tmp_path / "map.pt")
    assert torch.equal(again.model(x), pipeline.model(x))
    assert list(pipeline.finish()) == list(net.state_dict())
    with pytest.raises(InputError, match=r"made with other options; build the Refocusing with \{'transform': 'Map'\}"):
        reptool.Refocusing(net).resume(tmp_path / "map.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": lambda x: x[:, :1]}, r"its transform makes \(1, 1, 3, 3\) of \(1, 4, 3, 3\)"),
        ({"transform": mapping(5)}, r"its transform does not take \(1, 4, 3, 3\) \(RuntimeError"),
        ({"transform": lambda shape, groups: 3}, r"makes a int of \(4, 1, 3, 3\) and groups=4"),
        ({"map_groups": lambda shape, groups: 3}, "map_groups=3"),
        ({"map_groups": lambda shape, groups: 2.0}, "map_groups=2.0"),
    ],
)
def test_a_map_that_does_not_fit_is_a_reason(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reptool.expand(network(), RefConv, where="0", preserve=False, **options)


def test_tensors_and_modules_among_options_stay_as_they_were() -> None:
    seen: list[nn.Module] = []

    def block(conv: nn.Conv2d, *, act: nn.Module, scale: Tensor) -> nn.Module:
        seen.append(act)
        scale.zero_()
        return nn.Sequential(conv, act.double().to(conv.weight.dtype))

    act, scale = nn.PReLU().train(), torch.ones(2)
    before = state(act)
    reptool.expand(network(), block, preserve=False, act=act, scale=scale)
    assert same(state(act), before)
    assert scale.tolist() == [1.0, 1.0]
    assert not any(m is act for m in seen)


def test_the_model_and_its_transform_are_as_they_were_when_expand_raises() -> None:
    net, given = network(), mapping(4)
    before, kept = state(net), state(given)
    with pytest.raises(InputError):
        reptool.expand(net, RefConv, where="0", preserve=True, transform=given)
    assert same(state(net), before)
    assert same(state(given), kept)


# --- sentences
@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (RepVGGBlock(4, 4), {}, "expand was given a RepVGGBlock itself.*give the class RepVGGBlock"),
        (DiverseBranchBlock, {"where": nn.ReLU()}, "where was given a ReLU itself; give its path in the model"),
        (RefConv, {"map_size": 3}, "RefConv was given map_size; its options for expand are"),
    ],
)
def test_what_expand_cannot_use_has_its_sentence(block: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reptool.expand(network(), block, **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d, r"expand takes a model, got the class Conv2d; make one of it: expand\(Conv2d"),
        (copy.deepcopy(network().state_dict()), "expand takes a model, got a state dict of 6 tensors"),
        ("model.pt", "expand takes a model, got the path 'model.pt'"),
    ],
)
def test_expand_names_itself(model: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        reptool.expand(model, RefConv)
