"""The model's own conversions, tried out: one that changes what its module computes is no conversion.

`deploy` makes ``fuse()`` and ``switch_to_deploy()`` of a module that it collapsed no-ops: nothing is left to do there.
No name shows that this is all that such a method does. So each is called on a copy of the smallest module of its class,
which has to give what it gave before; a method that changes it raises on the deployed model.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.decisions import decide_for, decided
from reptool.ir.trace import all_events
from reptool.models.copies import copy_in
from reptool.models.running import users_code
from reptool.runtime.subclass import conversions_of
from reptool.surgery.conversions import silenced
from reptool.surgery.units import Plan, Unit
from reptool.verify.methods import inputs_of, outputs
from reptool.verify.whole_model import whole_error

TOLERANCE = 1e-3
"""How far an author's own conversion may be off, in the dtype of the model, of the largest output."""
TRIES = 20


def judge_conversions(model: nn.Module, plan: Plan) -> None:
    """Say of every module whose own conversions would become no-ops which of them do something else.

    Args:
        model: the original model.
        plan: what will be done; `Surgery.conversions` of its units is filled.
    """
    for unit in plan.units:
        decide_for(unit.prefix)
        root = model.get_submodule(unit.prefix)
        classes: dict[type, list[str]] = {}
        for path in silenced(root, unit.surgery):
            classes.setdefault(type(root.get_submodule(path)), []).append(path)
        for cls, held in classes.items():
            path = min(held, key=lambda p: sum(t.numel() for t in root.get_submodule(p).parameters()))
            sample = cache(partial(_sample, root, path, unit))
            tries = {n: partial(_converts, root.get_submodule(path), n, sample) for n in conversions_of(cls)}
            wrong = tuple(n for n, tried in tries.items() if not decided(f"{n} of {path} converts", (), tried, True))
            unit.surgery.conversions |= dict.fromkeys(held, wrong) if wrong else {}


Sample = tuple[tuple[Any, Any], list[Tensor]]


def _converts(old: nn.Module, name: str, sample: Callable[[], Sample | None]) -> bool:
    """Whether a method of a module leaves its output as it is; True where nothing can be made up to run it."""
    made = sample()
    if made is None:
        return True
    args, wanted = made
    new = copy_in(old, None)
    try:
        with users_code(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            getattr(new, name)()
        return whole_error(outputs(new, *args), wanted) <= TOLERANCE
    except Exception:  # it asks for arguments, or is not meant to be called here
        return False


def _sample(root: nn.Module, path: str, unit: Unit) -> Sample | None:
    """Made-up inputs on which a module runs, and what it gives; None where there are none."""
    event = next((e for e in all_events(unit.trace.top) if e.path == path and e.method == "forward"), None)
    if event is None:
        return None
    old = copy_in(root.get_submodule(path), None)
    for made in itertools.islice(inputs_of(event, unit, None), TRIES):
        with contextlib.suppress(Exception):  # they do not suit it
            return made, outputs(old, *made)
    return None
