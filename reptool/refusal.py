"""A refusal is a value: a code, a sentence and the places it speaks of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Code(str, Enum):
    """Why a site was left alone. Each code has a test that provokes it and a line in docs/refusals.md."""

    # --- laws (kernel.py, algebra.py)
    CHANNELS = "channels"
    LAYOUT = "layout"
    STRIDE = "stride"
    EXTENT = "extent"
    BORDER_MODE = "border-mode"
    BORDER_BIAS = "border-bias"
    BORDER_READ = "border-read"
    BORDER_UNKNOWN = "border-unknown"
    CONSTANT_VALUE = "constant-value"
    # --- lifting (lift/)
    TRAINING_NORM = "training-norm"
    NO_STATISTICS = "no-statistics"
    DATA_WEIGHT = "data-weight"
    POOL_GEOMETRY = "pool-geometry"
    RANK_UNKNOWN = "rank-unknown"
    BROADCAST = "broadcast"
    DTYPE = "dtype"
    DATA_DEPENDENT = "data-dependent"
    # --- modules read by their impulse response (impulse.py, trials.py, opaque.py)
    OPAQUE = "opaque"
    NOT_AFFINE = "not-affine"
    # --- planning and ownership (analyse.py, choose.py, surgery/)
    DEARER = "dearer"
    DISTRIBUTE = "distribute"
    READ_ELSEWHERE = "read-elsewhere"
    SHARED = "shared"
    MUTATED = "mutated"
    HOOK = "hook"
    SPECIALIZED = "specialized"
    UNTRACEABLE = "untraceable"
    METHOD = "method"
    BUDGET = "budget"
    EXCLUDED = "excluded"
    RULE_OFF = "rule-off"
    # --- what was made, run beside the original (verify/), and what it would take (budget.py)
    UNVERIFIED = "unverified"
    NOT_RUN = "not-run"
    TOO_LARGE = "too-large"
    # --- lowering (lower.py)
    OVERFLOW = "overflow"
    NON_FINITE = "non-finite"


@dataclass(frozen=True)
class Refusal:
    """Why something was left as it was.

    Args:
        code: the machine-readable reason.
        sentence: what was found, in words.
        nodes: names of the graph nodes or module paths it speaks of.
    """

    code: Code
    sentence: str
    nodes: tuple[str, ...] = ()

    def at(self, *nodes: str) -> Refusal:
        """Return the same refusal naming `nodes`."""
        return replace(self, nodes=tuple(nodes))

    def __str__(self) -> str:
        where = f" [{', '.join(self.nodes)}]" if self.nodes else ""
        return f"{self.code.value}: {self.sentence}{where}"
