"""`Marker`: what stands in the place of a module that is gone; and the warning that norms are gone."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import nn

from reptool.errors import FoldedNormWarning, warn

GATE = "_reptool_gate"
TOLD = "_reptool_told"
NORMS = "_reptool_norms"
"""How many norms of a model were folded, where nothing in it stands for them."""


class Marker(nn.Identity):
    """Stands in the place of a module whose work is done elsewhere."""

    if TYPE_CHECKING:  # torch.jit.script reads what a class is annotated with
        _place: str
        _layer: str
        _is_norm: bool


def tell_of_norms(module: nn.Module) -> None:
    """Warn once that norms in a module are folded, and do nothing in training mode."""
    if TOLD in module.__dict__:
        return
    module.__dict__[TOLD] = True
    marked = sum(isinstance(m, Marker) and m._is_norm for m in module.modules())
    gated = sum(getattr(m.__dict__.get(GATE), "norms", 0) for m in module.modules() if not isinstance(m, Marker))
    count = max(marked, gated, module.__dict__.get(NORMS, 0))
    norms = f"{count} norm{'s' * (count != 1)}" if count else "the norms"
    warn(
        f"{norms} of this {type(module).__name__} {'is' if count == 1 else 'are'} folded into other layers: in "
        "training mode nothing is normalized by its batch, and no statistics are updated. Fine-tuning the folded "
        "layers works; to train with norms, train the original and deploy it again",
        FoldedNormWarning,
    )


def names_read(cls: Any) -> frozenset[str] | None:
    """The names that the code of a class of torch's reads when it is called; None for other classes."""
    return _names_read(cls) if cls.__module__.startswith("torch.nn.") else None


@functools.lru_cache(maxsize=1024)
def _names_read(cls: Any) -> frozenset[str]:
    found: set[str] = set()
    queue: list[Any] = [cls.forward]
    while queue:
        names = set(queue.pop().__code__.co_names) - found
        found |= names
        called = (getattr(cls, n, None) for n in names if not hasattr(nn.Module, n))
        queue += [f for f in called if isinstance(f, FunctionType)]
    return frozenset(found)
