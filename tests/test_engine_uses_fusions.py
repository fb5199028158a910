"""No formula stands twice: a wrong formula in any file of `reptool/fusions` makes `deploy` wrong, and it notices."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool import fusions
from reptool.api.flat.rewriting import name_of_rewrite
from reptool.errors import RegionWarning
from reptool.fusions.nonlinear.carried_shortcut import Widened
from reptool.int8 import equalize
from reptool.rules import CarryShortcut, DropDeadChannels, MergeSiblings, PositiveScale
from reptool.testing import randomize
from tests.rules.networks import Around, Scaled


class Sum(nn.Module):
    """Branches, added."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """The sum over all branches."""
        y: Tensor = self.branches[0](x)
        for branch in self.branches[1:]:
            y = y + branch(x)
        return y


class Shortcut(nn.Module):
    """A convolution and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        return self.conv(x) + x  # type: ignore[no-any-return]


class Cat(Sum):
    """Branches, concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class Apart(nn.Module):
    """A norm behind a sum or a concatenation of layers that read different values."""

    def __init__(self, cat: bool) -> None:
        super().__init__()
        self.a, self.b, self.cat, self.bn = conv(), conv(1), cat, nn.BatchNorm2d(8 if cat else 4)

    def forward(self, x: Tensor) -> Tensor:
        """Both, normalized."""
        a, b = self.a(x), self.b(torch.tanh(x))
        return self.bn(torch.cat([a, b], 1) if self.cat else a + b)  # type: ignore[no-any-return]


class Gate(nn.Module):
    """A norm for one half of what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """The product of the halves."""
        y = self.conv(x)
        return self.bn(y[:, :2]) * y[:, 2:]  # type: ignore[no-any-return]


class Last(nn.Module):
    """A pointwise convolution, then a linear layer on channels-last values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Channels last."""
        return self.linear(self.conv(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def conv(k: int = 3, **options: Any) -> nn.Conv2d:
    """Four channels to four, the size kept."""
    return nn.Conv2d(4, 4, k, **{"padding": k // 2, **options})


def conv_bn() -> nn.Module:
    """The most common pair."""
    return nn.Sequential(conv(), nn.BatchNorm2d(4))


def bn_conv() -> nn.Module:
    """A norm in front of an unpadded convolution."""
    return nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))


def thin() -> nn.Module:
    """Two layers that are cheaper as one."""
    return nn.Sequential(nn.Conv2d(4, 64, 1), nn.Conv2d(64, 4, 3))


def flattened() -> nn.Module:
    """A norm in front of a linear layer on flattened values."""
    return nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(288, 4))


def plane() -> Tensor:
    """Values of a linear layer."""
    return torch.randn(3, 4)


def images() -> Tensor:
    """Two images."""
    return torch.randn(2, 4, 9, 8)


def upsampled() -> nn.Module:
    """A convolution behind nearest upsampling."""
    return nn.Sequential(nn.Sigmoid(), nn.Upsample(scale_factor=2), conv())


Case = tuple[str, str, Callable[[], nn.Module], Callable[[], Tensor], bool]

# file of the formula, where the engine calls it, a model in which it matters, its inputs, whether it needs force
CASES: list[Case] = [
    ("avg_pool", "lift.pooling.avg_pool_kernel", lambda: Sum(conv(), nn.AvgPool2d(3, 1, 1)), images, False),
    ("bn_conv", "lift.norms.bn_kernel", conv_bn, images, False),
    ("branch_add", "algebra.laws.branch_add", lambda: Sum(conv(), conv()), images, False),
    ("branch_concat", "algebra.laws.branch_concat", lambda: Cat(conv(), conv()), images, False),
    ("conv_bn", "algebra.compose.scale_rows", conv_bn, images, False),
    ("conv_bn", "fusions.bn_conv.bn_scale_shift", conv_bn, images, False),
    ("distribute", "passages.spread.distribute_over_sum", lambda: Apart(False), images, False),
    ("distribute", "passages.spread.distribute_over_concat", lambda: Apart(True), images, False),
    ("distribute", "passages.spread.distribute_over_slice", Gate, images, False),
    ("distribute", "passages.spread.distribute_over_blocks", flattened, images, False),
    ("kernel_size", "algebra.laws.embed_on", lambda: Sum(conv(), conv(1)), images, False),
    ("linear", "plan.forms.linear_to_pointwise", Last, images, False),
    ("linear", "rewrite.lower.pointwise_to_linear", lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), plane, True),
    ("resampling.upsample_conv", "algebra.transposed.join", upsampled, images, False),
    ("resampling.upsample_conv", "algebra.side_by_side.upsample_kernel", upsampled, images, False),
    ("sequential", "algebra.compose.contract", thin, images, False),
    ("sequential", "algebra.compose.carry_bias", thin, images, False),
    ("sequential", "algebra.compose.scale_columns", bn_conv, images, False),
    ("shortcut", "algebra.kernel.dirac_kernel", Shortcut, images, False),
]


def wrong(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, one percent off."""

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        if isinstance(out, list) and isinstance(out[0], Widened):
            return [replace(layer, weight=layer.weight * 1.01) for layer in out]
        if isinstance(out, list):
            return [(first * 1.01, *rest) for first, *rest in out]
        return (out[0] * 1.01, *out[1:]) if isinstance(out, tuple) else out * 1.01

    return scaled


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1]}")
def test_a_wrong_formula_makes_deploy_wrong(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    file, where, build, inputs, force = case
    model, x = randomize(build()).eval(), inputs()
    holder, _, name = f"reptool.{where}".rpartition(".")
    module = importlib.import_module(holder)
    assert getattr(module, name).__module__ == f"reptool.fusions.{file}"
    assert len(reptool.report(reptool.deploy(model, x, force=force)).regions) == 1 + isinstance(model, Apart)
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    with pytest.raises(RegionWarning, match="is off by"):
        reptool.deploy(model, x, force=force)
    try:
        deployed = reptool.deploy(model, x, force=force, verify=False)
    except RegionWarning:
        return  # a method was written anew: that one is run in any case, and shows it
    with torch.no_grad():
        assert float((deployed(x) - model(x)).abs().max()) > 1e-4


def scaled() -> nn.Module:
    """A factor behind an activation."""
    return Scaled(conv(), nn.ReLU(), torch.rand(4, 1, 1) + 0.5)


def pruned() -> nn.Module:
    """A channel between two layers that is a constant."""
    model: Any = nn.Sequential(conv(), nn.Sigmoid(), nn.Conv2d(4, 4, 3))
    model[0].weight.data[:1] = 0
    return model  # type: ignore[no-any-return]


def uneven() -> nn.Module:
    """Two layers whose ranges are far apart."""
    model: Any = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model[0].weight.data[:1] *= 256
    return model  # type: ignore[no-any-return]


def around() -> nn.Module:
    """A shortcut around two layers and what lies between them."""
    return Around(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())


class Siblings(nn.Module):
    """Two layers of one input with the same activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        """Side by side."""
        return torch.cat([self.a(x).relu(), self.b(x).relu()], 1)


REWRITES: list[tuple[str, str, Callable[[], nn.Module], Any]] = [
    ("nonlinear.positive_scale", "rules.positive_scale.scale_before_activation", scaled, PositiveScale()),
    ("nonlinear.dead_channels", "rules.drop_dead.drop_channels", pruned, DropDeadChannels()),
    ("nonlinear.siblings", "rules.merge_siblings.merge_siblings", Siblings, MergeSiblings()),
    ("nonlinear.carried_shortcut", "rules.carry_shortcut.carry_shortcut", around, CarryShortcut(dearer=True)),
    ("nonlinear.equalization", "int8.equalize.equalized", uneven, equalize),
]


@pytest.mark.parametrize("case", REWRITES, ids=lambda c: c[0])
def test_a_wrong_formula_makes_a_rewrite_wrong(
    monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, Callable[[], nn.Module], Any]
) -> None:
    file, where, build, rule = case
    holder, _, name = f"reptool.{where}".rpartition(".")
    module = importlib.import_module(holder)
    assert getattr(module, name).__module__ == f"reptool.fusions.{file}"
    model, x = build().eval(), images()
    options: dict[str, Any] = {"rules": (*reptool.RULES, rule), "flatten": True}
    assert reptool.report(reptool.deploy(model, x, **options)).rewritten
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    with pytest.raises(RegionWarning, match=f"rule '{name_of_rewrite(rule)}' at .* computes something else"):
        reptool.deploy(model, x, **options)


def test_every_file_of_fusions_is_called_by_the_engine() -> None:
    assert fusions.__file__ is not None
    home = Path(fusions.__file__).parent
    files = {".".join(p.relative_to(home).with_suffix("").parts) for p in home.rglob("*.py") if p.stem != "__init__"}
    assert {case[0] for case in (*CASES, *REWRITES)} == files
