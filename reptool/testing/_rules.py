"""`assert_rule`: is a rule right wherever it fires, and does it fire where it should and nowhere else?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from reptool.api.deploy import deploy
from reptool.api.flat.flatten import flatten_model
from reptool.api.flat.rewriting import rewritten
from reptool.api.reporting import report
from reptool.errors import RegionWarning, ReptoolError, RuleError
from reptool.frontends.examples import example_for
from reptool.frontends.inputs import example_arguments
from reptool.ir.walk import Inputs, call, map_tensors, tensors_in
from reptool.models.copies import full_copy
from reptool.plan.options import Options
from reptool.plan.rules import RULES
from reptool.probing.impulse import BASES
from reptool.probing.sandbox import Probe, Stop, constants_of
from reptool.probing.stated import check_stated
from reptool.probing.trials import Trials
from reptool.refusal import Refusal
from reptool.report.fields import Found
from reptool.rules.lifting import Lift
from reptool.rules.maps import as_kernel
from reptool.rules.rule import Rule
from reptool.testing._equivalence import assert_equivalent
from reptool.testing._near_misses import variants
from reptool.testing._perturb import perturb
from reptool.testing._randomize import randomize

try:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
except ImportError as error:  # pragma: no cover
    raise ImportError("assert_rule needs Hypothesis: pip install 'reptool[test]'") from error

T = TypeVar("T")
Pick: TypeAlias = "Callable[[Sequence[Any]], Any]"
"""Chooses one of several options; simpler ones come first."""
Example: TypeAlias = "nn.Module | tuple[nn.Module, Inputs]"
Examples: TypeAlias = "Callable[[Pick], Example]"
KINDS = ("size", "batch", "copy", "mode", "load", "hook")
SCALES = (1.0, -1.0, 300.0, 1e-4)
ALONE, NORM, LAYER, BESIDE = "alone", "a norm behind it", "a layer in front of it", "a layer beside it"


class Picks:
    """Choices, and what they were."""

    def __init__(self, choose: Callable[[Sequence[Any]], int]) -> None:
        self.choose = choose
        self.made: list[int] = []

    def __call__(self, options: Sequence[T]) -> T:
        self.made.append(self.choose(options))
        return options[self.made[-1]]


def assert_rule(
    rule: Any,
    examples: Examples | None = None,
    near_misses: Examples | None = None,
    *,
    max_examples: int = 6,
    picks: Sequence[int] | None = None,
) -> None:
    """Assert that a rule fires where it should, is right wherever it fires, and refuses where it would not be.

    Networks are drawn, the rule is applied in float64, and has to have fired. The result is compared with the original
    at many sizes down to one pixel, at large and small and negative values, in float32, without a batch, and after
    changes of the deployed model (`perturb`). Then each network is changed in one thing at a time (`variants`): another
    activation, padding or border, a bias more or less, weights of another sign or order, attributes. There the rule may
    fire or refuse, and has to be right. What `deploy` itself refuses as wrong is a failure here.

    Args:
        rule: what `reptool.lifts` made, a `reptool.rules.Rule`, or a function of a GraphModule.
        examples: makes a network in which the rule fires (for a lift: a module that it is for), or a pair of one and
            its inputs. It is given `pick`, which chooses one of several options. Default: the rule's own method
            ``examples``.
        near_misses: the same for networks in which the rule must not fire. Default: its method ``near_misses``, if it
            has one.
        max_examples: how many networks are drawn.
        picks: choices of an earlier failure, to see it again.

    Raises:
        AssertionError: what was wrong, with the smallest network found that shows it and how to make it again.

    >>> from reptool.rules import PositiveScale
    >>> class Scaled(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.conv, self.scale = nn.Conv2d(2, channels, 3), nn.Parameter(torch.rand(channels, 1, 1))
    ...     def forward(self, x):
    ...         return self.conv(x).relu() * self.scale
    >>> assert_rule(PositiveScale(), lambda pick: Scaled(pick([1, 3])), max_examples=1)
    """
    makes = examples or getattr(rule, "examples", None)
    misses = near_misses or getattr(rule, "near_misses", None)
    if makes is None:
        raise ValueError(f"give examples: a function that makes a network in which {_name(rule)!r} fires")
    trial = _Trial(rule, makes, misses)
    if picks is not None:
        rest = list(picks)
        trial.run(Picks(lambda options: rest.pop(0)))
        return

    @settings(
        max_examples=max_examples, database=None, derandomize=True, deadline=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.data())
    def drawn(data: st.DataObject) -> None:
        trial.run(Picks(lambda options: data.draw(st.integers(0, len(options) - 1))))

    drawn()


def _name(rule: Any) -> str:
    return str(getattr(rule, "name", None) or getattr(rule, "__name__", rule))


class _Trial:
    """Everything that one drawn network is asked."""

    def __init__(self, rule: Any, makes: Examples, misses: Examples | None) -> None:
        self.rule, self.makes, self.misses, self.name = rule, makes, misses, _name(rule)
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
            if self._is_lifted(model):
                self._stated("", model)
            deployed = self._right("", host, given, fires=True)
            self._varied(model if isinstance(self.rule, Lift) else host, given)
            if not self.tested:
                self._perturbed(host, deployed, given)
                self._measured(model)
            if miss is not None:
                other = randomize(miss[0], 0).double().eval()
                inputs = _double(example_for(other) if miss[1] is None else miss[1])
                said[0] = f"\nnetwork: {other}"
                self._right(", a near miss", other, inputs, fires=False)
        except AssertionError as error:
            raise AssertionError("\n".join([f"rule {self.name!r}{error}", *said])) from None

    # --- lifts
    def _hosted(self, model: nn.Module, pick: Picks) -> nn.Module:
        """A lifted module alone, or beside layers that it fuses with."""
        if not self._is_lifted(model):
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
        kernel = self._kernel(model) if self._is_lifted(model) else None
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
        directly = self._rewrites(model, given)
        for what, changed in variants(model):
            where = f" where {what}"
            if self._is_lifted(changed):
                self._stated(where, changed)
            elif directly and _runs(changed, given):
                with self._told(where):
                    made = self._rewritten(changed, given)
                if made is not None:
                    self._close(where, changed, made, given, vary=False)
            elif not directly:
                self._right(where, changed, given, fires=None)

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
        if not any(_runs(model, torch.zeros(shape).double()) for shape in shapes):
            return
        tested = check_stated(model, kernel, kernel.in_channels)
        if isinstance(tested, Refusal):
            raise AssertionError(f"{where} does not say what the code computes: {tested.sentence}")

    def _rewrites(self, model: nn.Module, given: Inputs) -> bool:
        """Whether a rule acts on the network as it stands, before anything affine is fused."""
        return not isinstance(self.rule, Lift) and self._rewritten(model, given) is not None

    def _rewritten(self, model: nn.Module, given: Inputs) -> nn.Module | None:
        """What a rule alone makes of a network; None where it does nothing."""
        args, kwargs = example_arguments(given, model)
        flat = flatten_model(full_copy(model), args, kwargs)
        made = rewritten(flat, Options(rewrites=(self.rule,)), args, kwargs, Found(""))
        return None if made is flat else made

    def _is_lifted(self, model: nn.Module) -> bool:
        targets = self.rule.targets if isinstance(self.rule, Lift) else ()
        return any(isinstance(t, type) and isinstance(model, t) for t in targets)

    # --- networks
    def _right(self, where: str, model: nn.Module, given: Inputs, fires: bool | None) -> nn.Module:
        """Apply the rule and compare; nothing is asked of a network that does not run.

        Args:
            where: what is special about the network.
            model: in float64.
            given: what it reads.
            fires: whether the rule has to fire; None where either will do.
        """
        if fires is None and not _runs(model, given):
            return model
        before = _held(self.rule)
        deployed = self._deployed(where, model, given)
        if _held(self.rule) != before:
            raise AssertionError(f"{where} keeps what it found in {sorted(vars(self.rule))}; return it as evidence")
        fired = self._fired(deployed)
        if fires is not None and fired != fires:
            left = "; ".join(str(r) for r in report(deployed).refusals[:3])
            raise AssertionError(f"{where} {'fired' if fired else f'did not fire ({left})'}")
        if fires is None and not fired:
            return deployed
        self._same(where, model, deployed, given)
        return deployed

    def _deployed(self, where: str, model: nn.Module, given: Inputs) -> nn.Module:
        flatten = not isinstance(self.rule, Lift)
        with self._told(where):
            return deploy(model, given, rules=(*RULES, self.rule), flatten=flatten)

    @contextmanager
    def _told(self, where: str) -> Iterator[None]:
        """What `deploy` notices by itself is a failure of the rule."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", RegionWarning)
            try:
                yield
            except (RegionWarning, RuleError) as error:
                raise AssertionError(f"{where}: {error}") from None

    def _fired(self, deployed: nn.Module) -> bool:
        found = report(deployed)
        return any(self.name in r.rules for r in found.regions) or any(r.rule == self.name for r in found.rewritten)

    def _same(self, where: str, model: nn.Module, deployed: nn.Module, given: Inputs) -> None:
        self._close(where, model, deployed, given, vary=True)
        self._without_batch(where, model, deployed, given)
        self._in_float32(where, model, given)

    def _close(self, where: str, model: nn.Module, deployed: nn.Module, given: Inputs, vary: bool) -> None:
        try:
            assert_equivalent(model, deployed, *(_times(given, s) for s in SCALES), dtype=None, vary=vary)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None

    def _without_batch(self, where: str, model: nn.Module, deployed: nn.Module, given: Inputs) -> None:
        """The first sample alone: the same, or an error of reptool's."""
        if not isinstance(given, Tensor) or given.dim() < 2:
            return
        try:
            wanted = call(full_copy(model), given[0])
        except Exception:  # it takes a batch alone
            return
        try:
            got = call(deployed, given[0])
        except ReptoolError:
            return
        found, right = tensors_in(got), tensors_in(wanted)
        if len(found) != len(right) or not all(map(_is_close, found, right)):
            raise AssertionError(f"{where} is another one for an input without a batch")

    def _in_float32(self, where: str, model: nn.Module, given: Inputs) -> None:
        narrow = full_copy(model).float()
        inputs = map_tensors(given, lambda t: t.float() if t.is_floating_point() else t)
        try:
            call(full_copy(narrow), inputs)
        except Exception:  # a network of float64 alone
            return
        deployed = self._deployed(f"{where} in float32", narrow, inputs)
        try:
            assert_equivalent(narrow, deployed, inputs, dtype=None, vary=False, rtol=1e-4, atol=1e-6)
        except AssertionError as error:
            raise AssertionError(f"{where} in float32: {error}") from None

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


def _held(rule: Any) -> dict[str, int]:
    """What a rule holds, by identity."""
    return {k: id(v) for k, v in vars(rule).items()} if isinstance(rule, Rule) else {}


def _runs(model: nn.Module, given: Inputs) -> bool:
    try:
        call(full_copy(model), given)
    except Exception:  # whatever its code raises
        return False
    return True


def _runs_somewhere(model: nn.Module) -> bool:
    try:
        return _runs(model, example_for(model))
    except ValueError:
        return False


def _pair(example: Example) -> tuple[nn.Module, Inputs | None]:
    return example if isinstance(example, tuple) else (example, None)


def _is_close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def _times(inputs: Inputs, factor: float) -> Inputs:
    found: Inputs = map_tensors(inputs, lambda t: t * factor if t.is_floating_point() else t)
    return found


def _double(inputs: Inputs) -> Inputs:
    found: Inputs = map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
    return found
