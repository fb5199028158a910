"""Patches for the time of a trace: module calls, attribute reads and writes, and functions that bypass dispatch.

Reads of attributes that are neither data, parts nor methods become `Setting`s of the call that makes them. Everything
is set back afterwards; other threads get the functions as they were.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from reptool.capture.own_state import holds_nothing
from reptool.ir.trace import Question, Unanswerable
from reptool.ir.walk import KINDS, nodes_in
from reptool.pysource.module_info import stock_forward
from reptool.runtime.snapshot import ABSENT

if TYPE_CHECKING:
    from reptool.capture.tracer import Recorder

_FACTORIES = (
    "zeros", "ones", "empty", "full", "arange", "linspace", "tensor", "as_tensor", "asarray", "eye", "meshgrid",
)  # fmt: skip
_SCALARS = (
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "pow",
    "float_power", "remainder", "fmod", "lerp", "addcmul", "addcdiv", "addmm", "addbmm", "addmv", "addr", "baddbmm",
    "clamp", "clip", "clamp_min", "clamp_max", "where", "isin", "masked_fill", "index_fill", "index_add", "scatter",
    "full_like", "fill", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift",
    "bucketize", "searchsorted", "copysign", "atan2", "xlogy", "celu", "threshold", "hardshrink", "norm", "dist",
    "logspace", "scalar_tensor", "result_type", "eq", "ne", "lt", "le", "gt", "ge",
)  # fmt: skip
"""Functions of torch that may ask whether an argument is a number: they look into what says it is a tensor."""
DRAWS = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson")
_MODES = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled")
_MATH = ("ceil", "floor", "sqrt", "prod", "log", "log2", "trunc")


STRUCTURE = frozenset(vars(nn.Module())) - {"training", "__dict__"} | {"__class__", "forward"}
"""What every module has: torch's own bookkeeping."""
_BOOKKEEPING = frozenset({"torch.nn.modules.module", "torch.nn.modules.container", "inspect"})
_OURS = tuple(
    f"reptool.{p}" for p in ("capture", "ir", "models", "probing", "pysource", "rewrite", "runtime", "report")
)
"""What runs beside a model's code while it is traced; blocks are a model's code."""
WATCHED: set[type] = set()
"""What stands in the place of methods while they are recorded."""

_BASE: Any = torch._C._FunctionBase
_INSIDE: Any = torch.autograd.function._SingleLevelFunction
"""Where every `apply` of an autograd function ends up, also one that was stored earlier (``swish = Swish.apply``)."""


LOCK = threading.RLock()
"""Held while anything is patched."""


class _Patched:
    """Who traces, innermost last, and whether the methods of `nn.Module` stay replaced between two traces."""

    def __init__(self) -> None:
        self.recorders: list[Recorder] = []
        self.stays = 0

    def tracing(self) -> Recorder | None:
        """The recorder that the model's code reports to, None where it is not the model's code that runs."""
        for recorder in reversed(self.recorders):
            if recorder.tracing:
                return recorder
        return None


_NOW = _Patched()


@contextmanager
def between_traces() -> Iterator[None]:
    """For traces one after another: what is dear to replace stays replaced from one to the next, and does nothing.

    Whatever replaces the special methods of `nn.Module` tells every class of modules of it, which takes longer than the
    trace of a method.
    """
    with LOCK, _modules_patched():
        _NOW.stays += 1
        try:
            yield
        finally:
            _NOW.stays -= 1


@contextmanager
def _modules_patched() -> Iterator[None]:  # long: one function for each special method
    """Calls, reads and writes of modules go through the recorder that traces."""
    if _NOW.stays:
        yield
        return
    call, read, write, look = (
        nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__, nn.Module.__getattribute__,
    )  # fmt: skip

    asked: list[str] = []

    def traced_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        recorder = _NOW.tracing()
        return call(self, *args, **kwargs) if recorder is None else recorder.call_module(self, args, kwargs)

    def traced_attribute(self: nn.Module, name: str) -> Any:
        value = look(self, name)
        if name not in STRUCTURE and (recorder := _NOW.tracing()) is not None:
            _seen(recorder, self, name, value, sys._getframe(1))
        return value

    def traced_read(self: nn.Module, name: str) -> Any:
        recorder = _NOW.tracing()
        try:
            found = read(self, name)
        except AttributeError:
            if recorder is not None and not asked:
                with _kept_in(asked, name):  # a class may answer by code of its own
                    value = ABSENT if type(self).__getattr__ is traced_read else getattr(self, name, ABSENT)
                _seen(recorder, self, name, value, sys._getframe(1))
            raise
        if recorder is None:
            return found
        if found is None:
            if name not in self._parameters:
                _seen(recorder, self, name, None, sys._getframe(1))
            elif not _is_torchs(sys._getframe(1)):
                recorder.peek(self, lacks=True)
        if isinstance(found, Tensor) and (name in self._parameters or name in self._buffers):
            return recorder.parameter(self, name, found)
        return found

    def traced_write(self: nn.Module, name: str, value: Any) -> None:
        recorder = _NOW.tracing()
        if recorder is None or not _is_kept(recorder, self, name, value, sys._getframe(1)):
            write(self, name, value)

    new = {
        "__call__": traced_call, "__getattr__": traced_read, "__getattribute__": traced_attribute,
        "__setattr__": traced_write, "__delattr__": _not_deleted(nn.Module.__delattr__),
    }  # fmt: skip
    old = {name: vars(nn.Module).get(name, _NOW) for name in new}
    try:
        for name, function in new.items():
            setattr(nn.Module, name, function)
        yield
    finally:
        for name, function in old.items():
            delattr(nn.Module, name) if function is _NOW else setattr(nn.Module, name, function)


def _is_kept(recorder: Recorder, module: nn.Module, name: str, value: Any, frame: Any) -> bool:
    """Whether code writes a symbolic value into a module: that is done here, and undone after the run."""
    event = recorder.stack[-1]
    kept = list(nodes_in(value))
    if isinstance(value, nn.Module) and module._modules.get(name) is not value:
        raise Unanswerable(f"the forward puts another module in the place of {name!r}")
    if callable(value) and not isinstance(value, nn.Module) and callable(getattr(type(module), name, None)):
        raise recorder.refused(Unanswerable(f"the forward puts another function in the place of {name!r}"))
    if _reads_attribute(frame.f_code, name):
        event.questions.append(Question("own state", name, None))
    if stock_forward(module) and not _is_set_to(module, name, value):
        recorder.unsettled.setdefault(id(module), name)
    if kept:
        recorder.escapes.update(kept)
        event.effects.append(f"writes the attribute {name!r}")
        recorder.written.append((module, name, vars(module).get(name, ABSENT)))
        object.__setattr__(module, name, value)
    return bool(kept)


@contextmanager
def patched(recorder: Recorder) -> Iterator[None]:  # long: the patches, one after another, share what they save
    """While tracing: module calls, parameter reads, attribute writes and a few functions go through the recorder.

    The patches stand for the whole process; what other threads run meanwhile, and what runs while the recorder is not
    tracing, gets the functions as they were.
    """
    saved: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, new: Any) -> None:
        saved.append((owner, name, vars(owner).get(name, saved)))
        setattr(owner, name, new)

    def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if (any(map(_holds, args)) or any(map(_holds, kwargs.values()))) and recorder.tracing:
                return recorder.emit("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        wrapper.__wrapped__ = function  # type: ignore[attr-defined]
        return wrapper

    def drawn(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if recorder.tracing:
                return recorder.emit("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return wrapper

    def asked(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            answer = function(*args, **kwargs)
            if recorder.tracing and not str(sys._getframe(1).f_globals.get("__name__")).startswith("torch."):
                recorder.stack[-1].questions.append(Question("mode", function.__name__, answer))
            return answer

        return wrapper

    def asked_type(value: Any, kinds: Any, instance: Callable[..., bool] = isinstance) -> bool:
        if type(value) in KINDS and recorder.tracing:
            return recorder.is_instance(value, kinds, sys._getframe(1))
        if instance(value, nn.Module) and recorder.tracing and not _is_torchs(sys._getframe(1)):
            recorder.peek(value)
        return instance(value, kinds)

    with _modules_patched():
        _NOW.recorders.append(recorder)
        try:
            for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
                replace(norm, "_check_input_dim", _unchecked(recorder, norm._check_input_dim))
            for cls in sorted(recorder.callers, key=lambda c: c.__qualname__):
                replace(cls, "__call__", nn.Module.__call__)
            for name in ("named_parameters", "named_buffers"):
                replace(nn.Module, name, _listing(recorder, getattr(nn.Module, name)))
            replace(nn.Module, "state_dict", _withheld(recorder, nn.Module.state_dict))
            replace(torch.jit.ScriptFunction, "__call__", _compiled(recorder, torch.jit.ScriptFunction.__call__))
            checkpoint = torch.utils.checkpoint
            replace(checkpoint, "_checkpoint_without_reentrant_generator", _not_kept(recorder))
            replace(checkpoint, "CheckpointFunction", _at_once(recorder))
            replace(_INSIDE, "apply", _followed_by(recorder))
            for name in DRAWS:
                replace(torch, name, drawn(getattr(torch, name)))
            for name in _MODES:
                replace(torch, name, asked(getattr(torch, name)))
            for name in (*_FACTORIES, *_SCALARS):
                replace(torch, name, lifted(getattr(torch, name)))
            replace(torch.nested, "nested_tensor", lifted(torch.nested.nested_tensor))
            for name in _MATH:
                replace(math, name, lifted(getattr(math, name)))
            for name in ("max", "min"):
                replace(builtins, name, lifted(getattr(builtins, name)))
            replace(builtins, "isinstance", asked_type)
            yield
        finally:
            _NOW.recorders.remove(recorder)
            for owner, name, old in reversed(saved):
                delattr(owner, name) if old is saved else setattr(owner, name, old)
            for module, name, old in reversed(recorder.written):  # the next run finds the model as it was
                vars(module).pop(name, None) if old is ABSENT else vars(module).__setitem__(name, old)
            recorder.written.clear()


@contextmanager
def _kept_in(held: list[str], name: str) -> Iterator[None]:
    held.append(name)
    try:
        yield
    finally:
        held.pop()


def _is_torchs(frame: Any) -> bool:
    """Whether code is torch's or runs beside the model's."""
    home = str(frame.f_globals.get("__name__"))
    return home.startswith((*_OURS, "torch."))


def _seen(recorder: Recorder, module: nn.Module, name: str, value: Any, frame: Any) -> None:
    """Remember that code reads an attribute of a module which is neither a weight nor a part nor a method of it."""
    home = str(frame.f_globals.get("__name__"))
    if home in _BOOKKEEPING or home.startswith(_OURS) or isinstance(value, nn.Module):
        return
    own = object.__getattribute__(module, "__dict__")
    recorder.reads_plain &= _is_plain_read(module, name, value, own)
    if isinstance(value, Tensor) and own.get(name) is not value:  # a weight, which the graph holds
        return
    if name == "__dict__":  # code that reads all there is
        for other in [n for n in own if n not in STRUCTURE]:
            recorder.setting(module, other, own[other], home)
        return
    if name not in own and value is not ABSENT and _is_computed(type(module), name):
        return
    if type(value) in WATCHED or type(value) in KINDS or any(True for _ in nodes_in(value)):
        return
    recorder.setting(module, name, value, home)


def _is_plain_read(module: nn.Module, name: str, value: Any, own: dict[str, Any]) -> bool:
    """Whether what was read of a module is a weight, code, or nothing that can change."""
    if isinstance(value, Tensor):
        return own.get(name) is not value
    return holds_nothing(value) or type(value) in WATCHED or (name not in own and _is_computed(type(module), name))


def _is_computed(cls: type, name: str) -> bool:
    """Whether a class has code under a name: a method, or a property, which reads what it reads."""
    found = inspect.getattr_static(cls, name, None)
    return hasattr(type(found), "__get__")


def _not_kept(recorder: Recorder) -> Callable[..., Iterator[None]]:
    """Checkpointing keeps what it needs to run a function again: nothing, while tracing."""
    keeps = torch.utils.checkpoint._checkpoint_without_reentrant_generator

    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        if not recorder.tracing:
            return keeps(*args, **kwargs)
        return iter([None])

    return generator


def _at_once(recorder: Recorder) -> Any:
    """Checkpointing by an autograd function, which while tracing is a plain call."""
    reentrant = torch.utils.checkpoint.CheckpointFunction

    class Checkpoint:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args) if recorder.tracing else reentrant.apply(function, preserve, *args)

    return Checkpoint


def _followed_by(recorder: Recorder) -> Any:
    """An autograd function is one operation of unknown kind."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder.tracing and (any(True for _ in nodes_in(args)) or any(True for _ in nodes_in(kwargs))):
            if any(isinstance(a, nn.Module) for a in (*args, *kwargs.values())):
                raise recorder.refused(Unanswerable(f"the autograd function {cls.__name__} is given a module to run"))
            return recorder.call_opaque(cls.apply, args, kwargs)
        return _BASE.apply.__get__(None, cls)(*args, **kwargs)

    return classmethod(apply)


def _listing(recorder: Recorder, function: Callable[..., Any]) -> Callable[..., Any]:
    """``named_parameters`` and ``named_buffers``: code that gets its weights this way reads (and writes) them too."""

    def listing(self: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, tensor in function(self, *args, **kwargs):
            yield name, recorder.listed(self, name, tensor) if recorder.tracing else tensor

    return listing


def _not_deleted(delete: Callable[..., Any]) -> Callable[..., Any]:
    """What a forward takes away from a module would be missing in the next run."""

    def deleted(self: nn.Module, name: str) -> None:
        if _NOW.tracing() is not None and name in {**self._parameters, **self._buffers, **self._modules}:
            raise Unanswerable(f"the forward deletes {name!r} of a module")
        delete(self, name)

    return deleted


def _withheld(recorder: Recorder, function: Callable[..., Any]) -> Callable[..., Any]:
    """A ``state_dict`` hands out the tensors themselves: what is done to them could not be seen."""

    def withheld(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if recorder.tracing:
            raise Unanswerable("the forward asks for its state_dict")
        return function(self, *args, **kwargs)

    return withheld


def _compiled(recorder: Recorder, function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls of functions compiled by ``torch.jit.script``."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder.tracing and any(True for _ in nodes_in((args, kwargs))):
            return recorder.call_opaque(self, args, kwargs)
        return function(self, *args, **kwargs)

    return call


def _unchecked(recorder: Recorder, check: Callable[..., Any]) -> Callable[..., Any]:
    """The rank check of a norm: passed while tracing, made again by the norm at run time."""
    return lambda self, value: None if recorder.tracing else check(self, value)


def _reads_attribute(code: Any, name: str) -> bool:
    """Whether a function that writes an attribute also reads it: what it does may depend on what it did before."""
    return any(i.argval == name for i in dis.get_instructions(code) if i.opname in ("LOAD_ATTR", "LOAD_METHOD"))


def _is_set_to(module: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute of a module is this value already, so that writing it changes nothing."""
    own = {**vars(type(module)), **vars(module), **module._parameters, **module._buffers, **module._modules}
    now = own.get(name, own)
    plain = isinstance(value, (bool, int, float, str, tuple))
    return now is value or (plain and type(now) is type(value) and bool(now == value))


def _holds(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(type(v) in KINDS for v in value)
    return type(value) in KINDS
