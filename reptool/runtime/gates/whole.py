"""Code that was not traced, and is known to run a region whole: containers, graphs made of it, parts that run again."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import nn

from reptool.runtime.gates.calls import Calls
from reptool.runtime.gates.chain import Chain, Gate, Path
from reptool.runtime.gates.in_place import hooks_differ, inside, is_watched
from reptool.runtime.gates.marker import GATE, Marker


def traced_through(layer: nn.Module, chain: Chain, graph: nn.Module) -> bool:
    """Whether a graph was made of a module that holds the whole region: then it runs what that module runs."""
    if chain.place is None:
        return True
    path = next((p for p, m in graph.named_modules() if m is layer), None)
    return path is not None and tuple(path.split("."))[-len(chain.place) :] == chain.place


def runs_all(layer: nn.Module, gate: Gate, calls: Calls) -> bool:
    """Whether code that was not traced is known to run the region as a whole."""
    index = 0
    while (call := calls.at(index)) is not None:
        index += 1
        if call[1] == "forward" and any(_in_a_row(layer, c, call[0]) for c in gate.chains if c.series):
            return True
    return is_run_again()


def _in_a_row(layer: nn.Module, chain: Chain, holder: nn.Module) -> bool:
    """Whether a container runs the layer and what was absorbed one behind the other, and hands out nothing between."""
    if type(holder).forward is nn.Sequential.forward:
        named: Any = ()
    elif isinstance(holder, nn.ModuleDict) and isinstance(getattr(holder, "return_layers", None), dict):
        named = holder.return_layers
    else:
        return False
    if not chain.place:
        return False
    if chain.slots and chain.place not in chain.slots and not _is_done_in(holder, layer):
        return False
    parts: dict[str, list[Path]] = {chain.place[0]: []}
    for path in chain.absorbed:
        parts.setdefault(path[0], []).append(path[1:])
    for path in chain.written if chain.marked else ():
        parts.setdefault(path[0], [])
    children = [(n, m) for n, m in holder._modules.items() if m is not None]
    rows = [_part_of(m, parts, layer, chain) for _, m in children]
    at = [i for i, row in enumerate(rows) if row is not None]
    if {rows[i] for i in at} != set(parts) or len(at) != len(parts):
        return False
    if isinstance(chain.series, tuple) and [rows[i] for i in at] != [n for n in chain.series if n in parts]:
        return False
    between = range(at[0], at[-1])
    plain = all(rows[i] is not None or _hands_on(children[i][1]) for i in between)
    return plain and not any(children[i][0] in named for i in between)


def _hands_on(module: nn.Module) -> bool:
    """Whether a module between the parts of a region gives what it is given, and nobody sees it."""
    return isinstance(module, (nn.Identity, nn.Dropout)) and not hooks_differ(module, 0)


def _is_done_in(holder: nn.Module, layer: nn.Module) -> bool:
    """Whether a container holds the fused layer that does the work of a module of its region."""
    others = (m for m in holder.modules() if m is not layer and not isinstance(m, Marker))
    return any(_belongs(m, layer) for m in others)


def _part_of(module: nn.Module, parts: dict[str, list[Path]], layer: nn.Module, chain: Chain) -> str | None:
    """Which part of a region a module is."""
    place: Path = chain.place or ()
    for name, absorbed in parts.items():
        held = [inside(module, path) for path in absorbed]
        if not all(isinstance(m, Marker) for m in held):
            continue
        if not all(is_watched(module, p[1:], count, chain) for p, count in chain.hooks if p[0] == name):
            continue
        if not all(_belongs(inside(module, p[1:]), layer) for p in chain.written if p[0] == name):
            continue
        if inside(module, place[1:]) is layer if name == place[0] else all(_belongs(m, layer) for m in held):
            return name
    return None


def _belongs(module: nn.Module | None, layer: nn.Module) -> bool:
    """Whether the region of a module is one that a layer is in."""
    gate = None if module is None else module.__dict__.get(GATE)
    mine = layer.__dict__[GATE].name
    return gate is not None and any(r == mine or r.startswith(f"{mine}.") for r in gate.region)


_AGAIN = {"torch.utils.checkpoint": ("recompute_fn", "unpack_hook", "backward")}


def _is_left_to_python(frame: FrameType | None) -> bool:
    """Whether a call goes through torch's compiler only to say that it is not to be compiled (checkpointing)."""
    return frame is not None and frame.f_globals.get("__name__") == "torch._compile"


def is_run_again() -> bool:
    """Whether torch runs a part of a forward again (checkpointing), or code that it has compiled."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        home, around = frame.f_globals.get("__name__") or "", frame.f_back
        compiled = home.startswith("torch._dynamo.") and not _is_left_to_python(around)
        if compiled or frame.f_code.co_name in _AGAIN.get(home, ()):
            return True
        frame = around
    return False
