"""`flatten=True`: what it cannot put into one graph is an error of ours."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

import reptool
from reptool.errors import InputError, SpecializedError
from tests.traps import ConvBN, assert_same, image, ready


class Loops(ConvBN):
    def forward(self, x: Any) -> Any:
        for _ in range(x.shape[0]):
            x = x + 1
        return self.bn(self.conv(x))


class Counts(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Any) -> Any:
        self.calls.append(1)
        return self.bn(self.conv(x)) * len(self.calls)


class Called(ConvBN):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x) + 1


@pytest.mark.parametrize("model", [Loops, Counts, Called])
def test_what_one_graph_would_lose_is_named(model: type[nn.Module]) -> None:
    with pytest.raises(InputError, match="flatten"):
        reptool.deploy(ready(model()), flatten=True)


class Two(NamedTuple):
    a: Tensor
    b: Tensor


def test_a_named_tuple_is_returned_as_one() -> None:
    class Pair(ConvBN):
        def forward(self, x: Any) -> Any:
            y = self.bn(self.conv(x))
            return Two(y, y.relu())

    model = ready(Pair())
    flat = reptool.deploy(model, flatten=True)
    assert_same(model(image()), flat(image()))


def test_a_norm_in_training_mode_stays_one() -> None:
    model = ready(ConvBN())
    model.bn.train()
    flat = reptool.deploy(model, flatten=True)
    with torch.no_grad():
        assert_same(model(image()), flat(image()))


class Helped(ConvBN):
    def forward(self, x: Any) -> Any:
        return self.bn(self.as_it_is(self.conv(self.as_it_is(x))))

    def as_it_is(self, x: Any) -> Any:
        return x


def test_methods_that_are_watched_while_it_is_followed_are_the_models_own() -> None:
    model = ready(Helped())
    assert_same(model(image()), reptool.deploy(reptool.deploy(model), flatten=True)(image()))


class Optional(ConvBN):
    def forward(self, x: Any, scale: Any = None, *, flag: bool = False) -> Any:
        y = self.bn(self.conv(x))
        y = y if scale is None else y * scale
        return -y if flag else y


def test_arguments_keep_their_names_and_what_was_not_given_is_guarded() -> None:
    model = ready(Optional())
    bare = reptool.deploy(model, flatten=True)
    assert_same(model(x=image()), bare(x=image()))
    with pytest.raises(SpecializedError, match="scale"):
        bare(image(), torch.ones(1))
    given = reptool.deploy(model, {"x": image(), "scale": torch.full((1,), 2.0).double()}, flatten=True)
    assert_same(model(image(), 3.0 * torch.ones(1)), given(image(), scale=3.0 * torch.ones(1)))
    with pytest.raises(SpecializedError, match="flag"):
        given(image(), torch.ones(1), flag=True)
    assert_same(given(image(), torch.ones(1)), copy.deepcopy(given)(image(), torch.ones(1)))
    assert_same(given(image(), torch.ones(1)), pickle.loads(pickle.dumps(given))(image(), torch.ones(1)))


class Nested(ConvBN):
    def forward(self, pair: Any) -> Any:
        return self.bn(self.conv(pair["x"])) + pair["more"][0]


def test_a_nested_argument_stays_one() -> None:
    model = ready(Nested())
    pair = {"x": image(), "more": [torch.ones(1, dtype=torch.float64)]}
    flat = reptool.deploy(model, (pair,), flatten=True)
    assert_same(model(pair), flat(pair))


class Hooked(nn.Module):
    """A container in the middle, which a graph takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """All of it."""
        y: Tensor = self.rest(self.norm(self.conv(x)))
        return y


HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda _, __, out: out * 2),
    "forward with kwargs": lambda m: m.register_forward_hook(lambda _, __, ___, out: out * 2, with_kwargs=True),
    "before": lambda m: m.register_forward_pre_hook(lambda _, args: (args[0] * 2,)),
    "before with kwargs": lambda m: m.register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("path", ["", "rest", "rest.1", "conv"])
def test_hooks_are_kept_or_refused(kind: str, path: str) -> None:
    model = Hooked().eval()
    HOOKS[kind](model.get_submodule(path))
    if path in ("", "rest"):
        with pytest.raises(InputError, match=f"would lose the hooks of {path or '<root>'}"):
            reptool.deploy(model, flatten=True)
    else:
        x = torch.randn(2, 3, 6, 5)
        torch.testing.assert_close(reptool.deploy(model, flatten=True)(x), model(x), rtol=1e-4, atol=1e-5)


class Writing(nn.Module):
    """Writes into a value of which it holds a piece, behind branches for which the forward is written anew."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        """By one of the forms."""
        y = torch.relu(self.bn(self.a(x) + self.b(x)))
        piece = y[:, :2]
        if self.form == "item":
            y[:, 1:] = x
        elif self.form == "add":
            y += x.mean()
        else:
            y *= x[:, :1]
        return y + piece.sum()


@pytest.mark.parametrize("form", ["item", "add", "mul"])
def test_values_that_are_written_are_written_in_the_graph(form: str) -> None:
    model, x = ready(Writing(form)).double(), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    flat = reptool.deploy(model, x, flatten=True, exclude=["a"])
    deployed = reptool.deploy(fx.GraphModule(flat, flat.graph).eval(), x)
    assert len(reptool.report(deployed).regions) == 1
    for given in (x, torch.randn(3, 3, 4, 7, dtype=torch.float64)):
        for other in (flat, deployed):
            torch.testing.assert_close(other(given), model(given), rtol=1e-10, atol=1e-10)
