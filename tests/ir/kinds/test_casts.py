"""Constants brought to the dtype and device of a value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.errors import SpecializedError
from reptool.refusal import Code
from reptool.testing import randomize

Forward = Callable[[Any, Tensor], Tensor]
BARE = pytest.mark.parametrize("bare", [False, True])
IMAGES = ((5, 6), (1, 2), (3, 9))


class Frozen(nn.Module):
    """A norm of buffers."""

    def __init__(self, forward: Forward, channels: int = 4) -> None:
        super().__init__()
        self.own = forward
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """By one of the forms below."""
        return self.own(self, x)


def detectron(self: Any, x: Tensor) -> Tensor:
    """As detectron2 does it in training."""
    scale = self.weight * (self.var + 1e-5).rsqrt()
    bias = self.bias - self.mean * scale
    dtype = x.dtype
    return x * scale.reshape(1, -1, 1, 1).to(dtype) + bias.reshape(1, -1, 1, 1).to(dtype)


NORMS: dict[str, Forward] = {
    "detectron": detectron,
    "batch_norm": lambda self, x: F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, eps=1e-5),
    "batch_norm cast": lambda self, x: F.batch_norm(
        x, self.mean.to(x.dtype), self.var.to(x), self.weight.type_as(x), self.bias.to(x.device)
    ),
    "to": lambda self, x: x * self.weight.view(1, -1, 1, 1).to(x) + self.bias.to(device=x.device)[:, None, None],
    "type_as": lambda self, x: x - self.weight.view(1, -1, 1, 1).type_as(x),
    "type": lambda self, x: x / self.weight.type(x.dtype).view(1, -1, 1, 1),
    "mask": lambda self, x: x * (1 - (self.weight > 1).to(x.dtype)).view(1, -1, 1, 1),
}


class Behind(nn.Module):
    """Two convolutions, each with such a norm, added."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 3, padding=1), Frozen(forward)
        self.b, self.norm_b = nn.Conv2d(3, 4, 1), Frozen(forward)

    def forward(self, x: Tensor) -> Tensor:
        """Their sum."""
        return F.relu(self.norm_a(self.a(x)) + self.norm_b(self.b(x)))


def deployed_of(model: nn.Module, shape: tuple[int, ...], bare: bool) -> nn.Module:
    """The model deployed, and seen to compute what it did at several sizes."""
    deployed = reptool.deploy(model, *(() if bare else (torch.randn(shape, dtype=torch.float64),)))
    for size in IMAGES:
        x = torch.randn(2, shape[1], *size, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    return deployed


def kinds(model: nn.Module) -> list[str]:
    """The layers a model consists of."""
    return [type(m).__name__ for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, Frozen))]


@BARE
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_buffers_is_folded(name: str, bare: bool) -> None:
    model = randomize(Behind(NORMS[name]).eval()).double()
    assert kinds(deployed_of(model, (2, 3, 8, 7), bare)) == ["Conv2d"]


class Own(nn.Module):
    """A convolution written out, and a norm."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.weight, self.own, self.norm = nn.Parameter(torch.randn(4, 3, 3, 3)), forward, nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return F.relu(self.norm(self.own(self, x)))


WEIGHTS: dict[str, Forward] = {
    "dtype": lambda self, x: F.conv2d(x, self.weight.to(x.dtype), padding=1),
    "value": lambda self, x: F.conv2d(x, self.weight.to(x, non_blocking=True), padding=1),
    "type_as": lambda self, x: F.conv2d(x, (self.weight * 2).type_as(x).flip(3), padding=1),
    "device": lambda self, x: F.conv2d(x, self.weight.to(x.device, x.dtype), padding=1),
}


@BARE
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_that_is_cast_is_constant(name: str, bare: bool) -> None:
    model = randomize(Own(WEIGHTS[name]).eval()).double()
    assert kinds(deployed_of(model, (2, 3, 8, 7), bare)) == []


def test_a_constant_is_rounded_as_the_model_rounds_it() -> None:
    model = randomize(Behind(detectron).eval())
    model.a.half(), model.b.half()
    x = torch.randn(2, 3, 6, 5).half()
    deployed = reptool.deploy(model, x)
    assert kinds(deployed) == ["Conv2d"]
    assert deployed(x).dtype == torch.float16
    torch.testing.assert_close(deployed(x), model(x), rtol=2e-2, atol=2e-2)


def test_another_dtype_than_the_layers_is_refused_where_it_is_not_known() -> None:
    model = randomize(Behind(detectron).eval())
    model.a.half(), model.b.half()
    report = reptool.report(reptool.deploy(model))
    assert Code.DTYPE in {r.code for r in report.refusals}


def test_the_dtype_of_another_value_is_refused_where_it_is_not_known() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(1, 4, 1, 1))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.conv(x) * self.scale.to(y.dtype)

    model = Model().eval()
    x, y = torch.randn(1, 3, 2, 2), torch.randn(1, dtype=torch.float64)
    for deployed in (reptool.deploy(model), reptool.deploy(model, (x, y))):
        assert deployed(x, y).dtype == torch.float64
        assert torch.equal(deployed(x, y), model(x, y))
        assert Code.DTYPE in {r.code for r in reptool.report(deployed).refusals}


def test_what_is_asked_of_a_cast_constant_is_asked_of_the_value() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.scale.to(x.dtype)
            y = F.conv2d(x, self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype))
            return y * scale if scale.dtype == torch.float32 else y + 100

    model = Model().eval()
    for given in ((), (torch.randn(1, 3, 4, 4),)):
        deployed = reptool.deploy(model, *given)
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(2, 3, 5, 4, dtype=dtype)
            if given and dtype is torch.float64:
                with pytest.raises(SpecializedError):
                    deployed(x)
            else:
                torch.testing.assert_close(deployed(x), model(x))


def test_a_cast_that_is_still_read_stays_as_it_is() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y * self.scale.to(y.dtype), x * self.scale[:3].to(x.dtype)

    model = Model().eval().double()
    for given in ((), (torch.randn(1, 3, 4, 4).double(),)):
        deployed = reptool.deploy(model, *given)
        x = torch.randn(2, 3, 5, 4).double()
        for got, wanted in zip(deployed(x), model(x), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_a_cast_that_is_written_in_place_is_no_constant() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y * self.scale.to(y.dtype).mul_(2)

    model = Model().eval()
    twin = Model().eval()
    twin.load_state_dict(model.state_dict())
    deployed, x = reptool.deploy(model), torch.randn(1, 3, 4, 4)
    for _ in range(3):
        torch.testing.assert_close(deployed(x), twin(x))


class Preprocessed(nn.Module):
    """A model that takes bytes as well as floating-point images."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]).view(1, 3, 1, 1))
        self.mean: Tensor

    def scaled(self, x: Tensor) -> Tensor:
        """Numbers about zero."""
        forms = {
            "division": lambda: x / 255,
            "method": lambda: x.div(255).sub(0.5),
            "factor": lambda: (x - 127.5) * 0.01,
            "constant": lambda: x - self.mean,
            "whole numbers": lambda: (x * 2) / 255,
        }
        return forms[self.form]()

    def forward(self, x: Tensor) -> Tensor:
        """Scaled, then a convolution and a norm."""
        y: Tensor = self.norm(self.conv(self.scaled(x)))
        return y


@pytest.mark.parametrize("form", ["division", "method", "factor", "constant"])
@pytest.mark.parametrize("example", ["bare", "float", "bytes"])
def test_arithmetic_that_is_left_out_still_makes_floats_of_bytes(form: str, example: str) -> None:
    model = randomize(Preprocessed(form).eval())
    pixels = torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8)
    shown = {"bare": None, "float": pixels.float(), "bytes": pixels}[example]
    deployed = reptool.deploy(model, shown)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    for x in (pixels, pixels.float(), pixels.long()):
        for run in (deployed, torch.export.export(deployed, (x,)).module(), torch.jit.trace(deployed, x)):
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-3)


def test_whole_numbers_that_wrap_around_are_never_taken_for_others() -> None:
    model = randomize(Preprocessed("whole numbers").eval())
    pixels = torch.full((1, 3, 5, 5), 200, dtype=torch.uint8)
    torch.testing.assert_close(reptool.deploy(model)(pixels.float()), model(pixels.float()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reptool.deploy(model, pixels)(pixels), model(pixels), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError):  # not shown, so not known: no other numbers either
        reptool.deploy(model)(pixels)


class InWholeNumbers(nn.Module):
    """A convolution in the dtype of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, cast, norm."""
        y: Tensor = self.norm(F.conv2d(x, self.conv.weight.to(x.dtype)).to(torch.float32))
        return y


def test_a_layer_that_computes_with_whole_numbers_is_left() -> None:
    model = randomize(InWholeNumbers().eval())
    pixels = torch.randint(0, 9, (2, 3, 9, 8))
    deployed = reptool.deploy(model, pixels)
    assert reptool.Code.DTYPE in {r.code for r in reptool.report(deployed).refusals}
    torch.testing.assert_close(deployed(pixels), model(pixels))


class Following(nn.Module):
    """A convolution in whatever dtype comes in, and what stands behind it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.conv, self.norm = form, nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """By one of the forms below."""
        w, b = self.conv.weight, self.conv.bias

        def y() -> Tensor:
            return F.conv2d(x, w.to(x.dtype), b.type_as(x), padding=1)

        forms = {
            "norm": lambda: self.norm(y()),
            "number": lambda: y() * 0.5 + 1,
            "cast": lambda: y() * self.gamma.to(x),
            "sum": lambda: F.conv2d(x, w.to(x), padding=1) + F.conv2d(x, w[:, :, 1:2, 1:2].to(x)),
            "constant": lambda: y() * self.gamma,
        }
        out: Tensor = forms[self.form]()
        return out


@pytest.mark.parametrize("form", ["norm", "number", "cast", "sum", "constant"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_layer_without_a_dtype_of_its_own_keeps_following_its_input(form: str, inside: bool) -> None:
    model = randomize(Following(form).eval())
    model = nn.Sequential(model, nn.ReLU()).eval() if inside else model
    deployed = reptool.deploy(model)
    assert bool(reptool.report(deployed).regions) == (form != "constant")
    assert (Code.DTYPE in {r.code for r in reptool.report(deployed).refusals}) == (form == "constant")
    for dtype, close in ((torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        x = torch.randn(2, 3, 6, 5).to(dtype)
        torch.testing.assert_close(deployed(x), model(x), rtol=close, atol=close)  # the dtype as well


class Made(nn.Module):
    """A layer whose weight begins with a matrix made like the input."""

    def __init__(self, make: Forward) -> None:
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.randn(4, 4)), make
        self.after = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The weight and what is made."""
        return self.after(F.linear(x, self.weight + self.make(self, x).to(self.weight.dtype)))


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda m, x: torch.eye(4, device=x.device),
        lambda m, x: torch.eye(4, dtype=x.dtype, device=x.device),
        lambda m, x: torch.full((4, 4), 0.5, dtype=x.dtype),
        lambda m, x: torch.arange(m.weight.shape[0], device=x.device),
    ],
)
def test_a_matrix_made_like_a_value_is_a_constant(make: Forward, shown: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Made(make), nn.ReLU()).eval(), torch.randn(5, 4)
    deployed = reptool.deploy(model, x if shown else None)
    assert sum(p.numel() for p in deployed.parameters() if p.dim() == 2) == 12
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_matrix_of_the_size_of_a_value_is_none() -> None:
    model = nn.Sequential(Made(lambda m, x: torch.eye(x.shape[-1], device=x.device)), nn.ReLU()).eval()
    deployed = reptool.deploy(model, torch.randn(5, 4))
    assert sum(p.numel() for p in deployed.parameters() if p.dim() == 2) == 28
