"""`deploy` and `explain`: the phases in order.

capture -> lift -> choose -> place -> check other users -> measure      on a throwaway copy, nothing written
write -> compare methods and the whole model -> report                 on the copy that is handed out
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, overload

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from reptool.api.accept import (
    Affine,
    OnnxModel,
    Patterns,
    check_model,
    is_onnx,
    is_program,
    prepared,
    prepared_onnx,
    prepared_program,
    required,
)
from reptool.api.flat.flatten import flattened
from reptool.api.flat.rewriting import name_of_rewrite
from reptool.api.pipeline.modules import make_plan
from reptool.api.reporting import check_requirements, keep_report, report, report_of
from reptool.api.rules_given import Forced, Rules
from reptool.api.work import Work
from reptool.errors import InputError, UnsupportedModelError
from reptool.frontends.given import names_itself
from reptool.models.copies import independent_copy
from reptool.models.running import own_code
from reptool.plan.cost import Costs
from reptool.programs.exported import deploy_program, planned
from reptool.programs.onnx import deploy_onnx, explain_onnx
from reptool.recipes.fingerprint import is_marked, mark
from reptool.report.data import Report
from reptool.report.progress import phase, watched
from reptool.runtime.gates.check import open_gates
from reptool.verify.measure import Verify
from reptool.verify.whole_model import reference_of

M = TypeVar("M", bound=nn.Module | ExportedProgram | OnnxModel)


@overload
def deploy(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: Verify = True,
    rules: Rules = None,
    force: Forced = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: Literal[True],
    keep_fallback: bool = False,
    affine: Affine = None,
    unwrap: bool = False,
    price: Costs | None = None,
    progress: bool | None = None,
) -> fx.GraphModule: ...


@overload
def deploy(
    model: str | os.PathLike[str],
    example_inputs: None = None,
    *,
    verify: Verify = True,
    rules: str | Iterable[str] | None = None,
    force: Forced = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    price: Costs | None = None,
    progress: bool | None = None,
) -> Any: ...


@overload
def deploy(
    model: M,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: Verify = True,
    rules: Rules = None,
    force: Forced = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: Literal[False] = False,
    keep_fallback: bool = False,
    affine: Affine = None,
    unwrap: bool = False,
    price: Costs | None = None,
    progress: bool | None = None,
) -> M: ...


@overload
def deploy(
    model: M,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: Verify = True,
    rules: Rules = None,
    force: Forced = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: bool,
    keep_fallback: bool = False,
    affine: Affine = None,
    unwrap: bool = False,
    price: Costs | None = None,
    progress: bool | None = None,
) -> M | fx.GraphModule: ...


@names_itself
@torch.inference_mode(mode=False)  # layers made inside of it could not be trained afterwards
@own_code()
def deploy(
    model: nn.Module | ExportedProgram | OnnxModel | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: Verify = True,
    rules: Rules = None,
    force: Forced = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: bool = False,
    keep_fallback: bool = False,
    affine: Affine = None,
    unwrap: bool = False,
    price: Costs | None = None,
    progress: bool | None = None,
) -> Any:  # long: each kind of program and of option, in order
    """Collapse every affine region of a model into one layer, exactly, and say what was done.

    Args:
        model: any `nn.Module` in eval mode; a `torch.export.ExportedProgram`, or a graph module made of one; an ONNX
            model as the path of a file, an `onnx.ModelProto` or an `onnx_ir.Model`. It stays as it is unless `inplace`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. Never needed
            for correctness; they answer what the model's code asks about shapes, and the whole model is compared
            on them.
        inplace: change `model` itself instead of a copy.
        verify: ``"full"`` (or True): check every region in float64, before and after the cast, at as many sizes as its
            stride, and the whole model on the example inputs; ``"fast"``: at one size; False: neither. Methods that
            were written anew are run in any case.
        rules: names of the rules to apply (see `reptool.RULES`) and rules of your own (see `reptool.lifts`), default
            all of these. With `flatten`, also rules that rewrite (`reptool.rules.Rule`, functions from a GraphModule to
            one, names of rules that installed packages bring); these are on where they are named alone.
        force: apply the rules also where the result is dearer: True for all, or the names of those that are meant (with
            the others that a layer needs, as far as these can make it dearer).
        include: module path patterns (``fnmatch``) or classes of modules; only these and what is in them are touched.
        exclude: module path patterns or classes of modules that are left alone.
        require: ``"no_batchnorm"``, ``"no_refusals"`` or ``"all_traced"``; what is left raises `RequirementError`.
        flatten: hand out one `torch.fx.GraphModule` instead of the user's model.
        keep_fallback: with `example_inputs`, also fuse where the code asked for a size, a flag or a dtype, and keep the
            original layers (as ``<module>.reptool_original``) for calls that would be answered otherwise.
        affine: classes of modules, or module path patterns, that you say are affine and treat every position alike.
            Their code is not read: each is measured by its impulse response, tested, and refused if a test fails.
        unwrap: put the layer in the place of each module that only hands on to it afterwards (a block without an
            activation, an adapter, a ``Sequential`` of one), where nobody could see the difference without an error.
        price: the numbers of the price by which layers are chosen, default `reptool.Costs()`.
        progress: show what is being done; None shows it on a terminal once it takes longer than two seconds. Phases
            and their times are logged under ``reptool`` as well, and kept in the report.

    Returns:
        The user's model (same class or a subclass of it, same attributes, methods and parameter names as far as the
        layers still exist) with fewer layers; of a program, a program with the same inputs and outputs; of an ONNX
        file, an `onnx_ir.Model`. Its report is ``reptool.report(result)``.

    Raises:
        UnsupportedModelError: not a plain module (scripted, quantized, lazy, on the meta device), or a program that is
            lowered already.
        InputError: training mode, example inputs that do not fit, unknown rules or checks, patterns that match nothing,
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
    if not (isinstance(verify, bool) or verify in ("full", "fast")):
        raise InputError(f"verify={verify!r}; give 'full' (or True), 'fast' or False")
    if is_onnx(model):
        chosen = prepared_onnx(
            rules, force, include, exclude, example_inputs=example_inputs, inplace=inplace, flatten=flatten,
            keep_fallback=keep_fallback, affine=affine, unwrap=unwrap, price=price,
        )  # fmt: skip
        with watched("deploy an ONNX model", progress) as watch:
            written, found = deploy_onnx(model, chosen, verify)
        return _handed_out(written, found, watch.seconds, required(require))
    if is_program(model):
        given, options = prepared_program(
            model, example_inputs, rules, force, include, exclude, inplace=inplace, flatten=flatten,
            keep_fallback=keep_fallback, affine=affine, unwrap=unwrap, price=price,
        )  # fmt: skip
        with watched(f"deploy {type(model).__name__}", progress) as watch:
            made, found = deploy_program(model, given, options, verify)
        return _handed_out(made, found, watch.seconds, required(require))
    check_model(model)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise UnsupportedModelError(
            "the model is on the meta device; materialize its weights first (explain() works on meta)"
        )
    if inplace and flatten:
        raise InputError("flatten=True returns another module, inplace=True changes the one given; choose one of them")
    if keep_fallback and flatten:
        raise InputError("flatten=True makes one graph, which has no place for the code keep_fallback=True keeps")
    if unwrap and flatten:
        raise InputError("flatten=True makes one graph, in which nothing is wrapped; leave unwrap=True out")
    model, args, kwargs, options = prepared(
        model, example_inputs, rules, force, include, exclude, affine, keep_fallback, unwrap, price
    )
    options.several = not flatten
    needed = required(require)
    if options.rewrites and not flatten:
        names = ", ".join(repr(name_of_rewrite(r)) for r in options.rewrites)
        raise InputError(f"the rules {names} rewrite the network as one graph, which is what flatten=True hands out")
    if not flatten and is_marked(model, example_inputs, options):
        check_requirements(report(model), needed)
        return model if inplace else independent_copy(model)
    with watched(f"deploy {type(model).__name__}", progress) as watch:
        with phase("reference"):
            reference = None if args is None else reference_of(model, args, kwargs, bool(verify))
        work = Work(model, args, kwargs, options, verify, needed, watch.seconds)
        target = work.written(inplace, reference)
        if flatten:
            with phase("flatten"):
                return flattened(model, target, work)
    mark(target, example_inputs, options)
    return target


def _handed_out(written: Any, found: Report, seconds: dict[str, float], needed: list[str]) -> Any:
    """What was written of a program, with its report, once it meets what was required."""
    found.seconds = seconds
    check_requirements(found, needed)
    keep_report(written, found)
    return written


@names_itself
@own_code()
def explain(
    model: nn.Module | ExportedProgram | OnnxModel | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    rules: Rules = None,
    force: Forced = False,
    include: Patterns = None,
    exclude: Patterns = None,
    keep_fallback: bool = False,
    affine: Affine = None,
    price: Costs | None = None,
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
    if is_onnx(model):
        return explain_onnx(model, prepared_onnx(rules, force, include, exclude, price, affine=affine))
    if is_program(model):
        chosen = prepared_program(
            model, None, rules, force, include, exclude, price, keep_fallback=keep_fallback, affine=affine
        )[1]
        return planned(model, chosen, False)[1]
    check_model(model, "explain")
    model, args, kwargs, options = prepared(
        model, example_inputs, rules, force, include, exclude, affine, keep_fallback, price=price
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
