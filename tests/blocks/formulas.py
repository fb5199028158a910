"""The papers' formulas, written with `F.conv*` alone: what the blocks must compute."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def batch_norm(y: Tensor, bn: Any, training: bool) -> Tensor:
    """Normalize with the statistics of the batch (training) or the running ones."""
    shape = (1, -1) + (1,) * (y.dim() - 2)
    axes = [0, *range(2, y.dim())]
    mean = y.mean(axes) if training else bn.running_mean
    var = y.var(axes, unbiased=False) if training else bn.running_var
    y = (y - mean.view(shape)) / torch.sqrt(var + bn.eps).view(shape)
    return y * bn.weight.view(shape) + bn.bias.view(shape) if bn.affine else y


def centred(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """`weight` in the centre of a kernel of zeros of the given size."""
    pads: list[int] = []
    for inner, outer in zip(reversed(weight.shape[2:]), reversed(size), strict=True):
        pads += [(outer - inner) // 2] * 2
    return F.pad(weight, pads)


def convolve(x: Tensor, weight: Tensor, plain: Any, bias: Tensor | None = None) -> Tensor:
    """Convolve with the geometry of `plain`."""
    if plain.padding_mode != "zeros":
        pads = [p for p in reversed(plain.padding) for _ in range(2)]
        x = F.pad(x, pads, plain.padding_mode)
        return CONVOLVE[x.dim() - 2](x, weight, bias, plain.stride, 0, plain.dilation, plain.groups)
    return CONVOLVE[x.dim() - 2](x, weight, bias, plain.stride, plain.padding, plain.dilation, plain.groups)


def conv_bn(x: Tensor, branch: Any, plain: Any, training: bool) -> Tensor:
    """A smaller convolution in the window of `plain`, then its batch norm."""
    weight = centred(branch.conv.weight, plain.kernel_size)
    return batch_norm(convolve(x, weight, plain), branch.bn, training)


def gradients(module: nn.Module, x: Tensor) -> dict[str, float]:
    """Largest gradient of every parameter after one backward pass of a random projection."""
    y = module(x)
    (y * torch.randn_like(y)).sum().backward()
    return {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in module.named_parameters()}
