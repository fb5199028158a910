"""Symbolic values in the hands of code that does not know them: no wrong answer, no end of the process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reptool
from tests.traps import Branches, assert_same, check, codes, image, ready


class Swish(torch.autograd.Function):
    """An autograd function with an argument that is no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int = 1) -> Tensor:
        """A gate."""
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x - x.amax(dim, keepdim=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient itself."""
        return grads[0], None


class Pair(torch.autograd.Function):
    """An autograd function that gives two tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        """Both signs."""
        return x.clamp(min=0), x.clamp(max=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Both gradients."""
        return grads[0] + grads[1]


swish = Swish.apply  # stored before anything is patched, as PyTorch's documentation writes it


class Finished(Branches):
    """A sum of branches, and what a test puts behind it."""

    def __init__(self, finish: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.finish = finish
        self.last = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Any) -> Any:
        return self.last(self.finish(self.bn(self.a(x) + self.b(x))))


@pytest.mark.parametrize(
    "finish",
    [
        lambda y: Swish.apply(y),
        lambda y: swish(y, 1),
        lambda y: Pair.apply(y)[0],
        lambda y: Pair.apply(y)[0] - Pair.apply(y)[1],
    ],
)
def test_an_autograd_function_is_one_opaque_call(finish: Callable[[Tensor], Any]) -> None:
    model, x = ready(Finished(finish)), image()
    for shown in (x, None):
        deployed = reptool.deploy(model, shown)
        assert_same(model(x), deployed(x))
        report = reptool.report(deployed)
        if shown is not None:
            assert (report.layers, report.norms) == ((3, 2), (4, 0)), report
    grown = x.clone().requires_grad_()
    assert torch.autograd.grad(deployed(grown).sum(), grown)[0].isfinite().all()


@pytest.mark.parametrize(
    "read",
    [
        lambda y: torch.Tensor(y),
        lambda y: torch.Tensor._make_subclass(torch.Tensor, y),
        lambda y: torch.from_numpy(np.asarray(y.detach())),
        lambda y: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(y.detach().contiguous())),
        lambda y: torch.tensor(y.tolist(), dtype=y.dtype),
        lambda y: torch.stack([torch._C._nn.gelu(part) for part in y]),
        lambda y: nn.Parameter(y.detach()),
    ],
)
def test_what_reads_memory_is_left_as_it_is(read: Callable[[Tensor], Tensor]) -> None:
    model, x = ready(Finished(read)), image()
    for shown in (x, None):
        assert_same(model(x), reptool.deploy(model, shown)(x))


@functools.lru_cache
def _remembered(size: int) -> int:
    return size + 1


CHOICES: dict[str, Callable[[Tensor], Any]] = {
    "set": lambda x: x.shape[-1] in {8, 16},
    "dictionary": lambda x: {8: 1}.get(x.shape[-1]),
    "set of shapes": lambda x: x.shape in {torch.Size([2, 3, 10, 8])},
    "square": lambda x: len({x.shape[-1], x.shape[-2]}) == 1,
    "cached": lambda x: _remembered(x.shape[-1]) == 9,
    "integer": lambda x: isinstance(x.shape[-1], int) and not isinstance(x.shape[-1], float),
    "size": lambda x: isinstance(x.shape, tuple),
    "parameter": lambda x: isinstance(x, nn.Parameter),
}


class Chooses(Branches):
    """A choice behind branches, by what a test asks."""

    def __init__(self, choose: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.choose = choose

    def forward(self, x: Any) -> Any:
        y = self.a(x) + self.b(x)
        return self.bn(y).relu() if self.choose(x) else y.sigmoid()


@pytest.mark.parametrize("name", CHOICES)
def test_code_that_hashes_a_size_or_asks_for_its_type_gets_the_right_answer(name: str) -> None:
    check(ready(Chooses(CHOICES[name])))


class Folds(nn.Module):
    """Puts a function of its own in the place of a layer's forward, for one call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        norm, conv = self.norm, self.conv
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator]
        moved = norm.bias - norm.running_mean * gain  # type: ignore[operator]

        def folded(y: Tensor) -> Tensor:
            return nn.functional.conv2d(y, conv.weight * gain.view(-1, 1, 1, 1), moved)

        conv.forward = folded  # type: ignore[assignment]
        y = conv(x)
        del conv.forward
        return y.relu()  # type: ignore[no-any-return]


def test_a_forward_that_is_swapped_for_one_call_is_left_as_it_is() -> None:
    deployed, report = check(ready(nn.Sequential(Folds())))
    assert not report.regions
    assert "another function in the place of 'forward'" in report.untraced["0"]
    assert codes(report) <= {"untraceable"}
    assert deployed is not None


class Scattered(nn.Module):
    """A weight whose entries are written one by one."""

    def __init__(self, viewed: bool = False) -> None:
        super().__init__()
        self.entries, self.viewed = nn.Parameter(torch.randn(3, 2)), viewed
        self.register_buffer("rows", torch.tensor([0, 2]))
        self.first = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The layer, and a matrix of which two rows are written."""
        weight = torch.zeros(3, 3, device=x.device, dtype=x.dtype)
        view = weight.t() if self.viewed else None
        weight[self.rows, 1] = self.entries[0]
        weight[self.rows, :2] = self.entries[1:]
        weight[0, 0] = 7.0
        whole = weight if view is None else weight + view
        return self.first(x) + nn.functional.linear(x, whole)


@pytest.mark.parametrize("viewed", [False, True])
def test_entries_written_into_a_new_constant_are_a_constant(viewed: bool) -> None:
    model, x = nn.Sequential(Scattered(viewed), nn.ReLU()).double().eval(), image(5, 3)
    deployed = reptool.deploy(model, x)
    assert_same(model(x), deployed(x))
    assert viewed == ("0.entries" in dict(deployed.named_parameters()))


class WrittenInPlace(nn.Module):
    """A weight that methods write in place, also through a view of it."""

    def __init__(self, viewed: bool) -> None:
        super().__init__()
        self.a, self.first, self.viewed = nn.Parameter(torch.randn(3, 3)), nn.Linear(3, 3), viewed

    def forward(self, x: Tensor) -> Tensor:
        """The layer, and what was written."""
        weight = self.a @ self.a
        if self.viewed:
            weight[0][1] = 5.0
            weight.t().add_(1.0)
        else:
            weight.add_(self.a, alpha=2).mul_(0.5)
        return self.first(x) + nn.functional.linear(x, weight)


@pytest.mark.parametrize("viewed", [False, True])
def test_methods_that_write_into_a_new_constant_make_another_one(viewed: bool) -> None:
    model, x = nn.Sequential(WrittenInPlace(viewed), nn.ReLU()).double().eval(), image(5, 3)
    deployed = reptool.deploy(model, x)
    assert_same(model(x), deployed(x))
    assert viewed == ("0.a" in dict(deployed.named_parameters()))
