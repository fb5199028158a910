"""Random networks through the front ends: ``python -m tests.fuzz --programs --seconds 300``.

Each network is exported (in the training IR, in core ATen, as a graph module, to ONNX), collapsed, and run beside the
program that it was: in float64, to 1e-10; ONNX, which has no float64 convolutions in its runtime, to 2e-4.
"""

from __future__ import annotations

import io
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import reptool
from reptool.ir.walk import cloned, tensors_in
from tests.networks import network_source, random_network

EXACT, SINGLE = 1e-10, 2e-4
Runs = Callable[[], Any]


@dataclass
class Tally:
    """What happened to the networks of a run, by front end."""

    networks: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    layers: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.networks} networks"]
        for kind in FRONT_ENDS:
            counts = ", ".join(f"{n} {what}" for (k, what), n in sorted(self.outcomes.items()) if k == kind)
            layers = f"{self.layers[f'{kind} before']} -> {self.layers[f'{kind} after']} layers"
            lines.append(f"  {kind:8} {counts}; {layers}; worst error {self.worst.get(kind, 0.0):.2g}")
        return "\n".join(lines)


def _exported(model: nn.Module, args: tuple[Any, ...]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, cloned(args))


def _onnx(model: nn.Module, args: tuple[Any, ...]) -> Any:
    import onnx_ir

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, cloned(args), file, dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE, opset_version=17,
        )  # fmt: skip
    file.seek(0)
    import onnx

    return onnx_ir.from_proto(onnx.load(file))


def _run(program: Any, args: tuple[Any, ...]) -> Any:
    if isinstance(program, torch.export.ExportedProgram):
        return program.module()(*cloned(args))
    if isinstance(program, nn.Module):
        return program(*cloned(args))
    import onnx_ir
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_ir.to_proto(program).SerializeToString())
    given = {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)}
    return [torch.from_numpy(a) for a in session.run(None, given)]


FRONT_ENDS: dict[str, Callable[[nn.Module, tuple[Any, ...]], Any]] = {
    "training": _exported,
    "core": lambda model, args: _exported(model, args).run_decompositions(),
    "module": lambda model, args: _exported(model, args).module(),
    "onnx": _onnx,
}


def one(seed: int, tally: Tally) -> list[str]:
    """Take one network through every front end; a text for each failure."""
    model, inputs = random_network(seed)
    failures = []
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    tally.networks += 1
    for kind, export in FRONT_ENDS.items():
        double = kind != "onnx"
        args = cloned(given, double)
        try:
            program = export(model.double() if double else model.float(), args)
            wanted = _run(program, args)
        except Exception:
            tally.outcomes[kind, "not exported"] += 1
            continue
        try:
            made = reptool.deploy(program) if kind != "module" else reptool.deploy(program, args)
            error = _error(_run(made, args), wanted)
        except Exception:
            tally.outcomes[kind, "CRASHED"] += 1
            failures.append(f"seed {seed}, {kind}: {traceback.format_exc()}\n{network_source(seed)}")
            continue
        report = reptool.report(made)
        tally.layers[f"{kind} before"] += report.layers[0]
        tally.layers[f"{kind} after"] += report.layers[1]
        tally.worst[kind] = max(tally.worst.get(kind, 0.0), error)
        right = error <= (EXACT if double else SINGLE)
        tally.outcomes[kind, "right" if right else "WRONG"] += 1
        if not right:
            failures.append(f"seed {seed}, {kind}: off by {error:.3g}\n{network_source(seed)}")
    return failures


def _error(found: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value of each tensor."""
    pairs = list(zip(tensors_in(found), tensors_in(wanted), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max((_off(a, b) for a, b in pairs if a.numel()), default=0.0)


def _off(found: Tensor, wanted: Tensor) -> float:
    a, b = found.detach().double(), wanted.detach().double()
    off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    return float(off.max() / (b.nan_to_num(0, 0, 0).abs().max() + 1e-9))


def run(
    seeds: Iterable[int], *, seconds: float | None = None, show: Callable[[str], None] | None = None
) -> tuple[Tally, list[str]]:
    """Check networks one after another, as `tests.fuzz.run`."""
    tally, failures = Tally(), list[str]()
    end = None if seconds is None else time.monotonic() + seconds
    for seed in seeds:
        if end is not None and time.monotonic() > end:
            break
        found = one(seed, tally)
        failures += found
        for text in found if show is not None else ():
            show(text)  # type: ignore[misc]
    return tally, failures


def main(seconds: float | None, count: int | None, first: int) -> int:
    """Run and print."""
    wanted = count or (10**9 if seconds else 100)
    tally, failures = run(range(first, first + wanted), seconds=seconds, show=lambda text: print(text, flush=True))
    print(f"seeds {first} to {first + tally.networks - 1}")
    print(tally)
    return 1 if failures else 0
