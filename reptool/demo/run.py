"""The two stories the demo tells: a network trained here, and somebody else's model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

import reptool
from reptool.demo import show
from reptool.demo.data import load_digits
from reptool.demo.measure import measure, outputs_of, predictions
from reptool.demo.network import DigitNet
from reptool.demo.others import DemoError, calibrate
from reptool.demo.train import train
from reptool.frontends.spec import Spec, input_shape
from reptool.ship.export import export
from reptool.ship.runtimes import RUNTIMES

__all__ = ["collapse_and_compare", "run_digits", "run_model"]


def run_digits(console: Console, onnx_path: Path, *, epochs: int, seed: int = 0) -> bool:
    """Train the digit classifier, collapse it and return whether every test prediction stayed the same."""
    torch.manual_seed(seed)
    console.rule("Train")
    digits = load_digits(seed=seed)
    known, unseen = len(digits.train_images), len(digits.test_images)
    console.print(f"{known} images of handwritten digits to train on, {unseen} to test on")
    model = DigitNet()
    reached = train(model, digits, console, epochs=epochs, seed=seed)
    console.print(f"accuracy on the test images: {reached:.2%}")
    return collapse_and_compare(console, model, digits.test_images, onnx_path)


def run_model(console: Console, onnx_path: Path, spec: str, *, images: int = 16, seed: int = 0) -> bool:
    """Collapse the model `spec` names, return whether its predictions for random images stayed the same."""
    torch.manual_seed(seed)
    console.rule(spec)
    model = Spec.of(spec).build()
    batch = torch.randn(images, *input_shape(model))
    console.print(f"random weights, batch norms calibrated on random images; input {tuple(batch.shape)}")
    calibrate(model, batch, seed=seed)
    return collapse_and_compare(console, model, batch, onnx_path)


def collapse_and_compare(
    console: Console, model: nn.Module, images: Tensor, onnx_path: Path, *, batch: int = 8
) -> bool:
    """Deploy `model`, print what happened and return whether every prediction for `images` stayed the same.

    Args:
        console: where to print.
        model: in eval mode; left as it is.
        images: what to predict, (N, C, H, W) with N >= 2.
        onnx_path: the ONNX file to write.
        batch: images in the example input, and in each timed run.
    """
    example = images[:batch]
    before = predictions(outputs_of(model, images))
    if not before:
        name = type(model).__name__
        raise DemoError(f"{name} returns no table of logits (N, classes): there are no predictions to compare")

    console.rule("Deploy")
    deployed = reptool.deploy(model, example)
    console.print(reptool.report(deployed))

    console.rule("Compare")
    same = compare(console, "PyTorch", before, predictions(outputs_of(deployed, images)))
    made = export(deployed, example, onnx_path, overwrite=True)
    same &= compare(console, made.runtime, before, predictions(run_onnx(onnx_path, images)))
    console.print(made)
    console.print(show.comparison(*measure(model, deployed, example), batch=len(example)))
    return same


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    """The outputs of the file at `path` for `images` (N, C, H, W)."""
    return RUNTIMES[".onnx"].open(path)([images])


def compare(console: Console, what: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Print and return whether two lists of predictions are the same."""
    total = sum(p.numel() for p in before)
    same = sum(int((a == b).sum()) for a, b in zip(before, after, strict=True))
    return show.verdict(console, what, same, total)
