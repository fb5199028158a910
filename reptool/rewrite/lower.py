"""Lower: a kernel as plain layers, cast once from float64."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from reptool.algebra.kernel import Border, Kernel
from reptool.algebra.resampling import Resampling
from reptool.algebra.side_by_side import Part, kernel_of_each, upsampling
from reptool.fusions.linear import pointwise_to_linear
from reptool.plan.cost import is_same_padding
from reptool.plan.forms import Form
from reptool.refusal import Code, Refusal
from reptool.runtime.layers.side_by_side import SideBySide

_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_PADS = {"constant": "ZeroPad", "reflect": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}
_MODES = {Border.REFLECT: "reflect", Border.REPLICATE: "replicate", Border.CIRCULAR: "circular"}


@dataclass(frozen=True)
class Place:
    """Dtype, device and memory format of a layer to be made."""

    dtype: torch.dtype
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format

    @staticmethod
    def of(weight: Tensor) -> Place:
        """Where `weight` lives."""
        channels_last = (
            weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        )
        return Place(weight.dtype, weight.device, torch.channels_last if channels_last else torch.contiguous_format)


@dataclass(frozen=True)
class Geometry:
    """Everything about a layer but its values; equal geometries can share a layer object."""

    kind: str  # "linear", "conv", "transposed" or "deformable"
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    output_padding: tuple[int, ...] = ()
    outer: tuple[tuple[int, int], ...] | None = None  # pad or crop in front of the layer, per axis
    outer_mode: str = "constant"
    before: tuple[Resampling, ...] = ()  # what moves positions in front of a pointwise layer, and behind it
    behind: tuple[Resampling, ...] = ()
    parts: tuple[Geometry, ...] = ()  # one layer for each resolution of what stands side by side
    which: tuple[tuple[int, ...], ...] = ()  # the values that each reads

    def __str__(self) -> str:
        """The layer in words: ``Conv2d(3, 8, 3x3, padding=(1, 1))``."""
        if self.kind == "linear":
            return f"Linear({self.in_channels}, {self.out_channels})"
        if self.parts:
            return " + ".join(map(str, self.parts))
        name = {"transposed": "ConvTranspose", "deformable": "DeformConv"}.get(self.kind, "Conv")
        extra = "".join(
            f", {k}={v}"
            for k, v, plain in (
                ("stride", self.stride, (1,) * len(self.stride)),
                ("padding", self.padding, (0,) * len(self.kernel_size)),
                ("dilation", self.dilation, (1,) * len(self.dilation)),
                ("groups", self.groups, 1),
                ("outer", self.outer, None),
            )
            if v != plain
        )
        size = "x".join(map(str, self.kernel_size))
        layer = f"{name}{len(self.kernel_size)}d({self.in_channels}, {self.out_channels}, {size}{extra})"
        return " -> ".join(map(str, (*self.before, layer, *self.behind)))


def layer_of(form: Form) -> Geometry | Refusal:
    """The layer that holds a form, with what resamples around it.

    Refuses: as `geometry`.
    """
    found = geometry(form.shape)
    if not isinstance(found, Refusal) and form.joined is not None:
        return _side_by_side(form.shape, form.joined.parts, found)
    if isinstance(found, Refusal) or not form.around:
        return found
    return replace(found, before=form.around[: form.at], behind=form.around[form.at :])


def _side_by_side(kernel: Kernel, parts: Sequence[Part], whole: Geometry) -> Geometry | Refusal:
    kernels = kernel_of_each(kernel, parts)
    if isinstance(kernels, Refusal):
        return kernels
    ups = [upsampling(kernel, part) for part in parts]
    made = [(geometry(k), () if up is None else (up,)) for k, up in zip(kernels, ups, strict=True)]
    layers = [g if isinstance(g, Refusal) else replace(g, behind=up) for g, up in made]
    refused = next((g for g in layers if isinstance(g, Refusal)), None)
    held = tuple(g for g in layers if isinstance(g, Geometry))
    return refused or replace(whole, parts=held, which=tuple(p.which for p in parts))


def geometry(kernel: Kernel) -> Geometry | Refusal:  # long: a kind of layer after the other
    """The layer that holds a kernel of this shape.

    Refuses: `LAYOUT` (a grouped linear map), `BORDER_UNKNOWN`, `CONSTANT_VALUE` (constants per channel), `BORDER_MODE`.
    """
    channels, axes = kernel.channels, kernel.axes
    if channels is None or axes is None:
        return Refusal(Code.CHANNELS, "the number of channels or axes is not known")
    if kernel.transposed is not None:
        size, stride, padding, output_padding, dilation, *which = kernel.transposed
        if which and which[0][1] != channels.groups:
            return Refusal(Code.CHANNELS, "a deformable convolution of groups behind which channels are mixed")
        return Geometry(
            "deformable" if which else "transposed",
            channels.in_channels,
            channels.out_channels,
            size,
            stride,
            padding,
            dilation,
            channels.groups,
            "zeros",
            output_padding,
        )
    if any(a.border is Border.UNKNOWN for a in axes):
        return Refusal(Code.BORDER_UNKNOWN, "the padding depends on the size of the input")
    if not axes:
        return Geometry("linear", channels.in_channels, channels.out_channels)
    if any(a.border is Border.CONSTANT for a in axes):
        return Refusal(Code.CONSTANT_VALUE, "no layer pads each channel with a constant of its own")
    modes = {a.border for a in axes if a.reads_outside}
    if len(modes) > 1:
        return Refusal(Code.BORDER_MODE, "no layer extends its axes in different ways")
    mode = modes.pop() if modes else Border.ZEROS
    common: dict[str, Any] = {
        "kernel_size": tuple(a.kernel_size for a in axes),
        "stride": tuple(a.stride for a in axes),
        "dilation": tuple(a.dilation for a in axes),
        "groups": channels.groups,
    }
    plain = ("conv", channels.in_channels, channels.out_channels)
    if all(a.before == a.after >= 0 for a in axes):
        padding = tuple(a.before for a in axes)
        return Geometry(*plain, padding=padding, padding_mode=mode.value, **common)
    if mode is Border.ZEROS and all(is_same_padding(a) for a in axes):
        return Geometry(*plain, padding="same", **common)
    pads = tuple((a.before, a.after) for a in axes)
    outer_mode = "constant" if mode is Border.ZEROS else _MODES[mode]
    if mode is not Border.ZEROS and any(p < 0 for pair in pads for p in pair):
        return Refusal(Code.BORDER_MODE, f"{mode.value} padding on one side and a crop on the other")
    return Geometry(*plain, padding=(0,) * len(axes), outer=pads, outer_mode=outer_mode, **common)


def arranged(kernel: Kernel, parts: Sequence[Part] = ()) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in a layer's own storage order, in float64; they may share memory with the kernel.

    Of a layer for each of several parts, the weights are one vector.
    """
    if parts:
        kernels = kernel_of_each(kernel, parts)
        assert not isinstance(kernels, Refusal)  # its shape has them
        return torch.cat([arranged(k)[0].flatten() for k in kernels]), kernel.bias
    weight = kernel.grouped_weight()
    if kernel.axes == () and kernel.channels is not None and kernel.channels.groups > 1:
        weight = pointwise_to_linear(weight, kernel.channels.groups)
    if kernel.transposed is not None and len(kernel.transposed) == 5 and kernel.channels is not None:
        groups = kernel.channels.groups
        o, i = weight.shape[0], weight.shape[1]
        weight = (
            weight.reshape(groups, o // groups, i, *weight.shape[2:])
            .transpose(1, 2)
            .reshape(groups * i, o // groups, *weight.shape[2:])
        )
    return weight, kernel.bias


def values(kernel: Kernel, place: Place, parts: Sequence[Part] = ()) -> tuple[Tensor, Tensor | None] | Refusal:
    """Weight and bias of a layer, cast once.

    Refuses: `NON_FINITE` (the float64 kernel is not finite), `OVERFLOW` (it is, the cast is not).
    """
    tensors = [t for t in arranged(kernel, parts) if t is not None]
    cast = [t.to(place.dtype).to(place.device) for t in tensors]
    if not all(map(is_finite, cast)):
        if not all(map(is_finite, tensors)):
            return Refusal(Code.NON_FINITE, "the folded weight holds NaN or infinity")
        largest = max(float(t.abs().max()) for t in tensors)
        return Refusal(Code.OVERFLOW, f"the folded weight does not fit {place.dtype} (largest {largest:.3g})")
    if cast[0].dim() == 4:
        cast[0] = cast[0].contiguous(memory_format=place.memory_format)
    own = [t.clone() if place.dtype == torch.float64 else t for t in cast]  # nothing was cast: it may be the model's
    return own[0], own[1] if len(own) > 1 else None


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: in one pass, without a copy."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def weight_shape(shape: Geometry) -> tuple[int, ...]:
    """The shape of a layer's weight; of a layer for each of several parts, that of all in one vector."""
    if shape.parts:
        return (sum(prod(weight_shape(part)) for part in shape.parts),)
    if shape.kind == "linear":
        return shape.out_channels, shape.in_channels
    if shape.kind == "transposed":
        return shape.in_channels, shape.out_channels // shape.groups, *shape.kernel_size
    return shape.out_channels, shape.in_channels // shape.groups, *shape.kernel_size


def new_layer(shape: Geometry, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A fresh layer of this geometry: `nn.Linear`, `nn.Conv*d` or `nn.ConvTranspose*d`, padding in front if needed."""
    if shape.parts:
        return _of_parts(shape, weight, bias)
    layer = _like(blank(shape, bias is not None))
    set_values(layer, weight, bias)
    if shape.before or shape.behind:
        return _between(shape, layer)
    if shape.outer is None:
        return layer
    n = len(shape.kernel_size)
    flat = [p for pair in reversed(shape.outer) for p in pair]
    pad = nn.ZeroPad2d(flat) if n == 2 and shape.outer_mode == "constant" else _pad_module(n, flat, shape.outer_mode)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(pad=pad, conv=layer)).eval()


def _of_parts(shape: Geometry, weights: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer for each part, of weights that are one vector; the first has the bias."""
    made = [new_layer(part, w, None if i else bias) for i, (part, w) in enumerate(split(shape, weights))]
    return SideBySide(made, shape.which).eval()


def split(shape: Geometry, weights: Tensor) -> list[tuple[Geometry, Tensor]]:
    """Each part of a layer of parts with its weight, of weights that are one vector; any other layer with its own."""
    if not shape.parts:
        return [(shape, weights)]
    sizes = [weight_shape(part) for part in shape.parts]
    each = weights.split([prod(size) for size in sizes])
    return [(part, w.reshape(size).clone()) for part, w, size in zip(shape.parts, each, sizes, strict=True)]


def _between(shape: Geometry, layer: nn.Module) -> nn.Module:
    """A layer with what resamples in front of it and behind it."""
    parts = [(f"resample{i or ''}", r.module()) for i, r in enumerate((*shape.before, *shape.behind))]
    parts.insert(len(shape.before), ("conv", layer))
    return nn.Sequential(OrderedDict(parts)).eval()


@lru_cache(256)
def blank(shape: Geometry, biased: bool) -> nn.Module:
    """A layer of a geometry on the meta device: nobody's, since making one takes longer than all that is done to it."""
    n = len(shape.kernel_size)
    common: dict[str, Any] = {"bias": biased, "device": "meta"}
    if shape.kind == "linear":
        return nn.Linear(shape.in_channels, shape.out_channels, **common).eval()
    plain = (shape.in_channels, shape.out_channels, shape.kernel_size)
    common |= {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups, "dilation": shape.dilation}
    if shape.kind == "transposed":
        made: nn.Module = _TRANSPOSED[n](*plain, output_padding=shape.output_padding, **common)
    else:
        made = _CONVS[n](*plain, padding_mode=shape.padding_mode, **common)
    return made.eval()


def _like(layer: nn.Module) -> nn.Module:
    """Another layer of the same kind and settings, with tables of its own."""
    made: nn.Module = object.__new__(type(layer))
    for name, value in vars(layer).items():
        vars(made)[name] = value.copy() if isinstance(value, (dict, set, list)) else value
    return made


def _pad_module(axes: int, flat: list[int], mode: str) -> nn.Module:
    made: nn.Module = getattr(nn, f"{_PADS[mode]}{axes}d")(tuple(flat))
    return made


def set_values(layer: nn.Module, weight: Tensor, bias: Tensor | None, like: nn.Parameter | None = None) -> None:
    """Give a layer new parameters (the object, its attributes and its hooks stay)."""
    grad = True if like is None else like.requires_grad
    layer.weight = nn.Parameter(weight, requires_grad=grad)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=grad))


def geometry_of(layer: nn.Module) -> Geometry | None:
    """The geometry of an existing plain layer, None for anything else."""
    if isinstance(layer, nn.Linear):
        return Geometry("linear", layer.in_features, layer.out_features)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return Geometry(
            "transposed",
            layer.in_channels,
            layer.out_channels,
            tuple(layer.kernel_size),
            tuple(layer.stride),
            tuple(layer.padding),  # type: ignore[arg-type]
            tuple(layer.dilation),
            layer.groups,
            layer.padding_mode,
            tuple(layer.output_padding),
        )
    if isinstance(layer, nn.modules.conv._ConvNd):
        padding: Any = layer.padding
        if padding == "valid":
            padding = (0,) * len(layer.kernel_size)
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            padding = tuple(t // 2 for t in total) if all(t % 2 == 0 for t in total) else "same"
        dilation = tuple(d if k > 1 else 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        reads = any(padding) if not isinstance(padding, str) else True
        return Geometry(
            "conv",
            layer.in_channels,
            layer.out_channels,
            tuple(layer.kernel_size),
            tuple(layer.stride),
            padding if isinstance(padding, str) else tuple(padding),
            dilation,
            layer.groups,
            layer.padding_mode if reads else "zeros",
        )
    return None
