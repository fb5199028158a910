"""Train a small network plain and with every re-parameterization, and write down what that is worth.

    python benchmarks/recipe.py [--seeds 5] [--methods NAME ...] [--output docs/recipe.md]

Two data sets: the 8x8 digits that scikit-learn ships, and noisy gratings of ten kinds made here. A seed fixes
split, first weights and the order of the images for all methods, so that differences to plain training are
paired. Every trained network is deployed, its size compared with the deployed plain network's, and its
predictions with its own. The numbers go into a markdown table, the curves into a CSV file beside it.
"""

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.blocks import ACBlock, DiverseBranchBlock, RepVGGBlock, parametrizations
from reptool.demo.data import load_digits
from reptool.expansion import expand
from reptool.refocus import Refocusing

BATCH = 64
LEARNING_RATE = 0.1
DECAY = 4e-5


@dataclass(frozen=True)
class Data:
    """Images (N, 1, H, W) and labels (N)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def half(self) -> "Data":
        """The same with every second training image."""
        return Data(self.train_images[::2], self.train_labels[::2], self.test_images, self.test_labels)


def digits(seed: int) -> Data:
    """Scikit-learn's digits, half of them for testing (few training images leave something to gain)."""
    found = load_digits(0.5, seed)
    return Data(found.train_images, found.train_labels, found.test_images, found.test_labels)


def gratings(seed: int, train: int = 1500, test: int = 1000, size: int = 12, noise: float = 1.6) -> Data:
    """Stripes of five orientations and two widths, with random phase and contrast, under noise."""
    generator = torch.Generator().manual_seed(1000 + seed)
    count = train + test
    labels = torch.randint(0, 10, (count,), generator=generator)
    angle = (labels % 5) * (torch.pi / 5) + torch.randn(count, generator=generator) * 0.08
    frequency = torch.where(labels < 5, 1.0, 1.5)
    phase, contrast = (torch.rand(count, generator=generator) for _ in range(2))
    position = torch.arange(size, dtype=torch.float32)
    x, y = position[None, None, :], position[None, :, None]
    wave = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    images = (wave * frequency[:, None, None] + 2 * torch.pi * phase[:, None, None]).sin()
    images = images * (0.5 + contrast[:, None, None])
    images = (images + noise * torch.randn(images.shape, generator=generator))[:, None]
    return Data(images[:train], labels[:train], images[train:], labels[train:])


class Small(nn.Module):
    """Dense and depthwise 3x3 and pointwise convolutions, each with a norm: both kinds that papers replace."""

    def __init__(self, width: int = 12, classes: int = 10) -> None:
        super().__init__()
        wide = 2 * width
        self.features = nn.Sequential(
            *_layer(1, width, 3),
            *_layer(width, width, 3, groups=width),
            *_layer(width, wide, 1),
            *_layer(wide, wide, 3, stride=2),
            *_layer(wide, wide, 3, groups=wide),
            *_layer(wide, wide, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        return self.head(self.pool(self.features(x)).flatten(1))


def _layer(reads: int, writes: int, size: int, **options: int) -> list[nn.Module]:
    conv = nn.Conv2d(reads, writes, size, padding=size // 2, bias=False, **options)
    return [conv, nn.BatchNorm2d(writes), nn.ReLU()]


@dataclass
class Run:
    """What came of training one network."""

    accuracy: float
    curve: list[float]
    milliseconds: float
    parameters: int
    deployed: int
    steps: int


def accuracy(model: nn.Module, data: Data) -> float:
    """Percent of the test images."""
    model.eval()
    with torch.no_grad():
        return 100 * (model(data.test_images).argmax(1) == data.test_labels).double().mean().item()


def train(
    model: nn.Module, data: Data, epochs: int, seed: int, *, rate: float = LEARNING_RATE, batch: int = BATCH
) -> tuple[list[float], float, int]:
    """SGD with momentum, a short warm-up and a cosine; returns curve, median CPU ms a step, steps."""
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9, weight_decay=DECAY)
    count = len(data.train_images)
    total = epochs * (count // batch)
    warm = max(1, total // 20)
    ramp = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, warm)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warm)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [ramp, fall], [warm])
    curve, times = [], []
    for _ in range(epochs):
        model.train()
        order = torch.randperm(count, generator=generator)
        for chosen in order[: count - count % batch].split(batch):
            start = time.process_time()
            loss = F.cross_entropy(model(data.train_images[chosen]), data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.process_time() - start)
            schedule.step()
        curve.append(accuracy(model, data))
    return curve, 1000 * median(times), total


def finished(model: nn.Module, data: Data, found: tuple[list[float], float, int]) -> Run:
    """Deploy, check the predictions, count."""
    curve, milliseconds, steps = found
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    deployed = reptool.deploy(model.eval(), verify=False)
    with torch.no_grad():
        own, plain = model(data.test_images), deployed(data.test_images)
    off = float((own - plain).abs().max() / own.abs().max())
    assert off < 1e-3, f"deploy is off by {off}"
    size = sum(p.numel() for p in deployed.parameters())
    return Run(curve[-1], curve, milliseconds, trainable, size, steps)


Method = Callable[[Data, int, int, nn.Module], Run]


def fresh(seed: int) -> nn.Module:
    """The network with the first weights of a seed."""
    torch.manual_seed(seed)
    return Small()


def from_scratch(data: Data, epochs: int, seed: int, _: nn.Module, block: object = None) -> Run:
    """Plain, or with the blocks of a paper from the beginning."""
    model = fresh(seed)
    if block is not None:
        model = expand(model, block, preserve=False)
    return finished(model, data, train(model, data, epochs, seed))


def again(data: Data, epochs: int, seed: int, trained: nn.Module, rate: float = LEARNING_RATE) -> Run:
    """Train the trained network once more."""
    model = Small()
    model.load_state_dict(trained.state_dict())
    return finished(model, data, train(model, data, epochs, seed + 100, rate=rate))


def refocused(data: Data, epochs: int, seed: int, trained: nn.Module, half: bool = False, **options: object) -> Run:
    """Refocusing Learning on the trained network."""
    torch.manual_seed(seed + 100)
    pipeline = Refocusing(trained, **options)  # type: ignore[arg-type]
    seen, batch = (data.half(), BATCH // 2) if half else (data, BATCH)
    found = train(pipeline.model, seen, epochs, seed + 100, batch=batch)
    plain = Small()
    plain.load_state_dict(pipeline.finish())
    assert accuracy(plain, data) == found[0][-1], "finish() predicts something else"
    return finished(pipeline.model, data, found)


METHODS: dict[str, tuple[str, Method]] = {
    "plain": ("one training", from_scratch),
    "retrained": ("trained twice, same schedule", again),
    "fine-tuned": ("second training at 1/1000 of the rate", partial(again, rate=LEARNING_RATE / 1000)),
    "RefConv": ("second training, bases frozen", refocused),
    "RefConv, half data": ("as many steps, every second image", partial(refocused, half=True)),
    "RefConv, R W_b": ("random bases", partial(refocused, basis="random")),
    "RefConv, T W_b": ("bases trained too", partial(refocused, train_basis=True)),
    "RefConv, R&T W_b": ("both", partial(refocused, basis="random", train_basis=True)),
    "RefConv, zero init": ("W_r starts as zero", partial(refocused, init="zeros")),
    "RefConv, no identity": ("W_t = W_b * W_r", partial(refocused, identity=False)),
    "RefConv, rest frozen": ("only W_r trains", partial(refocused, rest="frozen")),
    "ACB": ("from scratch", partial(from_scratch, block=ACBlock)),
    "RepVGG": ("from scratch", partial(from_scratch, block=RepVGGBlock)),
    "DBB": ("from scratch", partial(from_scratch, block=DiverseBranchBlock)),
    "WN": ("from scratch", partial(from_scratch, block=parametrizations.weight_norm)),
    "CWN": ("from scratch", partial(from_scratch, block=parametrizations.centered_weight_norm)),
    "OWN": ("from scratch", partial(from_scratch, block=parametrizations.orthogonal_weight_norm)),
}
TWICE = ("retrained", "fine-tuned", "RefConv")


@dataclass
class Results:
    """All runs on one data set."""

    name: str
    epochs: int
    images: tuple[int, int]
    runs: dict[str, list[Run]] = field(default_factory=dict)


def measure(name: str, make: Callable[[int], Data], epochs: int, seeds: int, methods: list[str]) -> Results:
    """Every method with every seed; seeds outside, so that a slow minute hits all methods."""
    shapes = make(0)
    found = Results(name, epochs, (len(shapes.train_images), len(shapes.test_images)))
    for seed in track(range(seeds), f"{name}, {len(methods)} trainings a seed", console=Console(stderr=True)):
        data = make(seed)
        trained = fresh(seed)
        base = finished(trained, data, train(trained, data, epochs, seed))
        for method in methods:
            run = base if method == "plain" else METHODS[method][1](data, epochs, seed, trained)
            found.runs.setdefault(method, []).append(run)
    return found


def table(found: Results) -> list[str]:
    """Rows of markdown."""
    plain = found.runs["plain"]
    lines = [
        "| method | what it is | accuracy % | difference to plain | better in | ms a step | trained parameters "
        "| deployed parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.runs.items():
        accuracies = [run.accuracy for run in runs]
        differences = [run.accuracy - base.accuracy for run, base in zip(runs, plain, strict=True)]
        better = sum(d > 0 for d in differences)
        cost = median(run.milliseconds / base.milliseconds for run, base in zip(runs, plain, strict=True))
        steps = runs[0].steps / plain[0].steps
        budget = f" x{1 + steps:g} steps" if name.startswith(TWICE) else ""
        difference = "" if name == "plain" else f"{mean(differences):+.2f} ± {stdev(differences):.2f}"
        lines.append(
            f"| {name} | {METHODS[name][0]} | {mean(accuracies):.2f} ± {stdev(accuracies):.2f} | {difference} | "
            f"{'' if name == 'plain' else f'{better} of {len(runs)}'} | {cost:.2f}x{budget} | "
            f"{runs[0].parameters:,} | {runs[0].deployed:,} |"
        )
    return lines


def curves(found: Results) -> list[list[object]]:
    """Rows (data, method, epoch, mean, deviation) of test accuracies."""
    rows: list[list[object]] = []
    for name, runs in found.runs.items():
        for epoch, values in enumerate(zip(*(run.curve for run in runs), strict=True), 1):
            rows.append([found.name, name, epoch, f"{mean(values):.3f}", f"{stdev(values):.3f}"])
    return rows


def verdict(found: Results, against: str, names: list[str]) -> list[str]:
    """Which methods differ from another by more than twice the standard error of the paired difference."""
    plain, lines = found.runs[against], []
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for name in names:
        runs = found.runs[name]
        differences = [run.accuracy - base.accuracy for run, base in zip(runs, plain, strict=True)]
        error = stdev(differences) / len(differences) ** 0.5
        kind = "not distinguishable" if abs(mean(differences)) <= 2 * error else None
        groups[kind or ("better" if mean(differences) > 0 else "worse")].append(name)
    for kind, members in groups.items():
        lines.append(f"- {kind}: {'; '.join(members) or 'none'}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12, help="of one training (default: 12)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=None, help="markdown file; curves go beside it as CSV")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = ["plain", *(name for name in options.methods if name != "plain")]
    start = time.perf_counter()
    results = [
        measure(name, make, options.epochs, options.seeds, methods)
        for name, make in (("digits", digits), ("gratings", gratings))
    ]
    lines = []
    for found in results:
        seen, tested = found.images
        lines += [
            f"## {found.name}: {seen} training and {tested} test images, {found.epochs} epochs a training",
            "",
            *table(found),
            "",
            "Against plain training, by more than twice the standard error of the paired difference:",
            "",
            *verdict(found, "plain", [name for name in found.runs if name != "plain"]),
            "",
        ]
        second = [name for name in found.runs if name.startswith("RefConv")]
        if second and "retrained" in found.runs:
            lines += [
                "Against the plain network trained twice (as many steps as the two stages of RefConv):",
                "",
                *verdict(found, "retrained", second),
                "",
            ]
    minutes = (time.perf_counter() - start) / 60
    lines.append(f"Measured in {minutes:.0f} minutes on one thread, PyTorch {torch.__version__}.")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output is not None:
        write(options.output, text, [row for found in results for row in curves(found)])


MARK = "<!-- measured: everything below is written by benchmarks/recipe.py -->\n"


def write(path: Path, text: str, rows: list[list[object]]) -> None:
    """Replace what stands below the mark of `path`; keep what people wrote above it."""
    above = path.read_text().split(MARK)[0] if path.exists() else "# What the blocks are worth\n\n"
    path.write_text(above + MARK + "\n" + text)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "method", "epoch", "mean", "deviation"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
