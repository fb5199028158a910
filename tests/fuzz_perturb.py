"""Random networks with settings, deployed and then changed alike: ``python -m tests.fuzz --perturb --seconds 300``."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

import reptool
from reptool.errors import ReptoolError
from reptool.testing._equivalence import _cast
from reptool.testing._perturb import Perturbed, failure_text
from reptool.testing._perturbing.session import Session
from tests.network_settings import settings_source
from tests.networks import build

TRIES = 100


@dataclass
class Tally:
    """What happened to the networks of a run: faults by sort and kind, in how many networks; what raised."""

    networks: int = 0
    regions: int = 0
    crashes: int = 0
    seconds: float = 0.0
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    networks_with: Counter[tuple[str, str]] = field(default_factory=Counter)
    found: Perturbed = field(default_factory=Perturbed)

    def __str__(self) -> str:
        lines = [
            f"{self.networks} networks, {self.regions} regions, {self.crashes} crashes of deploy; "
            f"{60 * self.networks / max(self.seconds, 1e-9):.0f} networks and "
            f"{60 * self.found.tried / max(self.seconds, 1e-9):.0f} tries a minute",
            str(self.found),
        ]
        for (sort, kind), count in sorted(self.faults.items(), key=lambda item: (item[0][0], -item[1])):
            lines.append(f"  {sort:8} {kind:12} {count:6} tries in {self.networks_with[sort, kind]} networks")
        return "\n".join(lines)


def perturbed(
    source: str, seed: int, tally: Tally, tries: int = TRIES, kinds: Collection[str] | None = None
) -> dict[tuple[str, str], str]:
    """Deploy one network and change it: the first failure of each sort and kind, with the fewest changes.

    Args:
        source: as `settings_source` gives it.
        seed: of statistics and changes.
        tally: what is counted.
        tries: how many sets of changes.
        kinds: which, all if None.
    """
    model, inputs = build(source, seed)
    model, inputs = model.double(), _cast(inputs, torch.float64)
    deployed = reptool.deploy(model, inputs if seed % 2 else None)
    tally.regions += len(reptool.report(deployed).regions)
    session = Session(model, deployed, inputs, seed, kinds)
    failures: dict[tuple[str, str], str] = {}
    for count in range(tries + 1):
        changes = session.draw() if count and session.sources else []
        verdict = session.judge(changes)
        if verdict.is_fault:
            if changes:
                changes, verdict = session.shrunk(changes, verdict)
            key = verdict.sort, changes[-1].kind if changes else "none"
            tally.faults[key] += 1
            failures.setdefault(key, failure_text(changes, verdict))
            tally.found.tried += 1
        elif changes:
            tally.found.count(changes, verdict)
    tally.networks_with.update(list(failures))
    return failures


def run(
    seeds: Collection[int] | range,
    *,
    seconds: float | None = None,
    tries: int = TRIES,
    kinds: Collection[str] | None = None,
    show: Callable[[str], None] | None = None,
) -> tuple[Tally, dict[tuple[str, str], str]]:
    """Perturb networks one after another.

    Args:
        seeds: which.
        seconds: stop after so long.
        tries: for each network.
        kinds: which kinds of changes, all if None.
        show: called with the text of the first failure of each sort and kind.

    Returns:
        Counts, and the first failure of each sort and kind.
    """
    tally, first = Tally(), {}
    start = time.monotonic()
    for seed in seeds:
        if seconds is not None and time.monotonic() - start > seconds:
            break
        source = settings_source(seed)
        tally.networks += 1
        try:
            failures = perturbed(source, seed, tally, tries, kinds)
        except ReptoolError:
            continue
        except Exception:
            tally.crashes += 1
            failures = {("crash", "deploy"): traceback.format_exc()}
        for key, text in failures.items():
            if key not in first:
                first[key] = f"seed {seed}: {text}\n{source}"
                if show is not None:
                    show(f"{key[0].upper()} {key[1]}, {first[key]}")
    tally.seconds = tally.found.seconds = time.monotonic() - start
    return tally, first


def main(seconds: float | None, count: int | None, first: int, tries: int, kinds: Collection[str] | None) -> int:
    """Run and print; 1 if the deployed networks differed without an error."""
    tally, failures = run(
        range(first, first + (count or (10**9 if seconds else 100))),
        seconds=seconds,
        tries=tries,
        kinds=kinds,
        show=lambda text: print(text, flush=True),
    )
    print(f"seeds {first} to {first + tally.networks - 1}")
    print(tally)
    return 1 if failures else 0
