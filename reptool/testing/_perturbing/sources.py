"""What there is to change in a model: for each thing, how a random change of it is drawn."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor, nn

from reptool.testing._perturbing.change import Change, Place, module_text, parts_of
from reptool.testing._perturbing.code import Code, is_own
from reptool.testing._perturbing.places import places
from reptool.testing._perturbing.values import is_atom, last_name, other_value

Draw = Callable[[Random], str]
"""A random number generator -> a statement."""
_SWITCHES = {
    "are_deterministic_algorithms_enabled": "torch.use_deterministic_algorithms(True)",
    "get_default_dtype": "torch.set_default_dtype(torch.float64)",
    "get_num_threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "is_grad_enabled": "torch.set_grad_enabled(True)",
}


@dataclass(frozen=True)
class Source:
    """Something that can be changed.

    Args:
        kind: one of `KINDS`.
        name: the expression that reads it.
        draw: a random change of it.
        weight: how often it is taken, beside others of its kind.
    """

    kind: str
    name: str
    draw: Draw
    weight: int = 1

    def change(self, random: Random) -> Change:
        """A random change."""
        return Change(self.kind, self.name, self.draw(random))


def settings(model: nn.Module, code: Code) -> Iterator[Source]:
    """All values that the code of a model may read: those that it names are taken more often."""
    for place in places(model, code):
        name = last_name(place.read)
        yield place_source(place, code, 6 if name in code.compared else 4 if name in code.names else 1)
    yield from _added(model, code)
    yield from _environment(code)


def place_source(place: Place, code: Code, weight: int = 1) -> Source:
    """The changes of one place."""

    def draw(random: Random) -> str:
        statement = _written(place, code, random)
        if place.owner is not None and random.random() < 0.2:  # another object, equal but for this
            read, put = place.owner
            return f"{put(f'copy.deepcopy({read})')}; {statement}"
        return statement

    return Source(place.kind, place.read, draw, weight)


def _written(place: Place, code: Code, random: Random) -> str:
    value, read = place.value, place.read
    if is_atom(value) or isinstance(value, Tensor):
        return place.put(other_value(value, read, code, random))
    if callable(value):
        return place.put("(lambda *values: values[0])")
    words = sorted(code.words) or ["other"]
    fresh = repr(random.choice([True, 1, None, *words, *sorted(code.numbers)]))
    if isinstance(value, dict):
        options = [f"{read}[{random.choice(words)!r}] = {fresh}"]
        if value:
            options.append(f"{read}.pop({random.choice(list(value))!r}, None)")
        return random.choice(options)
    if isinstance(value, set):
        member = repr(random.choice([*words, *sorted(code.numbers)]))
        taken = [f"{read}.discard({random.choice(sorted(value, key=repr))!r})"] if value else []
        return random.choice([f"{read}.add({member})", *taken])
    count = len(value)  # type: ignore[arg-type]
    if isinstance(value, (list, deque)):
        options = [f"{read}.__setitem__(slice(0, None), [*{read}[:{count}], {fresh}])"]
        options += [f"del {read}[{max(count - 1, 0)}:]", f"{read}.reverse()" if count > 1 else f"{read}.clear()"]
        return random.choice(options[:2] if isinstance(value, list) else [f"{read}.clear()"])
    if isinstance(value, frozenset):
        return place.put(f"{read} | {{{fresh}}}")
    return place.put(f"(*{read}[:{count}], {fresh})" if random.random() < 0.5 else f"{read}[:{max(count - 1, 0)}]")


def _added(model: nn.Module, code: Code) -> Iterator[Source]:
    """Attributes that the code asks for with `getattr` or `hasattr` and that are not there."""
    asking = [f.__code__ for _, f in code.functions if _ASKS & set(f.__code__.co_names)]
    names = sorted({word for c in asking for word in c.co_consts if isinstance(word, str) and word.isidentifier()})
    for path, module in parts_of(model):
        here = module_text(path)
        for name in names:
            if not hasattr(module, name):
                weight = 4 if is_own(type(module).__module__) else 1
                yield Source("added", f"{here}.{name}", _adding(f"{here}.{name}", code), weight)


_ASKS = frozenset(("getattr", "hasattr", "__dict__"))


def _adding(target: str, code: Code) -> Draw:
    def draw(random: Random) -> str:
        return f"{target} = {random.choice([True, True, 1, 0.5, 'other', None, *sorted(code.numbers)])!r}"

    return draw


def _environment(code: Code) -> Iterator[Source]:
    reads = any({"environ", "getenv"} & set(f.__code__.co_names) for _, f in code.functions)
    for word in sorted(code.words) if reads else ():
        if word and word.upper() == word and word.isidentifier():
            values = ["1", "0", "", *sorted(code.words - {word})]
            yield Source("environment", word, _one_of([f"os.environ[{word!r}] = {value!r}" for value in values]))
    named = {n for _, f in code.functions for n in f.__code__.co_names}
    for name, statement in _SWITCHES.items():
        if name in named:
            yield Source("switch", f"torch.{name}()", _one_of([statement]))


def _one_of(statements: list[str]) -> Draw:
    return lambda random: random.choice(statements)


def one_of(kind: str, name: str, *statements: str, weight: int = 1) -> Source:
    """One of some statements."""
    return Source(kind, name, _one_of(list(statements)), weight)


def imported() -> dict[str, Any]:
    """The modules that statements name."""
    import copy
    import dataclasses
    import os
    import pickle

    import torch

    return {
        "copy": copy, "dataclasses": dataclasses, "nn": nn, "os": os, "pickle": pickle, "sys": sys, "torch": torch
    }  # fmt: skip
