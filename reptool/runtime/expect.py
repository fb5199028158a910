"""Guards that deployed methods call: the arguments and settings that they were written for, or `SpecializedError`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.errors import SpecializedError
from reptool.runtime.absorbed import GoneError
from reptool.runtime.gates.in_place import inside, is_narrow, too_narrow
from reptool.runtime.gates.marker import Marker, is_machinery
from reptool.runtime.snapshot import ABSENT, same


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


def _expect_same(name: str, value: Any, seen: Any) -> None:
    """The guard of a deployed method: a setting that decided what the layers which were fused compute together."""
    if isinstance(value, fx.Proxy) or same(value, seen):
        return
    was = repr(seen) if isinstance(seen, (bool, int, float, str, type(None))) else "what it was then"
    raise SpecializedError(
        f"this model was deployed with {name}={was}, and it is {_shortened(value)} now; set it before deploying, or "
        "exclude this module"
    )


def _held(module: Any, name: str) -> Any:
    """A parameter or buffer of a module, if it still holds one under this name."""
    return module._parameters.get(name, module._buffers.get(name, ABSENT))


def _expect_kind(name: str, value: Any, what: str, seen: Any, owner: Any) -> None:
    """The guard of a tensor whose dtype, rank or device decided which code runs: as seen, or as its `owner` has it."""
    if isinstance(value, fx.Proxy) or value is ABSENT:
        return  # one that went into a layer is of the kind of that layer
    own = (p.dtype for p in owner.parameters() if p.is_floating_point()) if owner is not None else iter(())
    wanted = next(own, seen)
    told = {"dtype": lambda: value.dtype, "rank": lambda: value.dim(), "device": lambda: value.device.type}[what]
    found = told() if torch.is_tensor(value) else type(value).__name__
    if found != wanted:
        raise SpecializedError(
            f"this method was deployed for {name} of {what} {wanted} and is given {found}, for which it may run other "
            "code; deploy the model with such example_inputs, or exclude this module"
        )


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _expect_fused(name: str, module: Any, *path: str) -> None:
    """The guard of a method that calls a fused layer: another module in its place is not what was fused.

    Args:
        name: how the method names the layer.
        module: what holds the layer, the layer itself in pickles of earlier releases.
        path: of the layer in it.
    """
    if torch.compiler.is_compiling():
        return
    module = inside(module, path)
    if isinstance(module, fx.Proxy) or FUSED in getattr(module, "__dict__", ()):
        return
    raise SpecializedError(
        f"{name} holds another module than the layer that deploy() fused there; exclude it (deploy(model, "
        "exclude=...)), or use the original model or reptool.release(deployed) first"
    )


def _expect_wide(weight: Any, wide: torch.dtype) -> None:
    """The guard of a layer that took up a tensor which is no parameter or buffer, and which no conversion reaches.

    Args:
        weight: of the layer.
        wide: the dtype that this tensor keeps: with it the original computes in no narrower one.

    Raises:
        SpecializedError: the original would give values of another dtype.
    """
    if is_narrow(weight, wide):
        raise SpecializedError(too_narrow(weight, wide))


def _expect_absorbed(module: Any, paths: tuple[tuple[str, ...], ...]) -> None:
    """The guard of a method that does itself what modules did: another one in such a place would not be run."""
    if torch.compiler.is_compiling():
        return
    for path in paths:
        if not isinstance(inside(module, path), Marker):
            raise SpecializedError(
                f"{'.'.join(path)!r} of this {type(module).__name__} was absorbed by deploy(), and the module that is "
                "there now would not be run; exclude it (deploy(model, exclude=...)), or use the original model"
            )


def _not_converted(module: Any, name: str) -> None:
    """A conversion of the model's own that changed what its module computes, on a module that is deployed."""
    raise SpecializedError(
        f"{type(module).__name__}.{name}() changes what the original computes, or cannot be called without arguments: "
        "it is no conversion that deploy() could have done in its place; call it before deploying"
    )


ASKED = "_reptool_asked"
"""Where a layer says which attributes it has of the module in whose place it is, since code asks for them."""
FUSED = "_reptool_fused"
"""The mark of a layer that stands for a region; what `release` leaves of it."""


def _not_there(module: Any, name: str, gone: tuple[str, ...]) -> None:
    """The guard of attributes that are gone since the model was deployed; to `hasattr` they are missing."""
    if name in gone:
        raise GoneError(
            f"{name!r} of this {type(module).__name__} was folded into a layer by deploy() and is gone; exclude "
            "this module (deploy(model, exclude=...)), or use the original model"
        )


def _not_read(module: Any, name: str, own: tuple[str, ...], gone: tuple[str, ...]) -> None:
    """The guard of a name that the original answers otherwise, under which the layer's own code finds what it needs.

    A norm whose scale other layers took up finds None, and a layer in the place of a module with a method ``weight``
    its weight.
    """
    if name not in own or torch.compiler.is_compiling() or is_machinery(type(module), sys._getframe(2)):
        return
    if name in gone:
        _not_there(module, name, gone)
    raise SpecializedError(
        f"{name!r} of this {type(module).__name__} is a tensor since deploy() put it in the place of a module with a "
        "method of this name: read it with state_dict(), use the original model, or reptool.release(deployed) first"
    )


def _not_inside(module: Any, name: str, gone: tuple[str, ...]) -> None:
    """The guard of modules that were in a wrapper whose place a layer took; `hasattr` raises as well."""
    if name in gone:
        raise SpecializedError(
            f"the module {name!r} in it is gone: deploy(unwrap=True) put this {type(module).__name__} in its place; "
            "deploy without unwrap, or use the original model"
        )


def _not_new(module: Any, name: str, value: Any) -> None:
    """The guard of a layer that took the place of a wrapper, whose code may have read any attribute."""
    own = name.startswith("_") or name in ("training", "qconfig") or name in vars(module)
    if not isinstance(value, nn.Module) and (own or name in module._parameters or name in module._buffers):
        return
    raise SpecializedError(
        f"{name!r} is set on a {type(module).__name__} that deploy(unwrap=True) put in the place of the module around "
        "it, so that setting it would change nothing; deploy without unwrap, or call reptool.release(deployed) first"
    )


def _not_set(module: Any, name: str, gone: tuple[str, ...]) -> None:
    """The guard of attributes that were folded into a layer when the model was deployed."""
    if name in gone:
        raise SpecializedError(
            f"{name!r} of this {type(module).__name__} was folded into a layer by deploy(), so that setting it "
            "would change nothing; set it before deploying, or exclude this module"
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


@dataclass(frozen=True)
class Like:
    """A tensor that gives the answers that were seen.

    Args:
        shape: the size of each axis; ``-n`` stands for every size from `n` on.
        dtype: its dtype, None when no answer depends on it.
        device: its kind of device, None when no answer depends on it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    device: str | None = None

    def fits(self, value: Any) -> bool:
        """Whether `value` is such a tensor."""
        if not isinstance(value, Tensor) or value.dim() != len(self.shape):
            return False
        for axis, size in enumerate(self.shape):
            if not (value.shape[axis] == size if size >= 0 else value.shape[axis] >= -size):
                return False
        if self.dtype is not None and value.dtype != self.dtype:
            return False
        return self.device is None or value.device.type == self.device

    def __str__(self) -> str:
        sizes = ", ".join(str(n) if n >= 0 else f">={-n}" for n in self.shape)
        rest = "".join(f", {r}" for r in (self.dtype, self.device) if r is not None)
        return f"({sizes}{rest})"

    def __repr__(self) -> str:
        rest = "" if self.dtype is None and self.device is None else f", {self.dtype!r}, {self.device!r}"
        return f"_like({self.shape!r}{rest})"


def holds(given: tuple[Any, ...], *seen: tuple[Any, ...]) -> bool:
    """Whether the arguments of a call fit one of the calls that were traced."""
    return any(fits(given, one) for one in seen)


def fits(value: Any, wanted: Any) -> bool:
    """Whether an argument gives the same answers as the one that was seen.

    >>> fits([torch.zeros(4, 3, 8), True], [Like((-1, 3, 8)), True])
    True
    >>> fits([torch.zeros(4, 3, 9), True], [Like((-1, 3, 8)), True])
    False
    """
    if isinstance(wanted, Like):
        return wanted.fits(value)
    if isinstance(wanted, (tuple, list)):
        same = isinstance(value, (tuple, list)) and len(value) == len(wanted)
        return same and all(fits(v, w) for v, w in zip(value, wanted, strict=True))
    if isinstance(wanted, dict):
        same = type(value) is dict and list(value) == list(wanted)
        return same and all(fits(value[k], w) for k, w in wanted.items())
    return type(value) is type(wanted) and bool(value == wanted)


KEPT = "reptool_original"
"""The name under which a module with a fallback holds the layers that were changed, as they were."""


def _as_it_was(module: Any) -> Any:
    """A twin of a deployed module that computes what the original computed."""
    return module._modules[KEPT].twin_of(module)


def _bound(original: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of a method by name, the defaults included."""
    arguments = inspect.signature(original).bind(*args, **kwargs)
    arguments.apply_defaults()
    return arguments.arguments


def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that a graph holds as an attribute, since it has no name of its own."""
    return function(*args, **kwargs)
