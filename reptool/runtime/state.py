"""State of layers that hold more than their names say: it is loaded from such layers, and as a whole.

A convolution that a norm was folded into still calls its values ``weight`` and ``bias``. The state that torch saves
says for each module which version of it was saved; a folded layer says in the same place what is folded into it. Values
of the original, which do not, are refused. A plain dictionary of tensors says nothing of itself and is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from reptool.errors import AbsorbedStateError

FOLDED = "_reptool_folded"
_TAG = "reptool"


@dataclass(frozen=True)
class Folded:
    """What the tensors of a module hold.

    Args:
        text: names of all that is folded into them.
        names: of the tensors.
        bias: the name of the bias, None where there is none.
        place: path of the module in the model.
    """

    text: str
    names: tuple[str, ...]
    bias: str | None
    place: str = ""


def tell(module: nn.Module, state: Any, prefix: str, metadata: dict[str, Any]) -> None:
    """A hook of ``state_dict``: say what the layer holds."""
    metadata[_TAG] = {f.names[0]: f.text for f in module.__dict__.get(FOLDED, ())}


def check_state(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    """A hook of ``load_state_dict``: refuse what was not saved from a layer like this one.

    Raises:
        AbsorbedStateError: with the name of what does not fit.
    """
    for folded in module.__dict__.get(FOLDED, ()):
        found = [prefix + n for n in folded.names if prefix + n in state]
        if not found:
            continue
        if "version" not in metadata and folded.place and not prefix.endswith(f"{folded.place}."):
            raise AbsorbedStateError(
                f"{found[0]!r} is loaded into a layer that deploy() made of {folded.text}, by a part of the model and "
                "from tensors that do not say what they hold; load them into the whole deployed model if they are its "
                "own, or into the original model and deploy that again"
            )
        if "version" in metadata and metadata.get(_TAG, {}).get(folded.names[0]) != folded.text:
            raise AbsorbedStateError(
                f"the checkpoint's {found[0]!r} was not saved from a layer that deploy() made of {folded.text}; load "
                "it into the original model and deploy that again (the values of a model deployed in the same way are "
                "taken from a plain dict of tensors)"
            )
        missing = [prefix + n for n in folded.names if prefix + n not in state]
        if missing:
            raise AbsorbedStateError(
                f"the checkpoint holds {found[0]!r} and not {missing[0]!r}, which deploy() made together of "
                f"{folded.text}; load it into the original model and deploy that again"
            )


def set_folded(module: nn.Module, folded: Folded) -> None:
    """Say of a module what its tensors hold."""
    earlier = tuple(f for f in module.__dict__.get(FOLDED, ()) if f.names[0] != folded.names[0])
    module.__dict__[FOLDED] = (*earlier, folded)
    if tell not in module._state_dict_hooks.values():
        module._register_state_dict_hook(tell)
        module.register_load_state_dict_pre_hook(check_state)


def drop_folded(module: nn.Module) -> None:
    """Forget what the tensors of a module hold."""
    module.__dict__.pop(FOLDED, None)
    for table in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key in [k for k, h in table.items() if getattr(h, "hook", h) in (tell, check_state)]:
            del table[key]
