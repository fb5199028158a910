"""Deploy random whole networks and compare: ``python -m tests.fuzz --seconds 300`` (or ``--count 2000``).

Prints what was fused and refused, and for each failure its seed and source. Exit code 1 if there was any.

With ``--perturb`` the networks ask settings, and these, their calls, weights and hooks are changed after deploying
(`tests.fuzz_perturb`).
"""

from __future__ import annotations

import argparse
import copy
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reptool
from reptool.errors import InputError
from reptool.ir.walk import map_tensors
from reptool.testing import assert_equivalent, other_sizes, tensors_in
from reptool.testing._equivalence import Inputs, _call, _cast
from tests import fuzz_perturb, fuzz_programs
from tests.networks import build, network_source

FLOAT32_FACTOR, FLOAT32_FLOOR = 10.0, 3e-5
"""Allowed float32 error: so many times what rounding moves the original's output, or this part of an output's size."""
MOVES = 4
"""Draws of a rounding step for every input, parameter and buffer."""
TOO_SMALL = 4
"""Pixels on an axis of which a crop may leave nothing."""


class Mismatch(AssertionError):
    """The deployed network computes something else, or the original was changed."""


@dataclass
class Tally:
    """What happened to the networks of a run."""

    networks: int = 0
    mismatches: int = 0
    crashes: int = 0
    regions: int = 0
    fused: int = 0  # networks with at least one region
    more: int = 0  # networks in which a second plan would find another
    refusals: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0

    def __str__(self) -> str:
        refused = ", ".join(f"{code} {count}" for code, count in self.refusals.most_common())
        return (
            f"{self.networks} networks: {self.mismatches} mismatches, {self.crashes} crashes; "
            f"{self.regions} regions in {self.fused} networks ({self.more} would gain by a second plan); "
            f"largest relative error {self.worst:.2g}\n"
            f"refused: {refused or 'nothing'}"
        )


def _effects(function: Callable[..., Any]) -> Callable[..., Any]:
    """Outputs and what the call made of its inputs: writes in place are part of what a network does."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return {"output": function(*args, **kwargs), "inputs": [args, dict(sorted(kwargs.items()))]}

    return run


def _but_too_small(deployed: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """`deployed`; on images of which a crop leaves nothing it may raise: no convolution gives an empty image."""

    def run(*args: Any, **kwargs: Any) -> Any:
        kept = copy.deepcopy((args, kwargs))
        try:
            return deployed(*args, **kwargs)
        except RuntimeError as error:
            smallest = min(n for _, t in tensors_in([args, kwargs]) for n in t.shape[2:])
            if smallest > TOO_SMALL or "can't be greater than actual input size" not in str(error):
                raise
            return original(*kept[0], **kept[1])

    return run


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _same_state(model: nn.Module, before: dict[str, Tensor], what: str) -> None:
    now = model.state_dict()
    if list(now) != list(before):
        raise Mismatch(f"{what}: keys changed: {sorted(set(now) ^ set(before))}")
    for key, value in now.items():
        if value.dtype != before[key].dtype or not torch.equal(value.nan_to_num(), before[key].nan_to_num()):
            raise Mismatch(f"{what}: {key} changed")


def _same_bits(wanted: Any, given: Any, what: str) -> None:
    for (path, a), (_, b) in zip(tensors_in(wanted), tensors_in(given), strict=True):
        if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise Mismatch(f"{what}: {path} changed")


def _error(exact: Any, given: Any) -> float:
    worst = 0.0
    for (_, a), (_, b) in zip(tensors_in(exact), tensors_in(given), strict=True):
        if a.is_floating_point() and a.numel():
            worst = max(worst, float((a - b.double()).abs().max() / a.abs().max().clamp_min(1e-30)))
    return worst


def _step(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Every number moved by up to one rounding step of float32."""
    if not tensor.is_floating_point():
        return tensor
    step = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return tensor * (1 + torch.finfo(torch.float32).eps * step)


def _moved(double: nn.Module, seed: int) -> nn.Module:
    """A network whose parameters and buffers are rounded otherwise."""
    moved, generator = copy.deepcopy(double), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*moved.parameters(), *moved.buffers()):
            tensor.copy_(_step(tensor, generator))
    return moved


class _Rounding(TorchDispatchMode):
    """Every value that is computed is moved by a rounding step of float32, as it would be if it were held in it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        for _, made in tensors_in(out):
            if made.is_floating_point():
                made.copy_(_step(made, self.generator))
        return out


def conditioning(double: nn.Module, case: Inputs, exact: Any) -> float:
    """How far an output moves when inputs, weights and all that is computed of them move by a rounding step.

    It is the same number on every processor, since the steps are drawn and the rest is computed in float64.

    The error that a network happens to make at one input may be small by luck, and another one on the next machine.
    """
    found = 0.0
    for seed in range(MOVES):
        generator = torch.Generator().manual_seed(seed)
        moved = map_tensors(case, lambda t, g=generator: _step(t, g))  # type: ignore[misc]
        other = _moved(double, seed)
        with _Rounding(seed):
            found = max(found, _error(exact, _call(other, moved)))
    return found


def _check_float32(model: nn.Module, double: nn.Module, inputs: Inputs, deployed: nn.Module) -> None:
    """The deployed float32 network is as close to the exact outputs as rounding lets the original one be."""
    for case in [inputs, *other_sizes(inputs)]:
        wide = _cast(case, torch.float64)
        try:
            exact = _call(double, wide)
            own = _error(exact, _call(model, case))
        except Exception:
            continue
        error = _error(exact, _call(_but_too_small(deployed, model), case))
        if error <= FLOAT32_FLOOR:
            continue
        moves = conditioning(double, wide, exact)
        if not error <= FLOAT32_FACTOR * moves:
            shapes = [tuple(t.shape) for _, t in tensors_in(case)]
            raise Mismatch(
                f"float32 at {shapes}: error {error:.3g}, that of the original {own:.3g}; "
                f"rounding moves it by {moves:.3g}"
            )


def check(source: str, seed: int, float32: bool = True) -> tuple[Any, float, bool]:
    """Deploy one network and compare everything.

    Args:
        source: as `network_source` gives it.
        seed: of statistics and options.
        float32: also deploy it in float32.

    Returns:
        The report, the largest relative error in float64, and whether a second plan would find more to fuse.

    Raises:
        Mismatch: what differs. Any other exception is a crash of `deploy` or of the deployed network.
    """
    model, inputs = build(source, seed)
    double = copy.deepcopy(model).double()
    wide = _cast(inputs, torch.float64)
    before, outputs = _state(double), _call(double, wide)
    names = [name for name, _ in double.named_modules()]
    example = wide if seed % 2 or seed % 11 == 10 else None  # one graph has the arguments it was made with
    kept = copy.deepcopy(wide)
    try:
        deployed = reptool.deploy(double, example, flatten=seed % 11 == 10)
    except InputError:  # what cannot be one graph says so
        if seed % 11 != 10:
            raise
        deployed = reptool.deploy(double, example)
    _same_bits(kept, wide, "the example inputs")
    _same_state(double, before, "the original")
    _same_bits(outputs, _call(double, wide), "the original")
    if [name for name, _ in double.named_modules()] != names:
        raise Mismatch("the original's modules changed")
    try:
        other = _but_too_small(deployed, double)
        worst = assert_equivalent(_effects(double), _effects(other), wide, rtol=1e-8, atol=1e-11, dtype=None)
    except AssertionError as error:
        raise Mismatch(str(error)) from error
    again = reptool.deploy(deployed, example)
    _same_state(again, _state(deployed), "deploying twice")
    _same_bits(_call(deployed, wide), _call(again, wide), "deploying twice")
    more = bool(reptool.explain(deployed, example).regions)  # found by a second look that remembers nothing
    if float32:
        _check_float32(model, double, inputs, reptool.deploy(model))
    return reptool.report(deployed), worst, more


def _one(seed: int, ops: Collection[str] | None, float32: bool, tally: Tally) -> str | None:
    """Check one network; the text of its failure, if it fails."""
    source = network_source(seed, ops)
    tally.networks += 1
    try:
        report, worst, more = check(source, seed, float32)
    except Mismatch as error:
        tally.mismatches += 1
        return f"MISMATCH seed {seed}: {error}\n{source}"
    except Exception:
        tally.crashes += 1
        return f"CRASH seed {seed}\n{traceback.format_exc()}\n{source}"
    tally.worst, tally.more = max(tally.worst, worst), tally.more + more
    tally.regions += len(report.regions)
    tally.fused += bool(report.regions)
    tally.refusals.update(refusal.code.value for refusal in report.refusals)
    return None


def run(
    seeds: Collection[int] | range,
    *,
    seconds: float | None = None,
    ops: Collection[str] | None = None,
    float32: bool = True,
    show: Callable[[str], None] | None = None,
) -> tuple[Tally, list[str]]:
    """Check networks one after another.

    Args:
        seeds: which.
        seconds: stop after so long.
        ops: names of the steps and blocks to use, all when None.
        float32: also compare in float32.
        show: called with the text of each failure as it is found.
    """
    tally, failures = Tally(), []
    end = None if seconds is None else time.monotonic() + seconds
    for seed in seeds:
        if end is not None and time.monotonic() > end:
            break
        failure = _one(seed, ops, float32, tally)
        if failure is not None:
            failures.append(failure)
            if show is not None:
                show(failure)
    return tally, failures


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--count", type=int, help="how many networks (1000 if --seconds is not given)")
    parser.add_argument("--seed", type=int, default=None, help="the first seed (default: from the clock)")
    parser.add_argument("--ops", nargs="*", help="use these steps and blocks only")
    parser.add_argument("--perturb", action="store_true", help="change deployed networks and their originals alike")
    parser.add_argument("--programs", action="store_true", help="through exported programs and ONNX")
    parser.add_argument("--tries", type=int, default=fuzz_perturb.TRIES, help="changes of each network, with --perturb")
    parser.add_argument("--kinds", nargs="*", help="kinds of changes, with --perturb (all if not given)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first = int(time.time()) % 10**8 if arguments.seed is None else arguments.seed
    if arguments.perturb:
        return fuzz_perturb.main(arguments.seconds, arguments.count, first, arguments.tries, arguments.kinds)
    if arguments.programs:
        return fuzz_programs.main(arguments.seconds, arguments.count, first)
    count = arguments.count or (10**9 if arguments.seconds else 1000)
    tally, failures = run(
        range(first, first + count),
        seconds=arguments.seconds,
        ops=arguments.ops,
        show=lambda text: print(text, flush=True),
    )
    print(f"seeds {first} to {first + tally.networks - 1}")
    print(tally)
    for failure in failures:
        print(failure.splitlines()[0])
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
