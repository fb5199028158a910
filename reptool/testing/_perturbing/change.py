"""A change is a line of Python about ``m``: what runs on the model and on its deployed copy, and what a user reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

KINDS = (
    "attribute",  # of a module: a plain value, or a function that is kept as one
    "added",  # an attribute that the code asks for and that is not there yet
    "config",  # an attribute of an object that a module holds
    "container",  # an item of a list, dictionary, set or tuple that a module holds
    "class",  # an attribute of a class of the model
    "global",  # of a module that the code is defined in
    "closure",  # a variable that a function encloses
    "default",  # the value of an argument that is left out
    "argument",  # a value of the call: another one, given, left out
    "size",
    "batch",
    "dtype",
    "rank",  # no batch axis, or one more
    "mode",  # train() and eval(), of the model and of single modules
    "method",  # public methods, properties, static and class methods
    "submodule",  # a child that is called from outside
    "read",  # a weight that is asked for where the deployed copy has none
    "weight",  # in place and as new parameters, where names mean the same on both sides
    "grad",  # requires_grad of weights
    "load",  # other weights, of the whole model, of a child, of some names
    "hook",  # hooks that change a value or look at it
    "replace",  # another module in a place
    "copy",  # copy, deepcopy, pickle
    "environment",  # variables of the process
    "switch",  # what torch is asked for: default dtype, deterministic algorithms
)
"""Everything `perturb` changes, by the name that `kinds=` takes."""

Put = Callable[[str], str]
"""The text of a value -> the statement that writes it."""


@dataclass(frozen=True)
class Change:
    """One change.

    Args:
        kind: one of `KINDS`.
        source: what is changed, as it is read.
        statement: what is run on either side; ``m`` is the model there, ``args`` and ``kwargs`` are its inputs.
    """

    kind: str
    source: str
    statement: str

    def __str__(self) -> str:
        return self.statement


@dataclass(frozen=True)
class Place:
    """Where a value stands that can be changed.

    Args:
        kind: one of `KINDS`.
        read: the expression that reads it.
        value: what is there now.
        put: writes another one.
        owner: the expression and the writer of the attribute that everything around it is kept in, if it is nested.
    """

    kind: str
    read: str
    value: object
    put: Put
    owner: tuple[str, Put] | None = None


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model, but for those that torch keeps the parametrizations of a layer in."""
    own = [f"{p}.parametrizations".lstrip(".") for p, m in model.named_modules() if parametrize.is_parametrized(m)]
    for path, module in model.named_modules():
        if not any(path == o or path.startswith(f"{o}.") for o in own):
            yield path, module


def module_text(path: str) -> str:
    """How a module is reached from ``m``.

    >>> module_text("stem.conv"), module_text("stages.0")
    ('m.stem.conv', "m.get_submodule('stages.0')")
    """
    if not path:
        return "m"
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", path):
        return f"m.{path}"
    return f"m.get_submodule({path!r})"
