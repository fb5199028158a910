"""Run a model that is somebody's and leave it as it was.

Results are compared with the caller's own object, never with a copy of it. What its forward changes is put back: the
attributes of modules and of plain objects, what containers hold, the numbers, flags and gradients of tensors. Something
that can be copied is a value and is put back; what cannot (a lock, a file) is a resource and is left as it is then.
Where a model holds a value of a kind that nobody knows how to put back, a copy runs in its place.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from operator import is_
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from reptool.models.copies import full_copy, shallow_copy

_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, enum.Enum, torch.dtype, torch.device, torch.Size,
    torch.layout, torch.memory_format, slice, range, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.ModuleType, functools.partial, weakref.ref, numpy.generic, fx.Graph,
)  # fmt: skip
_REDUCING = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")


def run_as_given(model: nn.Module, copies: dict[int, Any], run: Callable[[nn.Module], Any]) -> Any:
    """What `run` gives for the model itself, which is as it was afterwards.

    Args:
        model: the caller's own.
        copies: the memo of `full_copy(model, memo)`: a copy of everything in it that is a value, by id.
        run: calls the model that it is given.
    """
    for module in model.modules():
        compiled: Any = getattr(module, "real_recompile", None)
        if compiled is not None:  # a lazy GraphModule runs its hooks twice at its first call
            compiled()
    states = _states(model, copies)
    if states is None:
        return run(full_copy(copies[id(model)]))
    try:
        return run(model)
    finally:
        for restore in states:
            restore()


def put_back(model: nn.Module, alone: bool = False) -> Callable[[], None] | None:
    """How to put back what code changed of a model, but for the numbers of its tensors; None where that is not known.

    Args:
        model: the model, or a part of one.
        alone: whether this has to be all that code of the part can get at through it: None where it may hold a way to
            something else in a function, a method or a reference.

    >>> linear = nn.Linear(2, 2)
    >>> restore = put_back(linear)
    >>> del linear.weight
    >>> restore()
    >>> linear.weight.shape
    torch.Size([2, 2])
    """
    copies: dict[int, Any] = {}
    shallow_copy(model, copies)
    try:
        states = _states(model, copies, alone)
    except Exception:  # a symbolic value that a run left behind
        return None

    def restore() -> None:
        for state in states or ():
            state()

    return None if states is None else restore


def _states(
    model: nn.Module, copies: dict[int, Any], alone: bool = False
) -> list[Callable[[], None]] | None:  # long: a case for each sort of object
    """How to put everything back that the model holds, None where that is not known, or, if `alone`, is not all."""
    found: list[Callable[[], None]] = []
    seen: set[int] = set()
    queue: deque[Any] = deque([model])
    while queue:
        value = queue.popleft()
        same = copies.get(id(value))
        if id(value) in seen:
            continue
        if isinstance(value, _ATOMS):
            if alone and not _leads_nowhere(value):
                return None
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            if isinstance(value, torch.jit.ScriptModule) or same is None:
                return None
            found.append(functools.partial(_set_class, value, type(value)))
        elif isinstance(value, Tensor):
            if alone and vars(value):
                return None
            found.append(_tensor_state(value, same))
            continue
        elif isinstance(value, tuple | frozenset):
            queue.extend(value)
            continue
        elif same is None or same is value:  # a resource, or nothing that can be copied: nobody's value
            if alone:
                return None
            continue
        elif isinstance(value, numpy.ndarray) and value.dtype != object:
            found.append(functools.partial(_set_array, value, same))
            continue
        elif isinstance(value, _MUTABLE):
            found.append(_contents(value))
            queue.extend(value.values() if isinstance(value, dict) else value)
        elif not _is_plain(value):
            return None
        if hasattr(value, "__dict__"):
            found.append(_contents(vars(value)))
            queue.extend(vars(value).values())
        for name in copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
            if hasattr(value, name):
                found.append(functools.partial(object.__setattr__, value, name, getattr(value, name)))
                queue.append(getattr(value, name))
    return found


def _leads_nowhere(value: Any) -> bool:
    """Whether code gets at no object of a model through a value that is not looked into."""
    if isinstance(value, types.FunctionType):
        held = (value.__closure__, value.__kwdefaults__, vars(value).get("__wrapped__"))
        return not any(held) and all(isinstance(v, _PLAIN) for v in value.__defaults__ or ())
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, type(None) | types.ModuleType)
    return not isinstance(value, types.MethodType | functools.partial | weakref.ref | fx.Graph)


_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)
_MUTABLE = (dict, list, set, deque)


def _is_plain(value: Any) -> bool:
    """Whether an object is its attributes and nothing else."""
    cls = type(value)
    if any(getattr(cls, name, None) is not getattr(object, name, None) for name in _REDUCING):
        return False
    try:
        object.__reduce_ex__(value, 2)
    except TypeError:  # it has a state in C
        return False
    return True


def _set_class(module: nn.Module, kind: type) -> None:
    if type(module) is not kind:
        module.__class__ = kind


def _set_array(array: Any, same: Any) -> None:
    if array.flags.writeable:
        numpy.copyto(array, same)


def _contents(value: Any) -> Callable[[], None]:
    """How to put back what a container holds; one that was not changed is not touched."""
    if isinstance(value, dict):
        kind, keys, held = (OrderedDict if isinstance(value, OrderedDict) else dict), list(value), list(value.values())

        def items() -> None:
            same = len(value) == len(keys) and all(map(is_, value, keys)) and all(map(is_, value.values(), held))
            if not same:
                kind.clear(value)
                for key, item in zip(keys, held, strict=True):
                    kind.__setitem__(value, key, item)

        return items
    elements = list(value)

    def restore() -> None:
        now = list(value)
        if len(now) != len(elements) or any(a is not b for a, b in zip(now, elements, strict=True)):
            base: Any = next(k for k in _MUTABLE if isinstance(value, k))
            base.clear(value)
            base.update(value, elements) if base is set else base.extend(value, elements)

    return restore


def _tensor_state(tensor: Tensor, same: Any) -> Callable[[], None]:
    """How to put back the numbers, the memory, the flag and the gradient of a tensor."""
    memory, flag = tensor.detach(), tensor.requires_grad
    gradient = tensor.grad if tensor.is_leaf else None

    def restore() -> None:
        with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
            if tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape:
                tensor.data = memory
            if isinstance(same, Tensor) and same is not tensor and not torch.equal(memory, same):
                memory.copy_(same)  # `.data` writes without a note in the version, so that values are compared
        if tensor.is_leaf and tensor.requires_grad != flag:
            tensor.requires_grad_(flag)
        if tensor.is_leaf and tensor.grad is not gradient:
            tensor.grad = gradient

    return restore
