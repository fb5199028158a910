"""The registry of lifts: which function reads which operation, those of torch's own and those of users alike.

Modules are looked up by their class, the most derived one first; functions by themselves, then by their name. What a
user registered has the name of a rule, and is looked up where that rule is on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import fx, nn
from torch._ops import OpOverload

from reptool.ir.nodes import name_of
from reptool.lift.reading import Lifted

Reader = Callable[..., Lifted]
"""``(node, module, ctx)`` for modules, ``(node, ctx)`` for functions."""


@dataclass(frozen=True)
class Entry:
    """What reads an operation.

    Args:
        read: gives the op, a refusal, or None.
        rule: the name of a user's rule; '' for torch's own operations, whose ops name their paradigm.
    """

    read: Reader
    rule: str = ""


MODULES: dict[type, list[Entry]] = {}
FUNCTIONS: dict[Any, list[Entry]] = {}
Names = Collection[str]


def reads(*targets: Any) -> Callable[[Reader], Reader]:
    """Register a function of reptool's own for classes of modules and names of functions."""

    def registered(read: Reader) -> Reader:
        for target in targets:
            (MODULES if isinstance(target, type) else FUNCTIONS)[target] = [Entry(read)]
        return read

    return registered


def key_of(target: Any) -> Any:
    """What a function is found under: all overloads of an operator, and what it was registered as, are one."""
    target = getattr(target, "_opoverload", target)  # of `torch.library.custom_op`
    return target.overloadpacket if isinstance(target, OpOverload) else target


def module_entries(cls: type, active: Names) -> list[Entry]:
    """What reads modules of a class, users' rules that are on and the first of torch's own; the most derived first."""
    found: list[Entry] = []
    for base in cls.__mro__:
        found += [e for e in reversed(MODULES.get(base, ())) if not e.rule or e.rule in active]
    return found


def function_entries(node: fx.Node, active: Names) -> list[Entry]:
    """What reads a call of a function or method."""
    name = name_of(node)
    if node.op == "call_method" and name.startswith("__") and name.endswith("__"):
        name = {"__truediv__": "truediv", "__rsub__": "rsub"}.get(name, name.strip("_"))
    own = [e for e in reversed(_own(node.target)) if e.rule in active] if node.op == "call_function" else []
    return [*own, *FUNCTIONS.get(name, ())]


def _own(target: Any) -> list[Entry]:
    """The entries of users for a function."""
    try:
        return FUNCTIONS.get(key_of(target), [])
    except TypeError:  # it cannot be hashed
        return []


def own_modules(model: nn.Module, active: Names) -> list[str]:
    """Paths of the parts of a model that a user's rule reads; outermost ones only."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = not path or any(path.startswith(f"{p}.") for p in found)
        if not inside and any(e.rule for e in module_entries(type(module), active)):
            found.append(path)
    return found


def own_functions(active: Names) -> list[FunctionType]:
    """The functions of Python that users' rules read, which capture must not follow."""
    return [
        f for f, entries in FUNCTIONS.items() if isinstance(f, FunctionType) and any(e.rule in active for e in entries)
    ]
