"""Wrong kernels, planted in the plan of a right model: what verification is measured on."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from reptool.algebra.kernel import Kernel
from reptool.api.pipeline.modules import make_plan
from reptool.plan.options import Options
from reptool.rewrite.lower import Geometry, arranged, new_layer
from reptool.surgery.site import Site
from reptool.surgery.units import Unit
from reptool.testing import randomize

OFF = (1.0, 1e-2, 1e-4, 1e-6)
"""How far off a planted number is, relative to the largest weight."""


class Branches(nn.Module):
    """A convolution, a pointwise one beside it, and a shortcut where one fits; each with its norm."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, groups: int, mode: str) -> None:
        super().__init__()
        options: dict[str, Any] = {"stride": stride, "groups": groups, "bias": False, "padding_mode": mode}
        self.wide = nn.Sequential(nn.Conv2d(channels, out, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(out))
        self.point = nn.Sequential(nn.Conv2d(channels, out, 1, **options), nn.BatchNorm2d(out))
        self.same = nn.BatchNorm2d(out) if channels == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        y: Tensor = self.wide(x) + self.point(x)
        return y if self.same is None else y + self.same(x)


def model(random: Random) -> nn.Module:
    """A random model of one region."""
    axes = random.choice([1, 2, 2, 2, 3])
    groups = random.choice([1, 1, 2, 4])
    channels, out = groups * random.randint(1, 3), groups * random.randint(1, 3)
    modes = ["zeros", "zeros", "reflect", "replicate", "circular"]
    if axes == 2 and random.random() < 0.3:
        return Branches(channels, out, random.choice([3, 5]), random.choice([1, 2]), groups, "zeros")
    kernel, stride = (tuple(random.choice(s) for _ in range(axes)) for s in ([1, 2, 3, 3, 5], [1, 1, 2, 3]))
    dilation = tuple(random.choice([1, 1, 2]) for _ in range(axes))
    padding = tuple(random.choice([0, d * (k - 1) // 2, min(k, 2)]) for k, d in zip(kernel, dilation, strict=True))
    conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    layer = conv(channels, out, kernel, stride, padding, dilation, groups, random.random() < 0.5, random.choice(modes))
    return nn.Sequential(layer, norm(out))


def planned(random: Random) -> tuple[Unit, Site]:
    """The plan of a random model of one region."""
    while True:
        plan = make_plan(randomize(model(random)).eval(), None, {}, Options(), True, True)
        if len(plan.units) == 1 and len(plan.units[0].surgery.sites) == 1:
            return plan.units[0], plan.units[0].surgery.sites[0]


# --- ways to be wrong -----------------------------------------------------------------------------------------------
Wrong = tuple[Kernel, Geometry]


def _number(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
    weight = _weight(kernel)
    weight.view(-1)[random.randrange(weight.numel())] += random.choice(OFF) * float(weight.abs().max())
    return replace(kernel, weight=weight), shape


def _row(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
    weight = _weight(kernel)
    weight[random.randrange(len(weight))] *= 1 + random.choice(OFF)
    return replace(kernel, weight=weight), shape


def _bias(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
    assert kernel.bias is not None
    bias = kernel.bias.clone()
    bias[random.randrange(len(bias))] += random.choice(OFF) * float(bias.abs().max())
    return replace(kernel, bias=bias), shape


def _swapped(axis: int) -> Callable[[Random, Kernel, Geometry], Wrong]:
    def swapped(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
        weight = _weight(kernel)
        a, b = (random.randrange(weight.shape[axis]) for _ in range(2))
        order = list(range(weight.shape[axis]))
        order[a], order[b] = order[b], order[a]
        return replace(kernel, weight=weight.index_select(axis, torch.tensor(order))), shape

    return swapped


def _moved(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
    weight, axis = _weight(kernel), random.randrange(2, 2 + len(kernel.axes or ()))
    return replace(kernel, weight=weight.flip(axis) if random.random() < 0.5 else weight.roll(1, axis)), shape


def _turned(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
    weight = _weight(kernel)
    if weight.dim() < 4 or weight.shape[2] != weight.shape[3]:
        return kernel, shape
    return replace(kernel, weight=weight.transpose(2, 3).contiguous()), shape


def _geometry(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
    name = random.choice(["padding", "stride", "dilation"])
    values = list(getattr(shape, name))
    if not isinstance(values[0], int):
        return kernel, shape
    at = random.randrange(len(values))
    values[at] = max(values[at] + random.choice([-1, 1]), 0 if name == "padding" else 1)
    return kernel, replace(shape, **{name: tuple(values)})


def _border(random: Random, kernel: Kernel, shape: Geometry) -> Wrong:
    return kernel, replace(shape, padding_mode=random.choice(["zeros", "reflect", "replicate", "circular"]))


WAYS = [_number, _number, _row, _bias, _swapped(0), _swapped(1), _moved, _turned, _geometry, _geometry, _border]


def _weight(kernel: Kernel) -> Tensor:
    assert kernel.weight is not None
    return kernel.weight.clone()


def differs(one: Wrong, other: Wrong) -> bool:
    """Whether two layers are different maps, by running both on images of many sizes."""
    axes = len(one[1].kernel_size)
    layers = [new_layer(shape, *arranged(kernel)) for kernel, shape in (one, other)]
    generator = torch.Generator().manual_seed(1)
    for size in range(9, 15):
        x = torch.randn(2, one[1].in_channels, *(size, size + 1, size + 2)[:axes], generator=generator).double()
        outs = []
        for layer in layers:
            with torch.no_grad(), suppress(RuntimeError):
                outs.append(layer(x))
        if len(outs) == 1 or (outs and outs[0].shape != outs[1].shape):
            return True
        if outs and not torch.allclose(outs[0], outs[1], rtol=0, atol=1e-9):
            return True
    return False


def wrong(seed: int, count: int) -> Iterator[tuple[Unit, Site, str]]:
    """Plans with a wrong kernel or geometry, several of each random model, and how each is wrong."""
    random, made = Random(seed), 0
    torch.manual_seed(seed)
    while made < count:
        unit, site = planned(random)
        right, shape = site.region.form.kernel(), site.shape
        assert isinstance(right, Kernel)
        for _ in range(10):
            way = random.choice(WAYS)
            kernel, geometry = way(random, right, shape)
            if made < count and differs((right, shape), (kernel, geometry)):
                site.region.form._kernel, site.shape, site.cast = kernel, geometry, None
                yield unit, site, way.__name__.strip("_")
                made += 1
        site.region.form._kernel, site.shape = right, shape
