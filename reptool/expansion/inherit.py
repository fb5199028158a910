"""How a block takes over a kernel W, a bias b and the batch normalization behind them.

    y = gamma (W * x + b - mean) / sqrt(var + eps) + beta

The main branch (KxK convolution, then a norm) takes W, gamma, beta, mean - b and var as they are. Without a
norm behind the convolution it takes gamma = 1, beta = b, mean = 0, var = 1 - eps, which is W * x + b.

Other branches that are not silent add a kernel D and a bias d of their own (their collapsed sum, found by
`reptool.deploy`): the main branch, whose norm scales by s = gamma / sqrt(var + eps), then takes W - D / s and
beta - d. Where s = 0 it first becomes s = 1 with W = 0.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks import Parallel
from reptool.errors import InputError
from reptool.expansion.where import CONVS, Conv

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@torch.no_grad()
def inherit_norm(target: _BatchNorm, conv: Conv, norm: _BatchNorm | None) -> None:
    """Give `target` what stands behind `conv`: its bias and `norm`."""
    if target.running_mean is None or target.running_var is None:
        raise InputError(
            "a block whose norms keep no statistics cannot take over those of a trained model; "
            "build it with track_running_stats=True."
        )
    scale = torch.ones_like(target.running_mean)
    shift = torch.zeros_like(target.running_mean)
    if norm is None:
        target.running_mean.zero_()
        target.running_var.fill_(1 - target.eps)
        shift = shift if conv.bias is None else conv.bias.clone()
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        target.eps, target.momentum = norm.eps, norm.momentum
        target.running_mean.copy_(norm.running_mean if conv.bias is None else norm.running_mean - conv.bias)
        target.running_var.copy_(norm.running_var)
        if norm.num_batches_tracked is not None and target.num_batches_tracked is not None:
            target.num_batches_tracked.copy_(norm.num_batches_tracked)
        scale = norm.weight.clone() if norm.affine else scale
        shift = norm.bias.clone() if norm.affine else shift
    if target.affine:
        target.weight.copy_(scale)
        target.bias.copy_(shift)


def folded(conv: Conv, norm: _BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Weight (O, C/g, *K) and bias (O,) of `conv` with `norm` behind it, in float64."""
    weight = conv.weight.detach().double()
    bias = torch.zeros_like(weight.flatten(1)[:, 0]) if conv.bias is None else conv.bias.detach().double()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    scale = norm_scale(norm)
    shift = norm.bias.detach().double() if norm.affine else 0
    view = (-1, *(1,) * (weight.dim() - 1))
    return weight * scale.view(view), (bias - norm.running_mean.double()) * scale + shift


def norm_scale(norm: _BatchNorm) -> Tensor:
    """The factor gamma / sqrt(var + eps), shape (O,), in float64."""
    assert norm.running_var is not None
    root = torch.sqrt(norm.running_var.detach().double() + norm.eps)
    return norm.weight.detach().double() / root if norm.affine else 1 / root


def collapsed(block: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that `block` is in eval mode, in float64.

    Raises:
        InputError: the block does not collapse to one convolution.
    """
    from reptool.api.deploy import deploy

    plain = deploy(copy.deepcopy(block).double().eval(), verify=False)
    layers = [m for m in plain.modules() if isinstance(m, CONVS)]
    if len(layers) != 1:
        raise InputError(
            f"{type(block).__name__} collapses to {len(layers)} convolutions, expected one: its branches "
            "cannot be balanced against each other; use branches='silent' or preserve=False."
        )
    return folded(layers[0], None)


@torch.no_grad()
def balance(block: nn.Module, main: Conv, norm: _BatchNorm, conv: Conv, behind: _BatchNorm | None) -> None:
    """Change `main` and `norm`, the main branch of `block`, so that it computes `conv` then `behind`.

    Raises:
        InputError: the block does not collapse to a convolution with the kernel of `conv`.
    """
    scale = norm_scale(norm)
    dead = scale.abs() < 1e-12
    if bool(dead.any()):
        assert norm.running_var is not None
        norm.weight[dead] = torch.sqrt(norm.running_var + norm.eps)[dead]
        main.weight[dead] = 0
        scale = norm_scale(norm)
    weight, bias = folded(conv, behind)
    found, offset = collapsed(block)
    if found.shape != weight.shape:
        raise InputError(
            f"{type(block).__name__} collapses to a kernel of shape {tuple(found.shape)}, expected "
            f"{tuple(weight.shape)}; use branches='silent' or preserve=False."
        )
    change = (weight - found) / scale.view(-1, *(1,) * (weight.dim() - 1))
    main.weight.copy_((main.weight.double() + change).to(main.weight))
    norm.bias.copy_((norm.bias.double() + bias - offset).to(norm.bias))


@torch.no_grad()
def restate(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Give `norm` other statistics and the weights with which it computes what it did."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm_scale(norm)
    norm.bias.copy_(norm.bias.double() + scale * (mean.double() - norm.running_mean.double()))
    norm.weight.copy_(scale * torch.sqrt(variance.double() + norm.eps))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@torch.no_grad()
def difference(block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> float:
    """Largest difference in eval mode between `block` and `conv` then `norm`, relative to their size.

    Branches that cancel each other round by parts of their own size, so that counts as well.
    """
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    weight, bias = folded(conv, norm)
    exact = copy.deepcopy(conv).double().eval()
    exact.weight.copy_(weight)
    exact.bias = nn.Parameter(bias)
    span = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    generator = torch.Generator().manual_seed(0)
    size = [s + 2 + i for i, s in enumerate(span)]
    x = torch.randn(1, conv.in_channels, *size, generator=generator, dtype=torch.float64).to(weight.device)
    wanted = exact(x)
    tried, x = copy.deepcopy(block).to(dtype).eval(), x.to(dtype)
    found = tried(x)
    if found.shape != wanted.shape:
        return float("inf")
    branches = getattr(tried, "branches", None)
    parts = [branch(x) for branch in branches.values()] if isinstance(branches, Parallel) else []
    largest = max(float(part.abs().max()) for part in (wanted, *parts))
    return float((found.double() - wanted).abs().max()) / (largest + 1e-12)
