"""How long collapsing takes beside torch.fx's own folding of batch norms, on public models.

    python benchmarks/fuse_times.py [--models NAME ...] [--repeats N] [--threads N]

Timed in turn on each model: `torch.fx.experimental.optimization.fuse`, `reptool.deploy(model, verify=False)`
and `reptool.deploy(model)`. Each leaves the model as it is and returns another, so copying it is part of the
time. Models that torch.fx cannot trace are named and skipped. Ratios are to torch.fx: above 1 is slower.
"""

import argparse
from functools import partial

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.fx.experimental.optimization import fuse

import reptool
from reptool.demo.measure import interleaved
from reptool.demo.others import calibrate, input_shape, load

MODELS = (
    "resnet18",
    "repvgg_a0",
    "mobileone_s0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "densenet121",
    "hrnet_w18_small",
    "ghostnet_100",
    "levit_128s",
)


def why_not_fx(model: nn.Module) -> str | None:
    """What torch.fx says against fusing `model`, or None."""
    try:
        fuse(model)
    except Exception as error:  # tracing runs the model's code, which may raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def times(model: nn.Module, repeats: int) -> list[float]:
    """The median milliseconds of the three ways."""
    deploy = partial(reptool.deploy, model)
    return interleaved([partial(fuse, model), partial(deploy, verify=False), deploy], repeats=repeats, warmup=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="timm's names")
    parser.add_argument("--repeats", type=int, default=5, help="rounds whose median is shown (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch may use (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    console = Console()
    table = Table(title=f"median ms of {options.repeats} rounds, PyTorch {torch.__version__}, timm {timm.__version__}")
    table.add_column("model")
    for heading in ("torch.fx fuse", "unverified deploy", "ratio", "deploy", "ratio"):
        table.add_column(heading, justify="right")
    for name in options.models:
        torch.manual_seed(0)
        model = load(f"timm:{name}")
        calibrate(model, torch.randn(2, *input_shape(model)), batches=1)
        with console.status(name):
            if reason := why_not_fx(model):
                console.print(f"{name}: skipped, torch.fx cannot do it", f"({reason})", markup=False)
                continue
            fx, bare, full = times(model, options.repeats)
        table.add_row(name, f"{fx:.0f}", f"{bare:.0f}", f"{bare / fx:.2f}", f"{full:.0f}", f"{full / fx:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
