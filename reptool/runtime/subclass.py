"""Derived classes: a user's class with methods written anew, which keeps its name, its pickles and its registries.

Deriving runs no code of the user's: neither a metaclass nor an ``__init_subclass__`` sees the new class, so that what
registers classes by name goes on naming the user's own.
"""

from __future__ import annotations
import __future__

import abc
import contextlib
import copyreg
import functools
import inspect
import linecache
import zlib
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from reptool.errors import SpecializedError
from reptool.runtime.absorbed import Absorbed
from reptool.runtime.containers import filled, read_key
from reptool.runtime.expect import (
    Like,
    _as_it_was,
    _bound,
    _expect,
    _expect_absorbed,
    _expect_fused,
    _expect_given,
    _expect_kind,
    _expect_same,
    _expect_wide,
    _held,
    _not_converted,
    _not_inside,
    _not_new,
    _not_read,
    _not_set,
    _not_there,
    _sealed,
    holds,
)
from reptool.runtime.gates.called import expect_called
from reptool.runtime.gates.marker import NORMS, tell_of_norms
from reptool.runtime.method import ORIGINAL, Method, find
from reptool.runtime.rebuilt.from_config import builds_the_same
from reptool.runtime.snapshot import ABSENT, same

CONVERSIONS = (
    "fuse",
    "reparameterize",
    "switch_to_deploy",
    "fuse_conv_bn",
    "fuse_bn",
    "convert_to_deploy",
    "merge_kernel",
    "merge_kernels",
    "reparam",
    "fuse_repvgg_block",
    "fuse_convs",
    "merge_dilated_branches",
    "repvgg_convert",
    "deploy_mode",
)
REBUILDS = "from_pretrained"  # of transformers and huggingface_hub: a class that builds the layers it was written with
SAVES = "save_pretrained"
CONVERTED = ("is_fused", "is_deployed", "is_reparameterized")


def _converted(self: nn.Module, *_: Any, **__: Any) -> nn.Module:
    """The model's own conversion, after reptool did it: nothing is left to do."""
    return self


def _is_converted(self: nn.Module, *_: Any, **__: Any) -> bool:
    """Whether the model's own conversion has nothing left to do: it has not, it does nothing any more."""
    return True


def _not_rebuilt(cls: type, *_: Any, **__: Any) -> Any:
    """``from_pretrained`` of a deployed class: it would build the original layers and leave some of them random."""
    raise SpecializedError(
        f"{cls.__name__}.{REBUILDS} builds the layers that deploy() fused, which weights saved after it do not fit; "
        "save it with reptool.save(model, 'm.safetensors') and load it with reptool.load('m.safetensors', into=...), "
        "or load the original checkpoint with the original class and deploy again"
    )


def conversions_of(cls: type) -> list[str]:
    """The names of a class's own conversions, of those that become no-ops."""
    return [n for n in CONVERSIONS if callable(getattr(cls, n, None))]


def _saved(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``save_pretrained`` of a deployed model, where its class builds what it is now; else it would be read wrongly."""
    if builds_the_same(self, original_class(self)):
        return getattr(original_class(self), SAVES)(self, *args, **kwargs)
    raise SpecializedError(
        f"{type(self).__name__}.{SAVES} writes weights that {REBUILDS} would read into the layers that deploy() fused, "
        "and leave some of them random; save it with reptool.save(model, 'm.safetensors') and load it with "
        "reptool.load('m.safetensors', into=...)"
    )


def has_own_conversions(cls: type) -> bool:
    """Whether a class can convert or rebuild its modules by itself."""
    return bool(conversions_of(cls)) or callable(getattr(cls, REBUILDS, None))


_CLASSES: dict[Any, type] = {}
SCOPE: dict[str, Any] = {
    "inf": float("inf"),
    "nan": float("nan"),
    "device": torch.device,
    "NoneType": type(None),
    "torch": torch,
    "fx_pytree": fx._pytree,
    "pytree": torch.utils._pytree,
    "_tell_of_norms": tell_of_norms,
    "_expect": _expect,
    "_expect_kind": _expect_kind,
    "_expect_given": _expect_given,
    "_held": _held,
    "_expect_same": _expect_same,
    "_not_set": _not_set,
    "_not_there": _not_there,
    "_not_inside": _not_inside,
    "_not_read": _not_read,
    "_not_new": _not_new,
    "_expect_fused": _expect_fused,
    "_expect_absorbed": _expect_absorbed,
    "_expect_wide": _expect_wide,
    "_expect_called": expect_called,
    "_not_converted": _not_converted,
    "_absent": ABSENT,
    "_same": same,
    "_sealed": _sealed,
    "_holds": holds,
    "_like": Like,
    "_as_it_was": _as_it_was,
    "_filled": filled,
    "_read_key": read_key,
}
"""What every method may name. Sources in pickles of earlier releases name some of it that none is written with now."""


def _defaults_of(cls: type, name: str) -> Any:
    """The defaults of the method that the user's class has, or those that the one in front of it was given since."""
    found, front = (inspect.getattr_static(cls, n, None) for n in (ORIGINAL + name, name))
    if isinstance(found, FunctionType) and isinstance(front, FunctionType) and not hasattr(front, "__signature__"):
        held = [[*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()] for f in (found, front)]
        found = found if list(map(id, held[0])) == list(map(id, held[1])) else front
    found = found or front
    function = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
    return getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None)


def _member(module: str, qualname: str, name: str) -> Any:
    """A member of an enumeration, as sources in pickles of reptool 0.1.0 name it."""
    return getattr(find(module, qualname), name)


def derive(cls: type, methods: tuple[Method, ...], plain: bool = False) -> type:
    """A class like `cls` with some methods written anew and its own conversions made no-ops.

    Args:
        cls: the class of the user's module.
        methods: what is written anew.
        plain: derive from `nn.Module` instead (a norm whose normalization was absorbed is no norm any more).

    Raises:
        TypeError: the class cannot be derived from without running code of the user's.
    """
    if "_reptool_derived" in cls.__dict__:
        cls, earlier, was_plain = cls._reptool_derived  # type: ignore[attr-defined]
        fresh = {m.name for m in methods}
        methods = (*(m for m in earlier if m.name not in fresh), *methods)
        plain = plain or was_plain
    key = (cls, tuple(m.key() for m in methods), plain)
    if key not in _CLASSES:
        _CLASSES[key] = _without_their_code(cls, _body(cls, methods, plain), nn.Module if plain else cls)
    return _CLASSES[key]


_TRAIN = Method(
    "train",
    f"def train(self, mode=True):\n    if mode:\n        _tell_of_norms(self)\n    return self.{ORIGINAL}train(mode)\n",
)


def warn_in_training(model: nn.Module, norms: int) -> None:
    """Let a deployed model say that so many norms are folded when it is put into training mode.

    Absorbed norms say it themselves; a model without any gets a ``train`` that does.
    """
    if not norms or any(isinstance(m, Absorbed) and m._is_norm for m in model.modules()):
        return
    model.__dict__[NORMS] = norms
    with contextlib.suppress(Exception):  # a class of the user's that nothing can be derived from
        if isinstance(model, fx.GraphModule):  # each has a class of its own
            members = vars(derive(fx.GraphModule, (_TRAIN,)))
            for name in ("train", f"{ORIGINAL}train"):
                setattr(type(model), name, members[name])
        else:
            object.__setattr__(model, "__class__", derive(type(model), (_TRAIN,)))


def _body(cls: type, methods: tuple[Method, ...], plain: bool) -> dict[str, Any]:
    """The namespace of a derived class."""
    body: dict[str, Any] = own_members(cls) if plain else {}
    body |= dict.fromkeys(conversions_of(cls), _converted)
    body |= {
        n: _is_converted
        for n in CONVERTED
        if body.keys() & set(CONVERSIONS) and inspect.isfunction(getattr(cls, n, None))
    }
    if inspect.ismethod(getattr(cls, REBUILDS, None)):
        body[REBUILDS] = classmethod(_not_rebuilt)
    for method in methods:
        original = inspect.getattr_static(cls, method.name)
        body[method.name] = _compiled(cls, method)
        body[ORIGINAL + method.name] = original
        if isinstance(original, property):
            body[method.name] = property(body[method.name], doc=original.__doc__)
            for table in ("__jit_unused_properties__", "__jit_ignored_attributes__"):  # else torch.jit.script reads it
                body[table] = [*body.get(table, getattr(cls, table, ())), method.name]
    if REBUILDS in body and callable(getattr(cls, SAVES, None)):
        body[SAVES] = _saved  # also where it was written anew as an error that says less
    body["__reduce_ex__"] = _reduce
    body["_reptool_derived"] = (cls, methods, plain)
    body["__module__"], body["__qualname__"], body["__doc__"] = cls.__module__, cls.__qualname__, cls.__doc__
    if plain and "extra_repr" not in body:
        body["extra_repr"] = nn.Module.extra_repr
    return body


def own_members(cls: type) -> dict[str, Any]:
    """What `cls` and the user's classes behind it define, but for methods that name their own class (``super``)."""
    found: dict[str, Any] = {}
    for base in (b for b in reversed(cls.__mro__) if not f"{b.__module__}.".startswith(("torch.", "builtins."))):
        found |= {n: v for n, v in vars(base).items() if not n.startswith("__")}
    return {
        n: v for n, v in found.items() if "__class__" not in getattr(getattr(v, "__code__", None), "co_freevars", ())
    }


def _compiled(cls: type, method: Method) -> Callable[..., Any]:
    """The function that a method's source defines, with what the original says of itself."""
    original: Any = getattr(cls, method.name)
    original = original.fget if isinstance(original, property) else original
    scope = {
        **SCOPE,
        "_original": original,
        "_defaults_of": _defaults_of,
        "_member": _member,
        "_bound": functools.partial(_bound, original),
    }
    scope |= method.scope()
    file = f"<reptool {cls.__qualname__}.{method.name} {zlib.crc32(method.source.encode()):08x}>"
    exec(compile(method.source, file, "exec", __future__.annotations.compiler_flag), scope)
    linecache.cache[file] = (len(method.source), None, method.source.splitlines(keepends=True), file)
    function: Callable[..., Any] = scope[method.name]
    _give_defaults(function, inspect.signature(original))
    function.__doc__ = original.__doc__
    function.__qualname__ = original.__qualname__
    function.__module__ = cls.__module__
    function.__annotations__ = dict(getattr(inspect.unwrap(original), "__annotations__", {}))
    return function


def _without_their_code(cls: type, body: dict[str, Any], base: type) -> type:
    """A subclass of `base` of which neither a metaclass nor an ``__init_subclass__`` of the user's hears."""
    kind, name = type(cls), cls.__name__
    if next(c for c in base.__mro__ if "__init_subclass__" in vars(c)) is object:
        made = type.__new__(kind, name, (base,), body)
    else:
        made = type.__new__(kind, name, (nn.Module,), body)
        made.__bases__ = (base,)
    if isinstance(made, abc.ABCMeta):
        abc._abc_init(made)  # type: ignore[attr-defined]
    return made


def _give_defaults(function: Any, signature: inspect.Signature) -> None:
    """Give a method the defaults of the one in whose place it is (a decorator's function has none of its own)."""
    if list(inspect.signature(function).parameters)[1:] != list(signature.parameters)[1:]:
        function.__signature__ = signature  # it takes its arguments as they are given
        return
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}
    named = {n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    function.__defaults__ = tuple(v for n, v in defaults.items() if n not in named) or None
    function.__kwdefaults__ = {n: v for n, v in defaults.items() if n in named} or None


def _reduce(self: nn.Module, protocol: Any) -> Any:
    cls, methods, plain = type(self)._reptool_derived  # type: ignore[attr-defined]
    state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
    return _rebuild, (cls, methods, plain), state


def _rebuild(cls: type, methods: tuple[Method, ...], plain: bool) -> Any:
    """Recreate an instance of a derived class (for pickle and copy)."""
    derived = derive(cls, methods, plain)
    return copyreg.__newobj__(derived)  # type: ignore[attr-defined]


def original_class(module: nn.Module) -> type:
    """The user's class behind a derived one."""
    derived = getattr(type(module), "_reptool_derived", None)
    return type(module) if derived is None else derived[0]
