"""A stated kernel beside the code it is stated for: every way to be wrong shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.probing.stated import check_stated
from reptool.refusal import Code, Refusal
from reptool.rules.maps import Conv
from reptool.testing import conv_modules


def said(conv: Any) -> Kernel:
    return Conv(
        conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    ).kernel()


@given(conv_modules())
def test_what_is_right_passes(conv: Any) -> None:
    found = check_stated(conv, said(conv), conv.in_channels)
    assert isinstance(found, str), found


def _axis(change: str, axis: Axis) -> Axis:
    return {
        "size": replace(axis, after=axis.after - 1),
        "moved": replace(axis, before=axis.before + 1, after=axis.after - 1),
        "stride": replace(axis, stride=axis.stride + 1),
        "border": replace(axis, before=max(axis.before, 1), border=Border.REPLICATE),
    }[change]


@given(conv_modules(padding_modes=["zeros"]), st.sampled_from(["size", "moved", "stride", "border"]), st.data())
def test_what_is_wrong_along_one_axis_does_not(conv: Any, change: str, data: st.DataObject) -> None:
    kernel = said(conv)
    at = data.draw(st.integers(0, len(kernel.axes or ()) - 1))
    axes = tuple(_axis(change, a) if i == at else a for i, a in enumerate(kernel.axes or ()))
    if change == "border" and axes[at].before == (kernel.axes or ())[at].before == 0:
        return
    found = check_stated(conv, replace(kernel, axes=axes), conv.in_channels)
    assert isinstance(found, Refusal)
    assert found.code is Code.UNVERIFIED


class Odd(nn.Module):
    """The identity but for one thing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0

    def forward(self, x: Tensor) -> Any:
        """Compute twice the input, or nearly."""
        self.calls += self.kind == "state"
        y = 2 * x
        changed: dict[str, Callable[[], Any]] = {
            "relu": lambda: torch.relu(y), "clamp": lambda: y.clamp(-500, 500), "batch": lambda: y - y.mean(0),
            "noise": lambda: y + torch.rand(1), "alias": lambda: x.view_as(x), "two": lambda: (y, y),
            "offset": lambda: y + 1e-8, "single": lambda: y.float(),
        }  # fmt: skip
        return changed.get(self.kind, lambda: y)()


@pytest.mark.parametrize("kind", ["relu", "clamp", "batch", "noise", "alias", "two", "offset", "single", "state"])
def test_what_is_no_such_map_is_refused(kind: str) -> None:
    twice = Conv(2 * torch.ones(3, 1, 1, 1), groups=3).kernel()
    assert isinstance(check_stated(Odd("").eval(), twice, 3), str)
    assert isinstance(check_stated(Odd(kind).eval(), twice, 3), Refusal)


def test_what_runs_nowhere_is_refused() -> None:
    twice = Conv(2 * torch.ones(3, 1, 1, 1), groups=3).kernel()
    found = check_stated(nn.Conv2d(4, 4, 1).eval(), twice, 3)
    assert isinstance(found, Refusal)
    assert "another shape" in found.sentence


def test_a_border_of_a_constant_cannot_be_stated() -> None:
    kernel = said(nn.Conv2d(2, 2, 3, padding=1))
    axes = tuple(replace(a, border=Border.CONSTANT) for a in kernel.axes or ())
    found = check_stated(nn.Conv2d(2, 2, 3, padding=1).eval(), replace(kernel, axes=axes), 2)
    assert isinstance(found, Refusal)
    assert found.code is Code.OPAQUE
