"""The check of a gate: whether a layer is called by the code that runs its region."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any, NoReturn

from torch import Tensor, fx, nn

from reptool.errors import SpecializedError
from reptool.runtime.gates.calls import MACHINERY, MAX_KNOWN, Calls, first_argument, is_kind, method_of
from reptool.runtime.gates.chain import WITHIN, Chain, Gate, Path
from reptool.runtime.gates.in_place import are_written, has_slots, inside, is_shaped, is_whole
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
    gate = layer.__dict__.get(GATE)
    if gate is None:
        return
    if gate.ranks and given and isinstance(given[0], Tensor):
        rank = given[0].dim()
        if type(rank) is int and rank not in gate.ranks:  # code that is followed gives what stands for one
            _refuse_rank(gate, rank)
    if layer.training or not _is_called_as_before(layer, gate, sys._getframe(2)):
        _check_all(layer, gate, Calls(sys._getframe(2)))


def _check_all(layer: nn.Module, gate: Gate, calls: Calls) -> None:
    own = layer.__dict__
    if layer.training and gate.norms and TOLD not in own:
        own[TOLD] = True
        tell_of_norms(calls.outermost() or layer)
    if not _OPEN.get() and not is_shaped(layer, gate):
        _refuse(gate)
    for chain in gate.chains:
        if _follows(layer, chain, calls):
            return
    if not _OPEN.get() and not runs_all(layer, gate, calls):
        _refuse(gate)


_GOOD: dict[tuple[int, int, int], tuple[CodeType, type, Chain]] = {}
"""Code and classes that a chain of one call was found to fit."""


def _is_called_as_before(layer: nn.Module, gate: Gate, frame: FrameType | None) -> bool:
    """The most frequent case in few steps, since it is at every call: the call that holds the region calls the layer.

    It says no wherever it takes more to know.
    """
    if len(gate.chains) != 1:
        return False
    chain = gate.chains[0]
    if chain.place is None or len(chain.place) != 1 or len(chain.links) != 1:
        return False
    while frame is not None and (id(frame.f_code) in MACHINERY or not frame.f_code.co_argcount):
        frame = frame.f_back
    if frame is None:
        return False
    code, lowest = frame.f_code, first_argument(frame)
    key = id(code), id(type(lowest)), id(chain)
    if key not in _GOOD:
        link = chain.links[0]
        if not isinstance(lowest, nn.Module) or method_of(lowest, code) != link.method:
            return False
        if not is_kind(type(lowest), link):
            return False
        if len(_GOOD) > MAX_KNOWN:
            _GOOD.clear()
        _GOOD[key] = code, type(lowest), chain
    modules = lowest._modules
    if modules.get(chain.place[0]) is not layer:
        return False
    if isinstance(layer, Marker):
        return has_slots(lowest, chain)
    if not is_shaped(layer, gate):
        return False
    if chain.slots and chain.slots != (chain.place,) and not has_slots(lowest, chain):
        return False
    if chain.written and not are_written(lowest, chain):
        return False
    for path in chain.absorbed:
        if not isinstance(modules.get(path[0]) if len(path) == 1 else inside(lowest, path), Marker):
            return False
    for path, count in chain.hooks:  # as `_hooks` counts them, without its call
        held = (layer if path == chain.place else inside(lowest, path) or lowest).__dict__
        if chain.marked and WITHIN not in held:
            return False
        found = len(held["_forward_hooks"]) + len(held["_forward_pre_hooks"])
        if found + len(held["_backward_hooks"]) + len(held["_backward_pre_hooks"]) != count:
            return False
    return True


_OPEN: ContextVar[bool] = ContextVar("open", default=False)


@contextlib.contextmanager
def open_gates() -> Iterator[None]:
    """While this is open, layers run by themselves: what is planned and measured is not what runs."""
    token = _OPEN.set(True)
    try:
        yield
    finally:
        _OPEN.reset(token)


def _follows(layer: nn.Module, chain: Chain, calls: Calls) -> bool:
    """Whether a layer is called as in a chain."""
    if not chain.links:
        return False
    modules: list[tuple[nn.Module, Path | None]] = []
    index = 0
    for link in chain.links:
        while True:
            call = calls.at(index)
            if call is None:
                return False
            index += 1
            if call[1] == link.method and is_kind(type(call[0]), link):
                modules.append((call[0], link.path))
                break
            if isinstance(call[0], fx.GraphModule):
                return traced_through(layer, chain, call[0])
    lowest = modules[-1][0]
    if chain.place is not None and inside(lowest, chain.place) is not layer:
        return False
    for module, path in modules:
        if path and inside(lowest, path) is not module:
            return False
    if isinstance(layer, Marker):  # the layer itself looks after the rest
        return has_slots(lowest, chain)
    return is_whole(lowest, chain)


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
