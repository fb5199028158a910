"""The whole deployed model against the original, on the example inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import UnsupportedModelError, VerificationError
from reptool.frontends.inputs import check_inputs_run
from reptool.ir.walk import cloned, tensors_in
from reptool.models.as_given import run_as_given
from reptool.models.copies import copy_in, full_copy
from reptool.models.running import users_code
from reptool.models.state import changed_since, held_by, modules_of
from reptool.report.counting import Multiplications
from reptool.report.data import Report
from reptool.runtime.containers import mapped

MODEL_FLOOR = 5e-6
ALIKE = 1e-3  # a model in two precisions, and a model and its copy
DRAWS = 3
ROUNDING = 10  # two roundings of one model were seen to differ by a factor of 3; a wrong region is off by far more


@dataclass
class Reference:
    """One run of the model itself on the example inputs.

    Args:
        own: its output.
        exact: its output in float64; None where it cannot run there, or where nobody asked for it.
        changing: parameters and buffers that it changed.
        multiplications: how many it executed; None where not all of them could be counted.
    """

    own: Any
    exact: Any
    changing: list[str]
    multiplications: int | None


def reference_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], wide: bool) -> Reference:
    """One run of the caller's own model, which stays as it is, and the output of a copy in float64.

    Args:
        model: the caller's own.
        args: example positional inputs.
        kwargs: example keyword inputs.
        wide: whether the second is wanted; it is None where the model cannot run in float64.

    Raises:
        InputError: the model does not accept the inputs.
        UnsupportedModelError: a copy of the model is another model.
    """
    copies: dict[int, Any] = {}
    copied, changing = full_copy(model, copies), list[str]()

    def run(given: nn.Module) -> Any:
        before = held_by(given)
        out = check_inputs_run(given, cloned(args), cloned(kwargs))
        changing.extend(changed_since(before, given))
        return out

    with users_code(), Multiplications() as counted:
        own = run_as_given(model, copies, run)
    found = Reference(own, None, changing, counted.known)
    if not wide:
        return found
    try:
        double = copy_in(copied, torch.float64, None)
        with torch.no_grad(), users_code():
            found.exact = double(*cloned(args, True), **cloned(kwargs, True))
    except Exception:  # a model that fixes a dtype in its code
        found.exact = None
    if not (found.exact is not None and whole_error(own, found.exact) <= ALIKE):
        _check_copied(copied, own, args, kwargs)
    return found


def _check_copied(copied: nn.Module, own: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A copy computes what the model computes, to the bit but for what threads add up in another order."""
    with torch.no_grad(), users_code():
        error = whole_error(full_copy(copied)(*cloned(args), **cloned(kwargs)), own)
    if not error <= ALIKE:
        raise UnsupportedModelError(
            f"a copy of the {type(copied).__name__} computes something else than the model itself (off by {error:.3g} "
            "on example_inputs), so that nothing can be tried on it; let copy.deepcopy copy its attributes as they are"
        )


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of two tensors of one shape, relative to the largest finite value of the second.

    Infinities that are equal and NaN in the same places are no difference; NaN where one of the two has it alone.

    >>> inf, nan = float("inf"), float("nan")
    >>> round(difference(torch.tensor([1.0, inf, nan]), torch.tensor([2.0, inf, nan])), 6)
    0.5
    """
    if not wanted.numel():
        return 0.0
    a, b = found.detach().double(), wanted.detach().double()
    same = (a == b) | (a.isnan() & b.isnan())
    off = torch.where(same, 0.0, (a - b).abs())
    scale = float(torch.where(b.isfinite(), b, 0.0).abs().max())
    return float(off.max()) / (scale + 1e-12)


def whole_error(found: Any, wanted: Any) -> float:
    """The largest difference of two outputs, each relative to the largest value of its tensor."""
    a, b = ([t.detach() for t in tensors_in(v)] for v in (found, wanted))
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=False)):
        return float("inf")
    errors = [difference(x, y) for x, y in zip(a, b, strict=True)]
    return next((e for e in errors if e != e), max(errors, default=0.0))


def movement(model: nn.Module, args: Any, kwargs: Any, exact: Any) -> float:
    """How far the original's own output moves in float64 when its inputs and weights move by a rounding step.

    Args:
        model: the original.
        args: example positional inputs.
        kwargs: example keyword inputs.
        exact: its output in float64.

    Returns:
        The largest error of a few draws, as `whole_error`; infinity where it then runs no more.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        steps = torch.randint(-1, 2, leaf.shape, generator=generator).to(leaf)
        return leaf * (1 + steps * torch.finfo(torch.float64).eps)

    errors = []
    for _ in range(DRAWS):
        wide = copy_in(model, torch.float64, None)
        for tensor in (*wide.parameters(), *wide.buffers()):
            tensor.data = moved(tensor.data)
        given = mapped(cloned((args, kwargs), True), moved)
        with torch.no_grad(), users_code():
            errors.append(whole_error(wide(*given[0], **given[1]), exact))
    return max(errors)


class InexactError(Exception):
    """The deployed model differs by more than the original's own rounding explains."""


def compare_whole(
    target: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reference: Reference, found: Report
) -> None:
    """Compare the whole deployed model with the original on the example inputs; the report keeps both errors.

    Raises:
        InexactError: they differ by more than rounding.
        VerificationError: the deployed model raises where the original runs.
        UnsupportedModelError: they do, and the model changes its own state.
    """
    own, exact = reference.own, reference.exact
    with torch.no_grad(), users_code(), Multiplications() as counted:
        try:
            out = full_copy(target)(*cloned(args), **cloned(kwargs))
        except Exception as raised:  # whatever code raises that reads a layer which is another one now
            said = (str(raised).splitlines() or [""])[0][:200]
            raise VerificationError(
                f"the deployed {found.model} raises {type(raised).__name__} on example_inputs, where the original runs "
                f"({said}); nothing was changed. Code that could not be followed uses a layer in a way that was not "
                "seen: exclude the part that it names, and report this"
            ) from raised
    if reference.multiplications is not None:
        found.multiplications = reference.multiplications, counted.known
    dtypes = [t.dtype for t in tensors_in(own)] or [torch.float32]
    floor = max(MODEL_FLOOR, 40 * max(torch.finfo(d).eps for d in dtypes))
    wanted = own if exact is None else exact
    error, base = whole_error(out, wanted), whole_error(own, wanted)
    found.model_error = (error, base)
    if error <= max(ROUNDING * base, floor):
        return
    if found.changing:
        raise UnsupportedModelError(
            f"the {found.model} changes its own state when it runs in eval mode: {modules_of(found.changing)}; what is "
            f"deployed would change it otherwise (it is off by {error:.3g} on example_inputs); nothing was changed. "
            "Take observers out or freeze what they hold, then deploy"
        )
    raise InexactError
