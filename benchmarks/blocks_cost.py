"""What training with blocks costs: step time and memory, and OREPA against DBB.

    python benchmarks/blocks_cost.py [--models resnet18 mobilenetv2_100] [--theirs DIRECTORY]

Every variant replaces all 3x3 convolutions of the model. Steps (forward, backward, SGD; batch 16) of all
variants are interleaved in one run on one thread; shown are medians of CPU time. Peak memory is what the
allocator held at most during one step, above what it held before.

`--theirs` names a directory with the authors' files, which are run beside ours and are no part of this
project: `refconv.py` (the class RepConv cut out of their training script), `acb.py` and `diversebranchblock.py`
(from the repository of the diverse branch block), `repvgg.py`, and what these import (`dbb_transforms.py`,
`se_block.py`).
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from reptool.blocks import OREPA, ACBlock, DiverseBranchBlock, RefConv, RepVGGBlock
from reptool.expansion import expand

BLOCKS = {"RefConv": RefConv, "ACB": ACBlock, "RepVGG": RepVGGBlock, "DBB": DiverseBranchBlock}
BATCH = 16


def geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments that all authors' classes share."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size[0],
        "stride": conv.stride[0],
        "padding": conv.padding[0],
        "groups": conv.groups,
    }


def theirs(directory: Path) -> dict[str, Callable[..., nn.Module]]:
    """Functions that put the authors' blocks in place of a convolution (and of the norm behind it)."""
    sys.path.insert(0, str(directory))
    names = {"RefConv": ("refconv", "RepConv"), "ACB": ("acb", "ACBlock"), "RepVGG": ("repvgg", "RepVGGBlock")}
    names["DBB"] = ("diversebranchblock", "DiverseBranchBlock")
    classes = {name: getattr(importlib.import_module(file), kind) for name, (file, kind) in names.items()}

    def refconv(conv: nn.Conv2d) -> nn.Module:
        block = classes["RefConv"](**geometry(conv))
        block.weight.copy_(conv.weight.detach())
        return block

    def acb(conv: nn.Conv2d, norm: nn.Module | None) -> nn.Module:
        return classes["ACB"](**geometry(conv))

    def repvgg(conv: nn.Conv2d, norm: nn.Module | None) -> nn.Module:
        block = classes["RepVGG"](**geometry(conv))
        block.nonlinearity = nn.Identity()
        return block

    def dbb(conv: nn.Conv2d, norm: nn.Module | None) -> nn.Module:
        return classes["DBB"](**geometry(conv))

    return {"RefConv": refconv, "ACB": acb, "RepVGG": repvgg, "DBB": dbb}


def step_of(model: nn.Module, size: int) -> Callable[[], None]:
    """One training step on random images."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    images = torch.randn(BATCH, 3, size, size)

    def step() -> None:
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def interleaved(steps: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of CPU time of each, in turn: one thread, so other programs do not count."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, seen in zip(steps, times, strict=True):
            start = time.process_time()
            step()
            seen.append(1000 * (time.process_time() - start))
    return [median(seen[1:]) for seen in times]


def peak(step: Callable[[], None]) -> float:
    """MB that one step allocates at most at a time."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    held = highest = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest / 2**20


def compare(name: str, size: int, repeats: int, directory: Path | None, console: Console) -> None:
    """Ours, and the authors' if given, on one model."""
    import timm

    model = timm.create_model(name)
    variants: dict[tuple[str, str], nn.Module] = {("plain", ""): model}
    others = theirs(directory) if directory is not None else {}
    for block, kind in BLOCKS.items():
        variants[block, "ours"] = expand(model, kind, where=3, preserve=False)
        if block in others:
            variants[block, "theirs"] = expand(model, others[block], where=3, preserve=False)
    steps = {key: step_of(variant, size) for key, variant in variants.items()}
    times = dict(zip(steps, interleaved(list(steps.values()), repeats), strict=True))
    peaks = {key: peak(step) for key, step in steps.items()}
    table = Table(title=f"{name}, batch {BATCH}, {size}x{size}", title_justify="left")
    for column in ("block", "ms a step", "to plain", "to theirs", "peak MB", "to plain", "to theirs"):
        table.add_column(column, justify="left" if column == "block" else "right")
    for key in times:
        block, whose = key
        row = [f"{block} {'(theirs)' if whose == 'theirs' else ''}".strip()]
        for values in (times, peaks):
            other = values.get((block, "theirs")) if whose == "ours" else None
            ratio = "" if other is None else f"{values[key] / other:.3f}"
            row += [f"{values[key]:.0f}", f"{values[key] / values['plain', '']:.2f}", ratio]
        table.add_row(*row)
    console.print(table)


def activations(model: nn.Module, images: torch.Tensor) -> float:
    """MB of different tensors that one forward keeps for the backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers(), images)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(images)
    del result
    return sum(kept.values()) / 2**20


def orepa_against_dbb(channels: int, repeats: int, console: Console) -> None:
    """Step time and activation memory of both over the image size, and where they break even."""
    table = Table(title=f"OREPA against DBB, {channels} channels, batch {BATCH}", title_justify="left")
    for column in ("image", "OREPA ms", "DBB ms", "ratio", "OREPA MB kept", "DBB MB kept", "ratio"):
        table.add_column(column, justify="right")
    better: dict[str, list[int]] = {"trains faster": [], "keeps less memory": []}
    for size in (2, 4, 7, 14, 28, 56):
        blocks = [OREPA(channels, channels), DiverseBranchBlock(channels, channels)]
        images = torch.randn(BATCH, channels, size, size)
        times = interleaved([partial(_train, block, images) for block in blocks], repeats)
        memory = [activations(block, images) for block in blocks]
        for what, values in zip(better, (times, memory), strict=True):
            if values[0] < values[1]:
                better[what].append(size)
        table.add_row(
            f"{size}x{size}",
            *(f"{value:.1f}" for value in times),
            f"{times[0] / times[1]:.2f}",
            *(f"{value:.2f}" for value in memory),
            f"{memory[0] / memory[1]:.2f}",
        )
    console.print(table)
    for what, sizes in better.items():
        console.print(f"OREPA {what} " + (f"from {min(sizes)}x{min(sizes)} on" if sizes else "nowhere here"))


def _train(block: nn.Module, images: torch.Tensor) -> None:
    block.zero_grad()
    block(images.requires_grad_()).square().mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["resnet18", "mobilenetv2_100"], help="timm's names")
    parser.add_argument("--size", type=int, default=64, help="of the images (default: 64)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--theirs", type=Path, help="directory with the authors' files")
    parser.add_argument("--channels", type=int, default=64, help="of OREPA and DBB (default: 64)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    for name in options.models:
        compare(name, options.size, options.repeats, options.theirs, console)
    orepa_against_dbb(options.channels, options.repeats, console)


if __name__ == "__main__":
    main()
