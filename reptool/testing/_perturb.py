"""The law of soundness, tried out: after any change a deployed model gives what the original gives, or raises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from torch import nn

from reptool.errors import InputError
from reptool.ir.walk import Inputs
from reptool.testing._perturbing.change import KINDS, Change
from reptool.testing._perturbing.session import Session, Verdict


@dataclass
class Perturbed:
    """What came of the tries.

    Args:
        tried: how many sets of changes were run.
        agreed: how many of them gave the same, or the same error of the original's.
        warned: how many changed the mode and were warned of.
        raised: how many ended with an error of reptool's, by the kind of the change.
        sources: the same by what was changed.
        needless: those of them after which the original gives what it gave before: what is guarded and need not be.
        needless_kinds: the same by kind.
        seconds: how long it took.
    """

    tried: int = 0
    agreed: int = 0
    warned: int = 0
    raised: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    needless: Counter[str] = field(default_factory=Counter)
    needless_kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def count(self, changes: Sequence[Change], verdict: Verdict) -> None:
        """Count one try; what raised is told by the first change, unless there is one alone."""
        self.tried += 1
        self.agreed += verdict.sort not in ("raised", "warned")
        self.warned += verdict.sort == "warned"
        if verdict.sort == "raised":
            self.raised[changes[0].kind] += 1
            if len(changes) == 1:
                self.sources[changes[0].source] += 1
                if verdict.unchanged:
                    self.needless[changes[0].source] += 1
                    self.needless_kinds[changes[0].kind] += 1

    def __str__(self) -> str:
        return (
            f"{self.tried} tries in {self.seconds:.1f} s: {self.agreed} agreed, {self.warned} warned, "
            f"{sum(self.raised.values())} raised ({_listed(self.raised)}), "
            f"{sum(self.needless.values())} of them needlessly ({_listed(self.needless_kinds)})"
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def perturb(
    model: nn.Module,
    deployed: nn.Module,
    inputs: Inputs,
    tries: int = 100,
    seed: int = 0,
    kinds: Collection[str] | None = None,
    allow: Collection[str] = (),
    changes: Sequence[str] | None = None,
) -> Perturbed:
    """Change a model and its deployed copy alike, at random, and assert that they agree or that reptool raises.

    Changed are settings (attributes, configurations, containers, classes, globals, closures, defaults of arguments),
    the call (arguments, sizes, dtype, number of axes), mode, weights, hooks and modules; public methods and children
    are called, and copies made. Everything is undone afterwards. Public methods are really called: a model whose
    methods write files or talk to others is no model for this.

    Args:
        model: the original, as it was deployed.
        deployed: what `reptool.deploy` made of it.
        inputs: a tensor, a tuple of positional or a mapping of keyword arguments.
        tries: how many sets of one to three changes.
        seed: equal seeds give equal changes.
        kinds: which kinds of changes: names of `reptool.testing.PERTURBED_KINDS`, all if None.
        allow: faults that count as agreed: "foreign" where an error is not reptool's, "lenient" where the original
            raises and the deployed one does not.
        changes: these statements, and nothing at random: what a failure printed.

    Returns:
        Counts of what agreed and what raised, and of what raised needlessly.

    Raises:
        AssertionError: the two differ without an error of reptool's; with the fewest changes that show it.

    >>> import reptool, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    >>> perturb(model, reptool.deploy(model), torch.randn(2, 3, 8, 8), tries=20).tried
    20
    """
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise InputError(f"kinds={unknown} are not known; there are {', '.join(KINDS)}")
    start = perf_counter()
    session, found = Session(model, deployed, inputs, seed, kinds), Perturbed()
    _judged(session, [], found, allow)
    found.tried = found.agreed = 0
    if changes is not None:
        _judged(session, [Change("given", text, text) for text in changes], found, allow)
    elif session.sources:
        for _ in range(tries):
            _judged(session, session.draw(), found, allow)
    found.seconds = perf_counter() - start
    return found


def _judged(session: Session, changes: list[Change], found: Perturbed, allow: Collection[str]) -> None:
    verdict = session.judge(changes)
    if (verdict.is_fault and verdict.sort not in allow) or (verdict.sort == "raised" and not changes):
        raise AssertionError(failure_text(*(session.shrunk(changes, verdict) if changes else (changes, verdict))))
    found.count(changes, verdict)


def failure_text(changes: Sequence[Change], verdict: Verdict) -> str:
    """What is raised: the changes as statements, and what differs."""
    what = {"foreign": "raises an error that is not reptool's", "raised": "raises"}.get(
        verdict.sort, "differs and says nothing"
    )
    lines = "".join(f"\n    {change.statement}" for change in changes) or "\n    (no change at all)"
    statements = [change.statement for change in changes]
    return (
        f"the deployed model {what} after, on both as m:{lines}\n"
        f"{verdict.detail}\n"
        f"again: perturb(model, deployed, inputs, changes={statements!r})"
    )
