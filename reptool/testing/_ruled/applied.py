"""A rule applied to one network: it fires where it has to, and what it makes gives what the network gives."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reptool.api.deploy import deploy
from reptool.api.flat.flatten import flatten_model
from reptool.api.flat.rewriting import rewritten
from reptool.api.reporting import report
from reptool.errors import RegionWarning, ReptoolError, RuleError
from reptool.frontends.inputs import example_arguments
from reptool.ir.walk import Inputs, call, map_tensors, tensors_in
from reptool.models.copies import full_copy
from reptool.plan.options import Options
from reptool.plan.rules import RULES
from reptool.report.fields import Found
from reptool.rules.lifting import Lift
from reptool.rules.rule import Rule
from reptool.testing._equivalence import assert_equivalent

SCALES = (1.0, -1.0, 300.0, 1e-4)


class Applied:
    """A rule, and what is asked of each network that it is applied to.

    Args:
        rule: what `assert_rule` was given.
        name: of it, as reports name it.
    """

    def __init__(self, rule: Any, name: str) -> None:
        self.rule, self.name = rule, name

    def right(self, where: str, model: nn.Module, given: Inputs, fires: bool | None) -> nn.Module:
        """Apply the rule and compare; nothing is asked of a network that does not run.

        Args:
            where: what is special about the network.
            model: in float64.
            given: what it reads.
            fires: whether the rule has to fire; None where either will do.
        """
        if fires is None and not runs(model, given):
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
        with self.told(where):
            return deploy(model, given, rules=(*RULES, self.rule), flatten=flatten)

    @contextmanager
    def told(self, where: str) -> Iterator[None]:
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
        self.close(where, model, deployed, given, vary=True)
        self._without_batch(where, model, deployed, given)
        self._in_float32(where, model, given)

    def close(self, where: str, model: nn.Module, deployed: nn.Module, given: Inputs, vary: bool) -> None:
        """Compare the outputs at many sizes and scales of the inputs."""
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

    def rewrites(self, model: nn.Module, given: Inputs) -> bool:
        """Whether a rule acts on the network as it stands, before anything affine is fused."""
        return not isinstance(self.rule, Lift) and self.rewritten(model, given) is not None

    def rewritten(self, model: nn.Module, given: Inputs) -> nn.Module | None:
        """What a rule alone makes of a network; None where it does nothing."""
        args, kwargs = example_arguments(given, model)
        flat = flatten_model(full_copy(model), args, kwargs)
        made = rewritten(flat, Options(rewrites=(self.rule,)), args, kwargs, Found(""))
        return None if made is flat else made

    def is_lifted(self, model: nn.Module) -> bool:
        """Whether the rule says what this module is."""
        targets = self.rule.targets if isinstance(self.rule, Lift) else ()
        return any(isinstance(t, type) and isinstance(model, t) for t in targets)


def _held(rule: Any) -> dict[str, int]:
    """What a rule holds, by identity."""
    return {k: id(v) for k, v in vars(rule).items()} if isinstance(rule, Rule) else {}


def runs(model: nn.Module, given: Inputs) -> bool:
    """Whether a copy of a network takes these inputs."""
    try:
        call(full_copy(model), given)
    except Exception:  # whatever its code raises
        return False
    return True


def _is_close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def _times(inputs: Inputs, factor: float) -> Inputs:
    found: Inputs = map_tensors(inputs, lambda t: t * factor if t.is_floating_point() else t)
    return found
