"""Delivered classes: a user's class with methods written anew, which keeps its name and pickles."""

from __future__ import annotations

import copyreg
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from reptool.errors import SpecializedError
from reptool.kept import Like, as_it_was, holds
from reptool.method_text import Method

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
CONVERTED = ("is_fused", "is_deployed", "is_reparameterized")


def _sealed(where: str) -> None:
    """The body of a method that deploying left without its parts."""
    raise SpecializedError(
        f"{where} uses layers one by one that deploy() fused, which would give other values; exclude them "
        "(deploy(model, exclude=...)), or call it on the original model"
    )


def _expect(name: str, value: Any, *seen: Any) -> None:
    """The guard of a deployed method: an argument it was specialized for."""
    if isinstance(value, fx.Proxy):  # a graph is being made of the method: the guard belongs into it
        value.tracer.create_proxy("call_function", _expect, (name, value, *seen), {})
        return
    if torch.is_tensor(value) or value not in seen:
        traced = seen[0]
        shown = f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else repr(value)
        own = name.startswith("self.")
        what = "set it before deploying" if own else f"deploy the model with example_inputs that pass {name}"
        raise SpecializedError(
            f"this method was deployed for {name}={traced!r} and called with {name}={shown}; {what}, "
            "or exclude this module"
        )


def _expect_given(name: str, value: Any, default: Any, count: int | None) -> None:
    """The guard of an optional argument that was given when the model was deployed."""
    missing = len(value) != count if count is not None else not torch.is_tensor(value) and value is default
    if missing:
        what = f"{count} arguments in {name}" if count is not None else f"an argument {name}"
        raise SpecializedError(
            f"this method was deployed for {what}; deploy the model with example_inputs as it is called here, "
            "or exclude this module"
        )


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
        "load the original checkpoint with the original class and deploy again, or pickle the deployed model, or load "
        "the saved state_dict into a deployed model"
    )


def has_own_conversions(cls: type) -> bool:
    """Whether a class can convert or rebuild its modules by itself."""
    return any(callable(getattr(cls, n, None)) for n in (*CONVERSIONS, REBUILDS))


_CLASSES: dict[Any, type] = {}
BUILTIN_NAMES: dict[str, Any] = {
    "inf": float("inf"),
    "nan": float("nan"),
    "device": torch.device,
    "NoneType": type(None),
    "torch": torch,
    "fx_pytree": fx._pytree,
    "pytree": torch.utils._pytree,
}


def find(module: str, qualname: str) -> Any:
    """What a module holds under a qualified name."""
    found = importlib.import_module(module)
    return functools.reduce(getattr, qualname.split("."), found) if qualname else found


def _member(module: str, qualname: str, name: str) -> Any:
    """A member of an enumeration."""
    return getattr(find(module, qualname), name)


def derive(cls: type, methods: tuple[Method, ...], plain: bool = False) -> type:
    """A class like `cls` with some methods written anew and its own conversions made no-ops.

    Args:
        cls: the class of the user's module.
        methods: what is written anew.
        plain: derive from `nn.Module` instead (a norm whose normalization was absorbed is no norm any more).
    """
    if "_reptool_derived" in cls.__dict__:
        cls, earlier, was_plain = cls._reptool_derived  # type: ignore[attr-defined]
        fresh = {m.name for m in methods}
        methods = (*(m for m in earlier if m.name not in fresh), *methods)
        plain = plain or was_plain
    key = (cls, tuple((m.name, m.source, m.names) for m in methods), plain)
    if key in _CLASSES:
        return _CLASSES[key]
    body: dict[str, Any] = {n: _converted for n in CONVERSIONS if callable(getattr(cls, n, None))}
    body |= {n: _is_converted for n in CONVERTED if body and inspect.isfunction(getattr(cls, n, None))}
    if inspect.ismethod(getattr(cls, REBUILDS, None)):
        body[REBUILDS] = classmethod(_not_rebuilt)
    for method in methods:
        scope = {name: find(module, qualname) for name, module, qualname in method.names}
        scope.update(
            BUILTIN_NAMES,
            _expect=_expect,
            _expect_given=_expect_given,
            _sealed=_sealed,
            _original=getattr(cls, method.name),
            _member=_member,
            _bound=_binder(getattr(cls, method.name)),
        )
        scope.update(_holds=holds, _like=Like, _as_it_was=as_it_was)
        exec(compile(method.source, f"<reptool {cls.__name__}.{method.name}>", "exec"), scope)
        function = scope[method.name]
        original = getattr(cls, method.name)
        _give_defaults(function, inspect.signature(original))
        function.__doc__ = original.__doc__
        function.__qualname__ = original.__qualname__
        body[method.name] = function
    body["__reduce_ex__"] = _reduce
    body["_reptool_derived"] = (cls, methods, plain)
    body["__module__"], body["__qualname__"], body["__doc__"] = cls.__module__, cls.__qualname__, cls.__doc__
    if plain and "extra_repr" not in body:
        body["extra_repr"] = nn.Module.extra_repr
    made = type(cls)(cls.__name__, (nn.Module,) if plain else (cls,), body)
    _CLASSES[key] = made
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


def _binder(original: Any) -> Callable[..., dict[str, Any]]:
    """What gives the arguments of a call of a method by name, the defaults included."""

    def bound(*args: Any, **kwargs: Any) -> dict[str, Any]:
        arguments = inspect.signature(original).bind(*args, **kwargs)
        arguments.apply_defaults()
        return arguments.arguments

    return bound


def _reduce(self: nn.Module, protocol: Any) -> Any:
    cls, methods, plain = type(self)._reptool_derived  # type: ignore[attr-defined]
    state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
    return _rebuild, (cls, methods, plain), state


def _rebuild(cls: type, methods: tuple[Method, ...], plain: bool) -> Any:
    """Recreate an instance of a delivered class (for pickle and copy)."""
    derived = derive(cls, methods, plain)
    return copyreg.__newobj__(derived)  # type: ignore[attr-defined]


def original_class(module: nn.Module) -> type:
    """The user's class behind a delivered one."""
    derived = getattr(type(module), "_reptool_derived", None)
    return type(module) if derived is None else derived[0]
