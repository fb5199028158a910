"""Opaque modules: which of them are measured, with how many channels, and on whose authority.

A module is measured when the caller names it (``affine=``), or, where its code could not be followed, when a run on
symbolic sizes shows affine operations alone (`affine_ops`). What comes back is an `Affine` like any other: norms behind
it, sums around it and layers on either side fuse with it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.algebra.kernel import Kernel
from reptool.algebra.work import Work
from reptool.ir.decisions import decided
from reptool.ir.ops import Affine
from reptool.probing.affine_ops import all_affine
from reptool.probing.impulse import BASES, Response, measure
from reptool.probing.sandbox import Probe, Stop
from reptool.refusal import Code, Refusal

MAX_PARTS, MAX_COUNTS = 30, 30
Names = tuple[str | type, ...]


def named_paths(model: nn.Module, names: Names) -> list[str]:
    """Paths of the modules that are named by a class (or its name) or by a pattern; outermost ones only."""
    found: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{p}." if p else "") for p in found):
            continue
        if any(is_named(path, module, name) for name in names):
            found.append(path)
    return found


def is_named(path: str, module: nn.Module, name: str | type) -> bool:
    """Whether one name means this module."""
    if isinstance(name, type):
        return isinstance(module, name)
    return bool(path) and fnmatch.fnmatchcase(path, name)


class Responses:
    """The impulse responses of one model's modules, each measured once.

    Args:
        named: full paths of the modules the caller named.
        values: whether values may be looked at.
        prefix: path of the module whose own paths are given to `of`.
    """

    def __init__(self, named: Iterable[str], values: bool, prefix: str = "") -> None:
        self.named, self.values, self.prefix = set(named), values, prefix
        self.found: dict[tuple[str, int, int], Response | Refusal] = {}
        self.why: dict[str, str] = {}

    def under(self, prefix: str) -> Responses:
        """The same for a submodule, by its own paths."""
        made = Responses(self.named, self.values, prefix)
        made.found, made.why = self.found, self.why
        return made

    def below(self, prefix: str) -> frozenset[str]:
        """The named modules inside of the one at `prefix`, by its own paths."""
        lead = f"{prefix}." if prefix else ""
        return frozenset(p[len(lead) :] for p in self.named if p.startswith(lead) and p != prefix)

    def _full(self, path: str) -> str:
        return ".".join(p for p in (self.prefix, path) if p)

    def of(
        self, node: fx.Node, source: fx.Node, rank: int | None, channels: int | None, shape: tuple[int, ...] | None
    ) -> Affine | Refusal | None:
        """The map of an opaque module's node, why it has none, or None where nobody claims that it has one.

        Args:
            node: the call of the module.
            source: the value it reads.
            rank: number of dimensions of that value, if known.
            channels: its channels, if known.
            shape: its shape on the example inputs, if known.
        """
        path, module = str(node.target), node.meta["module"]
        full = self._full(path)
        asked = full in self.named
        unread = Refusal(Code.OPAQUE, f"{full!r} is read by running it, which needs its weights", (node.name,))
        measured: Response | Refusal | None = unread if asked else None

        def find() -> tuple[Kernel, Work] | None:
            nonlocal measured
            measured = self._measured(node, full, rank, channels, shape, asked) if self.values else measured
            return (measured.kernel.shape_only(), measured.work) if isinstance(measured, Response) else None

        found = decided("impulse", (node,), find, None)
        if found is None:
            return measured if isinstance(measured, Refusal) else None
        if (self.values and measured is None) or isinstance(measured, Refusal):
            find()  # the plan is given, and the values are needed all the same
        if isinstance(measured, Response):
            self.why[full] = f"{'named by the caller' if asked else 'runs affine operations alone'}; {measured}"

        def load() -> Kernel:
            assert isinstance(measured, Response)
            return measured.kernel

        owners = tuple(f"{path}.{n}" if n else path for n, _ in module.named_modules())
        return Affine(
            source,
            found[0],
            load,
            owners,
            layer=True,
            paradigm="impulse",
            rank_guard=len(found[0].axes or ()) + 2,
            computed=True,
            work=found[1],
        )

    def _measured(
        self, node: fx.Node, full: str, rank: int | None, channels: int | None, shape: tuple[int, ...] | None,
        asked: bool,
    ) -> Response | Refusal | None:  # fmt: skip
        """What running the module shows, or why it is not read."""
        fits = self._fits(node.meta["module"], rank, channels, asked)
        if isinstance(fits, Refusal):
            return fits.at(node.name) if asked else None
        response = self._response(full, node.meta["module"], *fits, shape, asked)
        if isinstance(response, Response):
            return response
        if not asked and response.code is not Code.NOT_AFFINE:
            return None
        return Refusal(response.code, f"{full!r}: {response.sentence}", (node.name,))

    def _response(
        self, full: str, module: nn.Module, channels: int, axes: int, shape: tuple[int, ...] | None, asked: bool
    ) -> Response | Refusal:
        key = (full, channels, axes)
        if key not in self.found:
            unproven = "" if asked else all_affine(module, channels, axes)
            sizes = [] if shape is None else [tuple(shape[2:])]
            self.found[key] = Refusal(Code.OPAQUE, unproven) if unproven else measure(module, channels, axes, sizes)
        return self.found[key]

    def _fits(
        self, module: nn.Module, rank: int | None, channels: int | None, asked: bool
    ) -> tuple[int, int] | Refusal:
        """Channels and spatial axes of what the module reads; found out by trying where they are not known."""
        if rank is not None and rank - 2 not in BASES:
            return Refusal(Code.OPAQUE, f"its input has {rank} dimensions")
        if not asked and (rank is None or sum(1 for _ in module.modules()) > MAX_PARTS):
            return Refusal(Code.OPAQUE, "nobody says that it is affine")
        ranks = [2, 3, 4, 5] if rank is None else [rank]
        counts = _counts(module) if channels is None else [channels]
        fits: list[tuple[int, int]] = []
        why = ""
        for r in ranks:
            for c in counts:
                found = _tried(module, c, r - 2)
                if isinstance(found, Refusal):
                    return found
                why = found or why
                fits += [] if found else [(c, r - 2)]
        if len({a for _, a in fits}) > 1:
            return Refusal(Code.RANK_UNKNOWN, "how many axes its input has is not known; give example_inputs")
        if len(fits) > 1:
            return Refusal(Code.CHANNELS, "how many channels its input has is not known; give example_inputs")
        return fits[0] if fits else Refusal(Code.OPAQUE, why)


def _counts(module: nn.Module) -> list[int]:
    """Numbers of channels that a module may read: those it holds, and a few that any module takes if it takes all."""
    sizes = {int(n) for t in (*module.parameters(), *module.buffers()) for n in t.shape}
    numbers = {int(v) for m in module.modules() for v in vars(m).values() if type(v) is int and 0 < v < 10_000}
    return sorted(sizes | numbers)[:MAX_COUNTS] + [n for n in (3, 5) if n not in sizes | numbers]


def _tried(module: nn.Module, channels: int, axes: int) -> str | Refusal:
    """'' where one run on this many channels gives one tensor of as many axes, else why not."""
    try:
        probe = Probe(module)
    except Stop as stop:
        return stop.refusal
    error = ""
    for base in BASES[axes]:
        try:
            with torch.no_grad():
                y: Any = probe.module(torch.zeros(2, channels, *base, dtype=torch.float64))
        except Exception as e:  # whatever its code raises
            error = f"{type(e).__name__}: {e}".splitlines()[0][:160]
            continue
        if isinstance(y, Tensor):
            return "" if y.dim() == axes + 2 else f"it makes {y.dim()} dimensions of {axes + 2}"
        return f"it returns a {type(y).__name__}, not one tensor"
    return f"it does not run in float64 on {channels} channels ({error})"
