"""A refusal is a value: a code, a sentence and the places it speaks of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Code(str, Enum):
    """Why an operation was left alone. Each code has a test that provokes it and a line in docs/refusals.md."""

    # --- laws (algebra/)
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
    RESAMPLING = "resampling"
    RANK_UNKNOWN = "rank-unknown"
    BROADCAST = "broadcast"
    DTYPE = "dtype"
    DATA_DEPENDENT = "data-dependent"
    UNREAD = "unread"
    # --- modules read by their impulse response (probing/)
    OPAQUE = "opaque"
    NOT_AFFINE = "not-affine"
    # --- planning and ownership (plan/, surgery/, safety/, report/left.py)
    NO_LAYER = "no-layer"
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
    # --- rules of the user's own (rules/)
    RULE = "rule"
    # --- what was made, run beside the original (verify/), and what it would take (algebra/budget.py)
    UNVERIFIED = "unverified"
    NOT_RUN = "not-run"
    TOO_LARGE = "too-large"
    # --- lowering (rewrite/lower.py)
    OVERFLOW = "overflow"
    NON_FINITE = "non-finite"


@dataclass(frozen=True)
class Refusal:
    """Why something was left as it was.

    Args:
        code: the machine-readable reason.
        sentence: what was found, in words.
        nodes: where: the paths of modules, an operation in a module's code as ``path: function``. While a model is
            planned, the names of graph nodes.
        lines: for each of them ``file:line`` of the code, '' where torch's own code calls the module.
    """

    code: Code
    sentence: str
    nodes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    def at(self, *nodes: str, lines: tuple[str, ...] = ()) -> Refusal:
        """Return the same refusal naming `nodes`."""
        return replace(self, nodes=tuple(nodes), lines=lines)

    def places(self) -> list[str]:
        """Each place, with the line of its code where there is one."""
        lines = self.lines or ("",) * len(self.nodes)
        return [f"{n} ({line})" if line else n for n, line in zip(self.nodes, lines, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``lines`` is there where there are any."""
        out: dict[str, Any] = {"code": self.code.value, "sentence": self.sentence, "nodes": list(self.nodes)}
        return {**out, "lines": list(self.lines)} if any(self.lines) else out

    def __str__(self) -> str:
        where = f" [{', '.join(self.places())}]" if self.nodes else ""
        return f"{self.code.value}: {self.sentence}{where}"
