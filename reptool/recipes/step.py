"""`Step`: one deployment as data. The steps of a model are its recipe, which travels with it in pickles and files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from torch import nn

from reptool.errors import RecipeError
from reptool.ir.decisions import Decisions
from reptool.plan.options import Options
from reptool.probing.opaque import named_paths
from reptool.recipes.outcome import Part, code, outcome
from reptool.recipes.plain import NotPlainError, decode, encode
from reptool.refusal import Refusal
from reptool.surgery.site import Site
from reptool.surgery.units import GivenUp, Plan
from reptool.verify.regions import Checked

RECIPE = "_reptool_recipe"
"""Where a deployed model keeps its recipe: a list of steps as JSON holds them, or a sentence why there is none."""
LIST, MAP, TEXT = (list,), (dict,), (str,)


@dataclass
class Step:
    """One deployment.

    Args:
        options: of `deploy`, as `encode` writes them.
        inputs: the example inputs, of which shapes and plain values are kept; None where nothing was shown.
        given_up: regions and methods that failed a check.
        decisions: what planning read off values.
        code: by the path of each traced module, a digest of what its code runs.
        layers: by its place, whether each new layer has a bias.
        before: the model that was deployed, as `outcome` describes it.
        after: what it became.
    """

    options: dict[str, Any] = field(default_factory=dict)
    inputs: Any = None
    given_up: list[Any] = field(default_factory=list)
    decisions: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Part] = field(default_factory=dict)
    after: dict[str, Part] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def from_data(data: Any) -> Step:
        """A step that was read from somewhere.

        Raises:
            RecipeError: it is none.
        """
        wanted = {f.name: type(getattr(Step(), f.name)) for f in fields(Step)}
        wanted.pop("inputs")
        if type(data) is not dict or data.keys() != {*wanted, "inputs"}:
            raise RecipeError("the recipe has a step of other fields than reptool writes")
        bad = next((n for n, kind in wanted.items() if type(data[n]) is not kind), None)
        if bad is not None:
            raise RecipeError(f"{bad!r} of a step of the recipe is a {type(data[bad]).__name__}")
        return Step(**data)

    # --- what the pipeline takes
    def arguments(self) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
        """Example arguments of these shapes."""
        if self.inputs is None:
            return None, {}
        held = decode(self.inputs)
        if type(held) is not tuple or len(held) != 2 or type(held[0]) is not tuple or type(held[1]) is not dict:
            raise RecipeError("the example inputs of the recipe are no arguments")
        return held

    def chosen(self) -> dict[str, Any]:
        """The options by name."""
        found = {"unwrap": False, "price": None, **decode({"dict": [[k, v] for k, v in self.options.items()]})}
        kinds = {
            "rules": (*LIST, type(None)), "force": (bool, *LIST), "include": (*LIST, type(None)), "exclude": LIST,
            "keep_fallback": (bool,), "affine": LIST, "unwrap": (bool,),
            "price": (dict, type(None)),
        }  # fmt: skip
        names = [n for v in found.values() if type(v) is list for n in v]
        if found.keys() != kinds.keys() or not all(type(found[n]) in k for n, k in kinds.items()):
            raise RecipeError(f"the recipe names the options {sorted(map(str, found))}; expected {sorted(kinds)}")
        if not all(type(n) is str for n in names):
            raise RecipeError("the recipe's options hold something that is no name")
        return found

    def failed(self) -> GivenUp:
        """What was given up."""
        found = GivenUp()
        for entry in decode(self.given_up):
            what, path, names, why = entry if type(entry) is tuple and len(entry) == 4 else (None,) * 4
            if not isinstance(why, Refusal) or type(path) is not str or type(names) is not list or not names:
                raise RecipeError("the recipe gives something up that is neither a region nor a method")
            if what == "region":
                found.regions[path, frozenset(map(str, names))] = why
            else:
                found.methods[path, str(names[0])] = why
        return found

    def answers(self) -> dict[str, Any]:
        """The decisions."""
        return {key: decode(value) for key, value in self.decisions.items()}


class Deployment(Protocol):
    """What is known of a deployment before anything is written."""

    model: nn.Module
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any]
    options: Options
    given_up: GivenUp
    decisions: Decisions


def recorded(work: Deployment, plan: Plan, checked: dict[str, Checked]) -> Step | str:
    """The step of a plan, but for what it gives; a sentence where it cannot be written down.

    Args:
        work: the deployment; its model is still as it was.
        plan: the plan.
        checked: by the path of each traced module, the values of the new layers.
    """
    try:
        inputs = None if work.args is None else encode((tuple(work.args), dict(work.kwargs)))
    except NotPlainError as error:
        return f"its example_inputs hold {error}; a recipe takes tensors, numbers, strings, tuples, lists and dicts"
    failed = [("region", p, sorted(names), why) for (p, names), why in work.given_up.regions.items()]
    failed += [("method", p, [name], why) for (p, name), why in work.given_up.methods.items()]
    return Step(
        options=_options(work.model, work.options),
        inputs=inputs,
        given_up=encode(failed),
        decisions=dict(_answers(work.decisions.found)),
        layers={layer_key(p, s): bias is not None for p, held in checked.items() for s, (_, _, bias) in held.items()},
        code={unit.prefix: code(unit.trace.graph) for unit in plan.units},
        before=outcome(work.model),
    )


def _options(model: nn.Module, options: Options) -> dict[str, Any]:
    named = [p.replace("[", "[[]") for p in named_paths(model, options.affine)]
    chosen = {
        "rules": None if options.rules is None else sorted(options.rules),
        "force": options.force if isinstance(options.force, bool) else sorted(options.force),
        "include": None if options.include is None else list(options.include),
        "exclude": list(options.exclude),
        "keep_fallback": options.keep_fallback,
        "affine": named,
        "unwrap": options.unwrap,
        "price": asdict(options.price),
    }
    return {name: encode(value) for name, value in chosen.items()}


def _answers(found: Mapping[str, Any]) -> Any:
    for key, answer in found.items():
        with contextlib.suppress(NotPlainError):  # it is not decided again then, and the outcome is another one
            yield key, encode(answer)


def layer_key(prefix: str, site: Site) -> str:
    """What the layer of a region is called in a step."""
    place = (site.owner, site.names[0]) if site.slot is None else (site.slot, "")
    return "|".join((prefix, *place))


def add_step(target: nn.Module, step: Step | str) -> None:
    """Let a deployed model keep how it was made.

    Args:
        target: the deployed model, with the recipe of what was deployed if that was one as well.
        step: the step of this deployment.
    """
    earlier = target.__dict__.get(RECIPE)
    if isinstance(earlier, str) or isinstance(step, str):
        target.__dict__[RECIPE] = step if isinstance(step, str) else earlier
        return
    step.after = outcome(target)
    if not earlier or step.after != step.before:
        target.__dict__[RECIPE] = [*(earlier or []), step.to_data()]
