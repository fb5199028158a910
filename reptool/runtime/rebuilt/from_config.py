"""Models that their class builds again: what is deployed has the modules and tensors that its configuration names.

Where adapters were merged and layers took their places, nothing is left of the deployment but values of weights: the
class, given the model's ``config``, builds modules of the same classes, shapes and names, and no method was written
anew. Then the model's own ``save_pretrained`` writes what ``from_pretrained`` reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reptool.runtime.absorbed import Absorbed
from reptool.runtime.method import ORIGINAL, Method

_KEEPING = ("__setattr__", "__getattr__", "add_module", "train")
"""Methods that only refuse names which are gone, or tell of norms."""


def builds_the_same(model: nn.Module, cls: type) -> bool:
    """Whether a class, given a model's configuration, builds the modules and tensors that the model has.

    Args:
        model: a deployed model.
        cls: the class as its author wrote it.
    """
    config = getattr(model, "config", None)
    if config is None or any(isinstance(m, Absorbed) or _is_written(m) for m in model.modules()):
        return False
    try:
        with torch.device("meta"):
            fresh: Any = cls(config)
    except Exception:  # whatever the class raises where it takes other arguments
        return False
    parts, built = (dict(m.named_modules()) for m in (model, fresh))
    shapes, wanted = ({n: t.shape for n, t in m.state_dict().items()} for m in (model, fresh))
    same = parts.keys() == built.keys() and all(_alike(parts[p], built[p]) for p in parts if p)
    return same and shapes == wanted


def _alike(part: nn.Module, built: nn.Module) -> bool:
    """Whether a module is of a class and shows the geometry of another, as its author wrote it."""
    derived = getattr(type(part), "_reptool_derived", None)
    cls = type(part) if derived is None else derived[0]
    return cls is type(built) and part.extra_repr() == built.extra_repr()


def _is_written(module: nn.Module) -> bool:
    """Whether a method of a module computes something else than the original does."""
    methods: tuple[Method, ...] = getattr(type(module), "_reptool_derived", (None, ()))[1]
    kept = (m for m in methods if m.name not in _KEEPING and not m.raises)
    return any(f"self.{ORIGINAL}{m.name}(" not in m.source for m in kept)
