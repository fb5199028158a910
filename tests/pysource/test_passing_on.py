"""Keyword arguments that are only handed on."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.pysource.passing_on import adds_nothing, only_passed_on


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor, raw: bool = False, scale: float = 1.0) -> Tensor:
        y = self.conv(x)
        return y if raw else self.norm(y)


def run_both(conv: nn.Module, norm: nn.Module, x: Tensor, **more: Any) -> Tensor:
    return conv(x) if more.get("raw") else norm(conv(x))


class Hands(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return self.body(x, **more)

    def looks(self, x: Tensor, **more: Any) -> Tensor:
        return self.body(x, raw=more.get("raw", False))

    def gives(self, x: Tensor, **more: Any) -> Tensor:
        return run_both(self.body.conv, self.body.norm, x, **more)

    def gives_itself(self, x: Tensor, **more: Any) -> Tensor:
        return type(self).forward(self, x, **more)


@pytest.mark.parametrize(
    ("method", "expected"),
    [(Hands.forward, True), (Hands.looks, False), (Hands.gives, False), (Hands.gives_itself, False)],
)
def test_only_passed_on(method: Callable[..., Any], expected: bool) -> None:
    assert only_passed_on(method, "more", Hands()) is expected


class Chooses(Hands):
    def forward(self, x: Tensor, **more: Any) -> Tensor:
        return run_both(self.body.conv, self.body.norm, x, **more)


def translating(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("fast"):
            kwargs["raw"] = True
        return method(self, *args, **kwargs)

    return run


class Translated(Body):
    @translating
    def forward(self, x: Tensor, raw: bool = False, **more: Any) -> Tensor:
        y = self.conv(x)
        return y if raw else self.norm(y)


def by_place(method: Any) -> Any:
    def run(self: nn.Module, x: Tensor, **kwargs: Any) -> Any:
        return method(self, x, True) if kwargs.get("fast") else method(self, x)

    return run


def merged(method: Any) -> Any:
    def run(self: nn.Module, x: Tensor, **kwargs: Any) -> Any:
        return method(self, x, **{**kwargs, "raw": True})

    return run


def popping(method: Any) -> Any:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("return_dict", None)
        if "cache" in kwargs:
            kwargs["cache"] = None
        return method(self, *args, **kwargs)

    return run


def test_what_a_decorator_adds() -> None:
    assert adds_nothing(popping(None), {"raw"})
    assert not adds_nothing(popping(None), {"cache"})
    for decorator in (translating(Body.forward), by_place(None), merged(None)):
        assert not adds_nothing(decorator, {"raw"})


@pytest.mark.parametrize("kind", [Hands, Chooses, Translated])
def test_an_argument_of_an_unknown_name_never_gives_another_output(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 3, 8, 8)
    deployed = reptool.deploy(model, x)
    assert (deployed(x) - model(x)).abs().max() < 1e-5
    for name in ("raw", "fast"):
        try:
            expected = model(x, **{name: True})
        except TypeError:
            continue
        try:
            assert (deployed(x, **{name: True}) - expected).abs().max() < 1e-5
        except SpecializedError:
            continue


def test_what_is_only_handed_on_stays_free() -> None:
    torch.manual_seed(0)
    model, x = Hands().eval(), torch.randn(2, 3, 8, 8)
    deployed = reptool.deploy(model, x)
    assert isinstance(deployed.body.norm, nn.Identity)
    assert (deployed(x, scale=2.0) - model(x, scale=2.0)).abs().max() < 1e-5
    with pytest.raises(SpecializedError):
        deployed(x, raw=True)
