"""`rules=`: names of rules, rules of the caller's own, and those that installed packages bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from typing import Any

from torch import fx, nn

from reptool.errors import InputError, RuleError
from reptool.plan.rules import RULES
from reptool.plan.select import Force
from reptool.rules.lifting import LIFTS, Lift
from reptool.rules.rule import Rule

Forced = bool | str | Iterable[str]
Rules = str | Lift | Rule | Callable[[fx.GraphModule], fx.GraphModule] | Iterable[Any] | None


def chosen_rules(rules: Any) -> tuple[frozenset[str], tuple[Any, ...]]:
    """The names of the rules that are given, all of them known, and those that rewrite.

    A name that is none of reptool's or of a registered lift is looked for among the entry points of installed packages
    (group ``reptool.rules``): what is named is loaded, and nothing else.
    """
    names, rewrites = set[str](), list[Any]()
    for given in as_list(rules):
        rule = _from_package(given) if isinstance(given, str) and given not in (*RULES, *LIFTS) else given
        if isinstance(rule, (str, Lift)):
            names.add(rule if isinstance(rule, str) else rule.name)
        elif isinstance(rule, Rule) or (callable(rule) and not isinstance(rule, (type, nn.Module))):
            rewrites.append(rule)
        else:
            raise InputError(f"{rule!r} is no rule; give a name, a reptool.rules Rule, or a function of a graph")
    called = [getattr(r, "name", None) or getattr(r, "__name__", "") for r in rewrites]
    for name in called:
        if not name or called.count(name) > 1 or name in (*RULES, *LIFTS):
            raise InputError(f"rules need names, each another one, got {called}; set the `name` of each")
    return frozenset(names), tuple(rewrites)


def forced_rules(force: Any, rewrites: Sequence[Any] = ()) -> Force:
    """Whether dearer layers are taken: of all rules (True), of none (False), or of those named.

    Args:
        force: what the caller gave.
        rewrites: the rules that rewrite, which may be named as well.

    Raises:
        InputError: there is no rule of that name.

    >>> sorted(forced_rules(("branch_add", "kernel_size")))
    ['branch_add', 'kernel_size']
    """
    if isinstance(force, bool):
        return force
    names = (getattr(r, "name", None) or getattr(r, "__name__", "") for r in rewrites)
    known = (*RULES, *LIFTS, *map(str, names))
    for name in as_list(force):
        if not isinstance(name, str) or name not in known:
            raise InputError(f"force was given {name!r}; give True, or names of {', '.join(known)}")
    return frozenset(as_list(force))


def _from_package(name: str) -> Any:
    """The rule that an installed package brings under this name."""
    found = {e.name: e for e in entry_points(group="reptool.rules")}
    if name not in found:
        known = ", ".join((*RULES, *sorted(LIFTS), *sorted(found)))
        raise InputError(f"unknown rules [{name!r}]; the rules are {known}")
    try:
        rule = found[name].load()
        return rule() if isinstance(rule, type) else rule
    except Exception as error:  # whatever a package does
        where = f"{found[name].value} of {getattr(found[name].dist, 'name', 'a package')}"
        raise RuleError(f"rule {name!r} ({where}) cannot be loaded: {type(error).__name__}: {error}") from error


def as_list(value: Any) -> list[Any]:
    """One thing or several as a list."""
    return [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
