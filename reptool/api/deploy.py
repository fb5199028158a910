"""`deploy`, `explain`, `report`: the phases in order.

capture -> lift -> choose -> place -> check other users -> measure      on a throwaway copy, nothing written
write -> compare methods and the whole model -> report                 on the copy that is handed out
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, overload

import torch
from torch import fx, nn

from reptool.api.accept import Affine, Patterns, check_model, prepared, required
from reptool.api.fingerprint import is_marked, mark
from reptool.api.pipeline import make_plan
from reptool.api.reporting import check_requirements, report_of
from reptool.errors import InputError, RegionWarning, UnsupportedModelError, VerificationError, warn
from reptool.frontends.given import names_itself
from reptool.ir.tensors import cloned
from reptool.models.copies import full_copy, independent_copy
from reptool.models.running import own_code, users_code
from reptool.models.undo import undone_on_error
from reptool.plan.options import Options
from reptool.refusal import Code
from reptool.report.data import Report
from reptool.report.progress import phase, watched
from reptool.report.totals import is_layer
from reptool.runtime.gates.check import open_gates
from reptool.runtime.hooks import guard_state
from reptool.runtime.originals import kept_modules, kept_tensors
from reptool.runtime.subclass import warn_in_training
from reptool.surgery.apply import write
from reptool.surgery.units import GivenUp, Plan
from reptool.verify.methods import Rehearsal
from reptool.verify.regions import EXACT, Checked, checked_unit
from reptool.verify.whole_model import (
    ROUNDING,
    InexactError,
    Reference,
    compare_whole,
    movement,
    reference_of,
    whole_error,
)

MAX_FLAT_ROUNDS = 4
M = TypeVar("M", bound=nn.Module)


@overload
def deploy(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: bool = True,
    rules: str | Iterable[str] | None = None,
    force: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: Literal[True],
    keep_fallback: bool = False,
    affine: Affine = None,
    progress: bool | None = None,
) -> fx.GraphModule: ...


@overload
def deploy(
    model: M,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: bool = True,
    rules: str | Iterable[str] | None = None,
    force: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: Literal[False] = False,
    keep_fallback: bool = False,
    affine: Affine = None,
    progress: bool | None = None,
) -> M: ...


@overload
def deploy(
    model: M,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: bool = True,
    rules: str | Iterable[str] | None = None,
    force: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: bool,
    keep_fallback: bool = False,
    affine: Affine = None,
    progress: bool | None = None,
) -> M | fx.GraphModule: ...


@names_itself
@torch.inference_mode(mode=False)  # layers made inside of it could not be trained afterwards
@own_code()
def deploy(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: bool = True,
    rules: str | Iterable[str] | None = None,
    force: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: bool = False,
    keep_fallback: bool = False,
    affine: Affine = None,
    progress: bool | None = None,
) -> nn.Module:
    """Collapse every affine region of a model into one layer, exactly, and say what was done.

    Args:
        model: any `nn.Module` in eval mode. It stays as it is unless `inplace`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. Never needed
            for correctness; they answer what the model's code asks about shapes, and the whole model is compared
            on them.
        inplace: change `model` itself instead of a copy.
        verify: check every region in float64, before and after the cast.
        rules: names of the rules to apply (see `reptool.RULES`) and rules of your own (see `reptool.lifts`), default
            all of these.
        force: apply the rules also where the result is dearer.
        include: module path patterns (``fnmatch``) or classes of modules; only these and what is in them are touched.
        exclude: module path patterns or classes of modules that are left alone.
        require: ``"no_batchnorm"``, ``"no_refusals"`` or ``"all_traced"``; what is left raises `RequirementError`.
        flatten: hand out one `torch.fx.GraphModule` instead of the user's model.
        keep_fallback: with `example_inputs`, also fuse where the code asked for a size, a flag or a dtype, and keep the
            original layers (as ``<module>.reptool_original``) for calls that would be answered otherwise.
        affine: classes of modules, or module path patterns, that you say are affine and treat every position alike.
            Their code is not read: each is measured by its impulse response, tested, and refused if a test fails.
        progress: show what is being done; None shows it on a terminal once it takes longer than two seconds. Phases
            and their times are logged under ``reptool`` as well, and kept in the report.

    Returns:
        The user's model (same class or a subclass of it, same attributes, methods and parameter names as far as the
        layers still exist) with fewer layers. Its report is ``reptool.report(result)``.

    Raises:
        UnsupportedModelError: not a plain module (scripted, exported, quantized, lazy, on the meta device).
        InputError: training mode, example inputs that do not fit, unknown rules, patterns that match nothing,
            weights that are not finite.
        RuleError: a rule of your own raised, or said what no rule may say; nothing was changed.
        VerificationError: a region does not compute what the original computes; nothing was changed.
        RequirementError: `require` is not met; nothing was changed.

    A model that was returned for the same options and whose structure is still the same is returned as it is.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> deploy(model)
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Absorbed(BatchNorm2d, in '0')
      (2): ReLU()
    )
    """
    check_model(model)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise UnsupportedModelError(
            "the model is on the meta device; materialize its weights first (explain() works on meta)"
        )
    if inplace and flatten:
        raise InputError("flatten=True returns another module, inplace=True changes the one given; choose one of them")
    if keep_fallback and flatten:
        raise InputError("flatten=True makes one graph, which has no place for the code keep_fallback=True keeps")
    model, args, kwargs, options = prepared(
        model, example_inputs, rules, force, include, exclude, affine, keep_fallback
    )
    needed = required(require)
    if not flatten and is_marked(model, example_inputs, options):
        check_requirements(report(model), needed)
        return model if inplace else independent_copy(model)
    with watched(f"deploy {type(model).__name__}", progress) as watch:
        with phase("reference"):
            reference = None if args is None else reference_of(model, args, kwargs, verify)
        work = _Work(model, args, kwargs, options, verify, needed, watch.seconds)
        target = work.written(inplace, reference)
        if flatten:
            with phase("flatten"):
                return _flattened(model, target, work.found, work)
    mark(target, example_inputs, options)
    return target


class _FailedError(Exception):
    """A method that was written computes something else."""


class _Work:
    """One deployment: plan, check and write until all that is written holds; what does not is given up by itself.

    Args:
        model: the original.
        args: example positional inputs or None.
        kwargs: example keyword inputs.
        options: what to do.
        verify: whether regions and the whole model are measured.
        needed: requirements.
        seconds: what phases took.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any], options: Options, verify: bool,
        needed: list[str], seconds: dict[str, float],
    ) -> None:  # fmt: skip
        self.model, self.args, self.kwargs, self.options = model, args, kwargs, options
        self.verify, self.needed, self.seconds = verify, needed, seconds
        self.given_up = GivenUp()
        self.found = Report(type(model).__name__)

    def written(self, inplace: bool, reference: Reference | None) -> nn.Module:
        """The deployed model: the original itself if `inplace`, else a copy."""
        while True:
            plan, checked = self.planned(self.model)
            self.found = report_of(self.model, plan, checked, reference)
            self.found.seconds = self.seconds
            check_requirements(self.found, self.needed)
            with phase("rehearse"):
                rehearsal = Rehearsal(self.model, plan, self.args is not None)
            if rehearsal.failed:
                self._give_up(rehearsal.failed)
                continue
            try:
                return self._held(plan, checked, rehearsal, inplace, reference)
            except _FailedError:
                failed = rehearsal.failed
            if rehearsal.is_rounding(self.model):
                return self._held(plan, checked, rehearsal, inplace, reference)
            self._give_up(failed)

    def _held(
        self, plan: Plan, checked: dict[str, Checked], rehearsal: Rehearsal, inplace: bool,
        reference: Reference | None,
    ) -> nn.Module:  # fmt: skip
        """What was written, if it holds; otherwise the model is as it was."""
        try:
            return self._attempt(plan, checked, rehearsal, inplace, reference)
        except InexactError:
            assert reference is not None
            self._check_in_float64(reference.exact)
            return self._attempt(plan, checked, rehearsal, inplace, None)

    def _attempt(
        self, plan: Plan, checked: dict[str, Checked], rehearsal: Rehearsal, inplace: bool,
        reference: Reference | None,
    ) -> nn.Module:  # fmt: skip
        target = self.model if inplace else independent_copy(self.model)
        with undone_on_error(target):
            with phase("write"):
                _write_all(target, plan, checked, self.found)
            with phase("rehearse"):
                self.found.rehearsed = rehearsal.against(target)
            if rehearsal.failed:
                raise _FailedError
            if self.verify and reference is not None:
                assert self.args is not None
                with phase("compare"):
                    compare_whole(target, self.args, self.kwargs, reference, self.found)
        return target

    def planned(self, model: nn.Module) -> tuple[Plan, dict[str, Checked]]:
        """A plan all of whose regions hold, with the values of their layers."""
        while True:
            with phase("plan"), open_gates():
                plan = make_plan(model, self.args, self.kwargs, self.options, True, True, self.given_up)
            checked: dict[str, Checked] = {}
            failed = GivenUp()
            with phase("measure"), open_gates():
                for unit in plan.units:
                    checked[unit.prefix], bad = checked_unit(unit, self.verify)
                    failed.add(bad)
            if not failed:
                return plan, checked
            self._give_up(failed)

    def _give_up(self, failed: GivenUp) -> None:
        for refusal in (r for r in failed.refusals() if r.code is not Code.NOT_RUN):
            told = f"{refusal.sentence}; it was left as it is, and the rest is deployed. Please report this"
            warn(told, RegionWarning)
        if self.given_up.holds(failed):
            raise VerificationError(f"what was given up came back: {failed.refusals()[0]}")
        self.given_up.add(failed)

    def _check_in_float64(self, exact: Any) -> None:
        """An output that depends on rounding (sorted boxes, classes of pixels): the same surgery in float64 decides.

        Raises:
            VerificationError: it is off there, too.
        """
        off = float("inf") if exact is None else self._error_in_float64(exact)
        self.found.model_error_float64 = off
        if off <= EXACT or off <= ROUNDING * self._movement(exact):
            return
        assert self.found.model_error is not None
        error, own = self.found.model_error
        raise VerificationError(
            f"the deployed {self.found.model} is off by {error:.3g} on example_inputs (the original itself by "
            f"{own:.3g}); nothing was changed. Every region was exact by itself: a region is used in a way that was "
            "not seen. Exclude parts to find it and report this"
        )

    def _movement(self, exact: Any) -> float:
        try:
            return 0.0 if exact is None else movement(self.model, self.args, self.kwargs, exact)
        except Exception:  # a model that does not run for inputs that are moved
            return 0.0

    def _error_in_float64(self, wanted: Any) -> float:
        """The error of the same surgery in float64; infinity where it is not the same."""
        try:
            wide = full_copy(self.model).double()
            args, kwargs = cloned(self.args, True), cloned(self.kwargs, True)
            plan = make_plan(wide, args, kwargs, self.options, True, True, self.given_up)
            checked = {unit.prefix: checked_unit(unit, False)[0] for unit in plan.units}
            same = report_of(wide, plan, checked)
            if [(r.layer, r.rules) for r in same.regions] != [(r.layer, r.rules) for r in self.found.regions]:
                return float("inf")
            _write_all(wide, plan, checked, same)
            with torch.no_grad(), users_code():
                return whole_error(wide(*cloned(args), **cloned(kwargs)), wanted)
        except Exception:  # a model that fixes a dtype in its code
            return float("inf")


@names_itself
@own_code()
def explain(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rules: str | Iterable[str] | None = None,
    force: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    keep_fallback: bool = False,
    affine: Affine = None,
    progress: bool | None = None,
) -> Report:
    """The plan without the work: what `deploy` would fuse, at what price, and what it would leave and why.

    Args: as `deploy`. The model may be on the meta device; what depends on values is then refused.

    Returns:
        A `Report`: print it, or take `to_dict()` or `to_json()`.

    Raises:
        UnsupportedModelError, InputError: as `deploy`.

    >>> report = explain(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    >>> [(r.layer, r.rules) for r in report.regions]
    [('0', ['conv_bn'])]
    """
    check_model(model, "explain")
    model, args, kwargs, options = prepared(
        model, example_inputs, rules, force, include, exclude, affine, keep_fallback
    )
    known = not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    with watched(f"explain {type(model).__name__}", progress) as watch:
        with phase("reference"):
            reference = reference_of(model, args, kwargs, wide=False) if known and args is not None else None
        with phase("plan"), open_gates():
            plan = make_plan(model, args, kwargs, options, values=known)
            found = report_of(model, plan, {}, reference)
    found.seconds = watch.seconds
    return found


@names_itself
def report(deployed: nn.Module) -> Report:
    """What `deploy` did to a model it returned, with the errors it measured.

    Args:
        deployed: a model returned by `deploy`.

    Raises:
        InputError: the model was not deployed by reptool.

    >>> model = deploy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    >>> report(model).norms
    (1, 0)
    """
    found = getattr(deployed, "_reptool_report", None)
    if not isinstance(found, Report):
        raise InputError(
            f"this {type(deployed).__name__} was not returned by reptool.deploy; use reptool.explain for a plan"
        )
    return found


def _write_all(target: nn.Module, plan: Plan, measured: dict[str, Checked], found: Report) -> None:
    before = set(target.state_dict())
    for unit in plan.units:
        write(target, unit, {s: (w, b) for s, (_, w, b) in measured[unit.prefix].items()})
    kept, spare = kept_modules(target), kept_tensors(target)
    found.kept = (sum(t.numel() for t in spare), sum(t.numel() * t.element_size() for t in spare))
    only_kept = {id(t) for t in spare}
    found.parameters = (found.parameters[0], sum(p.numel() for p in target.parameters() if id(p) not in only_kept))
    modules = [m for m in target.modules() if m not in kept]
    found.layers = (found.layers[0], sum(map(is_layer, modules)))
    guard_state(target, before - set(target.state_dict()))
    warn_in_training(target, found.norms[0] - found.norms[1])
    earlier = target.__dict__.get("_reptool_report")
    if isinstance(earlier, Report) and not found.regions:
        return
    target.__dict__["_reptool_report"] = found


def _flattened(model: nn.Module, target: nn.Module, found: Report, work: _Work) -> nn.Module:
    """One GraphModule; what only the borders of modules and methods had kept apart is fused in it too."""
    from reptool.api.flatten import flatten_model

    flat: nn.Module = flatten_model(target, work.args, work.kwargs)
    gone, first = set(model.state_dict()) - set(target.state_dict()), set(flat.state_dict())
    work.given_up = GivenUp()
    for _ in range(MAX_FLAT_ROUNDS):
        plan, checked = work.planned(flat)
        if not any(unit.surgery.sites for unit in plan.units):
            break
        found.regions += report_of(flat, plan, checked).regions
        for unit in plan.units:
            write(flat, unit, {s: (w, b) for s, (_, w, b) in checked[unit.prefix].items()})
        flat = flatten_model(flat, work.args, work.kwargs)
    guard_state(flat, gone | (first - set(flat.state_dict())))
    warn_in_training(flat, found.norms[0] - found.norms[1])
    flat.__dict__["_reptool_report"] = copy.deepcopy(found)
    return flat
