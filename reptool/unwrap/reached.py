"""Why a wrapper has to stay: who could still see a difference between it and the layer that it hands on to.

Attributes, methods and items of the wrapper that the layer does not have raise afterwards (`replacing.py`). What would
go unnoticed keeps a wrapper: checks that its methods make, hooks, state beside the layer's, names that mean something
else on the layer, and questions of the modules around it.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.trace import Setting
from reptool.pysource.functions import codes_in, function_of
from reptool.pysource.globals_read import functions_of
from reptool.pysource.module_info import calls_itself, foreign_hooks
from reptool.report.totals import is_layer
from reptool.rewrite.setting_checks import is_fixed_value
from reptool.runtime.absorbed import Absorbed
from reptool.runtime.gates.chain import Gate
from reptool.runtime.gates.marker import GATE
from reptool.runtime.hooks import DTYPES, guarded_rank
from reptool.runtime.method import Method
from reptool.runtime.snapshot import same, taken
from reptool.runtime.subclass import CONVERSIONS, CONVERTED, REBUILDS, original_class
from reptool.safety.ownership import Ownership
from reptool.unwrap.handing_on import Wrapper
from reptool.unwrap.questions import questions

_OF_DTYPE = re.compile(r"_expect_kind\('(?!self\.)[^']*', [^,]*, 'dtype', torch\.(\w+), (self)?.*\)$")
"""A check of the dtype of an argument, by that of the module where it ends so."""
_OF_ARGUMENT = re.compile(r"_expect\('(\w+)', \1, .*\)$")
"""A check of what an argument is."""
_MEANT = ("forward", "extra_repr", "_get_name")
_SPECIAL = ("__init__", "__repr__", "__len__", "__iter__", "__getitem__", "__contains__", "__reduce_ex__")
"""Methods of `nn.Module` and `object` that a wrapper may have of its own, and the layer has its own of."""


class Reach:
    """What is asked of one model after the surgery.

    Args:
        model: the model, as it was written.
        owned: who else holds its modules.
        inplace: whether it is the caller's own object, whose containers somebody else may hold.
        traced: full path of a module and name of each of its methods that the forward calls.
    """

    def __init__(
        self, model: nn.Module, owned: Ownership, inplace: bool, traced: Collection[tuple[str, str]] = ()
    ) -> None:
        self.model, self.owned, self.inplace = model, owned, inplace
        self.traced = traced
        self.sealed: dict[str, set[tuple[str, str]]] = {}  # wrapper -> methods around it that ask what it is
        self.going: set[int] = set()  # the wrappers that are to go
        self.paths: dict[int, int] = {}
        for _, module in model.named_modules(remove_duplicate=False):
            self.paths[id(module)] = self.paths.get(id(module), 0) + 1

    def kept(self, candidates: Mapping[str, Wrapper]) -> dict[str, str]:
        """Which of the wrappers that may go have to stay, and why; what several of them hold together goes with all.

        Args:
            candidates: the wrappers by path.
        """
        self.going = {id(m) for p in candidates for m in self.model.get_submodule(p).modules()}
        found: dict[str, str] = {}
        while True:
            fresh = {p: why for p, h in candidates.items() if p not in found and (why := self.why_kept(p, h))}
            if not fresh:
                return found
            found |= fresh
            going = [m for p in candidates if p not in found for m in self.model.get_submodule(p).modules()]
            self.going = {id(m) for m in going}

    def why_kept(self, path: str, held: Wrapper) -> str:
        """Why a wrapper stays; nothing where the layer may take its place.

        Args:
            path: of the wrapper.
            held: the layer that it hands on to, and what its code decided by.
        """
        layer_path = held.layer
        wrapper, layer = self.model.get_submodule(path), self.model.get_submodule(layer_path)
        names = layer_path[len(path) + 1 :].split(".")
        around = [wrapper.get_submodule(".".join(names[:i])) for i in range(len(names))]
        told = self._held(path, layer_path, wrapper, layer) or self._region(path, layer_path, wrapper, layer)
        told = told or self._decided(path, held)
        return told or _checks(around, layer) or _named(wrapper, layer) or self._asked(path, wrapper, layer)

    def _held(self, path: str, layer_path: str, wrapper: nn.Module, layer: nn.Module) -> str:
        """Other places, hooks and state."""
        if not is_layer(layer) or not original_class(layer).__module__.startswith("torch.nn."):
            return f"what it hands on to is no layer of torch ({type(layer).__name__})"
        if any(self.paths[id(m)] > 1 for m in (wrapper, layer)) or {path, layer_path} & self.owned.held:
            return "it, or the layer in it, is held in several places"
        inner = [m for m in wrapper.modules() if m is not layer]
        if any(foreign_hooks(m) for m in (*inner, layer)) or path in self.owned.hooked:
            return "hooks watch it"
        if any(m._state_dict_hooks or m._state_dict_pre_hooks for m in inner):
            return "it saves its state in its own way"
        if any(True for m in inner for _ in (*m._parameters.values(), *m._buffers.values()) if _ is not None):
            return "it has parameters or buffers beside those of the layer"
        if calls_itself(original_class(wrapper)) is not None:
            return "calling it does more than running its forward"
        return ""

    def _region(self, path: str, layer_path: str, wrapper: nn.Module, layer: nn.Module) -> str:
        """Whether all that the layer does the work of, and only that, goes with the wrapper."""
        inside = list(wrapper.modules())
        gates = [g for m in inside if (g := m.__dict__.get(GATE)) is not None]
        if any(c.place is None or len(c.place) > _below(path, gate) for gate in gates for c in gate.chains):
            return "the layer does the work of modules outside of it as well"
        others = (m for m in self.model.modules() if isinstance(m, Absorbed) and all(m is not i for i in inside))
        if any(m._layer == layer_path for m in others):
            return "the layer does the work of modules outside of it as well"
        ranks = ranks_of(wrapper, layer)
        if ranks is not None and len(ranks) != 1:
            return (
                f"its norms take inputs of {' or '.join(map(str, sorted(ranks)))} axes, which the layer would not check"
            )
        return self._written_around(path, wrapper)

    def _written_around(self, path: str, wrapper: nn.Module) -> str:
        """A method written anew around it that names what is inside of it."""
        parts = path.split(".")
        for i in range(len(parts)):
            module = self.model.get_submodule(".".join(parts[:i]))
            for method in getattr(type(module), "_reptool_derived", (None, (), False))[1]:
                words = set(re.findall(r"\w+", f"{method.source} {method.constants} {method.read}"))
                if method.name == "forward" and (
                    words & set(wrapper._modules) or any(map(str.isdigit, wrapper._modules))
                ):
                    return f"the forward of {original_class(module).__name__}, which runs it, was written anew"
        return ""

    def _decided(self, path: str, held: Wrapper) -> str:
        """What decides which code a wrapper runs, and could be changed without an error once it is gone."""
        if held.values:
            return f"its code decides by the numbers of {held.values[0]}"
        for at, setting in held.read:
            inside = at == path or at.startswith(f"{path}.")
            fixed = setting.follows or self._goes_with_it(at, setting)
            if not inside or setting.kind is not None or setting.name == "training" or not fixed:
                return f"its code reads {setting}, which could change unnoticed"
        others = [(at, "asks about what it is given") for at in sorted(held.asked)]
        others += [(at, f"reads {name}") for at, name in held.outside]
        unchecked = (told for at, told in others if not any(self._is_written(p) for p in _from(path, at)))
        found = next(unchecked, None)
        return "" if found is None else f"its code {found}"

    def _goes_with_it(self, path: str, setting: Setting) -> bool:
        """Whether a setting is gone with its module, so that nobody can change it."""
        if is_fixed_value(setting.value):
            return "." not in setting.name  # not the dtype of a tensor, which changes with the model
        module = _module(self.model, path)
        return module is not None and self._is_its_own(vars(module).get(setting.name), module)

    def _is_written(self, path: str) -> bool:
        """Whether the forward of a module was written anew, so that it checks what was asked."""
        methods = getattr(type(_module(self.model, path)), "_reptool_derived", (None, ()))[1]
        return any(m.name == "forward" for m in methods)

    def _is_its_own(self, value: Any, module: nn.Module) -> bool:
        """Whether a container of plain values is held by one module of the copy, or by others that go with it."""
        if self.inplace or not isinstance(value, (list, dict, set)):
            return False
        return self._holders[id(value)] <= {id(module), *self.going}

    @cached_property
    def _holders(self) -> dict[int, set[int]]:
        """For each container that modules hold in their attributes, these modules."""
        found: dict[int, set[int]] = {}
        for module in self.model.modules():
            for value in vars(module).values():
                if isinstance(value, (list, dict, set)):
                    found.setdefault(id(value), set()).add(id(module))
        return found

    def _asked(self, path: str, wrapper: nn.Module, layer: nn.Module) -> str:
        """Questions around it that the layer would answer otherwise; a method that the forward does not call raises."""
        was, parts, only = original_class(wrapper), path.split("."), _names_of(wrapper) - _names_of(layer)
        for at in (".".join(parts[:i]) for i in range(len(parts))):
            cls = original_class(self.model.get_submodule(at))
            for name, function in methods_of(cls):
                for one in functions_of(function):
                    differ = (q for q in questions(one) if q.differs(wrapper, layer, was))
                    asked = next((q for q in differ if q.kind != "other" or _mentioned(one) & only), None)
                    if asked is not None and (name == "forward" or (at, name) in self.traced):
                        return f"{cls.__name__}.{name} asks of modules: {asked.text}"
                    if asked is not None:
                        self.sealed.setdefault(path, set()).add((at, name))
        return ""


def _names_of(module: nn.Module) -> set[str]:
    """The names under which code finds what a module has, and the names of its classes."""
    return {*dir(module), *(c.__name__ for c in original_class(module).__mro__)}


@functools.lru_cache(maxsize=8192)
def _mentioned(function: FunctionType) -> frozenset[str]:
    """Every name and word in the code of a function."""
    codes = list(codes_in(function.__code__))
    return frozenset(n for c in codes for n in (*c.co_names, *c.co_consts) if isinstance(n, str))


def names_gone(wrapper: nn.Module) -> Iterator[str]:
    """Names that the original had, and that raise on a wrapper since it was deployed.

    Args:
        wrapper: the module.
    """
    for method in getattr(type(wrapper), "_reptool_derived", (None, ()))[1]:
        yield from dict(method.constants).get("_names", ()) if method.name == "__getattr__" else ()


def _from(path: str, inner: str) -> Iterator[str]:
    """The paths from a module down to one in it."""
    parts = inner.split(".")
    yield from (".".join(parts[:i]) for i in range(path.count(".") + 1, len(parts) + 1))


def _module(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None where one that was absorbed is above it."""
    for name in path.split("."):
        found = model._modules.get(name)
        if found is None:
            return None
        model = found
    return model


def checks_outside(modules: Iterable[nn.Module]) -> list[tuple[Method, list[str]]]:
    """Methods that were written anew in a wrapper, and their checks of what lies outside of the model.

    Args:
        modules: those of the wrapper.
    """
    found: list[tuple[Method, list[str]]] = []
    for method in (m for w in modules for m in getattr(type(w), "_reptool_derived", (None, ()))[1]):
        lines = [line for text in method.source.splitlines() if _is_outside(line := text.strip())]
        found += [(method, lines)] if lines else []
    return found


def _is_outside(line: str) -> bool:
    """Whether a line checks something that is read of no argument and of no module."""
    words = set(re.findall(r"\w+", line))
    return line.startswith("_expect_same('") and not words & {"self", "_original", "getattr"}


def _checks(around: list[nn.Module], layer: nn.Module) -> str:
    """Checks that methods which were written anew make, and that nobody would make any more."""
    if len(checks_outside(around)) > 1:
        return "several methods in it check what lies outside of the model"
    for module in around:
        for method in getattr(type(module), "_reptool_derived", (None, (), False))[1]:
            if method.name in ("__setattr__", "__getattr__"):  # the names go on to the layer
                continue
            if method.name != "forward" and not hasattr(layer, method.name):
                continue  # it is gone, and to ask for it raises
            if method.name != "forward":
                return f"its method {method.name} was written anew"
            told = next((t for line in method.source.splitlines() if (t := _check(line.strip(), layer))), "")
            if told:
                return told
    return ""


def _check(line: str, layer: nn.Module) -> str:
    """Why a line of a method that was written anew is a check that would be lost."""
    if not line.startswith(("_expect", "if not _holds")) or line.startswith(("_expect_fused", "_expect_absorbed")):
        return ""
    name = re.match(r"_expect\w*\('([^']*)'", line)
    own = name is not None and name[1].startswith("self.")
    if own and line.startswith(("_expect_same(", "_expect_kind(")):
        return ""  # what it read of itself was judged already
    if _is_outside(line):
        return ""  # the layer checks it from now on
    if _OF_ARGUMENT.match(line) and len(inspect.signature(layer.forward).parameters) == 1:
        return ""  # it was called with one argument, and the layer takes no other
    kept = _OF_DTYPE.match(line)  # by a hook of the layer
    if kept is not None and getattr(torch, kept[1]) in DTYPES and getattr(torch, kept[1]) == layer.weight.dtype:
        return ""
    return f"its call checks {name[1] if name else 'its arguments'}, which the layer would not"


def dtypes_of(wrapper: nn.Module) -> set[torch.dtype | None]:
    """The dtypes for which methods that were written anew in a wrapper check an argument; None for the layer's own.

    Args:
        wrapper: the module.
    """
    methods = [m for w in wrapper.modules() for m in getattr(type(w), "_reptool_derived", (None, ()))[1]]
    found = (_OF_DTYPE.match(line.strip()) for m in methods for line in m.source.splitlines())
    return {None if of_layer else getattr(torch, dtype) for dtype, of_layer in (f.groups() for f in found if f)}


def ranks_of(wrapper: nn.Module, layer: nn.Module) -> frozenset[int] | None:
    """The numbers of axes that are left once every check in a wrapper was passed; None where any is.

    Args:
        wrapper: the module.
        layer: the layer in it.
    """
    gate = layer.__dict__.get(GATE)
    allowed = [gate.ranks] if gate is not None and gate.ranks else []
    allowed += [frozenset([r]) for m in wrapper.modules() if (r := guarded_rank(m)) is not None]
    return frozenset.intersection(*allowed) if allowed else None


def _below(path: str, gate: Gate) -> int:
    """How deep in the wrapper a gated module is."""
    return len(gate.name.split(".")) - len(path.split("."))


def methods_of(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The user's methods and properties of a class, but for those that make it and those that deploy() silences.

    Args:
        cls: of a module.
    """
    for name in dir(cls):
        owner = next((c for c in cls.__mro__ if name in vars(c)), object)
        if owner is object or owner.__module__.startswith("torch.") or name in (*CONVERSIONS, *CONVERTED, REBUILDS):
            continue
        value = inspect.getattr_static(cls, name)
        value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(value, property):
            value = function_of(cls, name)
        if isinstance(value, FunctionType) and name != "__init__":
            yield name, value


def _named(wrapper: nn.Module, layer: nn.Module) -> str:
    """A name that both have and that means something else on the layer."""
    for name, _ in methods_of(original_class(wrapper)):
        if name.startswith("__") and name not in _SPECIAL:
            return f"it has a {name} of its own"
        if name not in _MEANT and not name.startswith("__") and hasattr(layer, name):
            held = inspect.getattr_static(type(wrapper), name)
            if not isinstance(held, property) or not _equal(getattr(wrapper, name, None), getattr(layer, name)):
                return f"it has a {name} of its own"
    plain = (n for n in vars(wrapper) if not n.startswith("_") and n not in ("training", "forward"))
    other = next((n for n in plain if hasattr(layer, n) and not _equal(vars(wrapper)[n], getattr(layer, n))), None)
    if "forward" in vars(wrapper):
        return "its forward was put on the object"
    if other is not None:
        return f"its {other} is {vars(wrapper)[other]!r}, that of the layer {getattr(layer, other)!r}"
    both = next((n for n in wrapper._modules if hasattr(layer, n)), None)
    return "" if both is None else f"its {both} is a module, and the layer has something else of that name"


def _equal(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, (Tensor, nn.Module)) and same(other, taken(one)))
