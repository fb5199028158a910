"""`Marker`: what stands in the place of a module that is gone; and the warning that norms are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
