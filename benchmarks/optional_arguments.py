"""How long collapsing takes where layers take optional arguments, beside the same network of plain layers.

    python benchmarks/optional_arguments.py [--repeats N] [--threads N]

Toolkits wrap convolution, norm and activation into one module whose forward takes flags that hardly anybody passes
(``activate=``, ``norm=``). Two networks are built of such modules, in the layout of GCNet's and of RDRNet's blocks, and
once more of modules without flags. Ratios are to the latter: above 1 is slower.
"""

import argparse
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import reptool
from reptool.demo.measure import interleaved
from reptool.testing import randomize


class Flagged(nn.Module):
    """Convolution, norm and activation in an order that is a setting, each of which the caller may switch off."""

    def __init__(self, inside: int, outside: int, size: int, stride: int = 1, act: bool = False) -> None:
        super().__init__()
        self.order = ("conv", "norm", "act")
        self.with_norm, self.with_activation, self.norm_name = True, act, "bn"
        self.conv = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
        self.add_module(self.norm_name, nn.BatchNorm2d(outside))
        if act:
            self.activate = nn.ReLU(inplace=True)

    @property
    def norm(self) -> nn.Module:
        return getattr(self, self.norm_name)

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        for layer in self.order:
            if layer == "conv":
                x = self.conv(x)
            elif layer == "norm" and norm and self.with_norm:
                x = self.norm(x)
            elif layer == "act" and activate and self.with_activation:
                x = self.activate(x)
        return x


class Plain(Flagged):
    """The same layers in one way alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return self.activate(x) if self.with_activation else x


class Branches(nn.Module):
    """Parallel branches of two layers each, and a norm in the shortcut where the shape stays."""

    def __init__(self, kind: type[Flagged], inside: int, outside: int, stride: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(kind(inside, outside, size, stride), kind(outside, outside, 1)) for size in sizes
        )
        self.shortcut = nn.BatchNorm2d(inside) if inside == outside and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = sum(branch(x) for branch in self.branches)
        return torch.relu(y if self.shortcut is None else y + self.shortcut(x))


def network(kind: type[Flagged], sizes: tuple[int, ...], depth: tuple[int, ...]) -> nn.Module:
    """A stem and stages of such blocks, each of which halves the map and doubles the channels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [kind(3, 16, 3, 2, act=True), kind(16, 16, 3, 2, act=True)]
    width = 16
    for stage, blocks in enumerate(depth):
        for block in range(blocks):
            inside, width = width, width * 2 if block == 0 and stage else width
            layers.append(Branches(kind, inside, width, 2 if block == 0 and stage else 1, sizes))
    return randomize(nn.Sequential(*layers), 0).eval()


NETWORKS = {"like GCNet": ((3, 3, 1), (4, 4, 3)), "like RDRNet": ((3, 1), (6, 6, 6))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds whose median is shown (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads that PyTorch may use (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, x = Console(), torch.randn(1, 3, 64, 64)
    table = Table(title=f"median ms of {options.repeats} rounds of deploy, PyTorch {torch.__version__}")
    table.add_column("network")
    for heading in ("layers", "plain", "flags", "ratio"):
        table.add_column(heading, justify="right")
    for name, (sizes, depth) in NETWORKS.items():
        models = [network(kind, sizes, depth) for kind in (Plain, Flagged)]
        before, after = reptool.report(reptool.deploy(models[1], x)).layers
        with console.status(name):
            ways = [partial(reptool.deploy, model, x) for model in models]
            plain, flags = interleaved(ways, repeats=options.repeats, warmup=1)
        table.add_row(name, f"{before} -> {after}", f"{plain:.0f}", f"{flags:.0f}", f"{flags / plain:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
