"""`Gate`: a layer that stands for a whole region runs only where the code around it runs that region.

A fused layer means more than its name says, and a module that was absorbed means nothing by itself. The gate of such a
layer looks at the calls that it is in: from the layer up to the lowest call that holds the region, they have to be
those that were traced, with every module of the region in its place and nobody listening in between. What is above does
not matter. Modules are known by their places below that lowest call, so that copies and pickles need nothing else.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import CodeType, FrameType, FunctionType
from typing import Any, NoReturn, Tuple  # noqa: UP035 - TorchScript reads this annotation

import torch
from torch import Tensor, fx, nn

from reptool.errors import SpecializedError
from reptool.runtime.absorbed import GATE, TOLD, Absorbed, tell_of_norms

_AS_IT_WAS = "_reptool_original_"
Path = tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """One call of the chain.

    Args:
        path: of its module, below the module of the lowest call that holds the region; None where it is elsewhere.
        kind: the full name of the module's class.
        method: that runs.
        own: whether the method was put on the instance.
    """

    path: Path | None
    kind: str
    method: str
    own: bool = False


@dataclass(frozen=True)
class Chain:
    """The calls from a layer up to the lowest one that holds the region.

    Args:
        links: innermost first; without any, nothing runs the layer any more.
        place: of the layer, as `Link.path`.
        absorbed: places of the region's absorbed modules.
        hooks: places of modules whose values are inside of the region, and how many hooks they have.
        series: whether the region is modules that run one behind the other.
        slots: places of the fused layers that do its work, as far as they have gates.
        written: places of the region's modules whose methods were written anew.
    """

    links: tuple[Link, ...]
    place: Path | None
    absorbed: tuple[Path, ...] = ()
    hooks: tuple[tuple[Path, int], ...] = ()
    series: bool = False
    slots: tuple[Path, ...] = ()
    written: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Gate:
    """The calls that a layer may run in.

    Args:
        name: the layer's path in the model.
        region: paths of the modules and tensors whose work it does.
        chains: any of these.
        norms: how many norms are in the region.
        geometry: what the layer's attributes say of its window.
    """

    name: str
    region: tuple[str, ...]
    chains: tuple[Chain, ...]
    norms: int = 0
    geometry: tuple[tuple[str, Any], ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Gate:
        return self


def runs_in_its_region(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """A forward pre-hook of a layer that stands for a region."""
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        pass
    else:
        check(self)


def set_gate(module: nn.Module, gate: Gate) -> None:
    """Put a gate in front of a layer, in the place of an earlier one; an absorbed module asks for it by itself."""
    own = module.__dict__
    own[GATE] = replace(gate, geometry=tuple((n, own[n]) for n in _GEOMETRY if n in own))
    if not isinstance(module, Absorbed) and runs_in_its_region not in module._forward_pre_hooks.values():
        nn.Module.register_forward_pre_hook(module, runs_in_its_region)


_GEOMETRY = ("padding", "stride", "dilation", "groups", "padding_mode", "output_padding")


def move_gate(module: nn.Module, name: str) -> None:
    """Let a layer run in a graph that calls it by another name."""
    gate = module.__dict__.get(GATE)
    if gate is not None:
        chains = tuple(replace(c, place=None if c.place is None else (name,)) for c in gate.chains)
        module.__dict__[GATE] = replace(gate, chains=chains)


def drop_gate(module: nn.Module) -> None:
    """Take the gate of a layer away."""
    module.__dict__.pop(GATE, None)
    for key in [k for k, h in module._forward_pre_hooks.items() if h is runs_in_its_region]:
        del module._forward_pre_hooks[key]


# --- the check ------------------------------------------------------------------------------------------------------
_MACHINERY = {
    id(f.__code__) for f in (nn.Module._call_impl, nn.Module._wrapped_call_impl, nn.Module._slow_forward)
}  # by address: the hash of code goes through all of it


def check(layer: nn.Module) -> None:
    """Raise where a gated layer is called from code that does not run its region.

    Raises:
        SpecializedError: with what the layer stands for and what to do.
    """
    gate = layer.__dict__.get(GATE)
    if gate is not None and (layer.training or not _is_called_as_before(layer, gate, sys._getframe(2))):
        _check_all(layer, gate, _Calls(sys._getframe(2)))


def _check_all(layer: nn.Module, gate: Gate, calls: _Calls) -> None:
    own = layer.__dict__
    if layer.training and gate.norms and TOLD not in own:
        own[TOLD] = True
        tell_of_norms(calls.outermost() or layer)
    for chain in gate.chains:
        if _follows(layer, chain, calls):
            return
    if not _OPEN.get() and not _runs_all(layer, gate, calls):
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
    while frame is not None and (id(frame.f_code) in _MACHINERY or not frame.f_code.co_argcount):
        frame = frame.f_back
    if frame is None:
        return False
    code, lowest = frame.f_code, _first_argument(frame)
    key = id(code), id(type(lowest)), id(chain)
    if key not in _GOOD:
        link = chain.links[0]
        if not isinstance(lowest, nn.Module) or _method_of(lowest, code) != link.method:
            return False
        if not _is_kind(type(lowest), link):
            return False
        if len(_GOOD) > MAX_KNOWN:
            _GOOD.clear()
        _GOOD[key] = code, type(lowest), chain
    modules = lowest._modules
    if modules.get(chain.place[0]) is not layer:
        return False
    if type(layer) is Absorbed:
        return _has_slots(lowest, chain)
    if not _is_shaped(layer, gate):
        return False
    if chain.slots and chain.slots != (chain.place,) and not _has_slots(lowest, chain):
        return False
    if chain.written and not _are_written(lowest, chain):
        return False
    for path in chain.absorbed:
        if type(modules.get(path[0]) if len(path) == 1 else _inside(lowest, path)) is not Absorbed:
            return False
    for path, count in chain.hooks:  # as `_hooks` counts them, without its call
        held = (layer if path == chain.place else _inside(lowest, path) or lowest).__dict__
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


def _first_argument(frame: FrameType) -> Any:
    """What a frame's code was given first: the module, where it is a method of one."""
    code, held = frame.f_code, frame.f_locals
    first = held.get(code.co_varnames[0])
    if type(held) is dict and sys.getrefcount(held) <= 3 and code.co_flags & 2:
        held.clear()  # a snapshot, which would keep alive what the code does not hold any more
    return first


class _Calls:
    """The calls of modules' methods in a stack, innermost first; read as far as they are asked for."""

    __slots__ = ("found", "frame")

    def __init__(self, frame: FrameType | None) -> None:
        self.frame = frame
        self.found: list[tuple[nn.Module, str]] = []

    def at(self, index: int) -> tuple[nn.Module, str] | None:
        """One call; None beyond the last."""
        found, frame = self.found, self.frame
        while len(found) <= index:
            if frame is None:
                return None
            code = frame.f_code
            if id(code) not in _MACHINERY and code.co_argcount:
                module = _first_argument(frame)
                if isinstance(module, nn.Module):
                    name = _method_of(module, code)
                    if name is not None:
                        found.append((module, name))
            self.frame = frame = frame.f_back
        return found[index]

    def outermost(self) -> nn.Module | None:
        """The module whose call is around all others."""
        count = 0
        while self.at(count) is not None:
            count += 1
        return self.found[-1][0] if self.found else None


_METHODS: dict[tuple[int, int], tuple[CodeType, type, str | None]] = {}


def _method_of(module: nn.Module, code: CodeType) -> str | None:
    """The method of a module that runs some code."""
    cls = type(module)
    known = _METHODS.get((id(code), id(cls)))
    if known is None:
        if len(_METHODS) > MAX_KNOWN:
            _METHODS.clear()
        known = _METHODS[id(code), id(cls)] = code, cls, method_names(cls).get(code)  # both stay at their address
    if known[2] is None and "forward" in module.__dict__ and _is_of(module.__dict__["forward"], code):
        return "forward"
    return known[2]


def _is_of(bound: Any, code: CodeType) -> bool:
    return code in set(_codes(getattr(bound, "__func__", bound)))


def _follows(layer: nn.Module, chain: Chain, calls: _Calls) -> bool:
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
            if call[1] == link.method and _is_kind(type(call[0]), link):
                modules.append((call[0], link.path))
                break
            if isinstance(call[0], fx.GraphModule):
                return _traced_through(layer, chain, call[0])
    lowest = modules[-1][0]
    if chain.place is not None and _inside(lowest, chain.place) is not layer:
        return False
    for module, path in modules:
        if path and _inside(lowest, path) is not module:
            return False
    if type(layer) is Absorbed:  # the layer itself looks after the rest
        return _has_slots(lowest, chain)
    return _is_shaped(layer, layer.__dict__[GATE]) and _is_whole(lowest, chain)


def _is_shaped(layer: nn.Module, gate: Gate) -> bool:
    """Whether the window of a layer is the one that it was fused with."""
    own = layer.__dict__
    for name, value in gate.geometry:
        held = own.get(name)
        if held is not value and held != value:
            return False
    return True


def _has_slots(lowest: nn.Module, chain: Chain) -> bool:
    """Whether the fused layers are in their places."""
    layers = (_inside(lowest, path) for path in chain.slots)
    return all(layer is not None and GATE in layer.__dict__ for layer in layers)


def _are_written(lowest: nn.Module, chain: Chain) -> bool:
    """Whether the modules whose methods were written anew are in their places."""
    return all("_reptool_derived" in type(_inside(lowest, path)).__dict__ for path in chain.written)


def _is_whole(lowest: nn.Module, chain: Chain) -> bool:
    """Whether all that was absorbed is in its place, and nobody listens in between."""
    if not (_has_slots(lowest, chain) and _are_written(lowest, chain)):
        return False
    for path in chain.absorbed:
        if type(_inside(lowest, path)) is not Absorbed:
            return False
    for path, count in chain.hooks:
        inner = _inside(lowest, path)
        if inner is None or _hooks_differ(inner, count):
            return False
    return True


def _inside(module: Any, path: Path) -> Any:
    for name in path:
        module = module._modules.get(name)
        if module is None:
            return None
    return module


def _hooks(module: nn.Module) -> int:
    own = module.__dict__
    return (
        len(own["_forward_hooks"])
        + len(own["_forward_pre_hooks"])
        + len(own["_backward_hooks"])
        + len(own["_backward_pre_hooks"])
    )


def _hooks_differ(module: nn.Module, count: int) -> bool:
    return _hooks(module) != count and hooks_on(module) != count


def hooks_on(module: nn.Module) -> int:
    """How many hooks see a module's values; those that only compute its weights do not."""
    weights = sum(
        type(h).__module__.startswith(("torch.nn.utils", "torch.nn.modules"))
        for h in module._forward_pre_hooks.values()
    )
    return _hooks(module) - weights


MAX_KNOWN = 10_000
_NAMES: weakref.WeakKeyDictionary[type, dict[CodeType, str]] = weakref.WeakKeyDictionary()
_KINDS: dict[tuple[int, int], tuple[type, Link, bool]] = {}


def kind_of(cls: type) -> str:
    """The full name of a class: the same for classes that were derived when deploying."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_kind(cls: type, link: Link) -> bool:
    """Whether modules of a class run the method of a link."""
    known = _KINDS.get((id(cls), id(link)))
    if known is None:
        if len(_KINDS) > MAX_KNOWN:
            _KINDS.clear()
        base = next((c for c in cls.__mro__ if kind_of(c) == link.kind), None)
        same = base is not None and (link.own or getattr(cls, link.method) is getattr(base, link.method))
        known = _KINDS[id(cls), id(link)] = cls, link, same
    return known[2]


def method_names(cls: type) -> dict[CodeType, str]:
    """Code -> the method of a class that it belongs to; not that of methods which a subclass overrides."""
    found = _NAMES.get(cls)
    if found is None:
        names: dict[CodeType, set[str]] = {}
        seen: set[str] = set()
        for base in cls.__mro__:
            if base is nn.Module:
                break
            for name, value in vars(base).items():
                if name in seen or name.startswith(_AS_IT_WAS):
                    continue
                seen.add(name)
                for code in _codes(value):
                    names.setdefault(code, set()).add(name)
        found = _NAMES[cls] = {code: next(iter(held)) for code, held in names.items() if len(held) == 1}
    return found


def _codes(value: Any, depth: int = 0) -> Iterator[CodeType]:
    """The code of a member of a class, and of what it wraps."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if isinstance(value, FunctionType) and depth < 6:
        yield value.__code__
        inner: list[Callable[..., Any]] = [getattr(value, "__wrapped__", None)]  # type: ignore[list-item]
        with contextlib.suppress(ValueError):  # a cell that is still empty
            inner += [cell.cell_contents for cell in value.__closure__ or ()]
        for function in inner:
            yield from _codes(function, depth + 1)


# --- other code that runs a region whole ----------------------------------------------------------------------------
def _traced_through(layer: nn.Module, chain: Chain, graph: nn.Module) -> bool:
    """Whether a graph was made of a module that holds the whole region: then it runs what that module runs."""
    if chain.place is None:
        return True
    path = next((p for p, m in graph.named_modules() if m is layer), None)
    return path is not None and tuple(path.split("."))[-len(chain.place) :] == chain.place


def _runs_all(layer: nn.Module, gate: Gate, calls: _Calls) -> bool:
    """Whether code that was not traced is known to run the region as a whole."""
    index = 0
    while (call := calls.at(index)) is not None:
        index += 1
        if call[1] == "forward" and any(_in_a_row(layer, c, call[0]) for c in gate.chains if c.series):
            return True
    return _is_run_again()


def _in_a_row(layer: nn.Module, chain: Chain, holder: nn.Module) -> bool:
    """Whether a container runs the layer and what was absorbed one behind the other, and hands out nothing between."""
    if type(holder).forward is nn.Sequential.forward:
        named: Any = ()
    elif isinstance(holder, nn.ModuleDict) and isinstance(getattr(holder, "return_layers", None), dict):
        named = holder.return_layers
    else:
        return False
    if (
        chain.place is None
        or not chain.place
        or any(_hooks_differ(layer, c) for p, c in chain.hooks if p == chain.place)
    ):
        return False
    if chain.slots and chain.place not in chain.slots and not _is_done_in(holder, layer):
        return False
    parts: dict[str, list[Path]] = {chain.place[0]: []}
    for path in chain.absorbed:
        parts.setdefault(path[0], []).append(path[1:])
    children = [(n, m) for n, m in holder._modules.items() if m is not None]
    rows = [_part_of(m, parts, layer, chain.place) for _, m in children]
    at = [i for i, row in enumerate(rows) if row is not None]
    if {rows[i] for i in at} != set(parts) or len(at) != len(parts):
        return False
    between = range(at[0], at[-1])
    plain = all(rows[i] is not None or isinstance(children[i][1], (nn.Identity, nn.Dropout)) for i in between)
    return plain and not any(children[i][0] in named for i in between)


def _is_done_in(holder: nn.Module, layer: nn.Module) -> bool:
    """Whether a container holds the fused layer that does the work of a module of its region."""
    mine = layer.__dict__[GATE].name
    gates = (m.__dict__.get(GATE) for m in holder.modules() if m is not layer and type(m) is not Absorbed)
    return any(r == mine or r.startswith(f"{mine}.") for g in gates if g is not None for r in g.region)


def _part_of(module: nn.Module, parts: dict[str, list[Path]], layer: nn.Module, place: Path) -> str | None:
    """Which part of a region a module is."""
    for name, absorbed in parts.items():
        held = [_inside(module, path) for path in absorbed]
        if not all(isinstance(m, Absorbed) for m in held):
            continue
        if _inside(module, place[1:]) is layer if name == place[0] else all(m._layer == held[0]._layer for m in held):
            return name
    return None


_AGAIN = {"torch.utils.checkpoint": ("recompute_fn", "unpack_hook", "backward")}


def _is_run_again() -> bool:
    """Whether torch runs a part of a forward again (checkpointing), or code that it has compiled."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        home = frame.f_globals.get("__name__") or ""
        if frame.f_code.co_name in _AGAIN.get(home, ()) or home.startswith("torch._dynamo."):
            return True
        frame = frame.f_back
    return False


def _refuse(gate: Gate) -> NoReturn:
    region = ", ".join(map(repr, gate.region))
    raise SpecializedError(
        f"{gate.name!r} was fused by deploy() with {region}, and is called, watched or replaced here in another way "
        "than the forward that was traced does, which would give other values; call the module around it, exclude it "
        "(deploy(model, exclude=...)), or use the original model. If the whole of it is run here, reptool.release() "
        "takes this check away"
    )
