"""Modules read by their impulse response: recovered exactly where they are a convolution, refused by name elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reptool import Code, Refusal
from reptool.algebra.kernel import Border
from reptool.probing.impulse import Response, measure


class Hidden(nn.Module):
    """A module of one function that no tracer sees into."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Ask a question that only data can answer, then compute."""
        if x.data_ptr() == 1:
            return x
        return self.function(self, x)


class Applied(torch.autograd.Function):
    """A convolution inside of an autograd function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Module) -> Tensor:
        """Run the layer."""
        return conv(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Nothing is learned here."""
        return grad, None


def taps(self: Any, x: Tensor) -> Tensor:
    """A depthwise 3x3 written as a loop over its taps."""
    h, w = x.shape[-2:]
    wide, out = F.pad(x, (1, 1, 1, 1)), torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            out += self.weight[:, i, j, None, None] * wide[..., i : i + h, j : j + w]
    return out + self.shift[:, None, None]


def fourier(self: Any, x: Tensor) -> Tensor:
    """A depthwise convolution by Fourier transforms, padded like a 5x3 of stride 1."""
    (h, w), (k, m) = x.shape[-2:], self.weight.shape[-2:]
    size = (h + k - 1, w + m - 1)
    spectrum = torch.fft.rfft2(x, size) * torch.fft.rfft2(self.weight.flip(-1, -2), size)
    y = torch.fft.irfft2(spectrum, size)
    return y[..., k // 2 : k // 2 + h, m // 2 : m // 2 + w]


def unfolded(self: Any, x: Tensor) -> Tensor:
    """A dense 3x2 of stride 2 as columns and one matrix product."""
    n, _, h, w = x.shape
    columns = F.unfold(x, (3, 2), stride=2, padding=(1, 0))
    y = self.weight.flatten(1) @ columns
    return y.reshape(n, -1, (h + 2 - 3) // 2 + 1, (w - 2) // 2 + 1)


def kernel_of(module: nn.Module, channels: int = 3, axes: int = 2) -> Response:
    """The response of a module that has to have one."""
    found = measure(module, channels, axes)
    assert isinstance(found, Response), found
    return found


LAYERS = [
    nn.Conv2d(3, 5, 3, 2, 1),
    nn.Conv2d(4, 8, (3, 5), padding=(1, 3), dilation=2, groups=4, bias=False),
    nn.Conv2d(3, 3, 8, 8),
    nn.Conv1d(4, 6, 5, 3, groups=2),
    nn.Conv3d(2, 3, 2, (1, 2, 1), (1, 0, 1)),
    nn.Linear(3, 4),
    *(nn.Conv2d(3, 2, 3, padding=(1, 2), padding_mode=m) for m in ("reflect", "replicate", "circular")),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_comes_back_as_it_was(layer: Any) -> None:
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    found = kernel_of(Hidden(lambda self, x: self.layer(x), layer=layer), channels, layer.weight.dim() - 2)
    kernel = found.kernel
    assert kernel.channels is not None
    assert kernel.channels.groups == getattr(layer, "groups", 1)
    assert torch.allclose(kernel.grouped_weight(), layer.weight.double(), rtol=1e-12, atol=1e-15)
    assert (kernel.bias is None) == (layer.bias is None)
    for i, axis in enumerate(kernel.axes or ()):
        assert (axis.stride, axis.before, axis.after) == (layer.stride[i], layer.padding[i], layer.padding[i])
        assert axis.border is Border(layer.padding_mode)


def test_taps_fourier_and_columns_are_convolutions() -> None:
    weight, shift = torch.randn(4, 3, 3), torch.randn(4)
    kernel = kernel_of(Hidden(taps, weight=weight, shift=shift), 4).kernel
    assert kernel.channels is not None
    assert kernel.channels.groups == 4  # from exact zeros: depthwise, never dense
    assert torch.allclose(kernel.grouped_weight()[:, 0], weight.double())
    weight = torch.randn(4, 5, 3)
    kernel = kernel_of(Hidden(fourier, weight=weight), 4).kernel
    assert kernel.channels is not None
    assert kernel.channels.groups == 4
    assert torch.allclose(kernel.grouped_weight()[:, 0], weight.double(), atol=1e-13)
    weight = torch.randn(2, 3, 3, 2)
    found = kernel_of(Hidden(unfolded, weight=weight))
    assert torch.allclose(found.kernel.grouped_weight(), weight.double())
    assert [(a.stride, a.before, a.after) for a in found.kernel.axes or ()] == [(2, 1, 1), (2, 0, 0)]


def test_crops_shifts_and_zeros_have_a_kernel() -> None:
    kernel = kernel_of(Hidden(lambda self, x: 2.0 * x[:, 1:, 1:-2, 3:])).kernel
    assert [(a.kernel_size, a.before, a.after) for a in kernel.axes or ()] == [(1, -1, -2), (1, -3, 0)]
    assert kernel.channels is not None
    assert (kernel.channels.lo == [1, 2]).all()
    kernel = kernel_of(Hidden(lambda self, x: x * 0.0)).kernel
    assert not kernel.biased
    assert kernel.grouped_weight().abs().max() == 0.0
    assert kernel_of(Hidden(lambda self, x: F.pad(x[:, :, :-2], (0, 0, 2, 0)) * 1.0)).kernel.axes is not None


def own_divisor(self: Any, x: Tensor) -> Tensor:
    """A pooling that divides by what it sees."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def twice(self: Any, x: Tensor) -> Tensor:
    """Two padded convolutions."""
    return F.conv2d(F.conv2d(x, self.weight, padding=1), self.weight, padding=1)


def counting(self: Any, x: Tensor) -> Tensor:
    """Every call counts."""
    self.count += 1
    return x * (1.0 if self.count < 2_000 else 2.0)


def secretly(self: Any, x: Tensor) -> Tensor:
    """Every call counts, where nobody looks."""
    CALLS.append(1)
    return x * (1.0 + len(CALLS) / 1e6)


def tiled(self: Any, x: Tensor) -> Tensor:
    """A convolution on tiles of 100 rows, each padded by itself."""
    return torch.cat([F.conv2d(t, self.weight, padding=1) for t in x.split(100, 2)], 2)


CALLS: list[int] = []
WHERE = torch.linspace(0.5, 1.5, 7)
NEGATIVE: list[tuple[str, str, Callable[[Any, Tensor], Any]]] = [
    ("relu", "affinity", lambda self, x: x.relu()),
    ("relu of large values", "affinity", lambda self, x: torch.where(x > 1e4, x * 2, x)),
    ("clamp", "affinity", lambda self, x: x.clamp(-1e6, 1e6)),
    ("clamp beyond float32", "", lambda self, x: x.clamp(-1e33, 1e33)),
    ("nothing at tiny magnitudes", "affinity", lambda self, x: F.hardshrink(x, 1e-20)),
    ("a step at one value", "", lambda self, x: torch.where(x == 0.75, x + 1, x * 1.0)),
    ("a narrow band", "magnitude", lambda self, x: torch.where((x > 3.0) & (x < 3.0001), x + 1, x * 1.0)),
    ("nan becomes zero", "magnitude", lambda self, x: torch.nan_to_num(x * 1.0, posinf=float("inf"))),
    ("infinity is clipped", "magnitude", lambda self, x: torch.where(x.isinf(), torch.ones_like(x), x)),
    ("product", "affinity", lambda self, x: x * x),
    ("absolute", "affinity", lambda self, x: x.abs()),
    ("sign of the sum", "", lambda self, x: x * 2 if x.sum() > 0 else x * 3),
    ("sign of one pixel", "", lambda self, x: x * 2 if x[0, 0, 0, 0] > 0 else x * 3),
    ("largest value", "magnitude", lambda self, x: x * 2 if x.max() > 1e9 else x * 3),
    ("batch statistics", "", lambda self, x: x - x.mean(0, keepdim=True)),
    ("batch order", "batch", lambda self, x: x.flip(0) * 2),
    ("batch size", "batch", lambda self, x: x * (1.0 if x.shape[0] < 20 else 2.0)),
    ("folds the batch", "batch", lambda self, x: x.flatten(0, 1)[:, None] * 2),
    ("global mean", "locality", lambda self, x: x - x.mean((2, 3), keepdim=True)),
    ("position", "shift", lambda self, x: x * torch.linspace(0.5, 1.5, x.shape[-1])),
    ("checkerboard", "shift", lambda self, x: x * (1 + (torch.arange(x.shape[-1]) % 2))),
    ("table of one size", "shift", lambda self, x: x * F.pad(WHERE, (0, 21), value=1.0)[: x.shape[2], None]),
    ("mirror", "", lambda self, x: x.flip(-1) * 1.0),
    ("transposed", "", lambda self, x: x.transpose(2, 3) * 1.0),
    ("pooling that does not count padding", "border", own_divisor),
    ("two padded convolutions", "border", twice),
    ("border of ones", "border", lambda self, x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), self.weight)),
    ("small images", "sizes", lambda self, x: x * (2.0 if x.shape[-1] < 4 else 1.0)),
    ("large images", "sizes", lambda self, x: x * (2.0 if x.shape[-1] >= 1000 else 1.0)),
    ("one large size", "sizes", lambda self, x: x * (2.0 if x.shape[2] == 777 else 1.0)),
    ("tiles", "sizes", tiled),
    ("even sizes", "sizes", lambda self, x: x[:, :, : x.shape[2] // 2 * 2] * 1.0),
    ("upsampling", "sizes", lambda self, x: F.interpolate(x, scale_factor=2)),
    ("fixed size", "sizes", lambda self, x: F.adaptive_avg_pool2d(x, 4)),
    ("ceil mode", "", lambda self, x: F.avg_pool2d(x, 3, 2, ceil_mode=True)),
    ("counts", "state", counting),
    ("counts outside", "repetition", secretly),
    ("dtype", "dtype", lambda self, x: x * (2.0 if x.dtype is torch.float32 else 1.0)),
    ("gradient", "gradient", lambda self, x: x * (2.0 if torch.is_grad_enabled() else 1.0)),
    ("memory format", "layout", lambda self, x: x * (1.0 if x.is_contiguous() else 2.0)),
    ("assumed strides", "layout", lambda self, x: x.as_strided(x.shape, torch.empty(x.shape).stride()) * 1.0),
]


@pytest.mark.parametrize(("test", "function"), [n[1:] for n in NEGATIVE], ids=[n[0] for n in NEGATIVE])
def test_what_is_no_convolution_is_refused_by_the_test_it_fails(test: str, function: Any) -> None:
    torch.manual_seed(0)
    CALLS.clear()
    module = Hidden(function, weight=torch.randn(3, 3, 3, 3))
    module.count = 0
    found = measure(module, 3, 2)
    assert isinstance(found, Refusal), found
    assert found.code is Code.NOT_AFFINE, found
    assert "(test of" in found.sentence
    assert test in found.sentence.rpartition("(test of")[2]


@pytest.mark.parametrize("function", [
    lambda self, x: x.relu(), lambda self, x: x.clamp(-1e6, 1e6), lambda self, x: x * x,
    lambda self, x: x * 2 if x.sum() > 0 else x * 3, lambda self, x: x * torch.linspace(0.5, 1.5, x.shape[-1]),
])  # fmt: skip
@pytest.mark.parametrize("axes", [0, 1])
def test_other_ranks_are_tested_alike(function: Any, axes: int) -> None:
    if axes == 0:
        assert isinstance(measure(Hidden(lambda self, x: x * torch.linspace(1, 2, x.shape[-1])), 3, 0), Response)
        if "linspace" in str(function.__code__.co_names):
            return
    assert isinstance(measure(Hidden(function), 3, axes), Refusal)


def in_place(self: Any, x: Tensor) -> Tensor:
    """Write into the input."""
    x.mul_(2.0)
    return x * 1.0


def hooked() -> nn.Module:
    """A hook on a part."""
    module = Hidden(lambda self, x: self.layer(x), layer=nn.Conv2d(3, 3, 1))
    module.layer.register_forward_hook(lambda module, args, output: output * 2)
    return module


def training() -> nn.Module:
    """A part in training mode."""
    module = Hidden(lambda self, x: self.layer(x), layer=nn.BatchNorm2d(3))
    module.layer.train()
    return module


UNFIT: list[tuple[Code, str, Callable[[], nn.Module]]] = [
    (Code.HOOK, "hooks", hooked),
    (Code.MUTATED, "writes into its input", lambda: Hidden(in_place)),
    (Code.MUTATED, "view", lambda: Hidden(lambda self, x: x[:, :, ::2])),
    (Code.OPAQUE, "random", lambda: Hidden(lambda self, x: x + torch.rand(()) * 0)),
    (Code.OPAQUE, "tuple", lambda: Hidden(lambda self, x: (x * 2, x))),
    (Code.OPAQUE, "float64", lambda: Hidden(lambda self, x: x.float() * 2)),
    (Code.OPAQUE, "float64", lambda: Hidden(lambda self, x: F.conv2d(x, torch.ones(3, 3, 1, 1)))),
    (Code.OPAQUE, "does not run", lambda: Hidden(lambda self, x: self.layer(x), layer=nn.Conv2d(5, 3, 1))),
    (Code.OPAQUE, "training", training),
]


@pytest.mark.parametrize(("code", "words", "make"), UNFIT, ids=[f"{c.value} {w}" for c, w, _ in UNFIT])
def test_what_cannot_be_measured_is_refused(code: Code, words: str, make: Any) -> None:
    found = measure(make(), 3, 2)
    assert isinstance(found, Refusal), found
    assert (found.code, words in found.sentence) == (code, True), found


@st.composite
def hidden_layers(draw: Any) -> tuple[nn.Module, int, int]:
    """A random affine module in code that cannot be traced, its channels and axes."""
    axes = draw(st.integers(1, 2))
    groups, wide, tall = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = [draw(st.integers(1, 4)) for _ in range(axes)]
    stride, dilation = ([draw(st.integers(1, 3)) for _ in range(axes)] for _ in range(2))
    padding = [draw(st.integers(0, 3)) for _ in range(axes)]
    crop = [draw(st.integers(-2, 2)) for _ in range(2 * axes)]
    kind = draw(st.sampled_from(["autograd function", "crop", "scaled", "sum"]))
    if kind == "crop":  # what is cropped and then padded reads zeros where there is an image: no convolution does
        padding = [0] * axes
    cls = (nn.Conv1d, nn.Conv2d)[axes - 1]
    layer = cls(groups * wide, groups * tall, size, stride, padding, dilation, groups, bool(draw(st.booleans())))
    nn.init.normal_(layer.weight)
    if kind == "autograd function":
        return Hidden(lambda self, x: Applied.apply(x, self.layer), layer=layer), groups * wide, axes
    if kind == "crop":
        return Hidden(lambda self, x: self.layer(F.pad(x, crop)), layer=layer), groups * wide, axes
    if kind == "sum":
        twin = cls(groups * wide, groups * tall, size, stride, padding, dilation, groups)
        return Hidden(lambda self, x: self.layer(x) + 0.5 * self.twin(x), layer=layer, twin=twin), groups * wide, axes
    return Hidden(lambda self, x: self.layer(x) * 3.0 - 1.0, layer=layer), groups * wide, axes


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(hidden_layers(), st.integers(0, 2**16))
def test_any_affine_module_equals_its_kernel(case: tuple[nn.Module, int, int], seed: int) -> None:
    from reptool.rewrite.lower import Place, geometry, new_layer, values

    module, channels, axes = case
    kernel = kernel_of(module, channels, axes).kernel
    shape = geometry(kernel)
    made = values(kernel, Place(torch.float64, torch.device("cpu")))
    assert not isinstance(shape, Refusal)
    assert not isinstance(made, Refusal)
    layer, module = new_layer(shape, *made), module.double()
    generator = torch.Generator().manual_seed(seed)
    for n in (12, 17, 30):
        x = torch.randn(2, channels, *[n + 3 * i for i in range(axes)], dtype=torch.float64, generator=generator)
        with torch.no_grad():
            assert torch.allclose(layer(x), module(x), rtol=1e-10, atol=1e-10)
