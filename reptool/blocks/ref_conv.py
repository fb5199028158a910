"""RefConv: a convolution whose kernel is a trainable transformation of a frozen one.

    W_t = W_b * W_r + W_b

`W_b` (C_out, C_in/g, K, K) is seen as one image of N = C_out C_in/g channels, `W_r` is a convolution of it
with G groups and padding k//2. With G = C_out C_in/g^2 a dense kernel is filtered slice by slice and a
depthwise one is mixed fully.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import Size, check_channels, check_odd, per_axis, require
from ._window import CONV, CONVOLVE, PADDING_MODES

Init = Literal["xavier", "zeros"] | Callable[[Tensor], Any]
Transform = Callable[[Tensor], Tensor]
Factory = Callable[[tuple[int, ...], int], Transform]
MapGroups = int | Callable[[tuple[int, ...], int], int] | None


class RefConv(nn.Module):
    """Re-parameterized refocusing convolution: trains how a kernel's slices attend to each other.

    The basis weights are the buffer `weight`, the refocusing weights are `convmap.weight`: the names of the
    authors' checkpoints.

    Args:
        in_channels: channels C_in of the input (N, C_in, ...).
        out_channels: channels C_out of the output (N, C_out, ...).
        kernel_size: size K of the kernel, one number or one per axis, at least `map_kernel_size`.
        stride: stride of the convolution.
        padding: padding of the convolution, or "same" (stride 1) or "valid".
        dilation: dilation of the convolution.
        groups: groups g of the convolution.
        bias: whether the convolution has a (trainable) bias.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        map_kernel_size: odd size k of the refocusing kernel.
        map_groups: groups G of the refocusing convolution; None takes C_out C_in/g^2, a function takes the shape of
            the kernel and the groups g and gives them.
        init: start of the refocusing weights, "xavier" or "zeros" (the kernel then starts as the basis), or a function
            that fills a tensor, such as `torch.nn.init.orthogonal_`.
        identity: whether the basis is added to the transformed kernel.
        basis: basis weights (C_out, C_in/g, *K) to copy; None draws them as a new convolution does.
        train_basis: whether the basis weights are trained too (a parameter instead of a buffer).
        transform: module or function (1, N, *K) -> (1, N, *K) in place of the refocusing convolution, or a function
            of two arguments, the shape of the kernel and the groups g, that makes one; the arguments
            `map_kernel_size`, `map_groups` and `init` then play no part.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: kernel smaller than the map kernel, even map kernel, groups that do not divide the
            channels, map_groups that does not divide C_out C_in/g, basis of another shape, unknown options.

    Paper:
        Cai et al., "RefConv: Re-parameterized Refocusing Convolution for Powerful ConvNets", section 3.

    Example:
        >>> import torch
        >>> conv = RefConv(8, 8, 3, padding=1, groups=8, init="zeros")
        >>> conv.convmap.weight.shape
        torch.Size([8, 8, 3, 3])
        >>> torch.equal(conv.transformed_weight(), conv.weight)
        True
    """

    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | Literal["same", "valid"] = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        map_kernel_size: Size = 3,
        map_groups: MapGroups = None,
        init: Init = "xavier",
        identity: bool = True,
        basis: Tensor | None = None,
        train_basis: bool = False,
        transform: Transform | Factory | None = None,
        dim: int = 2,
    ) -> None:
        super().__init__()
        check_channels("RefConv", in_channels, out_channels, groups)
        per_axis("kernel_size", kernel_size, dim, 1)
        require(
            padding_mode in PADDING_MODES,
            f"RefConv with padding_mode={padding_mode!r}",
            f"one of {', '.join(PADDING_MODES)}",
            "choose one of these",
        )
        plain = CONV[dim](in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = plain.kernel_size, plain.stride, plain.dilation
        self.padding, self.padding_mode, self.border = plain.padding, padding_mode, _border(plain)
        self.identity, self.dim = identity, dim
        self.weight_shape: tuple[int, ...] = tuple(plain.weight.shape)
        self._set_basis(plain.weight if basis is None else basis, train_basis)
        self.register_parameter("bias", plain.bias)
        self.convmap = map_for(self.weight_shape, groups, transform, map_kernel_size, map_groups, init)

    def _set_basis(self, basis: Tensor, train: bool) -> None:
        require(
            isinstance(basis, Tensor),
            f"RefConv with a {type(basis).__name__} as basis",
            "a tensor",
            "give torch.from_numpy(array) for an array",
        )
        require(
            tuple(basis.shape) == self.weight_shape,
            f"RefConv with a basis of shape {tuple(basis.shape)}",
            f"shape {self.weight_shape}",
            "pass the weight of a convolution with the same channels, groups and kernel size",
        )
        start = basis.detach().clone()
        if train:
            self.weight = nn.Parameter(start)
        else:
            self.register_buffer("weight", start)

    @classmethod
    def from_conv(cls, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, *, inherit: bool = True, **options: Any) -> RefConv:
        """Make a RefConv with the geometry, bias, device, dtype and mode of `conv`.

        Args:
            conv: the convolution to refocus; it is not modified.
            inherit: whether the basis is the kernel of `conv` (as in the paper) or drawn anew.
            options: keyword-only arguments of the constructor except `dim` and `basis`.

        Raises:
            InputError: not a convolution, a transposed one, or one the constructor refuses.

        Example:
            >>> import torch
            >>> conv = nn.Conv2d(4, 8, 3)
            >>> x = torch.randn(1, 4, 5, 5)
            >>> torch.equal(RefConv.from_conv(conv, init="zeros")(x), conv(x))
            True
        """
        require(
            isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d),
            f"RefConv.from_conv with {type(conv).__name__}",
            "nn.Conv1d, nn.Conv2d or nn.Conv3d",
            "build the RefConv with its constructor",
        )
        block = cls(
            conv.in_channels,
            conv.out_channels,
            tuple(conv.kernel_size),
            tuple(conv.stride),
            cast(Any, conv.padding),
            tuple(conv.dilation),
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            dim=len(conv.kernel_size),
            basis=conv.weight if inherit else None,
            **options,
        )
        if conv.bias is not None:
            block.bias = nn.Parameter(conv.bias.detach().clone())
        return block.to(conv.weight.device, conv.weight.dtype).train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C_in, ...) with the transformed kernel."""
        weight = self.transformed_weight()
        convolve = CONVOLVE[self.dim]
        if self.padding_mode != "zeros":
            x = F.pad(x, self.border, self.padding_mode)
            return convolve(x, weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def transformed_weight(self) -> Tensor:
        """The kernel W_t in use, shape (C_out, C_in/g, *K)."""
        return refocus(self.weight, self.convmap, self.identity)

    def extra_repr(self) -> str:
        """Arguments that the children do not show."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, identity={self.identity}"
        )


def refocus(basis: Tensor, transform: Transform, identity: bool = True) -> Tensor:
    """Transform a kernel: T(W_b) + W_b.

    Args:
        basis: kernel W_b (C_out, C_in/g, *K).
        transform: T, which takes and returns (1, C_out C_in/g, *K).
        identity: whether W_b is added.

    Example:
        >>> import torch
        >>> refocus(torch.ones(2, 3, 3, 3), torch.neg).abs().max()
        tensor(0.)
    """
    mapped = transform(basis.flatten(0, 1).unsqueeze(0)).reshape_as(basis)
    return mapped + basis if identity else mapped


def map_for(
    weight_shape: tuple[int, ...],
    groups: int,
    transform: Transform | Factory | None,
    map_kernel_size: Size,
    map_groups: MapGroups,
    init: Init,
) -> Transform:
    """The map of one kernel: what was given, what that makes for this kernel, or the refocusing convolution.

    Args:
        weight_shape: shape (C_out, C_in/g, *K) of the kernel.
        groups: groups g of the convolution the kernel belongs to.
        transform: as for `RefConv`.
        map_kernel_size: as for `RefConv`.
        map_groups: as for `RefConv`.
        init: as for `RefConv`.

    Raises:
        InputError: a factory whose result cannot be called, and what `refocusing_map` raises.

    Example:
        >>> map_for((4, 1, 3, 3), 4, lambda shape, groups: nn.Conv2d(shape[0], shape[0], 1), 3, None, "xavier")
        Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1))
    """
    if transform is None:
        return refocusing_map(weight_shape, groups, map_kernel_size, map_groups, init)
    if not _makes_a_map(transform):
        return cast(Transform, transform)
    made = cast(Factory, transform)(weight_shape, groups)
    require(
        callable(made),
        f"RefConv with a transform that makes a {type(made).__name__} of {weight_shape} and groups={groups}",
        "a module or a function (1, N, *K) -> (1, N, *K)",
        "return one",
    )
    return made


def _makes_a_map(transform: Any) -> bool:
    """Whether a transform takes a shape and groups and makes the map, rather than being it."""
    if isinstance(transform, nn.Module):
        return False
    if isinstance(transform, type):
        return True
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):  # built in, as torch's own functions are
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) == 2


def refocusing_map(
    weight_shape: tuple[int, ...],
    groups: int,
    kernel_size: Size = 3,
    map_groups: MapGroups = None,
    init: Init = "xavier",
) -> nn.Module:
    """Make the convolution W_r that transforms a kernel seen as an image of N = C_out C_in/g channels.

    Args:
        weight_shape: shape of the kernel to transform.
        groups: groups g of the convolution the kernel belongs to.
        kernel_size: odd size k of the map, at most K on every axis.
        map_groups: groups G of the map; None takes C_out C_in/g^2, a function takes `weight_shape` and `groups`.
        init: "xavier" (uniform, with the fans of one group), "zeros", or a function that fills the map's weight.

    Raises:
        InputError: K < k, even k, G that does not divide N, unknown init.

    Example:
        >>> import torch
        >>> refocusing_map((16, 8, 3, 3), groups=1).groups
        128
    """
    outputs, per_group, *kernel = weight_shape
    slices = outputs * per_group
    size = per_axis("map_kernel_size", kernel_size, len(kernel), 1)
    check_odd("RefConv", "map_kernel_size", size)
    require(
        all(k <= whole for k, whole in zip(size, kernel, strict=True)),
        f"RefConv with kernel_size={tuple(kernel)}, map_kernel_size={size}",
        "a kernel at least as large as the map's",
        "leave such layers as they are (as the paper does with 1x1) or use map_kernel_size=1",
    )
    chosen = map_groups(weight_shape, groups) if callable(map_groups) else map_groups
    count = slices // groups if chosen is None else chosen
    require(
        type(count) is int and count >= 1 and slices % count == 0,
        f"RefConv with map_groups={count}",
        f"a divisor of C_out C_in/g = {slices}",
        "use None for the paper's formula C_out C_in/g^2",
    )
    require(
        callable(init) or init in ("xavier", "zeros"),
        f"RefConv with init={init!r}",
        '"xavier", "zeros" or a function that fills a tensor',
        "choose one of these",
    )
    convmap = CONV[len(kernel)](slices, slices, size, padding=tuple(k // 2 for k in size), groups=count, bias=False)
    if callable(init):
        with torch.no_grad():
            init(convmap.weight)
        return cast(nn.Module, convmap)
    fan = slices // count * math.prod(size)
    bound = math.sqrt(6 / (fan + fan)) if init == "xavier" else 0.0
    nn.init.uniform_(convmap.weight, -bound, bound)
    return cast(nn.Module, convmap)


def _border(conv: Any) -> tuple[int, ...]:
    """Padding of `conv` in the order of `F.pad`: last axis first, before and after."""
    if conv.padding == "valid":
        return (0, 0) * len(conv.kernel_size)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return tuple(side for t in reversed(total) for side in (t // 2, t - t // 2))
    return tuple(p for p in reversed(conv.padding) for _ in range(2))
