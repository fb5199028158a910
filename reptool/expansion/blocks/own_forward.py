"""Convolutions whose class has a forward of its own: classified by running the class.

A block takes over a kernel, so a class can be expanded exactly where its forward is one of

    W * x + b                       the plain convolution after all (a class that logs, checks or renames)
    W * pad(x) + b                  by a padding that is the same at every size (a causal convolution)
    W * same(x) + b                 by zeros that give ceil(n / s) positions (timm's Conv2dSame)

with its own weight `W` and bias `b`, in both modes. Which one is seen in float64, at sizes down to a pixel over all
remainders of the stride, with a kernel of random numbers in the place of its own. Anything else (a kernel that is
computed from the weight, a scale, a mask) stays, with the reason. A parametrization leaves a layer its class, and so
goes onto any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks.behind import Behind, FixedPad, SamePad
from reptool.expansion.blocks.adapter import Adapter
from reptool.expansion.where import Conv
from reptool.models.copies import full_copy
from reptool.pysource.module_info import stock_forward

EXACT = 1e-12
BORDERS = ("constant", "reflect", "replicate", "circular")
STOCK: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Reading:
    """What a convolution is.

    Args:
        plain: the convolution that its block stands for.
        pad: what the block stands behind, None for nothing.
    """

    plain: Conv
    pad: nn.Module | None = None


def plain_of(conv: Conv) -> bool:
    """Whether a convolution runs torch's own code and nothing else."""
    cls = type(conv)
    return stock_forward(conv) and cls._conv_forward is STOCK[len(conv.kernel_size)]._conv_forward


@torch.no_grad()
def read(conv: Conv) -> Reading | str:
    """The convolution that `conv` is and the padding in front of it, or why it is neither.

    >>> class Causal(nn.Conv1d):
    ...     def forward(self, x):
    ...         return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))
    >>> read(Causal(2, 3, 3, dilation=2)).pad
    FixedPad((4, 0), mode='constant')
    """
    if plain_of(conv):
        return Reading(conv)
    name = type(conv).__name__
    if conv.weight.is_meta:
        return f"{name} has a forward of its own, which is read by running it: not on the meta device"
    twin = _randomized(conv)
    try:
        for pad in _paddings(twin):
            if all(_agree(twin.train(mode), pad) for mode in (True, False)):
                return Reading(_without_padding(conv), pad) if pad is not None else Reading(_as_stock(conv))
    except Exception as error:  # whatever its code raises
        why = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        return f"{name} has a forward of its own that does not run by itself ({why})"
    return (
        f"{name} has a forward of its own, which is no convolution of its (padded) input with its own weight: a block "
        "would take the weight over and leave the rest out"
    )


@dataclass(frozen=True)
class OwnForward(Adapter):
    """An adapter for convolutions of any class, by one that knows the plain ones."""

    inner: Adapter
    found: dict[int, Reading | str] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The block's name."""
        return self.inner.name

    @property
    def takes_norm(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self.inner.takes_norm

    @property
    def has_bias(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self.inner.has_bias

    @property
    def keeps_class(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self.inner.keeps_class

    def read(self, conv: Conv) -> Reading | str:
        """What the inner adapter is asked for."""
        if id(conv) not in self.found:
            self.found[id(conv)] = Reading(conv) if self.keeps_class else read(conv)
        return self.found[id(conv)]

    def stand_ins(self, convs: Mapping[str, Conv]) -> dict[str, nn.Module]:
        """What the convolutions with a forward of their own are, as far as that is known, by path."""
        read = {path: self.read(conv) for path, conv in convs.items()}
        return {
            path: found.plain if found.pad is None else Behind(found.pad, found.plain)
            for path, found in read.items()
            if isinstance(found, Reading) and found.plain is not convs[path]
        }

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the block cannot stand for `conv`."""
        found = self.read(conv)
        return found if isinstance(found, str) else self.inner.can_replace(found.plain)

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block for `conv`, behind its padding."""
        found = self.read(conv)
        assert isinstance(found, Reading)
        block = self.inner.build(found.plain, norm)
        return block if found.pad is None else Behind(found.pad, block)

    def main_norm(self, block: nn.Module) -> _BatchNorm | None:
        """As the inner one, of the block itself."""
        return self.inner.main_norm(inside(block))

    def inner_norms(self, block: nn.Module) -> tuple[_BatchNorm, ...]:
        """As the inner one, of the block itself."""
        return self.inner.inner_norms(inside(block))

    def rebalance(self, block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> None:
        """As the inner one, of the block itself."""
        self.inner.rebalance(inside(block), self.plain(conv), norm)

    def plain(self, conv: Conv) -> Conv:
        """The plain convolution that the block itself stands for."""
        found = self.read(conv)
        return conv if isinstance(found, str) else found.plain


def inside(block: nn.Module) -> nn.Module:
    """The block itself, without the padding in front of it."""
    return block.block if isinstance(block, Behind) else block


# --- what is compared
def _randomized(conv: Conv) -> Conv:
    """A copy in float64 with numbers of its own."""
    twin: Any = full_copy(conv).double().cpu()
    generator = torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    found: Conv = twin
    return found


def _paddings(conv: Conv) -> Iterator[nn.Module | None]:
    """What may stand in front, in the order in which it is tried."""
    yield None
    yield SamePad(conv.kernel_size, conv.stride, conv.dilation)
    totals = _totals(conv)
    if all(total >= 0 for total in totals):
        splits = [dict.fromkeys(((t, 0), (0, t), (t // 2, t - t // 2))) for t in totals]
        for mode, split in itertools.product(BORDERS, itertools.product(*splits)):
            yield FixedPad([side for pair in reversed(split) for side in pair], mode)


def _totals(conv: Conv) -> list[int]:
    """How many positions are added along each axis, seen where the output grows by one."""
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    found: list[int] = []
    for axis, (span, stride) in enumerate(zip(spans, conv.stride, strict=True)):
        size = [2 * s + 2 * t + 2 for s, t in zip(spans, conv.stride, strict=True)]
        before = -1
        for _ in range(stride + 1):
            count = int(conv(_image(conv, size)).shape[2 + axis])
            if before >= 0 and count == before + 1:
                break
            before = count
            size[axis] += 1
        found.append(stride * (count - 1) - size[axis] + span + 1)
    return found


def _image(conv: Conv, size: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, conv.in_channels, *size, generator=generator, dtype=torch.float64)


def _agree(conv: Conv, pad: nn.Module | None) -> bool:
    """Whether a convolution is the plain one behind `pad` (with its own padding where that is None)."""
    stock: Conv = _as_stock(conv) if pad is None else _without_padding(conv)
    for size in _sizes(conv):
        x = _image(conv, size)
        wanted = _tried(lambda x=x: stock(x if pad is None else pad(x)))  # type: ignore[misc]
        found = _tried(lambda x=x: conv(x.clone()))  # type: ignore[misc]
        if (wanted is None) != (found is None):
            return False
        if wanted is None or found is None:
            continue
        if not isinstance(found, Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
            return False
        if not float((found - wanted).abs().max()) <= EXACT * (1 + float(wanted.abs().max())):
            return False
    return True


def _tried(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except RuntimeError:  # an image that is too small for a kernel or for a reflection
        return None


def _sizes(conv: Conv) -> list[list[int]]:
    """Images over every remainder of the strides, and the smallest ones, the axes of unequal sizes."""
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    large = [[span + 2 + i + axis for axis, span in enumerate(spans)] for i in range(2 * max(conv.stride) + 1)]
    return [*large, *([n + axis for axis in range(len(spans))] for n in range(1, min(max(spans), 4) + 2))]


def _as_stock(conv: Conv) -> Conv:
    """The plain convolution of the same arguments, which shares the weights of `conv`."""
    return _stock(conv, conv.padding, conv.padding_mode)


def _without_padding(conv: Conv) -> Conv:
    return _stock(conv, (0,) * len(conv.kernel_size), "zeros")


def _stock(conv: Conv, padding: Any, mode: str) -> Conv:
    made: Conv = STOCK[len(conv.kernel_size)](
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, padding, conv.dilation, conv.groups,
        conv.bias is not None, mode, device="meta",
    )  # fmt: skip
    made.weight, made.bias = conv.weight, conv.bias
    return made.train(conv.training)
