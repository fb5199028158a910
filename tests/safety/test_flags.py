"""Flags that a forward was not shown with, and layers inside a convolution that is replaced."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import FoldedNormWarning, SpecializedError


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2)
    return made


class Stages(nn.Module):
    """Gives the values between its stages when asked; the last layer of one and the first of the next are linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3)
        self.second = nn.Conv2d(2, 3, 1)
        self.norm = norm(3)

    def forward(self, x: Tensor, hidden: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        y = self.first(x)
        z = self.norm(self.second(y))
        return (y, z) if hidden else z


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = Stages()

    def forward(self, x: Tensor, hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return self.stages(x, hidden=hidden)


def test_values_between_layers_are_given_when_a_flag_asks_for_them() -> None:
    model = Net().eval()
    x = torch.randn(2, 3, 9, 7)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x))
    torch.testing.assert_close(deployed(x, hidden=True), model(x, hidden=True))
    assert isinstance(deployed.stages.norm, nn.Identity)  # what joins no values in between is fused all the same


class PaddedConv(nn.Conv2d):
    """A convolution that holds its padding as a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4, 3, bias=False)
        self.pad = nn.ZeroPad2d((1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.pad(x), self.weight, self.bias, self.stride, self.padding)


def test_a_convolution_replaced_with_the_layers_inside_it() -> None:
    for pad in (nn.ZeroPad2d((1, 1, 1, 1)), nn.Identity()):
        conv = PaddedConv(3)
        conv.pad = pad
        model = nn.Sequential(conv, norm(4), nn.ReLU()).eval()
        for given in ((torch.randn(1, 3, 8, 8),), ()):
            deployed = reptool.deploy(model, *given)
            x = torch.randn(2, 3, 10, 12)
            torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
            assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]


def passing(method: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that hands everything on, and tells whether a flag was named or only handed on by place."""

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = method(self, *args, **kwargs)
        return out * 2 if "raw" in kwargs else out

    return run


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm(4)

    @passing
    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        y = self.conv(x)
        return y if raw else self.norm(y)

    @passing
    def plain(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_decorated_forward_reads_what_it_wraps() -> None:
    torch.manual_seed(0)
    model, x = Decorated().eval(), torch.randn(2, 3, 8, 8)
    deployed = reptool.deploy(model, x)
    assert isinstance(deployed.norm, nn.Identity)
    assert (deployed(x) - model(x)).abs().max() < 1e-5
    assert (deployed(x, raw=False) - model(x, raw=False)).abs().max() < 1e-5  # named: the decorator can tell
    assert inspect.signature(type(deployed).forward).parameters.keys() == {"self", "x", "raw"}
    with pytest.raises(SpecializedError):
        deployed(x, raw=True)
    with pytest.raises(SpecializedError):
        deployed(x, True)
    with pytest.raises(SpecializedError):
        deployed.plain(x)
    again = pickle.loads(pickle.dumps(deployed))
    assert torch.equal(again(x), deployed(x))


def test_a_decorated_forward_with_a_fallback() -> None:
    torch.manual_seed(0)
    model, x = Decorated().eval(), torch.randn(2, 3, 8, 8)
    deployed = reptool.deploy(model, x, keep_fallback=True)
    for given in ({}, {"raw": False}, {"raw": True}):
        assert (deployed(x, **given) - model(x, **given)).abs().max() < 1e-5
    assert (deployed(x, True) - model(x, True)).abs().max() < 1e-5


def checkpointed(method: Callable[..., Any]) -> Callable[..., Any]:
    """What a library puts around every forward: a question about training, and else the forward itself."""

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.saves_memory and self.training and type(self).forward is run:
            raise NotImplementedError
        return method(self, *args, **kwargs)

    return run


class Layer(nn.Module):
    saves_memory = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.forward = checkpointed(cls.forward)  # type: ignore[method-assign]


class Branches(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.large(x) + self.small(x) + self.norm(x))


class Flagged(Branches):
    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        return torch.relu(self.large(x) + self.small(x) + self.norm(x))


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in model.modules())


def test_a_block_whose_forward_the_library_wraps_is_written_anew() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Branches(), Branches()).eval(), torch.randn(2, 4, 8, 8)
    deployed = reptool.deploy(model, x)
    assert convolutions(deployed) == 2
    y = torch.randn(1, 4, 5, 11)
    assert (deployed(y) - model(y)).abs().max() < 1e-5
    with pytest.warns(FoldedNormWarning):
        deployed.train()
    assert torch.equal(deployed(y), deployed.eval()(y))
    deployed[0].saves_memory = True
    with pytest.raises(SpecializedError, match="saves_memory"):
        deployed(x)


def test_a_wrapped_forward_with_an_optional_argument_stays_and_says_so() -> None:
    torch.manual_seed(0)
    model, x = Flagged().eval(), torch.randn(2, 4, 8, 8)
    report = reptool.explain(model, x)
    assert any("'more', which may be left out" in r.sentence for r in report.refusals), report
    assert convolutions(reptool.deploy(model, x)) == 2


class Frozen(nn.Module):
    """A norm whose numbers are four buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)


class FrozenLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), Frozen(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Queries(nn.Module):
    """Asks for a size, and reads the `weight` of something else than the norms."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = nn.Sequential(FrozenLayer()), nn.Embedding(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).flatten(2)
        if y.shape[-1] > 1000:
            y = y[..., ::2]
        return self.table.weight @ y.new_ones(5, 1) + y.mean(-1, keepdim=True)


def test_reading_another_weight_is_no_use_of_a_frozen_norm() -> None:
    torch.manual_seed(0)
    model = Queries().eval()
    deployed = reptool.deploy(model, torch.randn(2, 3, 8, 8))
    assert isinstance(deployed.body[0].norm, nn.Identity)
    for size in (8, 40):
        x = torch.randn(1, 3, size, size)
        assert (deployed(x) - model(x)).abs().max() < 1e-5


class Peeks(Queries):
    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).flatten(2)
        if y.shape[-1] > 1000:
            y = y * self.body[0].norm.weight[:, None]
        return y


def test_reading_the_weight_of_the_frozen_norm_itself_keeps_it() -> None:
    torch.manual_seed(0)
    model = Peeks().eval()
    deployed = reptool.deploy(model, torch.randn(2, 3, 8, 8))
    for size in (8, 40):
        x = torch.randn(1, 3, size, size)
        assert (deployed(x) - model(x)).abs().max() < 1e-5
