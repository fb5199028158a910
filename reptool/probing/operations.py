"""Which operations a function runs, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from reptool.ir.walk import Inputs, call

_KINDS = {
    "convolution": "convolution",
    "addmm": "linear",
    "mm": "linear",
    "bmm": "linear",
    "linear": "linear",
    "add": "addition",
    "add_": "addition",
    "sub": "addition",
    "rsub": "addition",
    "sub_": "addition",
    "mul": "multiplication",
    "mul_": "multiplication",
    "cat": "concatenation",
}


def _kind(name: str) -> str:
    if name in _KINDS:
        return _KINDS[name]
    if "convolution" in name:
        return "convolution"
    if "batch_norm" in name:
        return "batch norm"
    return "pooling" if "pool" in name else name


class _Counting(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[_kind(func.overloadpacket.__name__)] += 1
        return func(*args, **(kwargs or {}))


def count_operations(function: Callable[..., Any], inputs: Inputs) -> Counter[str]:
    """Which aten operations run, by kind: convolution, linear, batch norm, pooling, addition, ...

    >>> import torch
    >>> count_operations(torch.nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2))["convolution"]
    1
    """
    with _Counting() as mode:
        call(function, inputs)
    return +mode.counts - Counter({kind: mode.counts[kind] for kind in ("clone", "detach", "alias")})
