"""RefConv."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptool.blocks import RefConv
from reptool.errors import InputError
from tests.blocks.formulas import CONVOLVE, TOLERANCE
from tests.blocks.options import CONV, Option, ref_conv_options


def transformed(block: Any) -> Tensor:
    """W_b * W_r + W_b by the definition of a grouped convolution: slice by slice."""
    basis, refocus = block.weight, block.convmap.weight
    slices = basis.flatten(0, 1)
    per_group = refocus.shape[1]
    pads = [k // 2 for k in reversed(refocus.shape[2:]) for _ in range(2)]
    out = []
    for i, kernel in enumerate(refocus):
        first = i // per_group * per_group
        read = F.pad(slices[first : first + per_group], pads)
        out.append(CONVOLVE[basis.dim() - 2](read[None], kernel[None])[0, 0])
    weight = torch.stack(out).reshape(basis.shape)
    return weight + basis if block.identity else weight


@pytest.mark.parametrize("option", list(ref_conv_options()), ids=lambda o: o.id)
def test_formula(option: Option) -> None:
    block: Any = option.build().double()
    plain: Any = option.plain().double()
    learned = hasattr(block.convmap, "weight")
    weight = transformed(block) if learned else block.convmap(block.weight.reshape(1, -1, 5, 5)).reshape(16, 8, 5, 5)
    if not learned:
        weight = weight + block.weight
    torch.testing.assert_close(block.transformed_weight(), weight, **TOLERANCE)
    plain.weight.data.copy_(weight)
    if plain.bias is not None:
        plain.bias.data.copy_(block.bias)
    x = option.inputs()
    torch.testing.assert_close(block(x), plain(x), **TOLERANCE)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("c_in", "c_out", "g"), [(8, 12, 1), (8, 12, 2), (8, 8, 8), (4, 8, 4)])
@pytest.mark.parametrize("k", [1, 3])
def test_number_of_parameters(dim: int, c_in: int, c_out: int, g: int, k: int) -> None:
    block = RefConv(c_in, c_out, 3, groups=g, bias=False, map_kernel_size=k, dim=dim)
    map_groups = c_out * c_in // g**2
    assert sum(p.numel() for p in block.parameters()) == c_out**2 * c_in**2 * k**dim // (g**2 * map_groups)
    assert list(dict(block.named_buffers())) == ["weight"]


def test_dense_filters_slices_alone_and_depthwise_mixes_all() -> None:
    assert RefConv(4, 6, 3).convmap.weight.shape == (24, 1, 3, 3)  # type: ignore[union-attr]
    assert RefConv(6, 6, 3, groups=6).convmap.weight.shape == (6, 6, 3, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_zero_init_is_exactly_the_basis_convolution(dim: int) -> None:
    for groups, bias, mode in ((1, True, "zeros"), (2, False, "circular"), (8, True, "replicate")):
        conv = CONV[dim](8, 8, 3, 2, 1, groups=groups, bias=bias, padding_mode=mode)
        block = RefConv.from_conv(conv, init="zeros")
        x = torch.randn(2, 8, *range(7, 7 + dim))
        assert torch.equal(block(x), conv(x))


def test_xavier_takes_the_fans_of_one_group() -> None:
    for groups, fan in ((1, 9), (16, 16 * 9)):
        weight: Any = RefConv(16, 16, 3, groups=groups).convmap.weight  # type: ignore[union-attr]
        bound = math.sqrt(3 / fan)
        assert 0.9 * bound < weight.abs().max() <= bound


def test_basis_is_frozen_unless_trained() -> None:
    block = RefConv(4, 4, 3)
    assert [n for n, _ in block.named_parameters()] == ["bias", "convmap.weight"]
    assert "weight" in block.state_dict()
    assert "weight" in dict(RefConv(4, 4, 3, train_basis=True).named_parameters())


def test_loads_checkpoints_with_the_authors_names() -> None:
    checkpoint = {"weight": torch.randn(8, 1, 5, 5), "convmap.weight": torch.randn(8, 8, 3, 3)}
    block = RefConv(8, 8, 5, padding=2, groups=8, bias=False)
    block.load_state_dict(checkpoint)
    x = torch.randn(1, 8, 6, 6)
    kernel = checkpoint["weight"] + F.conv2d(
        checkpoint["weight"].view(1, 8, 5, 5), checkpoint["convmap.weight"], padding=1
    ).view(8, 1, 5, 5)
    torch.testing.assert_close(block(x), F.conv2d(x, kernel, padding=2, groups=8))


def test_from_conv_copies() -> None:
    conv = nn.Conv2d(4, 6, 3, dtype=torch.float64).eval()
    block = RefConv.from_conv(conv)
    assert block.weight.dtype == torch.float64
    assert not block.training
    assert torch.equal(block.weight, conv.weight)
    assert torch.equal(block.bias, conv.bias)  # type: ignore[arg-type]
    block.weight.add_(1)
    block.bias.data.add_(1)  # type: ignore[union-attr]
    assert not torch.equal(block.weight, conv.weight)
    assert not torch.equal(block.bias, conv.bias)  # type: ignore[arg-type]
    assert not torch.equal(RefConv.from_conv(conv, inherit=False).weight, conv.weight)


def test_channels_last_weights() -> None:
    block = RefConv(8, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert block(torch.randn(1, 8, 5, 5)).shape == (1, 8, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 1}, "as large as the map's"),
        ({"kernel_size": (1, 7)}, "as large as the map's"),
        ({"map_kernel_size": 2}, "odd"),
        ({"groups": 3}, "divisor of 8"),
        ({"map_groups": 7}, "divisor of C_out C_in/g = 64"),
        ({"map_groups": 0}, "map_groups=0"),
        ({"init": "ones"}, "xavier"),
        ({"basis": torch.zeros(8, 8, 5, 5)}, r"\(8, 8, 5, 5\)"),
        ({"padding_mode": "mirror"}, "reflect"),
        ({"dim": 4}, "1, 2 or 3"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RefConv(8, 8, **{"kernel_size": 3, **arguments})


@pytest.mark.parametrize("module", [nn.ConvTranspose2d(4, 4, 3), nn.Linear(4, 4)])
def test_from_other_modules(module: Any) -> None:
    with pytest.raises(InputError, match=r"nn\.Conv2d"):
        RefConv.from_conv(module)
