"""The price beside the clock: what more than 200 forms take on this machine, and the numbers of the price fitted to it.

    python benchmarks/forms_cost.py [--threads N] [--rounds N] [--save FILE | --read FILE]

Each form is one operation as a plan prices it: a convolution (dense, depthwise, with several rows for each channel, in
groups), a linear layer, a batch norm, an average pooling, a sum, a concatenation. All are timed in turns, as processor
time, the least of all rounds. `reptool.Costs` is then fitted so that the logarithms of price and time differ least, in
multiplications of a dense convolution. Shown are the numbers that are the default and those of this machine, how far
either is off for each kind, and pairs of forms as they stand and as one layer, with what the default chooses.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

import reptool
from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.blocks import RepNeXtUnit, RepVGGBlock
from reptool.ir.ops import Affine, Concat, Op, Sum
from reptool.plan.cost import Costs, layer_price, op_price

SECONDS = 0.004
"""How long one form runs in one round."""
FREE = tuple(f.name for f in fields(Costs) if f.name != "rows")
"""The numbers that are fitted: the price is a sum of them."""
NOTHING = dict.fromkeys(FREE, 0.0)
Timed = tuple[str, str, Callable[[], Tensor], dict[str, float]]


@dataclass
class Form:
    """One operation.

    Args:
        kind: dense, depthwise, multiplied (several rows for each channel), grouped, linear, pool, norm, sum, concat.
        name: in words.
        parts: how often each number of the price is counted in it; "" for what is counted once.
        seconds: the least that was measured.
    """

    kind: str
    name: str
    parts: dict[str, float]
    seconds: float = float("inf")

    def price(self, costs: dict[str, float]) -> float:
        """The price by these numbers."""
        return self.parts[""] + sum(costs[n] * self.parts[n] for n in FREE)


def parts(price: Callable[[Costs], float]) -> dict[str, float]:
    """How often each number is counted in a price, found by the price itself."""
    free = price(Costs(**NOTHING))  # type: ignore[arg-type]
    big = 2.0**20
    alone = {n: (price(Costs(**{**NOTHING, n: big})) - free) / big for n in FREE}  # type: ignore[arg-type]
    return {"": free, **alone}


# --- forms ----------------------------------------------------------------------------------------------------------
def conv(reads: int, writes: int, kernel: tuple[int, int], groups: int = 1, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of an image."""
    return nn.Conv2d(reads, writes, kernel, stride, (kernel[0] // 2, kernel[1] // 2), groups=groups)


def layers() -> list[tuple[str, nn.Conv2d | nn.Linear, tuple[int, ...]]]:
    """Layers of many sizes, with the shapes of what they read."""
    out: list[tuple[str, nn.Conv2d | nn.Linear, tuple[int, ...]]] = []
    for c, n in ((16, 112), (32, 56), (64, 56), (64, 28), (128, 28), (128, 14), (256, 14), (256, 7), (512, 7)):
        x, tall = (1, c, n, n), ((3, 3), (5, 5), (7, 7), (9, 9), (1, 5), (5, 1), (1, 11), (11, 1), (1, 1))
        out += [("dense", conv(c, c, k), x) for k in ((1, 1), (3, 3), (1, 3), (5, 5))]
        out += [("dense", conv(c, 2 * c, (1, 1)), x), ("dense", conv(c, c, (3, 3), stride=2), x)]
        out += [("depthwise", conv(c, c, k, c), x) for k in tall]
        out += [("multiplied", conv(c, m * c, k, c), x) for m, k in ((2, (3, 3)), (2, (1, 5)), (4, (3, 3)))]
        out += [("grouped", conv(c, c, (3, 3), groups), x) for groups in (2, c // 8, c // 2)]
        out.append(("linear", nn.Linear(c, 4 * c), (1, n * n, c)))
    return out


def kernel_of(layer: nn.Conv2d | nn.Linear) -> Kernel:
    """The shape of a layer."""
    if isinstance(layer, nn.Linear):
        return Kernel(Channels.grouped(layer.in_features, layer.out_features), ())
    axes = tuple(
        Axis(k, s, 1, p, p)
        for k, s, p in zip(layer.kernel_size, layer.stride, layer.padding, strict=True)  # type: ignore[arg-type]
    )
    return Kernel(Channels.grouped(layer.in_channels, layer.out_channels, layer.groups), axes)


def forms() -> list[tuple[Form, Callable[[], Tensor]]]:
    """All forms, with calls that run them."""
    out: list[tuple[Form, Callable[[], Tensor]]] = []
    for kind, layer, size in layers():
        kernel, positions = kernel_of(layer), size[2:] if isinstance(layer, nn.Conv2d) else size[1:2]
        held = parts(lambda c, k=kernel, p=positions: layer_price(k, p, c).total)  # type: ignore[misc]
        stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
        shown = f"{kind} {tuple(layer.weight.shape)}, stride {stride}, at {size}"
        out.append((Form(kind, shown, held), partial(layer, torch.randn(size))))
    source = fx.Graph().placeholder("x")
    for c, n in ((16, 112), (32, 56), (64, 56), (128, 28), (256, 14), (512, 7)):
        x, z, plain = torch.randn(1, c, n, n), torch.randn(1, c, n, n), Kernel(Channels.grouped(c, c, c), None)

        def affine(paradigm: str, cost: int, kernel: Kernel = plain) -> Affine:
            return Affine(source, kernel, lambda: kernel, (), paradigm=paradigm, cost=cost)

        stands: list[tuple[str, Op, Callable[[], Tensor]]] = [
            ("norm", affine("bn", 1), partial(nn.BatchNorm2d(c).eval(), x)),
            ("sum", Sum([source, source], [None, None]), partial(torch.add, x, z)),
            ("concat", Concat([source, source], 2), partial(torch.cat, [x, z], 1)),
        ]
        stands += [("pool", affine("avg_pool", k * k), partial(nn.AvgPool2d(k, 1, k // 2), x)) for k in (3, 5)]
        for kind, op, call in stands:
            held = parts(lambda costs, op=op, c=c, n=n: op_price(op, (n, n), c, costs).total)  # type: ignore[misc]
            out.append((Form(kind, f"{kind} at {c}x{n}x{n}", held), call))
    return out


@torch.no_grad()
def least(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """The least time of each call, in rounds in which all are timed in turn."""
    loops, taken = [], [float("inf")] * len(calls)
    for call in calls:
        call()
        start = time.process_time()
        call()
        loops.append(max(1, round(SECONDS / max(time.process_time() - start, 1e-6))))
    for _ in range(rounds):
        for i, (call, count) in enumerate(zip(calls, loops, strict=True)):
            start = time.process_time()
            for _ in range(count):
                call()
            taken[i] = min(taken[i], (time.process_time() - start) / count)
    return taken


# --- the fit --------------------------------------------------------------------------------------------------------
def fitted(measured: list[Form]) -> dict[str, float]:
    """The numbers by which the logarithms of price and time differ least."""
    counts = torch.tensor([[f.parts[n] for n in FREE] for f in measured], dtype=torch.float64)
    free = torch.tensor([f.parts[""] for f in measured], dtype=torch.float64)
    took = torch.tensor([f.seconds for f in measured], dtype=torch.float64).log()
    begin = asdict(Costs())
    logs = torch.tensor([begin[n] for n in FREE], dtype=torch.float64).log().requires_grad_()

    def loss() -> Tensor:
        off = (free + counts @ logs.exp()).log() - took
        return (off - off.mean()).square().mean()

    search = torch.optim.LBFGS([logs], max_iter=300, line_search_fn="strong_wolfe")

    def step() -> float:
        search.zero_grad()
        found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        return float(found.detach())

    search.step(step)
    return dict(zip(FREE, logs.detach().exp().tolist(), strict=True))


def errors(measured: list[Form], costs: dict[str, float]) -> dict[str, tuple[float, float, float]]:
    """By kind: the least, the median and the largest of price over time, in units of the median of all."""
    ratios = [f.price(costs) / f.seconds for f in measured]
    unit, out = median(ratios), dict[str, tuple[float, float, float]]()
    for kind in dict.fromkeys(f.kind for f in measured):
        own = [r / unit for r, f in zip(ratios, measured, strict=True) if f.kind == kind]
        out[kind] = min(own), median(own), max(own)
    return out


# --- pairs ----------------------------------------------------------------------------------------------------------
class Both(nn.Module):
    """Two layers of one value, concatenated."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        return torch.cat([self.one(x), self.other(x)], 1)


def pairs() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Forms that are one layer or stay several, with the shapes of what they read."""
    c, x = 64, (1, 64, 56, 56)

    def deep(*kernel: int, padding: int | tuple[int, int] = 0) -> nn.Conv2d:
        return nn.Conv2d(c, c, (kernel[0], kernel[-1]), padding=padding, groups=c)

    pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(c))
    return {
        "RepNeXt's unit (depthwise 7, 5, 3 on chunks)": (RepNeXtUnit(c), x),
        "RepNeXt's unit, batch 8": (RepNeXtUnit(c), (8, 64, 56, 56)),
        "depthwise 1x5, then 5x1": (nn.Sequential(deep(1, 5, padding=(0, 2)), deep(5, 1)), x),
        "depthwise 3x3, then 3x3": (nn.Sequential(deep(3, padding=1), deep(3)), x),
        "average pooling, then a norm": (pool, x),
        "two depthwise 3x3, concatenated": (Both(deep(3, padding=1), deep(3, padding=1)), x),
        "depthwise 3x3, then 1x1": (nn.Sequential(deep(3, padding=1), nn.Conv2d(c, c, 1)), x),
        "1x1 to 16 channels, then 1x1 back": (nn.Sequential(nn.Conv2d(c, 16, 1), nn.Conv2d(16, c, 1)), x),
        "3x3, then 3x3": (nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3)), x),
        "RepVGG block": (RepVGGBlock(c, c, 3, padding=1), x),
    }


def decided(rounds: int) -> list[tuple[str, float, float, bool]]:
    """Each pair: milliseconds as it stands and as one layer, and whether the default makes it one."""
    out = []
    for name, (model, size) in pairs().items():
        torch.manual_seed(0)
        model, x = model.eval(), torch.randn(size)
        merged = reptool.deploy(model, force=True, verify=False)
        kept, one = least([partial(model, x), partial(merged, x)], rounds)
        out.append((name, 1e3 * kept, 1e3 * one, bool(reptool.explain(model).regions)))
    return out


def shown(rows: list[list[str]], title: str) -> Table:
    """A table; its first row is the head."""
    table = Table(title=title)
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads that PyTorch may use (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each form is timed (default: 5)")
    parser.add_argument("--save", type=Path, help="where the measured forms go, as JSON")
    parser.add_argument("--read", type=Path, help="forms that were measured before, which are fitted again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held = forms()
    measured = [form for form, _ in held]
    if options.read is not None:
        taken = json.loads(options.read.read_text())
        measured = [Form(f.kind, f.name, f.parts, taken[f.name]) for f in measured if f.name in taken]
    else:
        for form, seconds in zip(measured, least([call for _, call in held], options.rounds), strict=True):
            form.seconds = seconds
    if options.save is not None:
        options.save.write_text(json.dumps({f.name: f.seconds for f in measured}, indent=1))
    default, own = asdict(Costs()), fitted(measured)
    console = Console(width=110)
    rows = [["number", "default", "this machine"], *([n, f"{default[n]:,.4g}", f"{own[n]:,.4g}"] for n in FREE)]
    console.print(shown(rows, f"{len(measured)} forms, {options.threads} thread(s)"))
    off = [errors(measured, costs) for costs in (default, own)]
    rows = [["price / time", *("least", "median", "largest") * 2]]
    rows += [[kind, *(f"{v:.2f}" for held in off for v in held[kind])] for kind in off[0]]
    console.print(shown(rows, "how far the default (left) and the fit (right) are off"))
    rows = [["form", "kept, ms", "merged, ms", "the default", "right"]]
    for name, kept, one, merges in decided(options.rounds):
        right = (one <= 1.03 * kept) if merges else (kept <= 1.03 * one)
        choice = "merges" if merges else "keeps"
        rows.append([name, f"{kept:.2f}", f"{one:.2f}", choice, "yes" if right else "no"])
    console.print(shown(rows, "pairs"))


if __name__ == "__main__":
    main()
