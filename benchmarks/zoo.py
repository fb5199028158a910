"""What deploy() leaves of public models: layers run before and after, and the error, one row a model.

    python benchmarks/zoo.py [--models NAME ...] [--threads N]

The weights are random and the batch norms calibrated. A model that deploy() cannot do has its error in the
row, and the exit code is the number of models that failed, whose predictions changed, or whose report is silent about
something that still runs.
"""

import argparse
import sys

import timm
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

import reptool
from reptool.demo.measure import measure, outputs_of, predictions
from reptool.demo.others import calibrate, input_shape, load
from reptool.testing import unnamed_sites

MODELS = (
    "test_resnet",
    "test_byobnet",
    "test_efficientnet",
    "test_nfnet",
    "test_convnext",
    "resnet18",
    "repvgg_a0",
    "mobileone_s0",
    "mobilenetv3_small_050",
    "repghostnet_050",
    "ghostnet_050",
    "fastvit_t8",
    "repvit_m1",
    "efficientvit_m0",
    "levit_128s",
    "densenet121",
    "regnety_002",
    "dla46x_c",
    "lcnet_035",
    "hgnetv2_b0",
)


def same_predictions(model: nn.Module, deployed: nn.Module, images: torch.Tensor) -> bool:
    """Whether both models give every image the same class."""
    both = [predictions(outputs_of(m, images)) for m in (model, deployed)]
    return all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def row(name: str) -> tuple[bool, list[str]]:
    """Deploy timm's model `name`: whether all is well, and the cells of its row."""
    torch.manual_seed(0)
    model = load(f"timm:{name}")
    images = torch.randn(2, *input_shape(model))
    calibrate(model, images, batches=1)
    deployed = reptool.deploy(model, images)
    before, after = measure(model, deployed, images, repeats=3)
    same = same_predictions(model, deployed, images)
    silent = len(unnamed_sites(deployed, reptool.report(deployed), images))
    counts = (
        (before.convolutions, after.convolutions),
        (before.norms, after.norms),
        (before.operations, after.operations),
    )
    return same and not silent, [
        "same" if same else "[red]differ[/red]",
        f"[red]{silent}[/red]" if silent else "0",
        *(f"{old} > {new}" for old, new in counts),
        f"{after.error / before.error:.2f}" if before.error else "-",
        f"{after.milliseconds / before.milliseconds:.2f}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="timm's names")
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch may use (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    console = Console()
    table = Table(
        title=f"PyTorch {torch.__version__}, timm {timm.__version__}",
        caption="unnamed: norms, computed weights and scales that still run and have no refusal; "
        "layers and operations run: before > after; error and latency: after / before",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("classes", no_wrap=True)
    for heading in ("unnamed", "conv", "norm", "all", "error", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    bad = 0
    for name in options.models:
        with console.status(name):
            try:
                good, cells = row(name)
            except Exception as error:  # one model's failure must not hide the others' rows
                good, cells = False, [f"[red]{type(error).__name__}[/red]"]
                console.print(f"{escape(name)}: {escape(str(error))}")
        bad += not good
        table.add_row(name, *cells)
    console.print(table)
    return bad


if __name__ == "__main__":
    sys.exit(main())
