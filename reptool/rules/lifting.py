"""`lifts`: what a user's own module or function computes, said in a few lines.

The rule has a name, which `rules=` takes and the report shows. What it says is tested in float64 against the code it is
said of (`probing/stated.py`); what is wrong is refused, and what raises is an error that names the rule and the place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from reptool.algebra.kernel import Kernel
from reptool.errors import InputError
from reptool.ir.nodes import FOREIGN
from reptool.lift.registry import FUNCTIONS, MODULES, Entry, key_of
from reptool.refusal import Refusal
from reptool.rules.maps import Conv, Linear, Scale

Said: TypeAlias = "Conv | Linear | Scale | Kernel | Refusal | None"
LIFTS: dict[str, Lift] = {}
"""By name: what users registered."""


@dataclass(frozen=True, eq=False)
class Lift:
    """A rule that says what an operation computes; made by `lifts`.

    Args:
        name: of the rule.
        says: the function that says it.
        targets: the classes of modules and the functions it is said of.
    """

    name: str
    says: Callable[..., Said]
    targets: tuple[Any, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Said:
        """What it says of a module, or of the arguments of a call."""
        return self.says(*args, **kwargs)

    def __repr__(self) -> str:
        named = ", ".join(getattr(t, "__qualname__", str(t)) for t in self.targets)
        return f"<rule {self.name!r}: lifts {named}>"

    @property
    def takes_value(self) -> bool:
        """Whether the rule for a module also asks for the value that the module reads."""
        return len(inspect.signature(self.says).parameters) > 1

    def remove(self) -> None:
        """Take the rule back; models that were deployed with it stay as they are."""
        LIFTS.pop(self.name, None)
        for target in self.targets:
            table: dict[Any, list[Entry]] = MODULES if isinstance(target, type) else FUNCTIONS
            kept = [e for e in table.pop(key_of(target), ()) if e.rule != self.name]
            if kept:
                table[key_of(target)] = kept
            FOREIGN.pop(id(target), None)


def lifts(target: Any, *, name: str | None = None) -> Callable[[Callable[..., Said] | Lift], Lift]:
    """Say what a module or function of your own computes, so that `deploy` fuses it like a layer of torch.

    Args:
        target: a class of modules that take and give one tensor, or a function (also a `torch.library` operator or the
            ``apply`` of an autograd function) of one tensor that depends on data.
        name: of the rule, default that of the decorated function (of the target, for a lambda). `rules=` takes it, and
            the report shows it.

    Returns:
        A decorator. For a class, the function is called with the module, or with the module and the `Value` that it
        reads; for a function, with the arguments of the call, a `Value` in the place of the data. Modules and tensors
        that it gets are in float64. It returns a `Conv`, `Linear`, `Scale` or `Kernel`; a `Refusal` with the reason;
        or None where the rule does not apply. The result is the rule, a `Lift`.

    Raises:
        InputError: `target` cannot be called, or the name is taken.

    >>> import torch, reptool
    >>> class Blur(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.register_buffer("taps", torch.ones(channels, 1, 3, 3) / 9)
    ...     def forward(self, x):
    ...         return nn.functional.conv2d(x, self.taps, padding=1, groups=len(self.taps))
    >>> @lifts(Blur)
    ... def blur(module):
    ...     return Conv(module.taps, padding=1, groups=len(module.taps))
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), Blur(8), nn.BatchNorm2d(8)).eval()
    >>> [r.rules for r in reptool.report(reptool.deploy(model)).regions]
    [['blur', 'conv_bn']]
    >>> blur.remove()
    """
    if not callable(target) or isinstance(target, nn.Module):
        raise InputError(f"lifts takes a class of modules or a function, got {target!r}")
    if isinstance(target, type) and not issubclass(target, nn.Module):
        raise InputError(f"lifts takes a class of modules or a function, got the class {target.__name__}")

    def registered(says: Callable[..., Said] | Lift) -> Lift:
        earlier = says if isinstance(says, Lift) else None
        function = says.says if isinstance(says, Lift) else says
        called = name or (earlier.name if earlier is not None else _name(function, target))
        targets = (*(earlier.targets if earlier is not None else ()), target)
        if earlier is not None:
            earlier.remove()
        if (before := LIFTS.get(called)) is not None:  # a cell of a notebook that is run again
            before.remove()
        made = Lift(called, function, targets)
        _enter(made)
        return made

    return registered


def _name(function: Callable[..., Said], target: Any) -> str:
    """The name of a function; of what its target is where it has none."""
    own = getattr(function, "__name__", "<lambda>")
    return own if own.isidentifier() else getattr(target, "__name__", getattr(target, "_name", ""))


def _enter(made: Lift) -> None:
    check_name(made.name)
    LIFTS[made.name] = made
    for target in made.targets:
        if isinstance(target, type):
            MODULES.setdefault(target, []).append(Entry(lambda node, module, ctx: ctx.own(node, made), made.name))
        else:
            FUNCTIONS.setdefault(key_of(target), []).append(Entry(lambda node, ctx: ctx.own(node, made), made.name))
            FOREIGN[id(target)] = target


BUILT_IN: set[str] = set()
"""Names that are taken: those of reptool's own rules."""


def check_name(name: str) -> None:
    """Raise for a name that no rule of a user's may have."""
    if not name or name in BUILT_IN:
        raise InputError(f"a rule needs a name that no rule of reptool's own has, got {name!r}; give name=")


def active_lifts(names: Iterable[str] | None) -> frozenset[str]:
    """Names of the registered lifts that are on: all of them, or those named."""
    return frozenset(LIFTS) if names is None else frozenset(LIFTS) & frozenset(names)
