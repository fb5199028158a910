"""Rehearsal: what was written anew, run beside the original on made-up inputs.

Regions are verified by themselves; this checks what stands between them. It needs no example inputs: the rank and the
channels of a method's inputs are known from the layers that read them. Where they are not, nothing is claimed.
A method with a fallback is run at the sizes it was specialized for, and at others, where the fallback answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool._copies import full_copy
from reptool.engine import Plan, Unit
from reptool.errors import VerificationError
from reptool.progress import unit as begun
from reptool.tensors import cloned, tensors_in
from reptool.trace import Event

Sizes = Callable[[Unit, fx.Node], tuple[int, ...]]
TOLERANCE = 1e-7
SIZES = {2: (), 3: (64,), 4: (32, 36), 5: (16, 16, 20)}


def rehearse(model: nn.Module, target: nn.Module, plan: Plan) -> int:
    """Run every module that holds a regenerated method, and the regions it belongs to, against the original.

    Args:
        model: the original model.
        target: the deployed copy.
        plan: what was done.

    Returns:
        How many modules were compared.

    Raises:
        VerificationError: a method computes something else, or fails where the original runs.
    """
    compared = 0
    for unit in plan.units:
        for event in _closed_events(unit):
            full = ".".join(p for p in (unit.prefix, event.path) if p)
            begun(full or "the whole model")
            old, new = model.get_submodule(full), target.get_submodule(full)
            sizes: tuple[Sizes, ...] = (_made_up, _as_seen, _doubled) if unit.surgery.keeping else (_made_up,)
            compared += max(_compare(old, new, event, unit, full, size) for size in sizes)
    return compared


def _made_up(unit: Unit, node: fx.Node) -> tuple[int, ...]:
    rank = unit.facts.rank(node)
    if rank not in SIZES:
        raise _UnknownInputError
    return (2, _channels(unit, node, rank), *SIZES[rank])


def _as_seen(unit: Unit, node: fx.Node) -> tuple[int, ...]:
    shape = unit.facts.shape(node)
    if shape is None:
        raise _UnknownInputError
    return shape


def _doubled(unit: Unit, node: fx.Node) -> tuple[int, ...]:
    shape = _as_seen(unit, node)
    return (*shape[:2], *(2 * n for n in shape[2:]))


def _closed_events(unit: Unit) -> list[Event]:
    """The smallest module calls around each regenerated method that no region lies across the border of."""
    inside: dict[Event, Counter[int]] = {}
    for i, site in enumerate(unit.surgery.sites):
        for node in site.region.form.ops:
            for event in node.meta["event"].ancestors():
                inside.setdefault(event, Counter())[i] += 1
    sizes = [len(site.region.form.ops) for site in unit.surgery.sites]
    found: dict[str, Event] = {}
    for start in unit.surgery.events.values():
        for event in start.ancestors():
            whole = all(count == sizes[i] for i, count in inside.get(event, Counter()).items())
            if event.method == "forward" and whole:
                found.setdefault(event.path, event)
                break
    return list(found.values())


def _compare(old: nn.Module, new: nn.Module, event: Event, unit: Unit, path: str, size: Sizes) -> int:
    generator = torch.Generator().manual_seed(0)
    made: dict[fx.Node, Tensor] = {}
    try:
        args, kwargs = (_inputs(v, unit, generator, made, size) for v in (event.args, event.kwargs))
    except _UnknownInputError:
        return 0
    if not made:
        return 0
    try:
        wide = full_copy(old).double().cpu()
        wanted = _run(wide, args, kwargs)
    except Exception:  # the made-up inputs do not suit the original
        return 0
    try:
        got = _run(_wide(new), args, kwargs)
    except Exception as error:
        raise VerificationError(
            f"{path or '<root>'} fails where the original runs: {type(error).__name__}: {error}; "
            "nothing was changed. Exclude it and report this"
        ) from error
    if len(got) != len(wanted) or any(a.shape != b.shape for a, b in zip(got, wanted, strict=False)):
        raise VerificationError(
            f"{path or '<root>'} returns other shapes; nothing was changed. Exclude it and report this"
        )
    eps = max((torch.finfo(p.dtype).eps for p in new.parameters() if p.is_floating_point()), default=0.0)
    for a, b in zip(got, wanted, strict=True):
        off = float((a - b).abs().max()) / (float(b.abs().max()) + 1e-12) if b.numel() else 0.0
        if not off <= max(TOLERANCE, ROUNDING * eps):
            raise VerificationError(
                f"{path or '<root>'} is off by {off:.3g}; nothing was changed. Exclude it and report this"
            )
    return 1


ROUNDING = 2.0**16
"""Rounding of folded weights, grown through a whole method, in multiples of their eps."""


class _UnknownInputError(Exception):
    """The rank or the channels of an input are not known."""


def _wide(module: nn.Module) -> nn.Module:
    return full_copy(module).double().cpu()


def _run(module: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return [t.detach() for t in tensors_in(module(*cloned(args), **cloned(kwargs)))]


def _inputs(value: Any, unit: Unit, generator: torch.Generator, made: dict[fx.Node, Tensor], size: Sizes) -> Any:
    if isinstance(value, fx.Node):
        if value not in made:
            made[value] = _input(value, unit, generator, size)
        return made[value]
    if isinstance(value, (tuple, list)):
        parts = [_inputs(v, unit, generator, made, size) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if type(value) is dict:
        return {k: _inputs(v, unit, generator, made, size) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _UnknownInputError


def _input(node: fx.Node, unit: Unit, generator: torch.Generator, size: Sizes) -> Tensor:
    if node.meta["const"] or node.meta.get("kind") != "tensor":
        raise _UnknownInputError
    return torch.randn(size(unit, node), dtype=torch.float64, generator=generator)


def _channels(unit: Unit, node: fx.Node, rank: int) -> int:
    facts = unit.facts
    behind = max(rank - 2, 0)
    channels = facts.channels(node, behind) or facts.channels_expected(node)
    if channels is None:
        channels = next((s.region.form.shape.in_channels for s in unit.surgery.sites if s.region.root is node), None)
    if channels is None:
        raise _UnknownInputError
    return channels
