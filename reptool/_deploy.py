"""`deploy`, `explain`, `report`: the phases in order.

capture -> analyse -> choose -> check -> measure      on a throwaway copy, nothing written
apply -> verify the whole -> report                    on the copy that is handed out
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from reptool._copies import full_copy
from reptool._report import Report
from reptool.accept import Affine, Patterns, check_model, prepared, required
from reptool.already import is_marked, mark
from reptool.apply import LoadGuard, write
from reptool.dice import kept_dice
from reptool.engine import Plan, make_plan
from reptool.errors import InputError, UnsupportedModelError
from reptool.kept import kept_modules, kept_tensors
from reptool.measuring import Values, compare_whole, measured_unit, reference_of, whole_error
from reptool.options import Options
from reptool.progress import phase, watched
from reptool.rehearse import rehearse
from reptool.reporting import check_requirements, report_of
from reptool.tensors import cloned
from reptool.totals import is_layer
from reptool.undo import undone_on_error

MAX_FLAT_ROUNDS = 4


@torch.inference_mode(mode=False)  # layers made inside of it could not be trained afterwards
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
        rules: names of the rules to apply (see `reptool.RULES`), default all.
        force: apply the rules also where the result is dearer.
        include: module path patterns (``fnmatch``); only these are touched.
        exclude: module path patterns that are left alone.
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
        VerificationError: a region does not compute what the original computes; nothing was changed.
        RequirementError: `require` is not met; nothing was changed.

    A model that was returned for the same options and whose structure is still the same is returned as it is.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> deploy(model)
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
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
        return model if inplace else full_copy(model)
    with watched(f"deploy {type(model).__name__}", progress) as watch:
        with phase("reference"):
            reference = None if args is None else reference_of(model, args, kwargs, verify)
        with phase("plan"):
            plan = make_plan(model, args, kwargs, options, values=True, cast=True)
        with phase("measure"):
            measured = {unit.prefix: measured_unit(unit, verify) for unit in plan.units}
        found = report_of(model, plan, measured, reference)
        found.seconds = watch.seconds
        check_requirements(found, needed)
        with phase("write"):
            target = model if inplace and not verify else full_copy(model)
            with undone_on_error(target):
                _write_all(target, plan, measured, found)
        if verify:
            with phase("rehearse"):
                found.rehearsed = rehearse(model, target, plan)
        if verify and reference is not None and args is not None:
            exact, arguments = reference.exact, (args, kwargs)
            with phase("compare"):
                again = partial(_exactly, model, *arguments, options, found, exact)
                compare_whole(target, *arguments, reference, found, again)
        if flatten:
            with phase("flatten"):
                return _flattened(model, target, args, kwargs, found, options, verify)
        if inplace and verify:
            with phase("write"), undone_on_error(model):
                _write_all(model, plan, measured, found)
            target = model
    mark(target, example_inputs, options)
    return target


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
    check_model(model)
    model, args, kwargs, options = prepared(
        model, example_inputs, rules, force, include, exclude, affine, keep_fallback
    )
    known = not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    with watched(f"explain {type(model).__name__}", progress) as watch:
        with phase("reference"):
            reference = reference_of(model, args, kwargs, wide=False) if known and args is not None else None
        with phase("plan"):
            plan = make_plan(model, args, kwargs, options, values=known)
            found = report_of(model, plan, {}, reference)
    found.seconds = watch.seconds
    return found


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


def _write_all(target: nn.Module, plan: Plan, measured: dict[str, Values], found: Report) -> None:
    before = set(target.state_dict())
    for unit in plan.units:
        write(target, unit.prefix, unit.surgery, {s: (w, b) for s, (_, w, b) in measured[unit.prefix].items()})
    kept, spare = kept_modules(target), kept_tensors(target)
    found.kept = (sum(t.numel() for t in spare), sum(t.numel() * t.element_size() for t in spare))
    only_kept = {id(t) for t in spare}
    found.parameters = (found.parameters[0], sum(p.numel() for p in target.parameters() if id(p) not in only_kept))
    modules = [m for m in target.modules() if m not in kept]
    found.layers = (found.layers[0], sum(map(is_layer, modules)))
    absorbed = before - set(target.state_dict())
    for hook in [
        k for k, h in target._load_state_dict_pre_hooks.items() if isinstance(getattr(h, "hook", h), LoadGuard)
    ]:
        absorbed |= set(getattr(target._load_state_dict_pre_hooks.pop(hook), "hook", LoadGuard(frozenset())).absorbed)
    if absorbed:
        target.register_load_state_dict_pre_hook(LoadGuard(frozenset(absorbed)))
    earlier = target.__dict__.get("_reptool_report")
    if isinstance(earlier, Report) and not found.regions:
        return
    target.__dict__["_reptool_report"] = found


def _exactly(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options, found: Report, wanted: Any
) -> float:
    """The error of the same surgery in float64, where rounding is not seen; infinity where it is not the same."""
    try:
        wide = full_copy(model).double()
        plan = make_plan(wide, cloned(args, True), cloned(kwargs, True), options, values=True, cast=True)
        measured = {unit.prefix: measured_unit(unit, False) for unit in plan.units}
        same = report_of(wide, plan, measured)
        if [(r.layer, r.rules) for r in same.regions] != [(r.layer, r.rules) for r in found.regions]:
            return float("inf")
        _write_all(wide, plan, measured, same)
        with torch.no_grad(), kept_dice():
            return whole_error(wide(*cloned(args, True), **cloned(kwargs, True)), wanted)
    except Exception:  # a model that fixes a dtype in its code
        return float("inf")


def _flattened(
    model: nn.Module,
    target: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any],
    found: Report,
    options: Options,
    verify: bool,
) -> nn.Module:
    """One GraphModule; what only the borders of modules and methods had kept apart is fused in it too."""
    from reptool.flatten import flatten_model

    flat: nn.Module = flatten_model(target, args, kwargs)
    gone, first = set(model.state_dict()) - set(target.state_dict()), set(flat.state_dict())
    for _ in range(MAX_FLAT_ROUNDS):
        plan = make_plan(flat, args, kwargs, options, values=True, cast=True)
        if not any(unit.surgery.sites for unit in plan.units):
            break
        measured = {unit.prefix: measured_unit(unit, verify) for unit in plan.units}
        found.regions += report_of(flat, plan, measured).regions
        for unit in plan.units:
            write(flat, unit.prefix, unit.surgery, {s: (w, b) for s, (_, w, b) in measured[unit.prefix].items()})
        flat = flatten_model(flat, args, kwargs)
    flat.register_load_state_dict_pre_hook(LoadGuard(frozenset(gone | (first - set(flat.state_dict())))))
    flat.__dict__["_reptool_report"] = copy.deepcopy(found)
    return flat
