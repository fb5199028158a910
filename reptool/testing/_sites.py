"""Which norms, computed weights and scales does a model still run, and which of them does its report not name?

Judged from the operations that one call really executes, without asking reptool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reptool.ir.walk import cloned, named_tensors
from reptool.models.copies import full_copy
from reptool.refusal import Code
from reptool.report.data import Report
from reptool.runtime.gates.release import release

_SAMPLE_NORMS = ("native_layer_norm", "native_group_norm", "rms_norm", "_fused_rms_norm")
_VIEWS = frozenset(["t", "transpose", "permute", "view", "_unsafe_view", "reshape", "detach", "alias",
                    "unsqueeze", "squeeze", "_to_copy", "as_strided", "split", "split_with_sizes", "slice", "select",
                    "unbind", "narrow"])  # fmt: skip
_SCALES = frozenset(["add", "sub", "rsub", "mul", "div", "addcmul", "addcdiv"])


@dataclass(frozen=True)
class Executed:
    """An operation that holds constants of the model's own.

    Args:
        kind: ``"norm"``, ``"weight"`` (computed at this call) or ``"scale"`` (or shift, along one axis at most).
        path: of the module in which it ran.
    """

    kind: str
    path: str


@dataclass
class _Made:
    """What is known of a tensor that was seen.

    Args:
        by: the operation that made it, "" for what was there before.
        path: of the module in which that ran.
        constant: whether it depends on no input.
        own: whether the model's own tensors are in it.
        of: the tensor of which it is a view.
    """

    by: str
    path: str
    constant: bool
    own: bool
    of: _Made | None = None


class _Sites(TorchDispatchMode):
    """Writes down the sites of one call."""

    def __init__(self, model: nn.Module, inputs: list[Tensor], running: list[str]) -> None:
        super().__init__()
        self.running, self.found = running, list[Executed]()
        self.own = {id(t) for t in (*model.parameters(), *model.buffers())}
        self.made: dict[int, _Made] = {}
        self.alive: list[Tensor] = []  # an id says nothing once its tensor is gone
        for tensor in inputs:
            self._keep(tensor, _Made("", "", False, False))

    def _keep(self, tensor: Tensor, made: _Made) -> None:
        self.alive.append(tensor)
        self.made[id(tensor)] = made

    def _of(self, tensor: Tensor) -> _Made:
        if id(tensor) not in self.made:
            self._keep(tensor, _Made("", "", True, id(tensor) in self.own))
        return self.made[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func._schema.name).partition("::")[2].rstrip("_")
        path = self.running[-1] if self.running else ""
        read = [t for _, t in named_tensors([*args, *kwargs.values()])]
        seen = [self._of(t) for t in read]
        kind = self._kind(name, read, seen, path)
        if kind:
            self.found.append(Executed(kind, path))
        out = func(*args, **kwargs)
        constant = all(m.constant for m in seen)
        own = constant and any(m.own for m in seen) and name != "expand"  # as large as the input says: no constant
        made = _Made(name, path, constant, own, seen[0] if name in _VIEWS else None)
        for _, tensor in named_tensors(out):
            self._keep(tensor, made)
        return out

    def _kind(self, name: str, read: list[Tensor], seen: list[_Made], path: str) -> str:
        if all(m.constant for m in seen):
            return ""
        if "batch_norm" in name or name in _SAMPLE_NORMS:
            return "norm" if any(m.own for m in seen[1:]) else ""
        if name in ("convolution", "addmm", "mm", "embedding"):
            weights = seen[1:2] if name == "convolution" else [m for m in seen if m.constant][-1:]
            return "weight" if any(m.own and _base(m).by for m in weights) else ""
        if name not in _SCALES:
            return ""
        constants = [t for t, m in zip(read, seen, strict=True) if m.own and t.is_floating_point()]
        values = [(t, m) for t, m in zip(read, seen, strict=True) if not m.constant]
        if not constants or len(values) != 1 or not values[0][0].is_floating_point():
            return ""
        if name == "div" and seen[0].constant:
            return ""  # a constant divided by a value is no scale
        if min(sum(n != 1 for n in t.shape) for t in constants) > 1:
            return ""
        layer = _base(values[0][1])  # torch adds the bias of a linear layer by itself if its input is not contiguous
        return "" if name == "add" and layer.by in ("mm", "bmm") and layer.path == path else "scale"


def _base(made: _Made) -> _Made:
    """What a view is a view of."""
    while made.of is not None:
        made = made.of
    return made


@contextmanager
def _followed(model: nn.Module) -> Iterator[list[str]]:
    """The paths of the modules that are running, innermost last."""
    running: list[str] = []

    def left(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles: list[Any] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        handles.append(module.register_forward_pre_hook(lambda m, args, p=path: running.append(p), prepend=True))
        handles.append(module.register_forward_hook(left, always_call=True))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def executed_sites(model: nn.Module, *args: Any, **kwargs: Any) -> list[Executed]:
    """The norms, computed weights and scales that one call of a model runs.

    Args:
        model: any module.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    >>> model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    >>> executed_sites(model, torch.randn(1, 2, 5, 5))
    [Executed(kind='norm', path='2')]
    """
    args, kwargs = cloned(args), cloned(kwargs)
    model = release(full_copy(model))  # hooks are set on all of it
    with (
        torch.no_grad(),
        _followed(model) as running,
        _Sites(model, [t for _, t in named_tensors([args, kwargs])], running) as sites,
    ):
        model(*args, **kwargs)
    return sites.found


def unnamed_sites(deployed: nn.Module, report: Report, *args: Any, **kwargs: Any) -> list[Executed]:
    """Those of `executed_sites` that a report does not name.

    Each needs a refusal with the path of its module, or lies in the code of one that could not be followed.

    Args:
        deployed: what `reptool.deploy` returned.
        report: the report on it.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    >>> import reptool
    >>> deployed = reptool.deploy(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval())
    >>> unnamed_sites(deployed, reptool.report(deployed), torch.randn(1, 3, 5, 5))
    []
    """
    named: Counter[str] = Counter()
    opaque = set(report.untraced)  # what could not be followed may run as often as it likes
    for refusal in report.refusals:
        paths = {n.partition(": ")[0].replace("<root>", "") for n in refusal.nodes}
        named.update(paths)
        opaque |= paths if refusal.code is Code.UNTRACEABLE else set()
    out = []
    for site in executed_sites(deployed, *args, **kwargs):
        if site.path in opaque:
            continue
        named[site.path] -= 1
        out += [site] if named[site.path] < 0 else []
    return out
