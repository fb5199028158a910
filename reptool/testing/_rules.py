"""`assert_rule`: is a rule right wherever it fires, and does it fire where it should and nowhere else?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reptool.testing._ruled.trial import Examples, Picks, Trial

try:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
except ImportError as error:  # pragma: no cover
    raise ImportError("assert_rule needs Hypothesis: pip install 'reptool[test]'") from error


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

    >>> import torch
    >>> from torch import nn
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
    trial = Trial(rule, _name(rule), makes, misses)
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
