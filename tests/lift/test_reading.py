"""Other calls of what is read: general convolutions, products with factors, sizes asked for, dropouts, ``out=``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reptool
from reptool.testing import assert_equivalent, randomize
from tests.test_refusals import net

BARE = pytest.mark.parametrize("bare", [False, True])
Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
IMAGES = (2, 8, 7, 6)


def weight(*shape: int) -> nn.Parameter:
    """A constant."""
    return nn.Parameter(torch.randn(shape))


def norms_left(case: Case, bare: bool) -> tuple[int, int]:
    """Deploys a model and compares it; the norms that run in it, and the parameters of the deployed one."""
    build, shape = case
    model, x = randomize(build(), 1).eval().double(), torch.randn(shape, dtype=torch.float64)
    deployed = reptool.deploy(model, None if bare else x)
    assert_equivalent(model, deployed, x, vary=False)
    return len(reptool.report(deployed).norms_left), len(list(deployed.parameters()))


def general(transposed: bool, *shape: int, groups: int = 1, target: Any = torch.convolution) -> Callable[[], nn.Module]:
    """A general convolution in front of a norm."""
    axes = len(shape) - 2
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    count = shape[1] * groups if transposed else shape[0]

    one, none = [1] * axes, [0] * axes
    given = (target, [2] * axes, one, one, transposed, none, groups)
    return lambda: set_to(given, net(generally, w=weight(*shape), b=weight(count), n=norm(count)))


def generally(self: Any, x: Tensor) -> Tensor:
    """A norm behind what the model was set to."""
    target, *given = self.given
    return self.n(target(x, self.w, self.b, *given))


def scaled(self: Any, x: Tensor) -> Tensor:
    """A scale behind what the model was set to."""
    target, *given = self.given
    return self.g * target(x, self.w, None, *given)


def set_to(given: tuple[Any, ...], model: nn.Module) -> nn.Module:
    """A model with a call as a setting."""
    model.given = given  # type: ignore[assignment]
    return model


GENERAL: dict[str, Case] = {
    "plain": (general(False, 6, 8, 3, 3), IMAGES),
    "grouped": (general(False, 6, 4, 3, 3, groups=2), IMAGES),
    "one axis": (general(False, 6, 8, 3), (2, 8, 9)),
    "three axes": (general(False, 6, 8, 3, 2, 3), (2, 8, 5, 6, 5)),
    "transposed": (general(True, 8, 3, 3, 3), IMAGES),
    "transposed and grouped": (general(True, 8, 3, 3, 3, groups=2), IMAGES),
    "transposed along one axis": (general(True, 8, 3, 4), (2, 8, 9)),
    "operator": (general(False, 6, 8, 3, 3, target=torch.ops.aten.convolution), IMAGES),
    "overload": (general(True, 8, 3, 3, 3, target=torch.ops.aten.convolution.default), IMAGES),
    "numbers for every axis": (
        lambda: net(
            lambda s, x: s.n(torch.convolution(x, s.w, None, (2,), (1,), (1,), False, (0,), 1)),
            w=weight(6, 8, 3, 3), n=nn.BatchNorm2d(6),
        ),
        IMAGES,
    ),
}  # fmt: skip


@BARE
@pytest.mark.parametrize("name", GENERAL)
def test_a_general_convolution_is_a_layer(name: str, bare: bool) -> None:
    assert norms_left(GENERAL[name], bare) == (0, 2)


def test_a_general_convolution_whose_weight_is_data_is_none() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        made = torch.convolution(x, self.w * x.mean(), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return self.n(made)

    def build() -> nn.Module:
        return net(forward, w=weight(6, 8, 3, 3), n=nn.BatchNorm2d(6))

    assert norms_left((build, IMAGES), False)[0] == 1


@settings(max_examples=20, deadline=None)
@given(
    axes=st.integers(1, 3), groups=st.sampled_from([1, 2]), size=st.integers(1, 3), stride=st.integers(1, 3),
    padding=st.integers(0, 1), dilation=st.integers(1, 2), transposed=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_general_convolution_is_the_named_one(
    axes: int, groups: int, size: int, stride: int, padding: int, dilation: int, transposed: bool, seed: int
) -> None:
    """``convolution`` folds to what ``conv`` or ``conv_transpose`` of as many axes folds to."""
    torch.manual_seed(seed)
    padding = min(padding, dilation * (size - 1)) if transposed else padding
    shape = (4, 4 // groups, *[size] * axes)
    given = ([stride] * axes, [padding] * axes, [dilation] * axes)
    held = {"w": weight(*shape), "g": weight(4, *[1] * axes)}
    one = set_to((torch.convolution, *given, transposed, [0] * axes, groups), net(scaled, **held))
    rest = (0, groups, dilation) if transposed else (dilation, groups)
    target = getattr(F, f"conv_transpose{axes}d" if transposed else f"conv{axes}d")
    other = set_to((target, stride, padding, *rest), net(scaled, **held))
    x = torch.randn(2, 4, *(7, 6, 5)[:axes], dtype=torch.float64)
    first, second = (reptool.deploy(m.double().eval(), x) for m in (one, other))
    torch.testing.assert_close(first(x), one(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first.w, second.w, rtol=0, atol=0)
    assert [n for n, _ in first.named_parameters()] == [n for n, _ in second.named_parameters()]
    assert "g" not in dict(first.named_parameters())


FACTORS: dict[str, tuple[Case, bool]] = {
    "addmm": (
        (lambda: net(lambda s, x: s.g * torch.addmm(s.b, x, s.w, beta=0.5, alpha=2.0),
                     b=weight(3), w=weight(8, 3), g=weight(3)), (4, 8)), True,
    ),
    "a row": (
        (lambda: net(lambda s, x: s.g * torch.addmm(s.b, x, s.w, alpha=2), b=weight(1, 3), w=weight(8, 3), g=weight(3)),
         (4, 8)), True,
    ),
    "one number": (
        (lambda: net(lambda s, x: s.g * torch.addmm(s.b, x, s.w, beta=0.3), b=weight(1), w=weight(8, 3), g=weight(3)),
         (4, 8)), True,
    ),
    "method": (
        (lambda: net(lambda s, x: s.g * s.b.addmm(x, s.w, beta=0.3), b=weight(3), w=weight(8, 3), g=weight(3)),
         (4, 8)), True,
    ),
    "no bias": (
        (lambda: net(lambda s, x: s.g * torch.addmm(s.b * float("nan"), x, s.w, beta=0),
                     b=weight(3), w=weight(8, 3), g=weight(3)), (4, 8)), True,
    ),
    "one matrix for a batch": (
        (lambda: net(lambda s, x: s.g * torch.baddbmm(s.b, x, s.w.expand(2, -1, -1), beta=0.3, alpha=0.7),
                     b=weight(3), w=weight(1, 8, 3), g=weight(3)), (2, 5, 8)), True,
    ),
    "on the left": (
        (lambda: net(lambda s, x: s.g * torch.baddbmm(s.b, s.w.expand(2, -1, -1), x, beta=0.3, alpha=0.7),
                     b=weight(3, 1), w=weight(1, 3, 8), g=weight(3, 1)), (2, 8, 5)), True,
    ),
    "product of stacks": (
        (lambda: net(lambda s, x: s.g * torch.bmm(x, s.w.expand(2, -1, -1)), w=weight(1, 8, 3), g=weight(3)),
         (2, 5, 8)), True,
    ),
    "a matrix for each sample": (
        (lambda: net(lambda s, x: s.g * torch.baddbmm(s.b, x, s.w), b=weight(3), w=weight(2, 8, 3), g=weight(3)),
         (2, 5, 8)), False,
    ),
    "a bias for each sample": (
        (lambda: net(lambda s, x: s.g * torch.addmm(s.b, x, s.w, beta=0.3), b=weight(4, 3), w=weight(8, 3),
                     g=weight(3)), (4, 8)), False,
    ),
    "a bias for each position": (
        (lambda: net(lambda s, x: s.g * torch.baddbmm(s.b, s.w.expand(2, -1, -1), x), b=weight(3, 5),
                     w=weight(1, 3, 8), g=weight(3, 1)), (2, 8, 5)), False,
    ),
    "a value is added": (
        (lambda: net(lambda s, x: s.g * torch.addmm(x[:, :3], x, s.w, beta=0.3), w=weight(8, 3), g=weight(3)), (4, 8)),
        False,
    ),
    "the factor is data": (
        (lambda: net(lambda s, x: s.g * torch.addmm(s.b, x, s.w, alpha=x.sum().item()), b=weight(3), w=weight(8, 3),
                     g=weight(3)), (4, 8)), False,
    ),
    "a batch is made": (
        (lambda: net(lambda s, x: s.g * (x @ s.w.expand(2, -1, -1)), w=weight(1, 8, 3), g=weight(3)), (1, 5, 8)),
        False,
    ),
}  # fmt: skip


@BARE
@pytest.mark.parametrize("name", FACTORS)
def test_products_with_factors(name: str, bare: bool) -> None:
    case, taken = FACTORS[name]
    left = norms_left(case, bare)[1]
    if not bare:  # the rank of a stack is not known without an example
        assert ("g" not in dict(reptool.deploy(case[0]().eval(), torch.randn(case[1])).named_parameters())) == taken
    assert left > 0


def told(layer: nn.Module, *size: int, by_name: bool = True) -> Callable[[Any, Tensor], Tensor]:
    """A norm behind a layer that is told what size to give."""
    if by_name:
        return lambda s, x: s.n(s.up(x, output_size=size))
    return lambda s, x: s.n(s.up(x, list(size)))


def like(self: Any, x: Tensor) -> Tensor:
    """Up again to the size of the input."""
    return self.n(self.up(torch.relu(self.down(x)), output_size=x.size()))


SIZED: dict[str, Case] = {
    "larger": (
        lambda: net(told(nn.Identity(), 14, 12), up=nn.ConvTranspose2d(8, 4, 3, 2, 1), n=nn.BatchNorm2d(4)), IMAGES
    ),
    "by position": (
        lambda: net(
            told(nn.Identity(), 13, 11, by_name=False), up=nn.ConvTranspose2d(8, 4, 3, 2, 1), n=nn.BatchNorm2d(4)
        ),
        IMAGES,
    ),
    "of a value": (
        lambda: net(
            like, down=nn.Conv2d(8, 8, 3, 2, 1), up=nn.ConvTranspose2d(8, 8, 3, 2, 1), n=nn.BatchNorm2d(8)
        ),
        IMAGES,
    ),
    "no stride": (
        lambda: net(told(nn.Identity(), 7, 6), up=nn.ConvTranspose2d(8, 4, 3, 1, 1), n=nn.BatchNorm2d(4)), IMAGES
    ),
    "one axis": (
        lambda: net(told(nn.Identity(), 18), up=nn.ConvTranspose1d(8, 4, 3, 2, 1), n=nn.BatchNorm1d(4)), (2, 8, 9)
    ),
    "three axes": (
        lambda: net(told(nn.Identity(), 10, 9, 8), up=nn.ConvTranspose3d(8, 4, 3, 2, 1), n=nn.BatchNorm3d(4)),
        (2, 8, 5, 5, 4),
    ),
    "mixed behind": (
        lambda: net(
            lambda s, x: s.n(s.up(x, output_size=(14, 12))), up=nn.ConvTranspose2d(8, 4, 3, 2, 1), n=nn.Conv2d(4, 2, 1)
        ),
        IMAGES,
    ),
}  # fmt: skip


@BARE
@pytest.mark.parametrize("name", SIZED)
def test_a_layer_that_is_told_its_size_takes_what_is_behind_it(name: str, bare: bool) -> None:
    left, parameters = norms_left(SIZED[name], bare)
    assert (left, parameters) == (0, 4 if name == "of a value" else 2)


def test_a_layer_that_is_told_its_size_goes_on_giving_other_sizes() -> None:
    model = randomize(SIZED["of a value"][0](), 1).eval()
    deployed = reptool.deploy(model, torch.randn(IMAGES))
    for size in ((8, 8), (9, 8), (6, 11)):
        x = torch.randn(2, 8, *size)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_told_its_size_is_not_summed_with_another() -> None:
    model = net(
        lambda s, x: s.up(x, output_size=(2, 2)) + s.other(x),
        up=nn.ConvTranspose2d(8, 4, 1, 2), other=nn.ConvTranspose2d(8, 4, 1, 2),
    )  # fmt: skip
    model, x = randomize(model, 1).eval().double(), torch.randn(2, 8, 1, 1, dtype=torch.float64)
    assert_equivalent(model, reptool.deploy(model, x), x, vary=False)


DROPOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda y: F.dropout(y, 0.5, False),
    "dropout2d": lambda y: F.dropout2d(y, 0.3, training=False),
    "in place": lambda y: F.dropout2d(y, 0.3, False, True),
    "alpha": lambda y: F.alpha_dropout(y, 0.5, False),
    "alpha by default": F.alpha_dropout,
    "feature alpha": lambda y: F.feature_alpha_dropout(y, training=False),
    "of torch": lambda y: torch.dropout(y, p=0.5, train=False),
    "feature of torch": lambda y: torch.feature_dropout(y, 0.5, False),
    "alpha of torch": lambda y: torch.alpha_dropout(y, 0.5, False),
    "feature alpha of torch": lambda y: torch.feature_alpha_dropout(y, 0.5, False),
    "in place of torch": lambda y: torch.feature_dropout_(y, 0.5, False),
    "none": lambda y: F.alpha_dropout(y, 0.0, True),
}


@BARE
@pytest.mark.parametrize("name", DROPOUTS)
def test_a_dropout_that_drops_nothing_stands_in_no_way(name: str, bare: bool) -> None:
    def build() -> nn.Module:
        return net(lambda s, x: s.n(DROPOUTS[name](s.c(x))), c=nn.Conv2d(8, 4, 1), n=nn.BatchNorm2d(4))

    assert norms_left((build, IMAGES), bare) == (0, 2)


@pytest.mark.parametrize("kind", ["dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout"])
def test_a_dropout_that_drops_stays(kind: str) -> None:
    shape = (2, 8, 6) if kind == "dropout1d" else IMAGES
    layer, norm = (nn.Conv1d, nn.BatchNorm1d) if kind == "dropout1d" else (nn.Conv2d, nn.BatchNorm2d)
    model = net(lambda s, x: s.n(getattr(F, kind)(s.c(x), 0.5, True)), c=layer(8, 4, 1), n=norm(4)).eval()
    assert reptool.explain(model, torch.randn(shape)).norms_left == ["n"]


@pytest.mark.parametrize("kind", ["dropout2d", "alpha_dropout", "feature_alpha_dropout"])
def test_what_is_written_into_the_value_of_a_dropout_is_written_into_its_input(kind: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.c(x)
        z = self.given[0](y, 0.5, False)
        z.add_(1.0)
        return self.n(y) + z

    def build() -> nn.Module:
        return set_to((getattr(F, kind),), net(forward, c=nn.Conv2d(8, 4, 1), n=nn.BatchNorm2d(4)))

    assert norms_left((build, IMAGES), False)[0] == 0


def over(self: Any, x: Tensor) -> Tensor:
    """The value of one layer is written over by another's."""
    c = self.a(x)
    torch.mul(self.b(x), 2.0, out=c)
    return self.n(c)


def into_new(self: Any, x: Tensor) -> Tensor:
    """A sum that is written into memory made for it."""
    a = self.a(x)
    c = torch.empty_like(a)
    torch.add(a, self.b(x), out=c)
    return self.n(c)


def into_part(self: Any, x: Tensor) -> Tensor:
    """A part of a value is written over."""
    c = self.a(x)
    torch.add(c[:, :2], 1.0, out=c[:, 2:])
    return self.n(c)


def into_input(self: Any, x: Tensor) -> Tensor:
    """What is written is what was read."""
    c = self.a(x)
    torch.mul(c, self.g, out=c)
    return self.n(c) + c


def into_two(self: Any, x: Tensor) -> Tensor:
    """Two values are written at once."""
    c = x.clone()
    torch.sort(self.d(x), 1, out=(c, torch.empty(0, dtype=torch.long)))
    return self.n(self.e(c))


def joined(self: Any, x: Tensor) -> Tensor:
    """A concatenation that is written into memory made for it."""
    a = self.a(x)
    c = torch.empty((2, 8, 7, 6), dtype=a.dtype)
    torch.cat([a, self.b(x)], 1, out=c)
    return self.n(self.e(c))


@BARE
@pytest.mark.parametrize("forward", [over, into_new, into_part, into_input, into_two, joined])
def test_what_is_written_by_out_is_what_is_read_afterwards(forward: Callable[..., Tensor], bare: bool) -> None:
    def build() -> nn.Module:
        layers = {n: nn.Conv2d(8, 4, 1) for n in "abe"}
        return net(forward, **layers, d=nn.Conv2d(8, 8, 1), n=nn.BatchNorm2d(4), g=weight(4, 1, 1))

    with torch.no_grad():
        model, x = randomize(build(), 1).eval().double(), torch.randn(IMAGES, dtype=torch.float64)
        deployed = reptool.deploy(model, None if bare else x)
        assert_equivalent(model, deployed, x, vary=False)
