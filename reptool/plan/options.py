"""The caller's options, and the forms that they allow."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from reptool.ir.trace import Trace
from reptool.plan.candidates import Analysis
from reptool.plan.cost import DEFAULT, Costs
from reptool.plan.forms import Form
from reptool.plan.rules import rules_of
from reptool.plan.select import Force
from reptool.probing.opaque import Names
from reptool.refusal import Code, Refusal
from reptool.rules.rule import Rule


@dataclass
class Options:
    """What the caller asked for."""

    rules: frozenset[str] | None = None
    force: Force = False
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    keep_fallback: bool = False
    affine: Names = ()
    lifts: frozenset[str] = frozenset()
    unwrap: bool = False
    rewrites: tuple[Rule | Callable[[fx.GraphModule], fx.GraphModule], ...] = ()
    price: Costs = DEFAULT
    several: bool = True  # whether a layer may read values of several resolutions, which code around it checks

    def forces(self, rule: str) -> bool:
        """Whether a rule is applied where the result is dearer."""
        return rule in self.force if isinstance(self.force, frozenset) else self.force


def allowed_by(options: Options, found: Analysis, trace: Trace) -> Callable[[fx.Node, Form], Refusal | None]:
    """A function that says why an option forbids a form; None where none does."""

    def allowed(node: fx.Node, form: Form) -> Refusal | None:
        if options.rules is not None:
            extra = rules_of(form, found) - options.rules
            if extra:
                return Refusal(Code.RULE_OFF, f"needs the rules {sorted(extra)}", (node.name,))
        for owner in sorted({o for n in form.ops for o in found.ops[n].owners}):
            full = f"{trace.prefix}.{owner}" if trace.prefix else owner
            if options.include is not None and not matches(full, options.include):
                return Refusal(Code.EXCLUDED, f"{full!r} is not included", (node.name,))
            if matches(full, options.exclude):
                return Refusal(Code.EXCLUDED, f"{full!r} is excluded", (node.name,))
        return None

    return allowed


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path, or a module that encloses it, matches one of the patterns."""
    parts = path.split(".")
    ancestors = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch.fnmatchcase(a, p) for p in patterns for a in ancestors)
