"""How far a deployed float32 model is from float64, beside the original one, on public models.

    python benchmarks/accuracy.py [--models NAME ...] [--inputs N] [--size PIXELS] [--threads N]

Both float32 models are compared with the original in float64 on the same random images. The error of a model on one
input is the largest difference divided by the largest exact value; shown are its median over the inputs, and the
median and the worst of the ratios *deployed / original*. Around 1 means: folding cost no accuracy. Each input is
normalized by itself, and one input of a badly conditioned model can be 3 times better or worse by chance alone.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import reptool
from reptool.demo.measure import outputs_of, relative_error
from reptool.demo.others import calibrate, input_shape, load

MODELS = (
    "resnet18",
    "repvgg_a0",
    "mobileone_s0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "mixnet_s",
    "fastvit_t8",
    "ghostnet_100",
    "nfnet_l0",
    "regnetx_002",
    "densenet121",
)


def errors(model: nn.Module, deployed: nn.Module, inputs: Sequence[torch.Tensor]) -> list[tuple[float, float]]:
    """For each input the error of the original and of the deployed model."""
    double = copy.deepcopy(model).double()
    found = []
    for images in inputs:
        exact = outputs_of(double, images.double())
        own, other = (relative_error(outputs_of(m, images), exact) for m in (model, deployed))
        found.append((own, other))
    return found


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="timm's names")
    parser.add_argument("--inputs", type=int, default=5, help="inputs per model (default: 5)")
    parser.add_argument("--size", type=int, help="height and width of the images (default: the model's own)")
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch may use (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    console = Console()
    table = Table(title=f"errors against float64, {options.inputs} inputs a model, PyTorch {torch.__version__}")
    table.add_column("model")
    for heading in ("regions", "original", "deployed", "median ratio", "worst ratio"):
        table.add_column(heading, justify="right")
    ratios: list[float] = []
    for name in options.models:
        torch.manual_seed(0)
        model = load(f"timm:{name}")
        channels, *size = input_shape(model)
        shape = (2, channels, *((options.size, options.size) if options.size else size))
        calibrate(model, torch.randn(shape))
        with console.status(name):
            deployed = reptool.deploy(model)
            found = errors(model, deployed, [torch.randn(shape) for _ in range(options.inputs)])
        own, other = ([e[i] for e in found] for i in (0, 1))
        each = [b / a for a, b in found]
        ratios += each
        table.add_row(
            name,
            str(len(reptool.report(deployed).regions)),
            f"{statistics.median(own):.1e}",
            f"{statistics.median(other):.1e}",
            f"{statistics.median(each):.2f}",
            f"{max(each):.2f}",
        )
    table.add_section()
    table.add_row("all", "", "", "", f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
