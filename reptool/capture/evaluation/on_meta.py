"""One operation without data and without a mode: the shape, dtype and strides of what it gives for fakes.

    f keeps shapes and reads x alone:  f(x) is of the shape of x, and of the dtype of f(x[:0]), which is run as it is
    f is a batch norm:                 the same, run on one position, where it compares channels
    otherwise:                         f(x) is of the shape, dtype and strides of f(meta(x))

Torch's fake tensor mode says the same at about ten times the price. It is asked where the meta device might answer
otherwise: operations that are not torch's own (their code may ask for the device), that change the shape of what they
are given, that are told a device or run under autocast, inputs on several devices or stored in another order; what
gives something else than tensors; and whatever raises here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.ir.nodes import name_of
from reptool.ir.shapes import keeps_shape
from reptool.ir.walk import map_tensors
from reptool.pysource.module_info import stock_forward
from reptool.runtime.containers import leaves

_TORCH = ("torch", "_operator")
Run = Callable[[Any, Any], Any]


def without_mode(node: fx.Node, args: Any, kwargs: Any, run: Run, mode: Any) -> Any:
    """What a node gives for fakes, or `NotImplemented` where the mode has to be asked.

    Args:
        node: the operation.
        args: its positional arguments: fakes, and real tensors for constants.
        kwargs: its keyword arguments.
        run: runs it on other arguments.
        mode: the mode that the fakes belong to.
    """
    given = list(leaves((args, kwargs)))
    fakes = [v for v in given if _is_fake(v)]
    if not fakes or not _is_own(node) or not _suit(given, fakes):
        return NotImplemented
    try:
        x = fakes[0]
        if keeps_shape(node) and x.dim() and x is given[0]:
            if _reads_alone(node, given):
                return _small_run(x, (0, *x.shape[1:]), (args, kwargs), run, mode)
            if len(fakes) == 1 and x.dim() > 1 and _is_batch_norm(node):
                return _small_run(x, (1, x.shape[1], *(1 for _ in x.shape[2:])), (args, kwargs), run, mode)
        return _meta_run(node, fakes[0].device, (args, kwargs), run, mode)
    except Exception:  # the mode says what is wrong, if anything is
        return NotImplemented


def _is_fake(value: Any) -> bool:
    return isinstance(value, Tensor) and type(value) is not Tensor and hasattr(value, "fake_mode")


def _is_own(node: fx.Node) -> bool:
    """Whether an operation is torch's own code, leaves the shapes of its inputs and says nothing of a device."""
    if node.op == "call_module":
        module: nn.Module = node.meta["module"]
        return type(module).__module__.startswith("torch.nn.modules.") and runs_stock_code(module)
    name = name_of(node)
    changes = name.endswith("_") and not name.endswith("__") and not keeps_shape(node)
    home = getattr(node.target, "__module__", None) or "torch"
    return node.target is not getattr and home.partition(".")[0] in _TORCH and not changes and "out" not in node.kwargs


def _reads_alone(node: fx.Node, given: list[Any]) -> bool:
    """Whether an operation reads one tensor and nothing else: on an empty one a norm would not compare channels."""
    module = node.meta.get("module") if node.op == "call_module" else None
    holds = module is not None and bool(module._parameters or module._buffers)
    return not holds and not any(isinstance(v, Tensor) for v in given[1:])


def _is_batch_norm(node: fx.Node) -> bool:
    return node.target in (F.batch_norm, torch.batch_norm) or isinstance(node.meta.get("module"), _BatchNorm)


def runs_stock_code(module: nn.Module) -> bool:
    """Whether a call of a module runs one forward of torch's, and nothing else."""
    return not module._modules and stock_forward(module) and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks, or a forward of its own, run when a module is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _suit(given: list[Any], fakes: list[Any]) -> bool:
    """Whether arguments mean the same on the meta device."""
    device = fakes[0].device
    tensors = [v for v in given if isinstance(v, Tensor)]
    return (
        all(v.device == device or not v.dim() for v in tensors)
        and all(v.layout == torch.strided and v.is_contiguous() and not v.is_quantized for v in fakes)
        and all(_is_fake(v) or type(v) in (Tensor, nn.Parameter) for v in tensors)
        and not any(isinstance(v, torch.device | torch.SymInt) for v in given)
        and not any(torch.is_autocast_enabled(d) for d in {"cpu", device.type})
    )


def _small_run(x: Any, size: tuple[int, ...], given: Any, run: Run, mode: Any) -> Any:
    """An operation that keeps shapes, run as it is on less."""
    args, kwargs = given
    small = torch.zeros(size, dtype=x.dtype, device=x.device)
    out = run((small, *args[1:]), kwargs)
    if not isinstance(out, Tensor) or out.shape != small.shape or out.device != x.device:
        return NotImplemented
    return _fake(mode, torch.empty(tuple(x.shape), dtype=out.dtype, device="meta"), x.device)


def _meta_run(node: fx.Node, device: torch.device, given: Any, run: Run, mode: Any) -> Any:
    """An operation on tensors of the meta device."""
    args, kwargs = map_tensors(given, _on_meta)
    out = _twin(node.meta["module"])(*args, **kwargs) if node.op == "call_module" else run(args, kwargs)
    made = list(leaves(out))
    if not made or not all(isinstance(v, Tensor) and v.is_meta for v in made):
        return NotImplemented
    return map_tensors(out, functools.partial(_fake, mode, device=device))


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _twin(module: nn.Module) -> nn.Module:
    """A module of torch that shares all but its tensors, which are on the meta device."""
    made: nn.Module = object.__new__(type(module))
    vars(made).update(vars(module))
    for table in ("_parameters", "_buffers"):
        held: dict[str, Any] = getattr(module, table)
        vars(made)[table] = {n: None if t is None else _on_meta(t) for n, t in held.items()}
    return made


def _fake(mode: Any, tensor: Tensor, device: torch.device) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    return FakeTensor(mode, tensor, device)
