"""Copies of a user's model: the same in everything that can be asked of it.

    copy(m) = a new object of m's class that holds m's attributes, where
              a module of the model  becomes its copy,
              a tensor               is shared or cloned,
              anything else          is what `copy.deepcopy` makes of it.

Mode, flags, hooks and slots are attributes like any other, so that they are kept whatever a class's own `__deepcopy__`
does (that of a GraphModule keeps neither mode, hooks nor a second graph). An attribute that `copy.deepcopy` cannot
copy (a lock, a socket, a file) is what the class's own way of being copied makes of it; where it has none, a copy that
reptool works on shares the attribute with the model, and a copy that is handed out is refused.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from reptool.errors import UnsupportedModelError
from reptool.models.reached import ATOMS, CONTAINERS, MAX_NESTED, reached, tensors_in

_TABLES = (dict, OrderedDict)
_PLAIN = (*_TABLES, list, set)
_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
_MISSING = object()
M = TypeVar("M", bound=nn.Module)


def shallow_copy(model: M, memo: dict[int, Any] | None = None) -> M:
    """A copy of a model's structure that shares its tensors, and what cannot be copied.

    Args:
        model: what is copied.
        memo: as for `full_copy`.
    """
    memo = {} if memo is None else memo
    memo.update({id(t): t for m in model.modules() for t in tensors_in(m)})
    return _Copy(memo).of(model)


def full_copy(model: M, memo: dict[int, Any] | None = None) -> M:
    """A copy to work on: it shares what cannot be copied, and nothing else.

    Args:
        model: what is copied; results of computations that it keeps become plain values.
        memo: as of `copy.deepcopy`: the copies of what is copied already, by id.
    """
    memo = {} if memo is None else memo
    memo.update((k, v) for k, v in as_values(model).items() if k not in memo)
    return _Copy(memo).of(model)


def copy_in(model: M, dtype: torch.dtype | None, device: str | None = "cpu") -> M:
    """A full copy whose parameters and buffers with a fraction are of one dtype; each is copied once.

    Args:
        model: what is copied.
        dtype: of the copies; None keeps each.
        device: where they are; None keeps each where it is.

    >>> copy_in(nn.Linear(2, 3), torch.float64).weight.dtype
    torch.float64
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or vars(tensor):
                continue  # one with attributes of its own is copied with them
            if tensor.is_floating_point():
                made = tensor.detach().to(device or tensor.device, dtype, copy=True)
                memo[id(tensor)] = made if type(tensor) is Tensor else nn.Parameter(made, tensor.requires_grad)
    return full_copy(model, memo).to(device=device, dtype=dtype)


def independent_copy(model: M, memo: dict[int, Any] | None = None) -> M:
    """A copy to hand out, which shares nothing with the model.

    Args:
        model: what is copied.
        memo: as for `full_copy`.

    Raises:
        UnsupportedModelError: it holds something that cannot be copied.
    """
    memo = {} if memo is None else memo
    memo.update(as_values(model))
    return _Copy(memo, shares=False).of(model)


def as_values(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` with what it cannot copy: results of computations that a model keeps."""
    computed = (t for m in model.modules() for t in tensors_in(m) if _is_computed(t))
    return {id(t): t.detach().clone() for t in computed}


def _is_computed(tensor: Tensor) -> bool:
    try:
        return not tensor.is_leaf
    except Exception:  # a symbolic value that a run left behind: it is shared
        return False


class _Copy:
    """One copy in the making.

    Args:
        memo: as of `copy.deepcopy`.
        shares: whether what cannot be copied is shared; otherwise it is an error.
    """

    def __init__(self, memo: dict[int, Any], shares: bool = True) -> None:
        self.memo, self.shares = memo, shares
        self.own: dict[int, dict[str, Any]] = {}

    def of(self, model: M) -> M:
        """The copy of `model`."""
        if id(model) in self.memo:
            found: M = self.memo[id(model)]
            return found
        made: list[tuple[str, nn.Module, nn.Module]] = []
        references: list[weakref.ref[Any]] = []
        for path, module, held in reached(model):
            shell = None if id(module) in self.memo else _shell(module)
            if shell is not None:
                self.memo[id(module)] = shell
                made.append((path, module, shell))
                references += [v for v in held if type(v) is weakref.ref]
        for _, module, _ in made:
            self._tensors_of(module)
        for reference in references:
            self._reference(reference)
        for path, module, shell in reversed(made):  # what is inside first: an attribute may ask it something
            self._fill(path, module, shell)
        for _, module, shell in made:
            if isinstance(module, fx.GraphModule):
                _give_code(module, shell)
        return self.memo[id(model)] if made else self._by_its_class(model)

    def _by_its_class(self, model: M) -> M:
        """A model whose objects only its class can make."""
        try:
            found: M = copy.deepcopy(model, self.memo)
        except Exception as error:
            raise UnsupportedModelError(
                f"the {type(model).__name__} cannot be copied ({type(error).__name__}: {error})"
            ) from error
        return found

    def _tensors_of(self, module: nn.Module) -> None:
        """Copy the tensors of a module, with the attributes that somebody set on them."""
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or id(tensor) in self.memo:
                continue
            made = copy.deepcopy(tensor, self.memo)
            for name, value in vars(tensor).items():
                if name not in vars(made):
                    vars(made)[name] = self._value(value)

    def _reference(self, reference: weakref.ref[Any]) -> None:
        """A weak reference to a part of the model becomes one to its copy."""
        found = self.memo.get(id(reference()))
        if found is not None:
            self.memo[id(reference)] = weakref.ref(found)

    def _fill(self, path: str, module: nn.Module, shell: nn.Module) -> None:
        """Give a copy the attributes of what it is a copy of."""
        given = vars(shell)
        for name, value in list(vars(module).items()):
            made = value if type(value) in ATOMS else self._attribute(path, module, name, value)
            if made is not _MISSING:
                given[name] = made
        for name in copyreg._slotnames(type(module)):  # type: ignore[attr-defined]
            if hasattr(module, name):
                made = self._attribute(path, module, name, getattr(module, name))
                if made is not _MISSING:
                    object.__setattr__(shell, name, made)

    def _attribute(self, path: str, module: nn.Module, name: str, value: Any) -> Any:
        try:
            return self._value(value)
        except Exception as error:
            own = self._own_way(module)
            if own is not None:
                return own.get(name, _MISSING)
            if not self.shares:
                where = f"the attribute {name!r} of {path!r}" if path else f"its attribute {name!r}"
                raise UnsupportedModelError(
                    f"the model cannot be copied: {where} holds what copy.deepcopy does not copy "
                    f"({type(error).__name__}: {error}); deploy with inplace=True, which needs no copy of it, "
                    "or take it away first"
                ) from error
            return self._shared(value)

    def _value(self, value: Any) -> Any:
        """A deep copy; where it fails, nothing of it stays in the memo."""
        if type(value) in ATOMS:
            return value
        if type(value) in _PLAIN and id(value) not in self.memo:
            if not value:
                return self.memo.setdefault(id(value), type(value)())
            if type(value) in _TABLES and all(map(self._is_copied, value, value.values())):
                made = type(value)((k, self.memo.get(id(v), v)) for k, v in value.items())
                return self.memo.setdefault(id(value), made)
        mode = getattr(value, "fake_mode", None) if isinstance(value, Tensor) else None
        if mode is not None:  # it counts references to storages that a copy of it would give back once more
            self.memo.setdefault(id(mode), mode)
        before = len(self.memo)
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:
            for key in list(self.memo)[before:]:
                del self.memo[key]
            raise

    def _is_copied(self, key: Any, value: Any) -> bool:
        """Whether an entry of a table needs no copy any more: a part or a tensor that has one, or a plain value."""
        return type(key) is str and (type(value) in ATOMS or id(value) in self.memo)

    def _shared(self, value: Any, depth: int = 0) -> Any:
        """A copy that shares what cannot be copied, be it inside of containers."""
        with contextlib.suppress(Exception):
            return self._value(value)
        if type(value) in CONTAINERS and depth < MAX_NESTED:
            for item in value.values() if isinstance(value, Mapping) else value:
                self._shared(item, depth + 1)
            with contextlib.suppress(Exception):
                return self._value(value)
        self.memo[id(value)] = value
        return value

    def _own_way(self, module: nn.Module) -> dict[str, Any] | None:
        """The attributes of the copy that a module's class makes of it, None where it has no way of its own."""
        if id(module) not in self.own:
            self.own[id(module)] = _own_copy(module, self.memo) or {"": None}
        found = self.own[id(module)]
        return None if "" in found else found


def _own_copy(module: nn.Module, memo: dict[int, Any]) -> dict[str, Any] | None:
    cls = type(module)
    if isinstance(module, fx.GraphModule) or not any(
        getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in _COPYING
    ):
        return None
    others = {key: value for key, value in memo.items() if key != id(module)}
    try:
        made = copy.deepcopy(module, others)
    except Exception:
        return None
    return None if made is module or not isinstance(made, nn.Module) else dict(vars(made))


def _shell(module: nn.Module) -> nn.Module | None:
    """An empty object of a module's class, None where only the class itself can make one."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if isinstance(module, fx.GraphModule):
        return fx.GraphModule.__new__(type(module))  # with a class of its own, which holds its code
    try:
        made: nn.Module = object.__new__(type(module))
    except TypeError:
        return None
    return made


def _give_code(module: fx.GraphModule, shell: nn.Module) -> None:
    """The code of a GraphModule is an attribute of the class that it alone has.

    It is that of its graph, unless somebody changed the graph and did not recompile: then it is what runs.
    """
    assert isinstance(shell, fx.GraphModule)
    mine, theirs = type(shell), vars(type(module))
    mine.__name__ = type(module).__name__
    shell.__dict__["_graph"].owning_module = shell
    fx.GraphModule.recompile(shell)  # a lazy one's own `recompile` only takes a note
    if not getattr(module, "_needs_recompile", lambda: False)():
        mine.forward = theirs.get("forward", mine.forward)
        shell.__dict__["_code"] = vars(module).get("_code", shell._code)
    for name, value in theirs.items():
        if name not in vars(mine):
            setattr(mine, name, value)
