"""Measurements of a model before and after: operations, parameters, latency, error."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from reptool.ir.walk import named_tensors
from reptool.probing.operations import count_operations

__all__ = ["Measurement", "interleaved", "measure", "outputs_of", "predictions", "relative_error"]


@dataclass(frozen=True)
class Measurement:
    """One model in numbers; `error` is relative to the original model run in float64."""

    convolutions: int
    norms: int
    operations: int
    parameters: int
    milliseconds: float
    error: float


@torch.no_grad()
def outputs_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The tensors that `model` returns for `images`, whatever they are nested in."""
    return [tensor for _, tensor in named_tensors(model(images))]


def predictions(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The class of every image, for each output that is a table of logits (N, classes)."""
    return [output.argmax(1) for output in outputs if output.dim() == 2]


def relative_error(outputs: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference, in units of the largest exact value of the same output."""
    return max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)).item()
        for a, b in zip(outputs, exact, strict=True)
    )


def interleaved(calls: Sequence[Callable[[], object]], *, repeats: int, warmup: int = 3) -> list[float]:
    """The median milliseconds of each call, all of them timed in turn so that a busy machine slows all alike.

    Args:
        calls: what to time.
        repeats: rounds that count.
        warmup: rounds before them that do not.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(warmup + repeats):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn >= warmup:
                taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


@torch.no_grad()
def measure(
    original: nn.Module, deployed: nn.Module, images: Tensor, *, repeats: int = 30
) -> tuple[Measurement, Measurement]:
    """Measure both models on `images` (N, C, H, W), the latencies side by side."""
    exact = outputs_of(copy.deepcopy(original).double(), images.double())
    both = (original, deployed)
    times = interleaved([partial(model, images) for model in both], repeats=repeats)
    before, after = (_one(model, images, exact, taken) for model, taken in zip(both, times, strict=True))
    return before, after


def _one(model: nn.Module, images: Tensor, exact: Sequence[Tensor], milliseconds: float) -> Measurement:
    counts = count_operations(model, images)
    return Measurement(
        convolutions=counts["convolution"],
        norms=counts["batch norm"],
        operations=counts.total() - counts["empty"],  # asking for memory is no operation
        parameters=sum(p.numel() for p in model.parameters()),
        milliseconds=milliseconds,
        error=relative_error(outputs_of(model, images), exact),
    )
