"""Which arguments give a block the geometry of a convolution, or why it cannot have it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reptool.blocks import OREPA, ACBlock, DilatedReparamBlock, DiverseBranchBlock, LargeKernelBlock
from reptool.errors import InputError
from reptool.expansion.where import Conv
from reptool.models.copies import full_copy
from reptool.models.running import users_code

FROM_CONV = (
    *("in_channels", "out_channels", "channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("bias", "padding_mode", "dim", "basis"),
)
"""Arguments that the convolution decides."""

SCALAR = (ACBlock, DiverseBranchBlock, OREPA, LargeKernelBlock, DilatedReparamBlock)


def arguments(block: Callable[..., nn.Module], conv: Conv) -> dict[str, Any]:
    """The constructor arguments with which `block` has the geometry of `conv`.

    Raises:
        InputError: the block has no such geometry.
    """
    takes = inspect.signature(block).parameters
    dim = len(conv.kernel_size)
    same = tuple(d * (k - 1) / 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    padding: Any = conv.padding
    if isinstance(padding, str):
        padding = same if padding == "same" else (0,) * dim
    wanted: dict[str, Any] = {
        "kernel_size": _plain(conv.kernel_size, takes),
        "stride": _plain(conv.stride, takes),
        "dilation": _plain(conv.dilation, takes),
        "padding": _plain(padding, takes),
        "padding_mode": conv.padding_mode,
        "dim": dim,
    }
    fixed = {
        "kernel_size": 3,
        "stride": 1,
        "dilation": 1,
        "padding": _plain(same, takes),
        "padding_mode": "zeros",
        "dim": 2,
    }
    for name, value in wanted.items():
        if name not in takes and value not in (fixed[name], (fixed[name],) * dim):
            raise InputError(f"it has no {name} (the convolution has {name}={value})")
    if "channels" in takes:
        if not conv.in_channels == conv.out_channels == conv.groups:
            raise InputError("it is depthwise, the convolution is not")
        wanted["channels"] = conv.in_channels
    elif "groups" not in takes and conv.groups > 1:
        raise InputError(f"it has no groups (the convolution has groups={conv.groups})")
    else:
        wanted.update(in_channels=conv.in_channels, out_channels=conv.out_channels, groups=conv.groups)
    return {name: value for name, value in wanted.items() if name in takes}


def _plain(sizes: tuple[Any, ...], takes: Any) -> Any:
    """One whole number where all axes agree."""
    if any(int(size) != size for size in sizes):
        raise InputError("an even kernel has no centre to pad around")
    whole = tuple(int(size) for size in sizes)
    return whole[0] if len(set(whole)) == 1 else whole


def fresh(options: dict[str, Any]) -> dict[str, Any]:
    """Options for one block: modules and tensors among them are copied, and what was given is never touched."""
    return {name: _fresh(value) for name, value in options.items()}


def _fresh(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return full_copy(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, functools.partial) or inspect.ismethod(value):
        return copy.deepcopy(value)
    return value


def asks_the_user(options: dict[str, Any]) -> bool:
    """Whether code or tensors of the user's take part, which need not run on the meta device."""
    stock = (v for v in options.values() if not (isinstance(v, type) and v.__module__.startswith("torch.")))
    return any(callable(v) or isinstance(v, torch.Tensor) for v in stock)


def like(block: Any, conv: Conv) -> Any:
    """`block` with device and dtype of `conv`."""
    return block.to(conv.weight.device, conv.weight.dtype)


def refused(block: Callable[..., nn.Module], conv: Conv, options: dict[str, Any]) -> str | None:
    """None, or why a block cannot stand for a convolution."""

    def build(wanted: Conv) -> nn.Module:
        given = arguments(block, wanted)
        uneven = {name: value for name, value in given.items() if isinstance(value, tuple)}
        if uneven and block in SCALAR:
            shown = ", ".join(f"{name}={value}" for name, value in uneven.items())
            raise InputError(f"it has one number for all axes (the convolution has {shown})")
        return block(**given, **options)

    return attempt(build, conv)


def attempt(build: Callable[[Conv], nn.Module], conv: Conv, meta: bool = True) -> str | None:
    """What `build` says against `conv`, asked on the meta device, where nothing is computed."""
    try:
        if meta:
            with torch.device("meta"):
                build(full_copy(conv).to("meta"))
        else:
            with users_code():
                build(full_copy(conv))
    except InputError as error:
        return str(error).rstrip(".")
    return None
