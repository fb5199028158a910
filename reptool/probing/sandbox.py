"""Sandbox: run a module whose code is not read as a plain function, and detect every side effect.

A copy runs in float64 on the CPU without gradients. Every call is watched: the input must stay as it is, the output
must be one new tensor, no random number may be drawn, and after all calls the module must hold what it held before.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import types
from collections.abc import Iterator, Mapping
from math import log2, prod
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reptool.algebra.work import Work
from reptool.ir.computed_weights import is_weight_hook
from reptool.models.rng import drew_since
from reptool.models.running import Generators, users_device
from reptool.refusal import Code, Refusal
from reptool.runtime.containers import leaves


class Stop(Exception):
    """Ends a measurement with a refusal."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = Refusal(code, sentence)


class Probe:
    """A module as a function of one tensor, in float64; see the module's text.

    Args:
        module: what is run, on a copy.
        wide: in float64; False keeps its own dtype.
    """

    def __init__(self, module: nn.Module, wide: bool = True) -> None:
        if any(map(_hooked, module.modules())):
            raise Stop(Code.HOOK, "it has hooks that would see other values")
        if any(m.training for m in module.modules()):
            raise Stop(Code.OPAQUE, "a part of it is in training mode")
        try:
            memo: dict[int, Any] = {id(v): v.detach().clone() for m in module.modules() for v in _plain_tensors(m)}
            self.module = copy.deepcopy(module, memo).cpu()
        except Exception as error:
            raise Stop(Code.OPAQUE, f"it cannot be copied ({type(error).__name__}: {error})"[:200]) from error
        self.dtype = torch.float64 if wide else dtype_of(module)
        if wide:
            self.module.double()
        self.before: str | None = None
        self.runs, self.raised = 0, ""

    def __call__(self, x: Tensor) -> Tensor:
        """Run once. Raises `Stop` for what no function does; errors of the module itself come through."""
        self.runs += 1
        given, generators = x.detach().clone(), Generators()
        y = self._run(x)
        if drew_since(generators, lambda: self._run(given.clone())):
            raise Stop(Code.OPAQUE, "it draws random numbers")
        if not isinstance(y, Tensor):
            raise Stop(Code.OPAQUE, f"it returns a {type(y).__name__}, not one tensor")
        if not torch.equal(x.nan_to_num(1.25), given.nan_to_num(1.25)):
            raise Stop(Code.MUTATED, "it writes into its input")
        if y.dtype is not self.dtype:
            raise Stop(Code.OPAQUE, f"it gives {y.dtype} for {self.dtype}: it does not compute in float64")
        if y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and y.numel():
            raise Stop(Code.MUTATED, "its output is a view of its input, and what is written into one shows in both")
        if y.dim() != x.dim() or y.shape[0] != x.shape[0]:
            raise Stop(Code.NOT_AFFINE, f"it makes {tuple(y.shape)} of {tuple(x.shape)} (test of the batch)")
        if self.before is None:  # behind the first call: a cache it fills once is no state
            self.before = digest(self.module)
        return y

    def _run(self, x: Tensor) -> Any:
        with torch.no_grad(), users_device():
            return self.module(x)

    def attempt(self, x: Tensor) -> Tensor | None:
        """The output, or None where the module raises."""
        try:
            return self(x)
        except Stop:
            raise
        except Exception as error:  # whatever its code raises
            self.raised = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            return None

    def check_state(self) -> None:
        """Raise if the calls left anything behind."""
        if digest(self.module) != self.before:
            raise Stop(Code.NOT_AFFINE, "it changes its own state from call to call (test of the state)")

    def work(self, x: Tensor) -> Work:
        """What one run executes; see `Work`."""
        with torch.no_grad(), _Counter() as counter:
            y = self.module(x)
        positions = max(prod(y.shape[2:]) * y.shape[0], 1)
        return Work(counter.multiplications / positions, counter.moved / positions, max(counter.operations, 1))


# --- what a module holds --------------------------------------------------------------------------------------------
def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype a module computes in: that of its first floating tensor."""
    held = (t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    return next(held, torch.get_default_dtype())


def _hooked(module: nn.Module) -> bool:
    pre = [h for h in module._forward_pre_hooks.values() if not is_weight_hook(h)]
    return bool(pre or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def _plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    return (v for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf)


def digest(value: Any, depth: int = 0) -> str:
    """A text that differs when what a value holds differs."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        raw = data.flatten().view(torch.uint8).numpy().tobytes()
        return f"{data.dtype}{tuple(data.shape)}{hashlib.sha1(raw).hexdigest()}"
    if isinstance(value, (str, int, float, complex, bytes, type(None))):
        return repr(value)
    if depth > 8 or (callable(value) and not isinstance(value, nn.Module)):
        return type(value).__name__
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k!r}:{digest(v, depth + 1)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ",".join(digest(v, depth + 1) for v in value) + "]"
    if isinstance(value, numpy.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha1(value.tobytes()).hexdigest()}"
    return type(value).__name__ + (digest(vars(value), depth + 1) if hasattr(value, "__dict__") else "")


def constants_of(module: nn.Module) -> set[float]:
    """Every number that the code of a module or its plain attributes hold: where its behaviour may change."""
    found: set[float] = set()
    for part in module.modules():
        held = [v for k, v in vars(part).items() if not k.startswith("_")]
        found.update(_numbers(held))
        for value in held:
            found |= _in_code(value)
        if not type(part).__module__.startswith("torch."):
            for cls in type(part).__mro__:
                if not cls.__module__.startswith(("torch.", "builtins")):
                    for function in vars(cls).values():
                        found |= _in_code(function)
                    found.update(_numbers(vars(cls).values()))
    return found


def _in_code(function: Any, depth: int = 0) -> set[float]:
    function = getattr(function, "func", function)  # of a partial
    function = getattr(function, "__func__", getattr(function, "fget", function))
    if not isinstance(function, types.FunctionType) or depth > 3:
        return set()
    found: set[float] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        found.update(_numbers(code.co_consts))
        for name in code.co_names:
            known = function.__globals__.get(name)
            found.update(_numbers([known]))
            found |= _called(known, function, depth)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            found.update(_numbers([cell.cell_contents]))
            found |= _called(cell.cell_contents, function, depth)
    return found | set(_numbers(function.__defaults__ or ()))


def _called(known: Any, caller: types.FunctionType, depth: int) -> set[float]:
    """Numbers in the author's own functions and classes (autograd functions, say) that a function names."""
    if isinstance(known, types.FunctionType) and not known.__module__.startswith("torch"):
        return _in_code(known, depth + 1)
    if isinstance(known, type) and known.__module__ == caller.__module__ and not issubclass(known, nn.Module):
        return {c for f in vars(known).values() for c in _in_code(f, depth + 1)}
    return set()


def _numbers(values: Any, depth: int = 0) -> Iterator[float]:
    for value in values:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if abs(value) < 1e300:
                yield abs(float(value))
        elif isinstance(value, (tuple, list, frozenset)) and depth < 3:
            yield from _numbers(value, depth + 1)


# --- what is executed -----------------------------------------------------------------------------------------------
class _Counter(TorchDispatchMode):
    """Counts what the operations of one run multiply and move."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = self.moved = 0.0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [a for a in leaves(args) if isinstance(a, Tensor)]
        made = [t for t in leaves(out) if isinstance(t, Tensor)]
        storages = {t.untyped_storage()._cdata for t in read}
        name = func.overloadpacket.__name__
        if made and (name.endswith("_") or any(t.untyped_storage()._cdata not in storages for t in made)):
            self.operations += 1
            self.moved += sum(t.numel() for t in (*read, *made))
            turned = name == "convolution" and bool(args[6])  # a transposed one multiplies what it reads
            self.multiplications += multiplications(name.rstrip("_"), read, read[0] if turned else made[0])
        return out


def multiplications(name: str, read: list[Tensor], out: Tensor) -> float:
    """Real multiplications of one operation (0 for what only adds or moves).

    >>> multiplications("mm", [torch.ones(2, 3), torch.ones(3, 4)], torch.ones(2, 4))
    24.0
    """
    each = 0.0
    if name == "convolution":
        return float(out.numel() * read[1][0].numel())
    if name in ("mm", "bmm", "mv", "dot"):
        each = read[0].shape[-1]
    elif name in ("addmm", "baddbmm", "addmv"):
        each = read[1].shape[-1]
    elif name.startswith("_fft"):
        return 2.0 * out.numel() * max(log2(max(prod(out.shape[2:]), 2)), 1)
    elif name in ("mul", "div", "addcmul", "native_batch_norm", "_native_batch_norm_legit_no_training", "lerp"):
        each = 1.0
    return float(out.numel() * each * (4 if out.is_complex() else 1))
