"""Replay: a deployment made again from its recipe, on a model of the same architecture.

What planning would read off values is answered by the recipe, and where weights come later, no value is looked at. The
result must be what the recipe says, module for module, or nothing is handed out.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from reptool.api.accept import prepared
from reptool.api.own_conversions import judge_conversions
from reptool.api.pipeline.modules import make_plan
from reptool.api.reporting import report_of
from reptool.api.work import Work, write_all
from reptool.errors import RecipeError, RegionWarning, ReptoolError
from reptool.ir.decisions import Decisions, deciding
from reptool.models.running import own_code
from reptool.recipes.outcome import code, difference, outcome
from reptool.recipes.step import RECIPE, Step, layer_key
from reptool.rewrite.lower import weight_shape
from reptool.runtime.gates.check import open_gates
from reptool.surgery.site import Site
from reptool.surgery.units import Plan
from reptool.unwrap.replacing import unwrap
from reptool.verify.regions import Checked


@torch.inference_mode(mode=False)
@own_code()
def replay(model: nn.Module, recipe: list[Any], fold: bool) -> nn.Module:
    """Deploy a model as a recipe says.

    Args:
        model: of the architecture that the recipe was made of, in eval mode; it is changed.
        recipe: the steps, as JSON holds them.
        fold: whether its weights are folded. Otherwise it gets layers whose values are to be set, and may be on the
            meta device.

    Returns:
        The deployed model.

    Raises:
        RecipeError: it is another architecture, or the recipe does not hold for its weights.
    """
    for data in recipe:
        step = Step.from_data(data)
        told = difference(outcome(model), step.before)
        if told:
            raise RecipeError(f"the recipe was made of another architecture: {told}")
        try:
            model = _folded(model, step) if fold else _shaped(model, step)
        except RecipeError:
            raise
        except ReptoolError as error:
            raise RecipeError(f"the recipe does not hold for this model: {error}") from error
        told = difference(outcome(model), step.after)
        if told:
            raise RecipeError(f"the recipe gives something else for this model: {told}")
    model.__dict__[RECIPE] = recipe
    return model


def _work(model: nn.Module, step: Step, fold: bool) -> Work:
    args, kwargs = step.arguments()
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    given = None if args is None else _moved(kwargs if kwargs and not args else args, device)
    model, args, kwargs, options = prepared(model, given, **step.chosen())
    work = Work(model, args, kwargs, options, fold, [], {})
    work.fresh = True
    work.decisions, work.given_up = Decisions(step.answers()), step.failed()
    return work


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    return type(value)(_moved(v, device) for v in value) if isinstance(value, (list, tuple)) else value


def _folded(model: nn.Module, step: Step) -> nn.Module:
    """With the values of this model."""
    work = _work(model, step, True)
    before = step.failed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegionWarning)
        target = work.written(True, None)
    if not before.holds(work.given_up):
        new = next(r for r in work.given_up.refusals() if r not in before.refusals())
        raise RecipeError(f"the recipe does not hold for these weights: {new.sentence}; deploy the model anew")
    return target


def _shaped(model: nn.Module, step: Step) -> nn.Module:
    """Without values."""
    work = _work(model, step, False)
    with deciding(work.decisions), open_gates():
        plan = make_plan(model, work.args, work.kwargs, work.options, False, True, work.given_up)
        judge_conversions(model, plan)
    _check_code(plan, step)
    checked: dict[str, Checked] = {}
    for unit in plan.units:
        sites = unit.surgery.sites
        checked[unit.prefix] = {s: (None, *_empty(s, step.layers.get(layer_key(unit.prefix, s)))) for s in sites}
    found = report_of(model, plan, {})
    write_all(model, plan, checked, found)
    if work.options.unwrap:
        unwrap(model, plan, found, False)
    return model


def _check_code(plan: Plan, step: Step) -> None:
    found = {unit.prefix: code(unit.trace.graph) for unit in plan.units}
    if found == step.code:
        return
    path = next(p for p in (*step.code, *found) if found.get(p) != step.code.get(p))
    why = f" ({plan.untraced[path]})" if path in plan.untraced else ""
    raise RecipeError(
        f"the code of {path or '<root>'!r} does something else than that of the model the recipe was made of{why}"
    )


def _empty(site: Site, biased: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a new layer, without values."""
    if type(biased) is not bool:
        raise RecipeError("the recipe knows nothing of a layer that this model gets")
    place, shape = site.place, site.shape
    assert place is not None
    weight = torch.empty(weight_shape(shape), dtype=place.dtype, device=place.device)
    return weight, weight.new_empty(shape.out_channels) if biased else None
