"""Functions as syntax trees."""

import ast
import functools
from collections.abc import Callable
from typing import Any

from reptool.pysource.functions import behind, definition_of, own_definition, tree_of


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@decorated
def plain(x: int) -> int:
    """What is read."""
    return x + 1


def test_the_definition_stands_behind_decorators() -> None:
    found = definition_of(plain)
    assert found is not None
    assert (found.name, [a.arg for a in found.args.args]) == ("plain", ["x"])


def test_code_without_a_text_has_no_tree() -> None:
    scope: dict[str, Any] = {}
    exec("def run(x):\n    return x", scope)
    assert tree_of(scope["run"]) is None
    assert definition_of(scope["run"]) is None
    assert definition_of(len) is None


def test_a_lambda_is_no_definition() -> None:
    add = lambda x: x + 1  # noqa: E731 - a lambda is what is tested
    assert isinstance(tree_of(add), ast.Module)
    assert definition_of(add) is None


def test_what_a_decorated_function_runs() -> None:
    assert [f.__code__.co_name for f in behind(plain)] == ["wrapper", "plain"]
    assert [f.__code__.co_name for f in behind(functools.partial(plain, 1))] == ["wrapper", "plain"]  # type: ignore[arg-type]
    assert behind(len) == ()


def test_the_own_definition_is_that_of_the_decorator() -> None:
    found = own_definition(plain)
    assert found is not None
    assert found.name == "wrapper"
