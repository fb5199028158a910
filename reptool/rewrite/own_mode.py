"""Training mode of a folded norm: whether a method does the same in both modes, apart from what was folded.

A norm that is written as code reads ``self.training``, and normalizes by its batch where that is set. Once it is folded
its mode decides nothing any more, as with a layer that is a module. That is so where the method, run in both modes,
shows the same operations on the same values, and those that differ normalize by statistics and are folded. Whatever
else the mode decides (a dropout, an auxiliary head, a branch) stays behind a guard. Modules of one structure are run
once: where all settings that the two runs read are equal, another module's runs are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.capture.graph_builder import Writing
from reptool.capture.tracer import Recorder
from reptool.ir.trace import Event, Input, Setting, Trace, Unanswerable, all_events
from reptool.ir.walk import nodes_in
from reptool.models.copies import full_copy
from reptool.runtime.containers import leaves, mapped, parts, template_of
from reptool.runtime.snapshot import ABSENT, same


def decides_nothing(event: Event, absorbed: Collection[fx.Node], recorder: Writing) -> bool:
    """Whether the mode of a call's module decides nothing but how the norms that were folded normalize.

    Args:
        event: the call.
        absorbed: operations of the trace that were folded.
        recorder: what traced the call.
    """
    units = list(_units(event))
    key = event, frozenset(u for u in units if isinstance(u, fx.Node) and u in absorbed)
    if key not in recorder.modes:
        recorder.modes[key] = _of_alike(event, units, key[1], recorder)
    return recorder.modes[key]


def _of_alike(event: Event, units: list[fx.Node | Event], absorbed: frozenset[fx.Node], recorder: Writing) -> bool:
    """The answer, which is that of another module of the same structure where all settings read there are equal."""
    structure = _structure(event, units, absorbed)
    known = [] if structure is None else recorder.alike.setdefault(structure, [])
    for settings, answer in known:
        if all(same(_held(event.module, s), s.value) for s in settings):
            return answer
    runs = _runs(event, recorder)
    answer = len(runs) == 2 and _same_in_both(units, absorbed, *(trace for _, trace in runs))
    events = [e for _, trace in runs for e in all_events(trace.top)]
    if len(runs) == 2 and not any(e.questions for e in events) and not any(r.reads_constants for r, _ in runs):
        known.append(([s for e in events for s in e.settings if (s.path, s.name) != ("", "training")], answer))
    return answer


def _structure(event: Event, units: list[fx.Node | Event], absorbed: Collection[fx.Node]) -> Any:
    """What two runs of a method see of its module, apart from settings; None where more than that may matter."""
    given = list(leaves((event.args, event.kwargs)))
    if not all(v is None or type(v) in (bool, int, float, str) or _is_data(v) for v in given):
        return None
    held: list[Any] = [event.method, template_of(mapped((event.args, event.kwargs), _kind))]
    for path, module in event.module.named_modules():
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return None
        tensors = (*module._parameters.items(), *module._buffers.items())
        held += [path, type(module), *((n, None if t is None else (t.dtype, t.dim())) for n, t in tensors)]
    held += [(u.op, u in absorbed) if isinstance(u, fx.Node) else u.method for u in units]
    return type(event.module), tuple(map(repr, held))


def _is_data(value: Any) -> bool:
    return isinstance(value, fx.Node) and not value.meta["const"]


def _kind(value: Any) -> Any:
    return ("data", value.meta.get("kind")) if isinstance(value, fx.Node) else value


def _held(module: nn.Module, setting: Setting) -> Any:
    """What a module holds where code read a setting of another one."""
    at = module.get_submodule(setting.path)
    for table in (vars(at), at._parameters, at._buffers, at._modules):
        if setting.name in table:
            return table[setting.name]
    return inspect.getattr_static(type(at), setting.name, ABSENT)


def _runs(event: Event, recorder: Writing) -> list[tuple[Recorder, Trace]]:
    """Runs of a call's method in both modes; fewer where one cannot be."""
    try:
        module = full_copy(event.module)
    except Exception:  # a module that keeps what it computed, or that cannot be copied: nothing is known of its mode
        return []
    runs = []
    for training in (False, True):
        module.training = training
        run = _run(module, event, recorder)
        if run is None:
            break
        runs.append(run)
    return runs


def _same_in_both(units: list[fx.Node | Event], absorbed: Collection[fx.Node], *runs: Trace) -> bool:
    """Whether two runs show the operations of the call, apart from how the norms that were folded normalize."""
    first, second = (list(_computed(run.graph)) for run in runs)
    if not len(units) == len(first) == len(second):
        return False
    twins = dict(zip(_given(runs[0]), _given(runs[1]), strict=True))
    for unit, ours, theirs in zip(units, first, second, strict=True):
        twins[ours] = theirs
        if (ours.op, ours.target) != (theirs.op, theirs.target):
            return False
        if (isinstance(unit, Event) or unit.op == "call_module") != (ours.op == "call_module"):
            return False
        folded = isinstance(unit, fx.Node) and unit in absorbed and _by_statistics(ours)
        if not _equal((ours.args, ours.kwargs), (theirs.args, theirs.kwargs), twins, mode=folded):
            return False
    return _equal(runs[0].top.output, runs[1].top.output, twins, mode=False)


def _units(event: Event) -> Iterator[fx.Node | Event]:
    """What a method runs on data: operations, and calls of other modules as a whole."""
    for item in event.items:
        if isinstance(item, Event) and item.module is event.module:
            yield from _units(item)
        elif isinstance(item, Event):
            if any(not n.meta["const"] for n in nodes_in((item.args, item.kwargs))):
                yield item
        elif not item.meta["const"]:
            yield item


def _run(module: nn.Module, event: Event, recorder: Writing) -> tuple[Recorder, Trace] | None:
    """One run of the method on values as the call had them, with every other module closed; None if it cannot be."""

    def made(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value.meta["const"]:
            return recorder.evaluate(value)
        try:
            seen = recorder.evaluate(value)
        except Unanswerable:
            seen = None
        if not isinstance(seen, Tensor):
            return Input(value.name, None, str(value.meta.get("kind")))
        return Input(value.name, lambda mode: _like(seen, mode))

    run = Recorder(module, "")
    run.closed = lambda path: "tensor"
    try:
        return run, run.run(tuple(mapped(event.args, made)), mapped(event.kwargs, made), "", event.method)
    except Exception:  # whatever the user's code raises: nothing is known of its mode
        return None


def _like(seen: Tensor, mode: Any) -> Tensor:
    with mode:
        return torch.empty(seen.shape, dtype=seen.dtype, device=seen.device)


def _given(run: Trace) -> list[fx.Node]:
    return [n for n in run.graph.nodes if n.op == "placeholder"]


def _computed(graph: fx.Graph) -> Iterator[fx.Node]:
    """Operations on data; a norm that counts its batches only adds to a buffer of its own."""
    hanging = {n for n in graph.nodes if n.op == "placeholder"}
    for node in graph.nodes:
        if node.op != "output" and not hanging.isdisjoint(node.all_input_nodes):
            hanging.add(node)
            yield node


def _by_statistics(node: fx.Node) -> bool:
    return any(map(_is_constant, node.all_input_nodes))


def _is_constant(value: Any) -> bool:
    return isinstance(value, fx.Node) and bool(value.meta["const"])


def _equal(first: Any, second: Any, twins: dict[fx.Node, fx.Node], mode: bool) -> bool:
    """Whether arguments are the same values, but for the flag and the statistics of a norm if `mode`."""
    if isinstance(first, fx.Node) and first in twins:
        return twins[first] is second
    if mode and all(v is None or type(v) is bool or _is_constant(v) for v in (first, second)):
        return True
    if isinstance(first, fx.Node):
        return isinstance(second, fx.Node) and _same_constant(first, second)
    if type(first) is not type(second):
        return False
    if not isinstance(first, (tuple, list, dict, slice)):
        return bool(first is second or first == second)
    held, others = dict(parts(first) or ()), dict(parts(second) or ())
    return held.keys() == others.keys() and all(_equal(v, others[k], twins, mode) for k, v in held.items())


def _same_constant(first: fx.Node, second: fx.Node) -> bool:
    if first.op != second.op or not (_is_constant(first) and _is_constant(second)):
        return False
    if first.op == "get_attr":
        return first.meta["tensor"] is second.meta["tensor"]
    return first.target == second.target and _equal((first.args, first.kwargs), (second.args, second.kwargs), {}, False)
