"""`Fallback`: one method that is specialized. `Keeping`: what one module keeps for all of its fallbacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reptool.ir.trace import Event
from reptool.rewrite.guard_inference import Guard

if TYPE_CHECKING:
    from reptool.surgery.site import Site


@dataclass(eq=False)
class Fallback:
    """One method that is specialized.

    Args:
        path: of the module.
        method: its name.
        asked: per traced call, the calls inside it whose answers the new code relies on.
        sites: the sites for whose sake it is specialized.
        reached: sites whose layers its original code may use one by one.
        training: whether code that is specialized asks for `training`.
        guards: the arguments for which the new code runs.
        settings: what was read that has to be as it was.
    """

    path: str
    method: str
    asked: dict[Event, set[Event]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    reached: list[Site] = field(default_factory=list)
    training: bool = False
    guards: list[Guard] = field(default_factory=list)
    settings: list[Any] = field(default_factory=list)


@dataclass
class Keeping:
    """What one module keeps for all of its fallbacks.

    Args:
        whole: paths in it of modules that are kept as they are.
        parts: paths in it of modules ("" is itself) -> names of their own tensors that are kept.
        weights: number of weights kept.
        size: their bytes.
        saved: the price of what its specialized regions save.
    """

    whole: set[str] = field(default_factory=set)
    parts: dict[str, set[str]] = field(default_factory=dict)
    weights: int = 0
    size: int = 0
    saved: float = 0.0
