"""`Marker`: what stands in the place of a module that is gone; and the warning that norms are gone."""

from __future__ import annotations

import functools
from types import CodeType, FrameType, FunctionType
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
    return frozenset(name for code in _codes_run(cls) for name in code.co_names)


@functools.lru_cache(maxsize=1024)
def _codes_run(cls: Any) -> frozenset[CodeType]:
    """The code that a layer of torch's runs when it is called: its forward and the methods that this names."""
    found, queue = set[CodeType](), [cls.forward]
    while queue:
        code = queue.pop().__code__
        if code not in found:
            found.add(code)
            called = (getattr(cls, n, None) for n in code.co_names if not hasattr(nn.Module, n))
            queue += [f for f in called if isinstance(f, FunctionType)]
    return frozenset(found)


def is_machinery(cls: Any, frame: FrameType) -> bool:
    """Whether code that reads a tensor of a layer runs or shows the layer, or is what follows and stores modules."""
    home = str(frame.f_globals.get("__name__"))
    if home.startswith("torch.nn."):
        shows = (vars(c).get("extra_repr") for c in cls.__mro__)
        return frame.f_code in _codes_run(cls) or any(frame.f_code is f.__code__ for f in shows if f is not None)
    return home.startswith(("torch.", "reptool."))
