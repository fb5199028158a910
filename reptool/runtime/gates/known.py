"""Known calls: a layer that was found to be called rightly is not looked at in full again by the same calls.

What a check found out about the code around a layer is remembered: how many calls up each method of the chain runs, and
of which code. The next call only compares these, and looks whether the modules are still in their places.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from operator import itemgetter
from sys import _getframe
from types import CodeType, FrameType
from typing import Any

from torch import nn
from torch.nn.modules.module import _global_forward_hooks as _BEHIND_ALL
from torch.nn.modules.module import _global_forward_pre_hooks as _BEFORE_ALL

from reptool.runtime.gates.calls import MAX_KNOWN
from reptool.runtime.gates.chain import Chain, Gate, Path
from reptool.runtime.gates.in_place import are_written, drops_alone, inside, is_marked, is_narrow, methods_of
from reptool.runtime.gates.marker import Marker

_hooks_of: Callable[[Any], tuple[Any, ...]] = itemgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
)
_KNOWN: dict[int, Known] = {}
"""By the address of a layer, which may be that of another one by now."""


class Known:
    """One way in which a layer was called rightly.

    Args:
        layer: that was called.
        gate: of it.
        chain: that its call followed.
        calls: of the chain, innermost first: how many frames above the first one that is looked at, and its code.
        lowest: the module of the last.
    """

    __slots__ = (
        "bare",
        "calls",
        "chain",
        "first",
        "gate",
        "is_marker",
        "kind",
        "layer",
        "methods",
        "own_kind",
        "parts",
        "watched",
        "wide",
        "window",
    )

    def __init__(
        self, layer: nn.Module, gate: Gate, chain: Chain, calls: list[tuple[int, CodeType]], lowest: nn.Module
    ) -> None:
        self.layer, self.gate, self.chain, self.calls = weakref.ref(layer), gate, chain, calls
        self.bare, self.wide, self.own_kind = gate.bare, gate.wide, type(layer)
        self.kind, self.first = type(lowest), calls[-1][1].co_varnames[0]
        self.is_marker = isinstance(layer, Marker)
        parts = dict.fromkeys((chain.place or (), *chain.slots, *(() if self.is_marker else chain.absorbed)))
        self.parts = tuple((_short(p), weakref.ref(inside(lowest, p))) for p in parts)
        ways = [(link.path, inside(lowest, link.path), link.put) for link in chain.links if link.path is not None]
        told = [(p, methods_of(type(m)) - put) for p, m, put in ways if m is not None and put is not None]
        self.methods = tuple((_short(p) if p else None, names) for p, names in told if names)
        held = () if isinstance(layer, Marker) else chain.hooks
        self.watched = tuple((None if p == chain.place else _short(p), count) for p, count in held)
        names, values = [n for n, _ in gate.geometry], [v for _, v in gate.geometry]
        self.window = (itemgetter(*names), values[0] if len(values) == 1 else tuple(values)) if names else None

    def holds(self, layer: nn.Module) -> bool:
        """Whether a layer is called in this way again; a no says nothing."""
        try:
            for above, code in self.calls:
                frame = _getframe(above + _ABOVE)
                if frame.f_code is not code:
                    return False
        except ValueError:  # there are not so many
            return False
        held = frame.f_locals
        lowest = held.get(self.first)
        if type(held) is dict:
            held.clear()  # a snapshot, which would keep alive what the code does not hold any more
        return type(lowest) is self.kind and self._is_whole(layer, lowest)

    def _is_whole(self, layer: nn.Module, lowest: Any) -> bool:
        modules, chain, around = lowest._modules, self.chain, lowest.__dict__
        if not self._is_itself(layer, layer.__dict__):
            return False
        for place, part in self.parts:
            if place in around or part() is not (modules.get(place) if type(place) is str else inside(lowest, place)):
                return False
        for at, names in self.methods:
            inner = lowest if at is None else modules.get(at) if type(at) is str else inside(lowest, at)
            if inner is None or not names.isdisjoint(inner.__dict__):
                return False
        if chain.written and not are_written(lowest, chain):
            return False
        for at, count in self.watched:
            inner = layer if at is None else modules.get(at) if type(at) is str else inside(lowest, at)
            if inner is None:
                return False
            seen = inner.__dict__
            if (chain.marked and not is_marked(inner, seen)) or sum(map(len, _hooks_of(seen))) != count:
                return False
            if "forward" in seen or (seen["training"] and drops_alone(lowest, inner)):
                return False
        return True

    def _is_itself(self, layer: nn.Module, own: dict[str, Any]) -> bool:
        """Whether the layer runs its own code with its own window, and nobody looks at all modules there are."""
        if type(layer) is not self.own_kind or "forward" in own or _BEHIND_ALL or _BEFORE_ALL:
            return False
        if self.is_marker and (own["_forward_pre_hooks"] or own["_forward_hooks"]):
            return False
        if self.wide is not None and is_narrow(own["_parameters"].get("weight"), self.wide):
            return False
        if self.bare and any(own["_parameters"].get(name) is not None for name in self.bare):
            return False
        return self.window is None or bool(self.window[0](own) == self.window[1])


_ABOVE = 3
"""Frames between `Known.holds` and the one from which the calls of a layer are counted."""


def _short(path: Path) -> Any:
    return path[0] if len(path) == 1 else path


def is_known(layer: nn.Module, gate: Gate) -> bool:
    """Whether a layer is called as it was before; only `check` may ask, since calls are counted from there."""
    known = _KNOWN.get(id(layer))
    return known is not None and known.layer() is layer and known.gate is gate and known.holds(layer)


Followed = list[tuple[FrameType, nn.Module]]
"""Frames and modules of the calls of a chain, innermost first."""


def remember(layer: nn.Module, gate: Gate, chain: Chain, frame: FrameType, found: Followed) -> None:
    """Remember that a layer was called rightly.

    Args:
        layer: that was called.
        gate: of it.
        chain: that was followed.
        frame: from where its calls are counted.
        found: the chain's calls.
    """
    if len(_KNOWN) > MAX_KNOWN:
        _KNOWN.clear()
    calls: list[tuple[int, CodeType]] = []
    at: FrameType | None = frame
    count = 0
    for call, _ in found:
        while at is not None and at is not call:
            at, count = at.f_back, count + 1
        calls.append((count, call.f_code))
    if chain.place is not None and found:
        _KNOWN[id(layer)] = Known(layer, gate, chain, calls, found[-1][1])
