"""The check of a gate: whether a layer is called by the code that runs its region."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from reptool.errors import SpecializedError
from reptool.runtime.gates.calls import Calls, is_kind
from reptool.runtime.gates.chain import Chain, Gate
from reptool.runtime.gates.in_place import (
    has_slots,
    inside,
    is_narrow,
    is_shaped,
    is_watched_from_outside,
    is_whole,
    runs_other_methods,
    too_narrow,
)
from reptool.runtime.gates.known import Followed, is_known, remember
from reptool.runtime.gates.marker import GATE, TOLD, Marker, tell_of_norms
from reptool.runtime.gates.whole import runs_all, traced_through


def check(layer: nn.Module, given: tuple[Any, ...] = ()) -> None:
    """Raise where a gated layer is called from code that does not run its region.

    Args:
        layer: that is called.
        given: its positional arguments.

    Raises:
        SpecializedError: with what the layer stands for and what to do.
    """
    own = layer.__dict__
    gate = own.get(GATE)
    if gate is None:
        return
    if given and isinstance(given[0], Tensor):
        rank = given[0].dim() if gate.ranks else None
        if type(rank) is int and rank not in gate.ranks:  # code that is followed gives what stands for one
            _refuse_rank(gate, rank)
        weight = own["_parameters"].get("weight") if gate.scaled else None
        if weight is not None and weight.dtype is not given[0].dtype:
            _check_dtype(layer, gate, weight, given[0])
    if layer.training or not is_known(layer, gate):
        _check_all(layer, gate, sys._getframe(1))


def _check_dtype(layer: nn.Module, gate: Gate, weight: Tensor, given: Tensor) -> None:
    """Refuse an input of another dtype, which the original may have brought to its own before its first layer."""
    found: object = given.dtype
    is_dtype = isinstance(found, torch.dtype) and isinstance(layer, _LAYERS)  # no symbol
    if is_dtype and not torch.is_autocast_enabled(given.device.type):
        raise SpecializedError(
            f"{gate.name!r} was fused by deploy() into a layer of {weight.dtype}, and got an input of {found}: what "
            "the original made of it before its own layers is a part of this one; convert the input or the model"
        )


_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def _check_all(layer: nn.Module, gate: Gate, frame: FrameType) -> None:
    own, calls = layer.__dict__, Calls(frame)
    if layer.training and gate.norms and TOLD not in own:
        own[TOLD] = True
        tell_of_norms(calls.outermost() or layer)
    if not are_open() and not (is_shaped(layer, gate) and not is_watched_from_outside()):
        _refuse(gate)
    weight: Any = layer._parameters.get("weight")
    if not are_open() and gate.wide is not None and is_narrow(weight, gate.wide):
        raise SpecializedError(too_narrow(weight, gate.wide))
    for chain in gate.chains:
        found = followed(layer, chain, calls)
        if found is not None:
            remember(layer, gate, chain, frame, found)
            return
    if not are_open() and not runs_all(layer, gate, calls):
        _refuse(gate)


_OPEN: ContextVar[bool] = ContextVar("open", default=False)


@contextlib.contextmanager
def open_gates() -> Iterator[None]:
    """While this is open, layers run by themselves: what is planned and measured is not what runs."""
    token = _OPEN.set(True)
    try:
        yield
    finally:
        _OPEN.reset(token)


def are_open() -> bool:
    """Whether layers run by themselves now."""
    return _OPEN.get()


def followed(layer: nn.Module, chain: Chain, calls: Calls) -> Followed | None:
    """The calls of a chain that a layer is in, innermost first; None where it is in other ones."""
    found: Followed = []
    index, last = 0, None
    for link in chain.links:
        while True:
            call = calls.at(index)
            if call is None:
                return None
            index += 1
            if call[1] == link.method and is_kind(type(call[0]), link) and (link.own or calls.is_of_class(index - 1)):
                if runs_other_methods(call[0], link.put):
                    return None
                found.append((calls.frames[index - 1], call[0]))
                last = call
                break
            if isinstance(call[0], fx.GraphModule):
                return [] if traced_through(layer, chain, call[0]) else None
            if not (call[0] is layer or call == last or _was_between(call, chain)):  # decorated methods run twice
                return None
    if not found:
        return None
    lowest = found[-1][1]
    if chain.place is not None and inside(lowest, chain.place) is not layer:
        return None
    if any(link.path and inside(lowest, link.path) is not m for link, (_, m) in zip(chain.links, found, strict=True)):
        return None
    whole = has_slots if isinstance(layer, Marker) else is_whole  # the layer itself looks after the rest
    return found if whole(lowest, chain, layer) else None


def _was_between(call: tuple[nn.Module, str], chain: Chain) -> bool:
    """Whether the code that was traced went through a method to the layer."""
    return chain.between is None or any(b.method == call[1] and is_kind(type(call[0]), b) for b in chain.between)


def _refuse_rank(gate: Gate, rank: int) -> NoReturn:
    wanted = " or ".join(map(str, sorted(gate.ranks)))
    raise SpecializedError(
        f"{gate.name!r} was fused by deploy() with a norm that takes inputs of {wanted} dimensions, and got one of "
        f"{rank}"
    )


def _refuse(gate: Gate) -> NoReturn:
    region = ", ".join(map(repr, gate.region))
    raise SpecializedError(
        f"{gate.name!r} was fused by deploy() with {region}, and is called, watched or replaced here in another way "
        "than the forward that was traced does, which would give other values; call the module around it, exclude it "
        "(deploy(model, exclude=...)), or use the original model. If the whole of it is run here, reptool.release() "
        "takes this check away"
    )
