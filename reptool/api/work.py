"""`Work`: one deployment, tried until all that is written holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reptool.api.own_conversions import judge_conversions
from reptool.api.pipeline.modules import make_plan
from reptool.api.reporting import check_requirements, report_of
from reptool.errors import RegionWarning, VerificationError, warn
from reptool.ir.decisions import Decisions, deciding
from reptool.ir.walk import cloned
from reptool.models.copies import full_copy, independent_copy
from reptool.models.running import users_code
from reptool.models.undo import undone_on_error
from reptool.plan.options import Options
from reptool.recipes.step import add_step, recorded
from reptool.refusal import Code
from reptool.report.data import Report
from reptool.report.progress import phase
from reptool.report.totals import is_layer
from reptool.runtime.gates.check import open_gates
from reptool.runtime.hooks import guard_state
from reptool.runtime.originals import kept_modules, kept_tensors
from reptool.runtime.subclass import warn_in_training
from reptool.surgery.apply import write
from reptool.surgery.units import GivenUp, Plan
from reptool.unwrap.replacing import unwrap
from reptool.verify.measure import Verify
from reptool.verify.methods import Rehearsal
from reptool.verify.regions import EXACT, Checked, checked_unit
from reptool.verify.whole_model import ROUNDING, InexactError, Reference, compare_whole, movement, whole_error


class _FailedError(Exception):
    """A method that was written computes something else."""


class Work:
    """One deployment: plan, check and write until all that is written holds; what does not is given up by itself.

    Args:
        model: the original.
        args: example positional inputs or None.
        kwargs: example keyword inputs.
        options: what to do.
        verify: how much is measured.
        needed: requirements.
        seconds: what phases took.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any], options: Options, verify: Verify,
        needed: list[str], seconds: dict[str, float],
    ) -> None:  # fmt: skip
        self.model, self.args, self.kwargs, self.options = model, args, kwargs, options
        self.verify, self.needed, self.seconds = verify, needed, seconds
        self.given_up, self.decisions = GivenUp(), Decisions()
        self.found = Report(type(model).__name__)
        self.fresh = False  # whether the model was just built, so that nobody else holds what is in it

    def written(self, inplace: bool, reference: Reference | None) -> nn.Module:
        """The deployed model: the original itself if `inplace`, else a copy."""
        while True:
            plan, checked = self.planned(self.model)
            self.found = report_of(self.model, plan, checked, reference)
            self.found.seconds = self.seconds
            check_requirements(self.found, self.needed)
            with phase("rehearse"):
                rehearsal = Rehearsal(self.model, plan, self.args is not None)
                if not rehearsal.failed:
                    with deciding(self.decisions):
                        judge_conversions(self.model, plan)
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
        step = recorded(self, plan, checked)
        target = self.model if inplace else independent_copy(self.model)
        with undone_on_error(target):
            with phase("write"):
                write_all(target, plan, checked, self.found)
            with phase("rehearse"):
                self.found.rehearsed = rehearsal.against(target)
            if rehearsal.failed:
                raise _FailedError
            if self.options.unwrap:
                with phase("unwrap"):
                    unwrap(target, plan, self.found, inplace and not self.fresh)
            add_step(target, step)
            if self.verify and reference is not None:
                assert self.args is not None
                with phase("compare"):
                    compare_whole(target, self.args, self.kwargs, reference, self.found)
        return target

    def planned(self, model: nn.Module) -> tuple[Plan, dict[str, Checked]]:
        """A plan all of whose regions hold, with the values of their layers."""
        while True:
            with deciding(self.decisions):
                plan, checked, failed = self._measured(model, self.args, self.kwargs, self.verify)
            if not failed:
                return plan, checked
            self._give_up(failed)

    def _measured(
        self, model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any], verify: Verify
    ) -> tuple[Plan, dict[str, Checked], GivenUp]:
        """A plan, the values of its layers, and what of it does not hold."""
        with phase("plan"), open_gates():
            plan = make_plan(model, args, kwargs, self.options, True, True, self.given_up)
        checked: dict[str, Checked] = {}
        failed = GivenUp()
        with phase("measure"), open_gates():
            for unit in plan.units:
                checked[unit.prefix], bad = checked_unit(unit, verify)
                failed.add(bad)
        return plan, checked, failed

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
            plan, checked, _ = self._measured(wide, args, kwargs, False)
            same = report_of(wide, plan, checked)
            if [(r.layer, r.rules) for r in same.regions] != [(r.layer, r.rules) for r in self.found.regions]:
                return float("inf")
            write_all(wide, plan, checked, same)
            with torch.no_grad(), users_code():
                return whole_error(wide(*cloned(args), **cloned(kwargs)), wanted)
        except Exception:  # a model that fixes a dtype in its code
            return float("inf")


def write_units(model: nn.Module, plan: Plan, measured: dict[str, Checked]) -> None:
    """Carry out the surgery of each unit, with the values of its layers."""
    for unit in plan.units:
        write(model, unit, {s: (w, b) for s, (_, w, b) in measured[unit.prefix].items()})


def write_all(target: nn.Module, plan: Plan, measured: dict[str, Checked], found: Report) -> None:
    """Carry out a plan, and complete the report on it.

    Args:
        target: the model that is changed.
        plan: all that is done to it.
        measured: by the path of each traced module, the values of its new layers.
        found: the report.
    """
    before = set(target.state_dict())
    write_units(target, plan, measured)
    kept, spare = kept_modules(target), kept_tensors(target)
    found.kept = (sum(t.numel() for t in spare), sum(t.numel() * t.element_size() for t in spare))
    only_kept = {id(t) for t in spare}
    found.parameters = (found.parameters[0], sum(p.numel() for p in target.parameters() if id(p) not in only_kept))
    modules = [m for m in target.modules() if m not in kept]
    found.layers = (found.layers[0], sum(map(is_layer, modules)))
    after = set(target.state_dict())
    guard_state(target, before - after, after - before)
    warn_in_training(target, found.norms[0] - found.norms[1])
    earlier = target.__dict__.get("_reptool_report")
    if isinstance(earlier, Report) and not found.regions:
        return
    target.__dict__["_reptool_report"] = found
