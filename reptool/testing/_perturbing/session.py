"""A model beside its deployed copy: changes are run on both, judged, counted and undone."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import ReptoolError
from reptool.ir.walk import Inputs, map_tensors, named_tensors
from reptool.testing._perturbing.calls import calls, public, resized
from reptool.testing._perturbing.change import KINDS, Change
from reptool.testing._perturbing.code import code_of
from reptool.testing._perturbing.outcome import Outcome, Settled, differences, run
from reptool.testing._perturbing.snapshot import Snapshot
from reptool.testing._perturbing.sources import Source, imported, settings
from reptool.testing._perturbing.state import states
from reptool.testing._perturbing.values import last_name

MOVED = 100.0
"""An error is no difference if rounding of the inputs moves the original's output by a hundredth of it."""
_COARSE = (torch.bfloat16, torch.float16)
_OFTEN = {"attribute": 3.0, "container": 2.0, "config": 2.0, "global": 2.0, "argument": 2.0, "method": 2.0, "copy": 0.5}


FAULTS = ("silent", "lenient", "foreign")
"""Another result without a word, a result where the original raises, an error that is not reptool's."""


@dataclass(frozen=True)
class Verdict:
    """How a try ended.

    Args:
        sort: "agreed", "raised", "warned", or one of `FAULTS`.
        detail: what differed or was raised.
        unchanged: whether the original gives what it gave before the changes.
    """

    sort: str
    detail: str = ""
    unchanged: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether the deployed one neither agrees nor says so."""
        return self.sort in FAULTS


class Session:
    """Tries on one model and its deployed copy.

    Args:
        model: the original, as it was deployed.
        deployed: its deployed copy.
        inputs: what both are called with.
        seed: of everything that is drawn.
        kinds: which kinds of changes, all if None.
    """

    def __init__(
        self,
        model: nn.Module,
        deployed: nn.Module,
        inputs: Inputs,
        seed: int = 0,
        kinds: Collection[str] | None = None,
    ) -> None:
        self.model, self.deployed, self.random = model, deployed, Random(seed)
        self.kinds = list(KINDS if kinds is None else [kind for kind in KINDS if kind in kinds])
        self.args: list[Any] = (
            [] if isinstance(inputs, Mapping) else list(inputs) if isinstance(inputs, tuple) else [inputs]
        )
        self.kwargs: dict[str, Any] = dict(inputs) if isinstance(inputs, Mapping) else {}
        self.code = code_of(model)
        self._snapshots = {id(m): Snapshot(m, self.code) for m in (model, deployed)}
        self.dtype = _coarsest([*deployed.parameters(), *(t for _, t in named_tensors([self.args, self.kwargs]))])
        self.recorded: dict[str, Any] = {}
        self.warned = False
        self.imported = imported()
        try:
            self.pristine: nn.Module | None = copy.deepcopy(model)
        except Exception:  # nothing else of it is put in the places of its modules
            self.pristine = None
        self.state = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, Tensor)}
        self._record()
        self.before = self._run(model, [], [])
        self.sources = self._sources()
        self._queues: dict[str, list[Source]] = {}

    # --- what can be changed
    def _sources(self) -> dict[str, list[Source]]:
        found: dict[str, list[Source]] = {}
        every = [
            *settings(self.model, self.code),
            *states(self.model, self.deployed),
            *calls(self.model, self.code, self.args, self.kwargs, self.recorded),
            *(public(self.model, self.recorded, self._runs) if "method" in self.kinds else ()),
        ]
        for source in every:
            if source.kind in self.kinds:
                found.setdefault(source.kind, []).append(source)
        return found

    def _runs(self, statement: str) -> bool:
        return self._run(self.model, [statement], []).error is None

    def _record(self) -> None:
        """What each module is called with."""
        paths = {id(module): path for path, module in self.model.named_modules()}

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            path = paths.get(id(module))
            if path is not None and path not in self.recorded:
                self.recorded[path] = map_tensors((args, kwargs), Tensor.clone)

        for module in self.model.modules():
            with contextlib.suppress(Exception):  # a scripted one is called as a whole
                module.register_forward_pre_hook(look, with_kwargs=True)
        self._run(self.model, [], [])
        self.recorded.setdefault("", map_tensors((tuple(self.args), self.kwargs), Tensor.clone))

    # --- running
    def _run(self, m: nn.Module, statements: Sequence[str], paths: list[str | None], moved: bool = False) -> Outcome:
        """Run on one side, and undo it there and in what both sides share."""
        looked: list[Any] = []
        args, kwargs = self._fresh(moved)
        names: dict[str, Any] = {
            **self.imported,
            "m": m,
            "model": self.model,
            "args": args,
            "kwargs": kwargs,
            "out": [],
            "looked": looked,
            "look": lambda value: looked.append(map_tensors(value, Tensor.clone)),
            "hooked": lambda value: map_tensors(value, lambda t: t * 1.5 if t.is_floating_point() else t),
            "mapped": lambda value, change: map_tensors(value, lambda t: change(t) if t.is_floating_point() else t),
            "resized": resized,
            "move": _move_weights,
            "renewed": self._renewed,
            "weights": self._weights,
            "inputs_of": self._inputs_of,
            "settled": Settled(m, paths, self._inputs_of, m is self.model),
        }
        try:
            return run(statements, names)
        finally:
            self._snapshots[id(m)].restore()

    def _fresh(self, moved: bool) -> Any:
        """Inputs that share nothing with those of another run: objects among them may be written to as well."""
        args, kwargs = map_tensors((self.args, self.kwargs), _moved if moved else Tensor.clone)
        with contextlib.suppress(Exception):  # what cannot be copied is shared
            return copy.deepcopy((args, kwargs))
        return args, kwargs

    def _inputs_of(self, path: str | None) -> Any:
        found = self.recorded.get(path) if path is not None else None
        return None if found is None else map_tensors(found, Tensor.clone)

    def _weights(self, path: str, seed: int, keys: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Other weights under the names of the original."""
        generator = torch.Generator().manual_seed(seed)
        start = f"{path}." if path else ""
        made = {}
        for key, value in self.state.items():
            if key.startswith(start) and value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                made[key[len(start) :]] = (drawn.abs() + 0.5 if "var" in key else drawn * 0.5).to(value.dtype)
            elif key.startswith(start):
                made[key[len(start) :]] = value.clone()
        return made if keys is None else {key: made[key] for key in keys if key in made}

    def _renewed(self, path: str, seed: int) -> nn.Module:
        """A copy of a module of the original with other weights."""
        module = copy.deepcopy((self.model if self.pristine is None else self.pristine).get_submodule(path))
        with torch.no_grad():
            module.load_state_dict(self._weights(path, seed), strict=False)
        return module

    # --- judging
    def judge(self, changes: Sequence[Change]) -> Verdict:
        """Run changes on both sides and compare; everything is undone."""
        statements = [change.statement for change in changes]
        paths: list[str | None] = []
        wanted = self._run(self.model, statements, paths)
        given = self._run(self.deployed, statements, paths)
        verdict = self._compared(changes, wanted, given)
        if verdict.sort == "silent" and self._is_rounding(statements, wanted, given):
            return Verdict("agreed")
        return verdict

    def _compared(self, changes: Sequence[Change], wanted: Outcome, given: Outcome) -> Verdict:
        modes = any(change.kind in ("mode", "given") for change in changes)
        said = [text for text in given.warnings if text not in wanted.warnings and _is_ours(text)]
        self.warned |= modes and bool(said)
        if isinstance(given.error, ReptoolError):
            return Verdict("raised", str(given.error), wanted.error is None and self._is_as_before(wanted))
        if wanted.error is not None:
            if _says_nothing(wanted.error) or any(change.kind == "copy" for change in changes):
                return Verdict("agreed")
            if given.error is None:
                return self._fault(
                    "lenient", modes, f"the original raises {_named(wanted.error)}, the deployed one does not"
                )
            if _is_same_error(wanted.error, given.error) or len(changes) > 1:  # which of two comes first says nothing
                return Verdict("agreed")
            return Verdict("foreign", f"{_named(wanted.error)} became {_named(given.error)}")
        if given.error is not None:
            return Verdict("foreign", f"the deployed one raises {_named(given.error)}")
        found = next(differences(wanted.value, given.value, self.dtype), None)
        return Verdict("agreed") if found is None else self._fault("silent", modes, found[0])

    def _fault(self, sort: str, modes: bool, detail: str) -> Verdict:
        return Verdict("warned" if modes and self.warned else sort, detail)

    def _is_as_before(self, wanted: Outcome) -> bool:
        if wanted.value[0] or wanted.value[1] or self.before.error is not None:
            return False
        return next(differences(self.before.value, wanted.value, torch.float64), None) is None

    def _is_rounding(self, statements: Sequence[str], wanted: Outcome, given: Outcome) -> bool:
        """Whether the outputs depend on the rounding of inputs and weights as much as the two differ."""
        if wanted.error is not None or given.error is not None:
            return False
        found = [error for _, error in differences(wanted.value, given.value, self.dtype)]
        if max(found) > 0.05 and all(t.dtype not in _COARSE for _, t in named_tensors(wanted.value)):
            return False
        moved = self._run(self.model, [*statements, "move(m)"], [], moved=True)
        if moved.error is not None:
            return False
        errors = [_error(a, b) for a, b in zip(_tensors(wanted.value[2]), _tensors(moved.value[2]), strict=False)]
        return max(found) <= MOVED * max([0.0, *errors])

    # --- drawing
    def draw(self) -> list[Change]:
        """A random set of changes: mostly one, sometimes two or three that the same function reads."""
        kinds = list(self.sources)
        often = [_OFTEN.get(k, 1.0) * (2 if max(s.weight for s in self.sources[k]) >= 4 else 1) for k in kinds]
        count = self.random.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]
        first = self._next(self.random.choices(kinds, often)[0])
        taken = [first]
        for _ in range(count - 1):
            near = self._read_with(first) if self.random.random() < 0.6 else []
            taken.append(self.random.choice(near) if near else self._next(self.random.choices(kinds, often)[0]))
        changes = [source.change(self.random) for source in {s.name: s for s in taken}.values()]
        return sorted(changes, key=lambda change: change.kind != "copy")

    def _next(self, kind: str) -> Source:
        """The sources of a kind one after another, in a random order, the likely ones first."""
        queue = self._queues.get(kind)
        if not queue:
            queue = [source for source in self.sources[kind] for _ in range(source.weight)]
            self.random.shuffle(queue)
            likely = max(source.weight for source in queue)
            queue += [source for source in queue if source.weight == likely]
            self._queues[kind] = queue
        return queue.pop()

    def _read_with(self, first: Source) -> list[Source]:
        name = last_name(first.name)
        names = set().union(*(names for names in self.code.together if name in names))
        owner = first.name.rpartition(".")[0]
        found = [s for group in self.sources.values() for s in group if last_name(s.name) in names and s is not first]
        near = [s for s in found if s.name.rpartition(".")[0] == owner]
        return near or found

    def shrunk(self, changes: Sequence[Change], verdict: Verdict) -> tuple[list[Change], Verdict]:
        """As few of the changes as are needed for the same sort of fault."""
        left = list(changes)
        for change in list(changes):
            fewer = [c for c in left if c is not change]
            if fewer and len(fewer) < len(left):
                other = self.judge(fewer)
                if other.sort == verdict.sort:
                    left, verdict = fewer, other
        return left, verdict


def _coarsest(tensors: Sequence[Tensor]) -> torch.dtype:
    found = {t.dtype for t in tensors if t.is_floating_point()}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in found:
            return dtype
    return torch.float64


def _moved(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    step = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return (tensor.double() * (1 + 2 * torch.finfo(tensor.dtype).eps * step)).to(tensor.dtype)


def _move_weights(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = _moved(parameter.data)


def _tensors(value: Any) -> list[Tensor]:
    return [t.detach().double() for _, t in named_tensors(value) if t.is_floating_point() and t.numel()]


def _error(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    error = float((a - b).abs().max() / a.abs().max().clamp_min(1e-300))
    return error if error == error else 0.0


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]


def _is_same_error(wanted: Exception, given: Exception) -> bool:
    return isinstance(given, type(wanted)) or isinstance(wanted, type(given))


def _says_nothing(error: Exception) -> bool:
    """Whether torch has no kernel for what was asked of the original: another operation may have one."""
    return isinstance(error, (NotImplementedError, RuntimeError)) and "not implemented for" in str(error)


def _is_ours(text: str) -> bool:
    return any(word in text for word in ("reptool", "deploy", "fold"))
