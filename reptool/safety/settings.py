"""Settings that hold regions together: what code read on the way to a region's operations is guarded.

A region is one layer only as long as the model's code runs all of its operations, one after the other. Which it runs is
decided in the calls from the lowest one that holds the whole region down to its operations: by attributes of modules,
configuration objects, globals and switches that were read there before the region was complete, or while a value
inside of it could still be used. What lies outside of these calls runs the region as a whole or not at all.

What a method reads only to hand it to an operation of torch decides nothing: the operation is given the new value.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from reptool.ir.trace import Event, Question, Setting, lowest_call
from reptool.ir.walk import only_tensors
from reptool.pysource.functions import behind, tree_of
from reptool.pysource.globals_read import Outside, functions_of
from reptool.rewrite.setting_checks import outside_of
from reptool.runtime.snapshot import PLAIN, IncomparableError, same
from reptool.surgery.gating import handing_calls
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon


@dataclass
class Guarded:
    """What one method has to find as it was.

    Args:
        event: a call of it.
        settings: what it read, in all of its calls.
        asked: what its calls asked of dtypes.
        sites: the regions that this is for.
    """

    event: Event
    settings: list[Setting | Outside] = field(default_factory=list)
    asked: dict[Event, list[Question]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)


def guarded_settings(surgery: Surgery, surgeon: Surgeon) -> dict[tuple[str, str], Guarded]:
    """Module path and method -> what holds regions together that it runs, or a part of them."""
    found: dict[tuple[str, str], Guarded] = {}
    outside_of_all = functools.cache(lambda event: [o for e in _decided_in(event) for o in outside_of(e)])
    slots = {s.slot: s for s in surgery.sites if s.slot is not None}
    for site in surgery.sites:
        ops = site.region.form.ops | surgeon.between(site)
        end = _end(site, ops)
        for event, read in _on_the_way(site, ops, slots, surgery).items():
            last = math.inf if _may_run_again(site, event) else end
            relevant = [s for s in read if s.time < last and not _is_handed_on(s, event)]
            settings = [s for s in (_after(s, slots, surgery) for s in relevant) if s is not None]
            outside = outside_of_all(event)
            if settings or outside:
                made = found.setdefault((event.path, event.method), Guarded(event))
                made.settings += [*settings, *outside]
                made.sites.append(site)
        for event, questions in site.dtypes.items():
            if event not in surgery.left_out:
                made = found.setdefault((event.path, event.method), Guarded(event))
                made.asked.setdefault(event, []).extend(questions)
                made.sites.append(site)
    return found


def ways_of(surgery: Surgery, surgeon: Surgeon) -> dict[tuple[str, str], list[Site]]:
    """Module path and method -> the regions that it holds together: what it is called with may decide."""
    found: dict[tuple[str, str], list[Site]] = {}
    for site in surgery.sites:
        ops = site.region.form.ops | surgeon.between(site)
        for key in dict.fromkeys((e.path, e.method) for e in _way(site, ops)[1]):
            found.setdefault(key, []).append(site)
    return found


def _way(site: Site, ops: Collection[fx.Node]) -> tuple[Event, list[Event]]:
    """The lowest call that holds a whole region, and those on the way to its operations or through which values go."""
    lowest, way = lowest_call(ops)
    return lowest, list(dict.fromkeys([*way, *handing_calls(site, lowest)]))


def _end(site: Site, ops: Collection[fx.Node]) -> float:
    """When a region was complete and no value inside of it could be used any more."""
    inner = set(ops) - {site.region.value}
    last = max(n.meta.get("time", math.inf) for n in ops)
    return max([last, *(n.meta.get("dead", math.inf) for n in inner)])


def _may_run_again(site: Site, event: Event) -> bool:
    """Whether the code of a call names a part of a region more than once, so that it may use it by itself later."""
    function = inspect.getattr_static(type(event.module), event.method, None)
    lead = f"{event.path}." if event.path else ""
    targets = [str(n.target) for n in site.region.form.ops if n.op == "call_module"]
    parts = {t[len(lead) :].partition(".")[0] for t in targets if t.startswith(lead)}
    named = Counter(_attributes_of(function)) if inspect.isfunction(function) else None
    return named is None or any(named[p] > 1 for p in parts)


@functools.lru_cache(maxsize=4096)
def _attributes_of(method: Callable[..., Any]) -> tuple[str, ...]:
    """The attributes that a method and functions of its package that it names read, each as often as it is named."""
    found: list[str] = []
    for function in functions_of(method):
        tree = tree_of(function)
        if tree is None:
            found += [n for n in function.__code__.co_names for _ in range(2)]
            continue
        found += [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        found += [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return tuple(found)


def _on_the_way(
    site: Site, ops: Collection[fx.Node], slots: Collection[str], surgery: Surgery
) -> dict[Event, list[Setting]]:
    """Calls from the lowest that holds a whole region down to its operations -> what was read for them.

    What was read in a call that is not made any more counts for the call around it, and so does what a method read that
    gives something else than tensors.
    """
    lowest, way = _way(site, ops)
    out: dict[Event, list[Setting]] = {}
    for event in way:
        stays = next((e for e in event.ancestors() if e is lowest or not _is_gone(e.path, slots, surgery)), lowest)
        if event.method in surgery.methods.get(event.path, {}):
            continue  # it is written anew, and checks all that it read
        own = [s for e in _decided_in(event) for s in e.settings if not s.by_torch]
        out.setdefault(stays, []).extend(own if stays is event else (s for s in own if s.name != "training"))
    return out


def _after(setting: Setting, slots: Mapping[str, Site], surgery: Surgery) -> Setting | None:
    """A setting as it can be read of the deployed model; None where nothing is left that could be set."""
    path, site = setting.path, slots.get(setting.path)
    inside = _is_gone(path.rpartition(".")[0], slots, surgery)
    if setting.kind is not None and (inside or path in surgery.identities or (site is not None and not site.reuse)):
        return replace(setting, of_class=True)
    if inside:
        fixed = isinstance(setting.value, PLAIN)
        return None if fixed else replace(setting, value=IncomparableError("its module is absorbed in another one"))
    if path in surgery.identities and isinstance(setting.value, PLAIN):
        return None  # a marker of an absorbed module cannot be written to
    if site is not None and not site.reuse and hasattr(site.shape, setting.name):
        if same(getattr(site.shape, setting.name), setting.value):
            return None
        return replace(setting, value=IncomparableError("the layer in its place has another one"))
    if path in surgery.identities or site is not None:
        surgery.read.setdefault(path, set()).add(setting.name)
    return setting


def _is_gone(path: str, slots: Collection[str], surgery: Surgery) -> bool:
    """Whether a module is replaced, or lies inside of one that is."""
    while path:
        if path in surgery.identities or path in slots:
            return True
        path = path.rpartition(".")[0]
    return False


def _decided_in(event: Event) -> Iterator[Event]:
    """A call, and those in it that gave it something to decide by."""
    yield event
    for item in event.items:
        if isinstance(item, Event) and not only_tensors(item.output):
            yield from _decided_in(item)


def _is_handed_on(setting: Setting, event: Event) -> bool:
    """Whether a method only hands an attribute of its module to operations of torch."""
    function = inspect.getattr_static(type(event.module), event.method, None)
    return setting.path == event.path and inspect.isfunction(function) and setting.name in _handed_on(function)


@functools.lru_cache(maxsize=4096)
def _handed_on(function: Callable[..., Any]) -> frozenset[str]:
    """Names of attributes that a method reads, each time as an argument of a function of torch."""
    trees = [tree_of(f) for f in behind(function)]
    if len(trees) != 1 or trees[0] is None:
        return frozenset()
    parents = {child: node for node in ast.walk(trees[0]) for child in ast.iter_child_nodes(node)}
    reads = [n for n in ast.walk(trees[0]) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)]
    scope = getattr(function, "__globals__", {})
    kept = {n.attr for n in reads if not _is_argument(n, parents, scope)}
    words = {n.value for n in ast.walk(trees[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return frozenset({n.attr for n in reads} - kept - words)


def _is_argument(node: ast.AST, parents: dict[ast.AST, ast.AST], scope: dict[str, Any]) -> bool:
    above = parents.get(node)
    if isinstance(above, ast.keyword):
        node, above = above, parents.get(above)
    if not isinstance(above, ast.Call) or above.func is node:
        return False
    called: Any = above.func
    steps: list[str] = []
    while isinstance(called, ast.Attribute):
        steps.insert(0, called.attr)
        called = called.value
    value = scope.get(called.id) if isinstance(called, ast.Name) else None
    for step in steps:
        value = getattr(value, step, None)
    return callable(value) and str(getattr(value, "__module__", "")).startswith("torch")
