"""`Method`: a method written anew, as data: its source, and what the names in it mean."""

from __future__ import annotations

import functools
import importlib
import pickle
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

ORIGINAL = "_reptool_original_"
"""In front of the name of a method that was put behind a guard: the method as it was."""


@dataclass(frozen=True)
class Method:
    """A method written anew.

    Args:
        name: of the method.
        source: its text, one ``def``.
        names: what is imported: ``(name in the source, module, qualified name)``.
        buffers: constants its module must hold as buffers.
        read: paths of the modules whose parameters it reads.
        constants: every other value: ``(name in the source, value)``. No value is ever printed into the source.
    """

    name: str
    source: str
    names: tuple[tuple[str, str, str], ...] = ()
    buffers: tuple[str, ...] = ()
    read: frozenset[str] = frozenset()
    constants: tuple[tuple[str, Any], ...] = ()

    @property
    def raises(self) -> bool:
        """Whether it is an error, whatever it is called with."""
        return self.source.partition("\n")[2].startswith("    _sealed(")

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        return self

    def scope(self) -> dict[str, Any]:
        """What the names in the source mean."""
        return {name: find(module, qualname) for name, module, qualname in self.names} | dict(self.constants)

    def key(self) -> Hashable:
        """Equal for methods that do the same."""
        return self.name, self.source, self.names, _content(self.constants)


def _content(constants: tuple[tuple[str, Any], ...]) -> Hashable:
    try:
        return pickle.dumps(constants)
    except Exception:  # a class of a function, say: the same only where it is the same object
        return tuple((name, id(value)) for name, value in constants)


def find(module: str, qualname: str) -> Any:
    """What a module holds under a qualified name.

    >>> find("math", "ceil")(1.5)
    2
    """
    found = importlib.import_module(module)
    return functools.reduce(getattr, qualname.split("."), found) if qualname else found
