"""Verification of rewrites: the network before and behind one, in float64, on inputs of several sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import InputError
from reptool.frontends.examples import example_for, other_sizes
from reptool.ir.walk import Inputs, call, map_tensors
from reptool.models.copies import full_copy
from reptool.models.running import users_code
from reptool.verify.whole_model import whole_error

EXACT = 1e-10
MAGNITUDES = (30.0, 1e-3)
"""What the shown inputs are multiplied by beside: activations that saturate, or are linear near zero, show there."""


def inputs_for(model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any]) -> list[Inputs]:
    """Inputs in float64: those shown or made up, at other sizes and magnitudes.

    Args:
        model: what is run.
        args: example positional inputs or None.
        kwargs: example keyword inputs.

    Raises:
        InputError: nobody showed what the model reads, and nothing was found that it runs on.
    """
    if kwargs and args:
        raise InputError("rules that rewrite are verified on positional or keyword example_inputs, not on both")
    try:
        given = example_for(model) if args is None else kwargs or args
    except ValueError as error:
        raise InputError(f"rules that rewrite are verified on inputs: {error}") from error

    def wide(factor: float) -> Inputs:
        def one(tensor: Tensor) -> Tensor:
            return tensor.double() * factor if tensor.is_floating_point() else tensor

        found: Inputs = map_tensors(given, one)
        return found

    return [wide(1.0), *other_sizes(wide(1.0)), *map(wide, MAGNITUDES)]


class Compared:
    """The outputs of a network on some inputs, to compare others with."""

    def __init__(self, model: nn.Module, inputs: list[Inputs]) -> None:
        self.cases: list[tuple[Inputs, Any]] = []
        first, *others = inputs
        self.cases.append((first, _run(model, first)))
        for given in others:
            try:
                wanted = _run(model, given)
            except Exception:  # a size that it does not run at
                continue
            self.cases.append((given, wanted))

    def error(self, other: nn.Module) -> float:
        """The largest error of another network, relative to the largest value; infinity where it raises."""
        worst = 0.0
        for given, wanted in self.cases:
            try:
                found = whole_error(_run(other, given), wanted)
            except Exception:  # the original runs here
                return float("inf")
            worst = found if found != found else max(worst, found)
            if not worst <= EXACT:
                return float("inf") if worst != worst else worst
        return worst


def _run(model: nn.Module, given: Inputs) -> Any:
    with torch.no_grad(), users_code():
        return call(full_copy(model).forward, given)  # where a GraphModule raises, its call prints the code
