"""Everything that `assert_rule` asks of one drawn network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from reptool.frontends.examples import example_for
from reptool.ir.walk import Inputs, map_tensors
from reptool.models.copies import full_copy
from reptool.probing.impulse import BASES
from reptool.probing.sandbox import Probe, Stop, constants_of
from reptool.probing.stated import check_stated
from reptool.probing.trials import Trials
from reptool.refusal import Refusal
from reptool.rules.lifting import Lift
from reptool.rules.maps import as_kernel
from reptool.testing._near_misses import variants
from reptool.testing._perturb import perturb
from reptool.testing._randomize import randomize
from reptool.testing._ruled.applied import Applied, runs

T = TypeVar("T")
Pick: TypeAlias = "Callable[[Sequence[Any]], Any]"
"""Chooses one of several options; simpler ones come first."""
Example: TypeAlias = "nn.Module | tuple[nn.Module, Inputs]"
Examples: TypeAlias = "Callable[[Pick], Example]"
KINDS = ("size", "batch", "copy", "mode", "load", "hook")
ALONE, NORM, LAYER, BESIDE = "alone", "a norm behind it", "a layer in front of it", "a layer beside it"


class Picks:
    """Choices, and what they were."""

    def __init__(self, choose: Callable[[Sequence[Any]], int]) -> None:
        self.choose = choose
        self.made: list[int] = []

    def __call__(self, options: Sequence[T]) -> T:
        self.made.append(self.choose(options))
        return options[self.made[-1]]


class Trial:
    """One rule, and the networks that are drawn for it.

    Args:
        rule: what `assert_rule` was given.
        name: of it, as reports name it.
        makes: makes networks in which it fires.
        misses: makes networks in which it must not.
    """

    def __init__(self, rule: Any, name: str, makes: Examples, misses: Examples | None) -> None:
        self.rule, self.makes, self.misses, self.name = rule, makes, misses, name
        self.applied = Applied(rule, name)
        self.tested = False

    def run(self, pick: Picks) -> None:
        """Draw and ask.

        Raises:
            AssertionError: it is wrong.
        """
        model, shown = _pair(self.makes(pick))
        miss = None if self.misses is None else _pair(self.misses(pick))
        model = randomize(model, pick([0, 1, 2])).double().eval()
        host = self._hosted(model, pick)
        given = _double(example_for(host) if shown is None else shown)
        said = [f"\nnetwork: {model}", f"again: assert_rule(..., picks={pick.made})"]
        try:
            if self.applied.is_lifted(model):
                self._stated("", model)
            deployed = self.applied.right("", host, given, fires=True)
            self._varied(model if isinstance(self.rule, Lift) else host, given)
            if not self.tested:
                self._perturbed(host, deployed, given)
                self._measured(model)
            if miss is not None:
                other = randomize(miss[0], 0).double().eval()
                inputs = _double(example_for(other) if miss[1] is None else miss[1])
                said[0] = f"\nnetwork: {other}"
                self.applied.right(", a near miss", other, inputs, fires=False)
        except AssertionError as error:
            raise AssertionError("\n".join([f"rule {self.name!r}{error}", *said])) from None

    # --- lifts
    def _hosted(self, model: nn.Module, pick: Picks) -> nn.Module:
        """A lifted module alone, or beside layers that it fuses with."""
        if not self.applied.is_lifted(model):
            return model
        kernel = self._kernel(model)
        if kernel is None or kernel.in_channels is None or kernel.out_channels is None:
            return model
        axes, wide, out = len(kernel.axes or ()), kernel.in_channels, kernel.out_channels
        place = pick([NORM, ALONE, LAYER, BESIDE])
        conv = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes]
        one: Any = (1,) if axes else ()
        front = conv(3, wide, *one)
        parts: dict[str, list[nn.Module]] = {
            NORM: [front, nn.ReLU(), model, norm(out)],
            ALONE: [front, nn.ReLU(), model],
            LAYER: [front, model, norm(out)],
            BESIDE: [front, nn.ReLU(), _Sum(model), norm(out)],
        }
        return randomize(nn.Sequential(*parts[place]), 1).double().eval()

    def _kernel(self, model: nn.Module) -> Any:
        assert isinstance(self.rule, Lift)
        if self.rule.takes_value:
            return None
        try:
            found = self.rule.says(full_copy(model))
            return None if found is None or isinstance(found, Refusal) else as_kernel(found)
        except Exception as error:  # whatever a rule raises
            raise AssertionError(f": it raised {type(error).__name__}: {error}") from error

    def _measured(self, model: nn.Module) -> None:
        """What a lift says of the first network drawn, against every test that a module passes which is measured."""
        self.tested = True
        kernel = self._kernel(model) if self.applied.is_lifted(model) else None
        if kernel is None or kernel.in_channels is None or len(kernel.axes or ()) not in BASES:
            return
        bases = BASES[len(kernel.axes)]
        try:
            probe = Probe(model)
            base = next(b for b in bases if probe.attempt(torch.zeros(2, kernel.in_channels, *b).double()) is not None)
            generator = torch.Generator().manual_seed(0)
            trials = Trials(probe, base, kernel.in_channels, generator, constants_of(model), [])
            trials.before()
            trials.after(kernel, model)
        except Stop as stop:
            raise AssertionError(f" does not say what the code computes: {stop.refusal.sentence}") from None

    # --- variants
    def _varied(self, model: nn.Module, given: Inputs) -> None:
        """The same network with one thing changed: there the rule may fire or refuse."""
        directly = self.applied.rewrites(model, given)
        for what, changed in variants(model):
            where = f" where {what}"
            if self.applied.is_lifted(changed):
                self._stated(where, changed)
            elif directly and runs(changed, given):
                with self.applied.told(where):
                    made = self.applied.rewritten(changed, given)
                if made is not None:
                    self.applied.close(where, changed, made, given, vary=False)
            elif not directly:
                self.applied.right(where, changed, given, fires=None)

    def _stated(self, where: str, model: nn.Module) -> None:
        """What a lift says of a module, tested as `deploy` tests it."""
        try:
            kernel = self._kernel(model)
        except AssertionError:
            if _runs_somewhere(model):
                raise
            return  # a module that does not run any more
        if kernel is None or kernel.in_channels is None:
            return
        shapes = [(2, kernel.in_channels, *base) for base in BASES[len(kernel.axes or ())]]
        if not any(runs(model, torch.zeros(shape).double()) for shape in shapes):
            return
        tested = check_stated(model, kernel, kernel.in_channels)
        if isinstance(tested, Refusal):
            raise AssertionError(f"{where} does not say what the code computes: {tested.sentence}")

    def _perturbed(self, model: nn.Module, deployed: nn.Module, given: Inputs) -> None:
        if not isinstance(self.rule, Lift):
            return  # of a GraphModule, names mean something else
        try:
            perturb(model, deployed, given, tries=8, kinds=KINDS)
        except AssertionError as error:
            raise AssertionError(f": {error}") from None


class _Sum(nn.Module):
    """A module and its output once more, through an identity."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """Twice as much."""
        y: Tensor = self.part(x)
        return y + y


def _runs_somewhere(model: nn.Module) -> bool:
    try:
        return runs(model, example_for(model))
    except ValueError:
        return False


def _pair(example: Example) -> tuple[nn.Module, Inputs | None]:
    return example if isinstance(example, tuple) else (example, None)


def _double(inputs: Inputs) -> Inputs:
    found: Inputs = map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
    return found
