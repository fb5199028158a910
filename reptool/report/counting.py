"""Counting: the multiplications of a call, as they are executed and as layers are made.

What is executed is seen in the operations of one run, by the formulas of `torch.utils.flop_counter`. A layer makes
``weights * positions`` of them: where its output is, or, for a transposed convolution, where its input is.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from reptool.algebra.kernel import Kernel

Shape = tuple[int, ...]


class Multiplications(TorchDispatchMode):
    """Counts the multiplications of matrix products and convolutions while it is open, in its own thread.

    >>> with Multiplications() as counted, torch.no_grad():
    ...     _ = torch.nn.Linear(3, 5)(torch.zeros(2, 3))
    >>> counted.count
    30
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # which imports triton

        super().__init__()
        self.formulas = flop_registry
        self.count = 0
        self.sure = True  # whether everything that multiplies could be counted
        self.whole: set[Any] = set()  # operations that are made of no others

    @property
    def known(self) -> int | None:
        """The count, None where it is not sure."""
        return self.count if self.sure else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # a branch or loop, of which nobody knows how often it runs
            self.sure = False
            return func(*args, **kwargs)
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and func not in self.whole and func is not torch.ops.prim.device.default:
            with self:  # an operation that is made of others
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
            self.whole.add(func)
        out = func(*args, **kwargs)
        if formula is not None:
            try:
                self.count += int(formula(*args, **kwargs, out_val=out)) // 2
            except Exception:  # a tensor that has no plain shape (nested, sparse)
                self.sure = False
        return out


def of_layer(kernel: Kernel, read: Shape, written: Shape) -> int:
    """Multiplications of one layer.

    Args:
        kernel: what it computes, by its shape.
        read: shape of its input.
        written: shape of its output.
    """
    channels = kernel.channels
    assert channels is not None
    groups = channels.groups if kernel.axes != () else 1
    taps = prod(a.kernel_size for a in kernel.axes or ())
    weights = channels.out_channels * (channels.in_channels // groups) * taps
    if kernel.transposed is not None:
        return weights * (prod(read) // channels.in_channels)
    return weights * (prod(written) // channels.out_channels)
