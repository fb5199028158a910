"""Weight re-parameterizations."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reptool.blocks import RefConv
from reptool.blocks import parametrizations as P
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE, gradients
from tests.blocks.options import randomize

WRAPPERS: list[Callable[..., Any]] = [
    P.refconv,
    P.weight_norm,
    P.centered_weight_norm,
    P.orthogonal_weight_norm,
    P.dirac_net,
    P.weight_standardization,
]
LAYERS: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: nn.Conv2d(6, 8, 3, 2, 1),
    "grouped": lambda: nn.Conv2d(6, 8, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "conv1d": lambda: nn.Conv1d(6, 8, 5),
    "conv3d": lambda: nn.Conv3d(4, 8, 3),
    "linear": lambda: nn.Linear(7, 9),
}
CASES = [(w, name) for w in WRAPPERS for name in LAYERS if (w, name) != (P.refconv, "linear")]


def inputs(layer: Any) -> Tensor:
    """A random input of `layer`."""
    if isinstance(layer, nn.Linear):
        return torch.randn(3, layer.in_features, dtype=torch.float64)
    return torch.randn(2, layer.in_channels, *range(7, 6 + layer.weight.dim() - 1), dtype=torch.float64)


def on_weight(layer: Any) -> Any:
    """The parametrization of a layer's weight."""
    return layer.parametrizations.weight[0]


def rows(weight: Tensor) -> Tensor:
    """One row per output."""
    return weight.reshape(weight.shape[0], -1)


@pytest.mark.parametrize(("wrapper", "name"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_stays_the_layer_and_trains(wrapper: Callable[..., Any], name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    kind, shape, dtype = type(layer), layer.weight.shape, layer.weight.dtype
    assert wrapper(layer) is layer
    assert isinstance(layer, kind)
    assert (layer.weight.shape, layer.weight.dtype) == (shape, dtype)
    x = inputs(layer)
    found = gradients(randomize(layer), x)
    frozen = ["parametrizations.weight.original"] if wrapper is P.refconv else []
    assert [n for n, size in found.items() if size == 0] == frozen
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    other = wrapper(LAYERS[name]().double())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    before = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is kind
    assert torch.equal(layer(x), before)
    pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("name", ["conv2d", "grouped", "depthwise", "conv1d", "conv3d"])
@pytest.mark.parametrize("identity", [True, False])
def test_refconv_is_the_block(name: str, identity: bool) -> None:
    layer = LAYERS[name]().double()
    block = RefConv.from_conv(layer, identity=identity)
    P.refconv(layer, identity=identity)
    on_weight(layer).convmap.load_state_dict(cast(nn.Module, block.convmap).state_dict())
    x = inputs(layer)
    torch.testing.assert_close(layer(x), block(x), **TOLERANCE)


def test_refconv_options() -> None:
    conv = nn.Conv2d(4, 8, 3)
    x = torch.randn(1, 4, 5, 5)
    before = conv(x)
    assert torch.equal(P.refconv(copy.deepcopy(conv), init="zeros")(x), before)
    trained = P.refconv(copy.deepcopy(conv), train_basis=True, map_groups=4)
    assert trained.get_parameter("parametrizations.weight.original").requires_grad
    doubled = P.refconv(copy.deepcopy(conv), transform=nn.Identity())
    torch.testing.assert_close(doubled.weight, 2 * conv.weight)


@pytest.mark.parametrize("name", list(LAYERS))
def test_weight_norm(name: str) -> None:
    layer = LAYERS[name]().double()
    start = layer.weight.detach().clone()
    P.weight_norm(layer)
    torch.testing.assert_close(layer.weight, start, **TOLERANCE)
    on_weight(layer).scale.data.fill_(-2)
    torch.testing.assert_close(rows(layer.weight).norm(dim=1), torch.full((len(start),), 2.0).double(), **TOLERANCE)
    torch.testing.assert_close(F.cosine_similarity(rows(layer.weight), -rows(start)), torch.ones(len(start)).double())


@pytest.mark.parametrize("name", list(LAYERS))
def test_centered_weight_norm(name: str) -> None:
    layer = LAYERS[name]().double()
    start = rows(layer.weight.detach().clone())
    P.centered_weight_norm(layer)
    torch.testing.assert_close(rows(layer.weight), start - start.mean(1, keepdim=True), **TOLERANCE)
    randomize(layer)
    on_weight(layer).scale.data.fill_(3)
    centered = start - start.mean(1, keepdim=True)
    expected = 3 * centered / centered.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows(layer.weight), expected, **TOLERANCE)


@pytest.mark.parametrize("name", list(LAYERS))
def test_orthogonal_weight_norm(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    start = rows(layer.weight.detach().clone())
    centered = start - start.mean(1, keepdim=True)
    P.orthogonal_weight_norm(layer)
    parametrization = on_weight(layer)
    parametrization.eps = 0.0
    count, size = start.shape[0], parametrization.group_size
    assert size == min(count, start.shape[1] - 1)
    for first in range(0, count, size):
        w, z = rows(layer.weight)[first : first + size], centered[first : first + size]
        unit = w / centered[first : first + size].norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit @ unit.T, torch.eye(len(z)).double(), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(unit.sum(1), torch.zeros(len(z)).double(), rtol=1e-8, atol=1e-8)
        left, _, right = torch.linalg.svd(z, full_matrices=False)
        torch.testing.assert_close(unit, left @ right, rtol=1e-7, atol=1e-7)


def test_orthogonal_gradient_is_right_at_equal_eigenvalues() -> None:
    torch.manual_seed(0)
    module = P.OrthogonalWeightNorm(torch.randn(3, 5).double(), eps=0.0)
    equal = torch.linalg.qr(torch.randn(5, 5).double())[0]
    equal = (equal - equal.mean(1, keepdim=True))[:3]
    left, _, right = torch.linalg.svd(equal, full_matrices=False)
    for v in (torch.randn(3, 5).double(), left @ right):
        assert torch.autograd.gradcheck(module, (v.requires_grad_(),))


@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("preserve", [True, False])
def test_dirac_net(name: str, preserve: bool) -> None:
    layer = LAYERS[name]().double()
    start = layer.weight.detach().clone()
    P.dirac_net(layer, preserve)
    if preserve:
        torch.testing.assert_close(layer.weight, start, **TOLERANCE)
    parametrization = on_weight(randomize(layer))
    a, b = parametrization.identity_scale, parametrization.scale
    w = (b * rows(start) / rows(start).norm(dim=1, keepdim=True)).reshape(start.shape).clone()
    groups = getattr(layer, "groups", 1)
    centre = tuple(k // 2 for k in start.shape[2:])
    per_group = start.shape[0] // groups
    for o in range(start.shape[0]):
        if o % per_group < start.shape[1]:
            w[(o, o % per_group, *centre)] += a[o, 0]
    torch.testing.assert_close(layer.weight, w, **TOLERANCE)


def test_dirac_net_adds_the_scaled_input() -> None:
    conv = P.dirac_net(nn.Conv2d(4, 4, 3, padding=1, bias=False))
    parametrization = on_weight(conv)
    parametrization.scale.data.zero_()
    parametrization.identity_scale.data.fill_(2)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(conv(x), 2 * x)


@pytest.mark.parametrize("name", list(LAYERS))
def test_weight_standardization(name: str) -> None:
    layer = LAYERS[name]().double()
    start = rows(layer.weight.detach().clone())
    P.weight_standardization(layer, eps=1e-3)
    for w, v in zip(rows(layer.weight), start, strict=True):
        mean = v.sum() / len(v)
        expected = (v - mean) / ((v - mean).square().sum() / len(v) + 1e-3).sqrt()
        torch.testing.assert_close(w, expected, **TOLERANCE)


def test_channels_last_weights() -> None:
    for wrapper in WRAPPERS:
        conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert wrapper(conv)(torch.randn(1, 8, 5, 5)).shape == (1, 8, 3, 3)


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda w: w.__name__)
def test_other_layers(wrapper: Callable[..., Any]) -> None:
    for layer in (nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)):
        with pytest.raises(InputError, match=f"{wrapper.__name__} of {type(layer).__name__}"):
            wrapper(layer)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="of Linear"):
        P.refconv(nn.Linear(4, 4))
    with pytest.raises(InputError, match="as large as the map's"):
        P.refconv(nn.Conv2d(4, 4, 1))
    for wrapper in (P.centered_weight_norm, P.orthogonal_weight_norm, P.weight_standardization):
        with pytest.raises(InputError, match="1 entry"):
            wrapper(nn.Conv2d(4, 4, 1, groups=4))
    with pytest.raises(InputError, match="group_size=9"):
        P.orthogonal_weight_norm(nn.Conv2d(16, 16, 3, groups=16), 9)
    with pytest.raises(InputError, match="odd"):
        P.dirac_net(nn.Conv2d(4, 4, 2))
