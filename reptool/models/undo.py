"""Undo: a model that is being changed in place goes back to what it was when something raises in between.

Writing a surgery replaces tensors, modules and classes and never writes into a tensor or a class, so remembering the
structure is enough and no weight is copied. The limit: while the log is open the replaced weights stay in memory
beside the new ones, and what other threads or references outside of the model did with it meanwhile is not undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn


@dataclass
class _Module:
    """What one module was: its class, its attributes, and what the dictionaries among them held."""

    module: nn.Module
    kind: type[nn.Module]
    attributes: dict[str, Any]
    tables: dict[str, dict[Any, Any]] = field(default_factory=dict)

    def restore(self) -> None:
        """Put everything back, the dictionaries themselves as the same objects."""
        self.module.__class__ = self.kind
        own = vars(self.module)
        own.clear()
        own.update(self.attributes)
        for name, held in self.tables.items():
            own[name].clear()
            own[name].update(held)


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """While this is open, whatever raises (an interrupt too) leaves `model` as it was.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> with undone_on_error(model):
    ...     model[0] = nn.Identity()
    ...     raise KeyError("out of memory, say")
    Traceback (most recent call last):
    ...
    KeyError: 'out of memory, say'
    >>> model[0]
    Linear(in_features=2, out_features=2, bias=True)
    """
    log = [_remembered(m) for m in model.modules()]
    try:
        yield
    except BaseException:
        for entry in log:
            entry.restore()
            if isinstance(entry.module, fx.GraphModule):  # its class holds code made from its graph
                entry.module.recompile()
                entry.restore()
        raise


def _remembered(module: nn.Module) -> _Module:
    tables = {name: dict(value) for name, value in vars(module).items() if isinstance(value, dict)}
    return _Module(module, type(module), dict(vars(module)), tables)
