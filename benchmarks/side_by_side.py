"""Side by side: what deploying and its result take, beside the original, torch.fx and timm's own conversion.

    python benchmarks/side_by_side.py [--quick] [--output FILE] [--threads N] [--rounds N] [--batches N ...] [MODEL ...]

The results run eagerly, and exported in ONNX Runtime where it is installed (which folds batch norms by itself).

Everything is timed in one process and in turns, by `torch.utils.benchmark`, as processor time, so that whatever else
the machine does weighs on all alike. A ratio is the median of the ratios of the rounds; behind it stands the interval
that holds the median in 95 of 100 cases (by order statistics, without assuming a distribution).
"""

import argparse
import io
import platform
import time
import warnings
from collections.abc import Callable
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.benchmark import Timer

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

import reptool
from reptool.demo.others import calibrate
from reptool.frontends.spec import input_shape

QUICK = ("resnet18", "repvgg_a0", "mobileone_s0")
MODELS = (
    *QUICK, "mobileone_s1", "fastvit_t8", "repvit_m1", "repghostnet_100", "ghostnetv3_100", "levit_128s",
    "inception_next_atto", "efficientnet_b0", "convnext_atto", "densenet121", "vit_tiny_patch16_224",
)  # fmt: skip
MARK = "<!-- measured: everything below is written by benchmarks/side_by_side.py -->"
Calls = dict[str, Callable[[], object]]


def rounds(calls: Calls, count: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call in each round."""
    timers = {name: Timer("call()", globals={"call": call}, timer=time.process_time) for name, call in calls.items()}
    loops = {name: max(1, round(seconds / max(timer.timeit(1).mean, 1e-6))) for name, timer in timers.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        for name, timer in timers.items():
            taken[name].append(timer.timeit(loops[name]).mean)
    return taken


def interval(values: list[float]) -> tuple[float, float]:
    """The order statistics between which the median lies in 95 of 100 cases; the extremes where there are too few."""
    n, ordered, out = len(values), sorted(values), 0
    while out < (n - 1) // 2 and 2 * sum(comb(n, k) for k in range(out + 2)) / 2**n <= 0.05:
        out += 1
    return ordered[out], ordered[n - 1 - out]


def ratio(these: list[float], those: list[float]) -> str:
    """The median of these over those, round by round, with its interval."""
    found = [a / b for a, b in zip(these, those, strict=True)]
    low, high = interval(found)
    return f"{median(found):.2f} ({low:.2f} to {high:.2f})"


def or_none(make: Callable[[], nn.Module]) -> nn.Module | None:
    """What is made, None where it cannot be."""
    try:
        return make()
    except Exception:  # torch.fx runs the model's code, which may raise anything
        return None


def deploying(model: nn.Module, count: int) -> list[str]:
    """How long three ways to deploy take, as ratios to torch.fx's fuse (in words where that cannot be)."""
    calls: Calls = {
        "bare": lambda: reptool.deploy(model, verify=False),
        "fast": lambda: reptool.deploy(model, verify="fast"),
        "full": lambda: reptool.deploy(model),
    }
    can_fuse = or_none(lambda: fuse(model)) is not None
    if can_fuse:
        calls["fx"] = lambda: fuse(model)
    taken = rounds(calls, count, 0.0)
    if can_fuse:
        return [f"{1e3 * median(taken['fx']):.0f}", *(ratio(taken[n], taken["fx"]) for n in ("bare", "fast", "full"))]
    return ["no", *(f"{1e3 * median(taken[n]):.0f} ms" for n in ("bare", "fast", "full"))]


def in_onnx_runtime(net: nn.Module, x: Tensor, threads: int) -> Callable[[], object]:
    """A call that runs a model exported to ONNX, in ONNX Runtime."""
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), written, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(written.getvalue(), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)


@torch.no_grad()
def running(model: nn.Module, x: Tensor, count: int) -> list[str]:
    """How long the original and its conversions take for a batch, as ratios to the original."""
    made = {
        "reptool": reptool.deploy(model),
        "timm": or_none(lambda: reparameterize_model(model).eval()),
        "fx": or_none(lambda: fuse(model)),
    }
    nets = {"original": model, **{name: net for name, net in made.items() if net is not None}}
    taken = rounds({name: lambda net=net: net(x) for name, net in nets.items()}, count, 0.1)  # type: ignore[misc]
    own = taken["original"]
    shown = [ratio(taken[n], own) if n in taken else "no" for n in ("reptool", "timm", "fx")]
    beside = ratio(taken["reptool"], taken["timm"]) if "timm" in taken else "no"
    return [f"{1e3 * median(own):.1f}", *shown, beside, *_in_onnx_runtime(nets, x, count)]


def _in_onnx_runtime(nets: dict[str, nn.Module], x: Tensor, count: int) -> list[str]:
    """The original's time in ONNX Runtime, and the ratios of reptool's result to it and to timm's there."""
    exported = {n: or_none(lambda net=net: in_onnx_runtime(net, x, torch.get_num_threads())) for n, net in nets.items()}  # type: ignore[misc, arg-type, return-value]
    calls: dict[str, Any] = {n: call for n, call in exported.items() if call is not None}
    if onnxruntime is None or not {"original", "reptool"} <= calls.keys():
        return ["no"] * 3
    taken = rounds(calls, count, 0.1)
    beside = ratio(taken["reptool"], taken["timm"]) if "timm" in taken else "no"
    return [f"{1e3 * median(taken['original']):.1f}", ratio(taken["reptool"], taken["original"]), beside]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(threads: int) -> str:
    """What was measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
        cpu = next(named, cpu)
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}, timm {timm.__version__}"
    if onnxruntime is not None:
        versions += f", ONNX Runtime {onnxruntime.__version__}"
    return f"{cpu}, {threads} thread{'s' * (threads > 1)}; {versions}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="timm's names (default: those of the list)")
    parser.add_argument("--quick", action="store_true", help="three models, batch 1, fewer rounds")
    parser.add_argument("--output", type=Path, help="a Markdown file whose measured part is written anew")
    parser.add_argument("--rounds", type=int, help="how often all are timed in turn")
    parser.add_argument("--batches", type=int, nargs="+", help="sizes of batches")
    parser.add_argument("--threads", type=int, default=1, help="threads that PyTorch may use (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count, batches = (6, [1]) if options.quick else (15, [1, 16])
    count, batches = options.rounds or count, options.batches or batches
    took: list[list[str]] = []
    ran: list[list[str]] = []
    for name in options.models or (QUICK if options.quick else MODELS):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        calibrate(model, torch.randn(2, *input_shape(model)), batches=1)
        took.append([name, *deploying(model, count)])
        print(*took[-1], sep="  ", flush=True)
        for batch in batches:
            ran.append([name, str(batch), *running(model, torch.randn(batch, *input_shape(model)), count)])
            print(*ran[-1], sep="  ", flush=True)
    deployed = table(["model", "fx fuse, ms", "verify=False", 'verify="fast"', "default"], took)
    head = ["model", "batch", "original, ms", "reptool", "timm", "fx fuse", "reptool / timm"]
    results = table([*head, "ONNX Runtime: original, ms", "reptool", "reptool / timm"], ran)
    text = (
        f"{MARK}\n\n{machine(options.threads)}\n\n## Deploying, beside torch.fx's fuse\n\n{deployed}\n\n"
        f"## The result, beside the original (eager, then in ONNX Runtime)\n\n{results}\n"
    )
    if options.output is not None:
        before = options.output.read_text().partition(MARK)[0]
        options.output.write_text(before + text)


if __name__ == "__main__":
    main()
