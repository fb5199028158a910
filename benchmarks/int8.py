"""What 8 bits keep of collapsed networks on scikit-learn's digits: ``python benchmarks/int8.py --output docs/int8.md``.

Plain convolutions, RepVGG, DBB and QARepVGG, trained alike; each collapsed, collapsed and equalized, and collapsed,
given measured norms and trained on with rounding in the loop. Quantized by ONNX Runtime (static, QDQ, activations by
their largest values on 256 training images), weights with one step for each tensor and with one for each channel.
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.blocks import DiverseBranchBlock, QARepVGGBlock, RepVGGBlock
from reptool.demo.data import Digits, load_digits
from reptool.demo.train import accuracy, train
from reptool.int8 import equalize, ranges

Block = Callable[..., nn.Module]
CALIBRATED = 256
START, END = "<!-- measured -->", "<!-- end -->"


def plain(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """A convolution, a norm and a ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def diverse(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """DBB with a ReLU."""
    return DiverseBranchBlock(inputs, outputs, stride=stride, activation=nn.ReLU)


KINDS: dict[str, Block] = {"plain": plain, "RepVGG": RepVGGBlock, "DBB": diverse, "QARepVGG": QARepVGGBlock}


def network(block: Block, width: int = 16) -> nn.Module:
    """Eight blocks on 8x8 images, and a classifier."""
    wide = 2 * width
    steps = [(1, width, 1), *[(width, width, 1)] * 3, (width, wide, 2), *[(wide, wide, 1)] * 3]
    blocks = [block(i, o, stride=s) for i, o, s in steps]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10))


class Images(CalibrationDataReader):
    """Training images, one batch after another."""

    def __init__(self, images: Tensor) -> None:
        self.batches = iter([{"x": b.numpy()} for b in images.split(64)])

    def get_next(self) -> Any:
        """The next batch, None behind the last one."""
        return next(self.batches, None)


def int8_accuracy(model: nn.Module, digits: Digits, per_channel: bool) -> float:
    """Accuracy of a model quantized by ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, small = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        batch = torch.export.Dim("n", min=2)
        program = torch.onnx.export(
            model,
            (digits.test_images[:4],),
            input_names=["x"],
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        assert program is not None
        program.save(str(whole))
        quantize_static(
            str(whole), str(small), Images(digits.train_images[:CALIBRATED]), quant_format=QuantFormat.QDQ,
            per_channel=per_channel, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(str(small), providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": digits.test_images.numpy()})[0]
    return float((np.argmax(found, 1) == digits.test_labels.numpy()).mean())


class Rounded(nn.Module):
    """Rounds to 8 bits in the forward, and passes gradients on; ranges are those that were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """As a quantized runtime would hold it."""
        if self.training:
            self.low = torch.minimum(self.low * 0.99, x.detach().amin())
            self.high = torch.maximum(self.high * 0.99, x.detach().amax())
        step = ((self.high - self.low) / 255).clamp_min(1e-9)
        zero = torch.round(-self.low / step)
        rounded = (torch.clamp(torch.round(x / step) + zero, 0, 255) - zero) * step
        return x + (rounded - x).detach()


def weight_rounded(weight: Tensor) -> Tensor:
    """A weight as 8 bits with one step hold it; gradients pass."""
    step = weight.detach().abs().amax() / 127
    return weight + (torch.round(weight / step) * step - weight).detach()


class RoundedConv(nn.Module):
    """A convolution and the norm behind it, rounded as their collapsed layer will be."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm, self.given = conv, norm, Rounded()

    def forward(self, x: Tensor) -> Tensor:
        """Statistics of the batch first, then the folded weight, rounded."""
        x = self.given(x)
        if self.training:
            self.norm(self.conv(x))
        n = self.norm
        scale = n.weight / torch.sqrt(n.running_var + n.eps)
        weight = weight_rounded(self.conv.weight * scale.reshape(-1, 1, 1, 1))
        return F.conv2d(x, weight, n.bias - n.running_mean * scale, self.conv.stride, self.conv.padding)


def trained_on(deployed: nn.Module, digits: Digits, epochs: int) -> nn.Module:
    """A collapsed network with measured norms, trained on with rounding in the loop, and collapsed again."""
    model = reptool.insert_norms(deployed, list(digits.train_images.split(256)))
    rounded = {
        p: m for p, m in model.named_modules() if isinstance(m, nn.Sequential) and set(m._modules) == {"conv", "norm"}
    }
    for path, part in rounded.items():
        owner, _, name = path.rpartition(".")
        model.get_submodule(owner)._modules[name] = RoundedConv(part.conv, part.norm)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(digits.train_images), generator=generator).split(64):
            loss = F.cross_entropy(model(digits.train_images[chosen]), digits.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    for path in rounded:
        owner, _, name = path.rpartition(".")
        part = model.get_submodule(path)
        model.get_submodule(owner)._modules[name] = nn.Sequential(part.conv, part.norm)  # type: ignore[arg-type]
    return reptool.deploy(model, digits.test_images[:2])


def measured(kind: str, seed: int, digits: Digits, epochs: int) -> dict[str, tuple[float, ...]]:
    """Accuracy in float32, and in 8 bits with one step for each tensor and for each channel."""
    torch.manual_seed(seed)
    model = network(KINDS[kind])
    train(model, digits, Console(file=io.StringIO()), epochs=epochs, seed=seed)
    x = digits.test_images[:2]
    collapsed = reptool.deploy(model, x)
    alike = reptool.deploy(model, x, rules=(*reptool.RULES, equalize), flatten=True)
    made = {"collapsed": collapsed, "equalized": alike, "trained on": trained_on(collapsed, digits, epochs // 3)}
    out = {
        name: (
            accuracy(m, digits.test_images, digits.test_labels),
            *(int8_accuracy(m, digits, c) for c in (False, True)),
        )
        for name, m in made.items()
    }
    found = ranges(collapsed, model)
    out["spread"] = (max(r.spread for r in found), max(r.before or 0.0 for r in found))
    return out


def table(seeds: int, epochs: int) -> str:
    """The table of all kinds, means over seeds."""
    digits = load_digits()
    lines = [
        "| network | | float32 | 8 bits, a step a tensor | 8 bits, a step a channel |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    spreads = ["| network | widest spread of a layer | of what it was made of |", "| --- | ---: | ---: |"]
    for kind in KINDS:
        runs = [measured(kind, seed, digits, epochs) for seed in range(seeds)]
        for name in ("collapsed", "equalized", "trained on"):
            cells = [f"{100 * mean(r[name][i] for r in runs):.1f}" for i in range(3)]
            lines.append(f"| {kind if name == 'collapsed' else ''} | {name} | {' | '.join(cells)} |")
        after, before = (mean(r["spread"][i] for r in runs) for i in range(2))
        spreads.append(f"| {kind} | {after:.1f} | {before:.1f} |")
        print(kind, "done", flush=True)
    return "\n".join([*lines, "", *spreads])


def main() -> None:
    """Measure, and write the table into a page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=Path, help="a page with the marks that the table goes between")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    start = time.time()
    found = table(given.seeds, given.epochs)
    said = f"Means over {given.seeds} seeds, {given.epochs} epochs, percent of 360 test images; measured in "
    said += f"{(time.time() - start) / 60:.0f} minutes with PyTorch {torch.__version__.split('+')[0]}."
    text = f"{found}\n\n{said}\n"
    if given.output is None:
        print(text)
        return
    page = given.output.read_text("utf-8")
    head, rest = page.split(START)
    given.output.write_text(f"{head}{START}\n\n{text}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
