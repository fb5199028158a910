"""Methods that were written anew, run beside the original on made-up inputs.

Regions are verified by themselves; this runs what stands between them, and no method is handed out that has not run.
Inputs are made up from what is known of ranks and channels; where the original does not run on them, those of a call
around it are tried, up to the whole model, which the caller's example inputs run. A method that nothing runs, or that
computes something else, is given up with the regions in it. One with a fallback is run at the sizes it was specialized
for, and at others, where the fallback answers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.algebra.budget import is_out_of_memory
from reptool.ir.trace import Event, all_events
from reptool.ir.walk import cloned, tensors_in
from reptool.models.copies import copy_in
from reptool.models.running import seed_all, users_code
from reptool.refusal import Code, Refusal
from reptool.report.progress import unit as begun
from reptool.runtime.containers import leaves, mapped
from reptool.runtime.method import ORIGINAL
from reptool.surgery.units import GivenUp, Plan, Unit
from reptool.verify.whole_model import ROUNDING, movement, whole_error

TOLERANCE = 1e-7
GROWTH = 2.0**16
"""Rounding of folded weights, grown through a whole method, in multiples of their eps."""
SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((),),
    3: ((64,),),
    4: ((8, 12), (16, 24), (17, 20), (64, 72)),
    5: ((4, 6, 8), (8, 12, 10), (16, 16, 20)),
}
"""Positions of made-up images by rank; larger ones are tried where the original does not run on smaller ones."""


@dataclass
class _Scene:
    """One call that is run, and what the original gave for each of its inputs."""

    unit: Unit
    event: Event
    path: str
    takes: list[tuple[tuple[Any, Any], list[Tensor]]]
    tolerance: float
    off: float = 0.0
    dtype: torch.dtype | None = torch.float64


class Rehearsal:
    """What has to be run of a plan, with what the original gives, worked out before anything is written.

    Args:
        model: the original model.
        plan: what will be done.
        shown: whether the whole model is run on example inputs afterwards.

    Attributes:
        failed: methods that nothing would run, or that computed something else, and why.
    """

    def __init__(self, model: nn.Module, plan: Plan, shown: bool) -> None:
        self.scenes: list[_Scene] = []
        self.failed = GivenUp()
        for unit in plan.units:
            covered: set[Event] = set()
            for event in _closed_events(unit):
                if event not in covered:
                    self._prepare(model, unit, event, shown, covered)

    def _prepare(self, model: nn.Module, unit: Unit, event: Event, shown: bool, covered: set[Event]) -> None:
        for around in (e for e in event.ancestors() if e is event or e.method == "forward"):
            full = ".".join(p for p in (unit.prefix, around.path) if p)
            begun(full or "the whole model")
            old = model.get_submodule(full)
            dtype, takes = _takes(old, around, unit)
            if takes:
                eps = max((torch.finfo(p.dtype).eps for p in old.parameters() if p.is_floating_point()), default=0.0)
                self.scenes.append(_Scene(unit, around, full, takes, max(TOLERANCE, GROWTH * eps), dtype=dtype))
                covered.update(all_events(around))
                return
        if not shown and any(_is_written(unit, e) for e in all_events(event)):
            where = ".".join(p for p in (unit.prefix, event.path) if p) or "<root>"
            why = f"{where}.{event.method} would be written anew, and no inputs can be made up to run it"
            self._give_up(unit, event, Refusal(Code.NOT_RUN, f"{why}; give example_inputs", (where,)))

    def _give_up(self, unit: Unit, event: Event, why: Refusal) -> None:
        """Name the methods of a call and those that it makes, as far as they were written anew."""
        for e in all_events(event):
            if e.method in unit.surgery.methods.get(e.path, ()):
                self.failed.methods[".".join(p for p in (unit.prefix, e.path) if p), e.method] = why

    def against(self, target: nn.Module) -> int:
        """Run the same on the deployed model; how many calls were compared. What differs is added to `failed`."""
        for scene in self.scenes:
            found = _judged(scene, target.get_submodule(scene.path))
            if found is not None:
                self._give_up(scene.unit, scene.event, found)
        return len(self.scenes)

    def is_rounding(self, model: nn.Module) -> bool:
        """Whether all that differed is no more than the original itself moves by rounding; then it is tolerated."""
        for scene in (s for s in self.scenes if s.off > s.tolerance):
            old = model.get_submodule(scene.path)
            moved = max((_movement(old, made, wanted) for made, wanted in scene.takes), default=0.0)
            if not scene.off <= ROUNDING * moved:
                return False
            scene.tolerance = ROUNDING * moved
        self.failed = GivenUp()
        return True


def _movement(old: nn.Module, made: tuple[Any, Any], wanted: list[Tensor]) -> float:
    try:
        return movement(old, *made, wanted)
    except Exception:  # an original that does not run for inputs that are moved
        return 0.0


def _is_written(unit: Unit, event: Event) -> bool:
    """Whether a call's method has other code than before, behind checks or not."""
    made = unit.surgery.methods.get(event.path, {}).get(event.method)
    return made is not None and f"self.{ORIGINAL}{event.method}(" not in made.source


def _closed_events(unit: Unit) -> list[Event]:
    """The smallest module calls around each method written anew that no region lies across the border of."""
    inside: dict[Event, Counter[int]] = {}
    for i, site in enumerate(unit.surgery.sites):
        for node in site.region.form.ops:
            for event in node.meta["event"].ancestors():
                inside.setdefault(event, Counter())[i] += 1
    sizes = [len(site.region.form.ops) for site in unit.surgery.sites]
    written = {(path, name) for path, methods in unit.surgery.methods.items() for name in methods}
    starts = [e for e in all_events(unit.trace.top) if (e.path, e.method) in written]
    found: dict[str, Event] = {}
    for start in starts:
        for event in start.ancestors():
            whole = all(count == sizes[i] for i, count in inside.get(event, Counter()).items())
            if event.method == "forward" and whole and inside.get(event):
                found.setdefault(event.path, event)
                break
    return list(found.values())


# --- one comparison -------------------------------------------------------------------------------------------------
Takes = list[tuple[tuple[Any, Any], list[Tensor]]]


def _takes(old: nn.Module, event: Event, unit: Unit) -> tuple[torch.dtype | None, Takes]:
    """Inputs that the original runs on, and what it gives for them: one, or all where a fallback is kept.

    In float64; where the original names a dtype of its own and runs on none, in the dtype of its weights. Where a
    method is right for the dtypes that were shown alone, in these.
    """
    own = next((p.dtype for p in old.parameters() if p.is_floating_point()), torch.float64)
    wanted: dict[torch.dtype | None, int] = {torch.float64: MAX_TRIES}
    wanted.setdefault(own, MAX_NARROW)
    for dtype, tries in wanted.items() if not unit.surgery.fixed else [(None, MAX_NARROW)]:
        wide, out = copy_in(old, dtype), list[tuple[tuple[Any, Any], list[Tensor]]]()
        for made in itertools.islice(inputs_of(event, unit, dtype), tries):
            try:
                out.append((made, outputs(wide, *made)))
            except Exception:  # the made-up inputs do not suit the original
                continue
            if not unit.surgery.keeping:
                break
        if out:
            return dtype, out
    return torch.float64, []


def _judged(scene: _Scene, new: nn.Module) -> Refusal | None:
    """Why what was written cannot stand."""
    path = scene.path or "<root>"
    wide = copy_in(new, scene.dtype)
    for made, wanted in scene.takes:
        scene.off = float("inf")
        try:
            got = outputs(wide, *made)
        except Exception as error:
            if is_out_of_memory(error):
                return Refusal(Code.TOO_LARGE, f"running {path} ran out of memory", (path,))
            why = f"{path} fails where the original runs: {type(error).__name__}: {error}"
            return Refusal(Code.UNVERIFIED, why, (path,))
        if [t.shape for t in got] != [t.shape for t in wanted]:
            return Refusal(Code.UNVERIFIED, f"{path} returns other shapes", (path,))
        scene.off = whole_error(got, wanted)
        if not scene.off <= scene.tolerance:
            return Refusal(Code.UNVERIFIED, f"{path} is off by {scene.off:.3g}", (path,))
    return None


def outputs(module: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a module gives for copies of some inputs."""
    with torch.no_grad(), users_code():
        seed_all()
        return [t.detach() for t in tensors_in(module(*cloned(args), **cloned(kwargs)))]


# --- made-up inputs -------------------------------------------------------------------------------------------------
MAX_TRIES = 150
MAX_NARROW = 20
"""Inputs of the model's own dtype, of code that may run on no other."""


def inputs_of(event: Event, unit: Unit, dtype: torch.dtype | None) -> Iterator[tuple[Any, Any]]:
    """Arguments for a call: of shapes that were seen or are known, and of others that may suit it."""
    nodes = list(dict.fromkeys(v for v in leaves((event.args, event.kwargs)) if isinstance(v, fx.Node)))
    if not nodes or any(n.meta["const"] or n.meta.get("kind") != "tensor" for n in nodes):
        return
    for shapes in itertools.islice(_shapes(event, unit, nodes), MAX_TRIES):
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(s, dtype=torch.float32, generator=generator) for s in shapes]  # a fifth of float64's time
        values = [v.to(dtype or unit.facts.dtype(n) or torch.float64) for v, n in zip(made, nodes, strict=True)]
        yield mapped((event.args, event.kwargs), partial(_given, dict(zip(nodes, values, strict=True))))


def _given(values: dict[fx.Node, Tensor], leaf: Any) -> Any:
    return values[leaf] if isinstance(leaf, fx.Node) else leaf


def _shapes(event: Event, unit: Unit, nodes: list[fx.Node]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Shapes for all inputs, likely ones first; where a fallback is kept, those that were seen and others."""
    seen = [s for n in nodes if (s := unit.facts.shape(n)) is not None]
    shown = len(seen) == len(nodes)
    if shown and unit.surgery.keeping:
        yield tuple(seen)
        yield tuple((*s[:2], *(2 * n for n in s[2:])) for s in seen)
    elif shown and _is_told_sizes(event, unit):
        yield tuple(seen)
    known = [unit.facts.rank(n) for n in nodes]
    for size, rank in itertools.product(range(max(map(len, SIZES.values()))), (4, 3, 2, 5) if None in known else (4,)):
        ranks = [rank if r is None else r for r in known]
        if all(size < len(SIZES.get(r, ())) or known.count(r) for r in ranks):
            yield from itertools.product(
                *(_of_rank(event, unit, n, r, size) for n, r in zip(nodes, ranks, strict=True))
            )
    if shown:
        yield tuple(seen)


def _is_told_sizes(event: Event, unit: Unit) -> bool:
    """Whether a layer in a call is right for sizes that are such multiples as in the example alone."""
    inside = set(event.nodes())
    joined = (s.region.form.joined for s in unit.surgery.sites if s.region.value in inside)
    return any(j is not None and any(size is not None for size in j.sizes()) for j in joined)


def _of_rank(event: Event, unit: Unit, node: fx.Node, rank: int, size: int) -> list[tuple[int, ...]]:
    """Shapes of one rank: the channels are the second axis, or the last."""
    if rank not in SIZES:
        return []
    positions = SIZES[rank][min(size, len(SIZES[rank]) - 1)]
    second = [(2, width, *positions) for width in _widths(event, unit, node, max(rank - 2, 0))]
    last = [(2, *positions[: rank - 2], width) for width in _widths(event, unit, node, 0)] if rank > 2 else []
    return second + last


def _widths(event: Event, unit: Unit, node: fx.Node, behind: int) -> list[int]:
    """How many channels a value may have: those that are known, or what the layers that are called read."""
    known = unit.facts.channels(node, behind) or unit.facts.width_expected(node, behind)
    if known is not None:
        return [known]
    sites = (*unit.by_root.get(node, ()), *unit.surgery.sites[:6])
    roots = [s.region.form.shape.in_channels for s in sites[:6]]
    layers = [n.meta.get("module") for n in event.nodes() if n.op == "call_module"]
    read = (getattr(m, name, None) for m in layers for name in ("in_channels", "in_features", "num_features"))
    return list(dict.fromkeys(n for n in (*roots, *itertools.islice(read, 12), 3, 1, 2) if isinstance(n, int)))[:6]
