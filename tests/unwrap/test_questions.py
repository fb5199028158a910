"""What functions ask of modules, and where the layer would answer otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from reptool.unwrap.questions import questions


class Wrapper(nn.Module):
    """What a layer stands for."""

    special = True


def asks_for_it(self: Any) -> bool:
    return isinstance(self.inner, Wrapper)


def asks_for_a_layer(self: Any) -> bool:
    return isinstance(self.inner, nn.Linear)


def asks_for_a_module(self: Any) -> bool:
    return isinstance(self.inner, nn.Module)


def looks_for_layers(self: Any) -> list[Any]:
    return [m for m in self.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def looks_for_it(self: Any) -> list[Any]:
    return [m for m in self.modules() if isinstance(m, Wrapper)]


def asks_by_a_name_that_is_not_known(self: Any) -> bool:
    from somewhere import Wrapper as Elsewhere  # type: ignore[import-not-found]

    return isinstance(self.inner, Elsewhere)


def asks_for_what_it_is_told(self: Any, kind: type) -> bool:
    return isinstance(self.inner, kind)


def has_special(self: Any) -> bool:
    return hasattr(self.inner, "special")


def has_weight(self: Any) -> bool:
    return hasattr(self.inner, "weight")


def has_training(self: Any) -> bool:
    return bool(getattr(self.inner, "training", False))


def has_a_name(self: Any, name: str) -> bool:
    return hasattr(self.inner, name)


def asks_itself(self: Any, name: str) -> Any:
    return getattr(self, name), isinstance(self, Wrapper), type(self)


def opens_it(self: Any) -> list[Any]:
    return list(self.inner.children())


def lists_its_own(self: Any) -> list[Any]:
    return list(self.children())


def goes_by_names(self: Any) -> list[Any]:
    return [m for n, m in self.named_modules() if "layer" in n]


def asks_its_type(self: Any) -> bool:
    return type(self.inner) is Wrapper


def runs_it(self: Any, x: Any) -> Any:
    return self.inner(x) + self.inner.scale


def catches(self: Any) -> Any:
    try:
        return self.inner.scale
    except AttributeError:
        return 1


@pytest.mark.parametrize(
    "function",
    [
        asks_for_it, asks_for_a_layer, looks_for_it, asks_for_what_it_is_told, has_special, has_weight, has_a_name,
        opens_it, goes_by_names, asks_its_type, catches, len,
    ],
)  # fmt: skip
def test_what_the_layer_answers_otherwise(function: Callable[..., Any]) -> None:
    assert any(q.differs(Wrapper(), nn.Linear(2, 2), Wrapper) for q in questions(function))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "function",
    [
        asks_for_a_module, looks_for_layers, asks_by_a_name_that_is_not_known, has_training, asks_itself, lists_its_own,
        runs_it,
    ],
)  # fmt: skip
def test_what_the_layer_answers_alike(function: Callable[..., Any]) -> None:
    assert not any(q.differs(Wrapper(), nn.Linear(2, 2), Wrapper) for q in questions(function))  # type: ignore[arg-type]


def test_a_class_that_is_imported_inside_is_known_by_its_name() -> None:
    class Elsewhere(nn.Module):
        pass

    asked = questions(asks_by_a_name_that_is_not_known)  # type: ignore[arg-type]
    assert any(q.differs(Elsewhere(), nn.Linear(2, 2), Elsewhere) for q in asked)
