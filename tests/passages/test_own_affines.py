"""The scale and shift of norms that keep running: in all that reads them, or left where they are with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import reptool
from reptool import Code
from reptool.errors import AbsorbedStateError, SpecializedError
from reptool.testing import assert_equivalent, randomize
from tests.test_refusals import net

TOKENS, IMAGES = (2, 5, 8), (2, 8, 7, 6)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d)
GIVEN = pytest.mark.parametrize("given", [False, True])


def vector(count: int = 8) -> nn.Parameter:
    """A constant for each channel."""
    return nn.Parameter(torch.rand(count) + 0.5)


class Own(nn.LayerNorm):
    """A norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """As the class it derives from."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def heads(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three readers of one norm."""
    y = self.norm(x)
    return self.q(y), self.k(y), self.v(y)


def beside(self: Any, x: Tensor) -> Tensor:
    """A reader that is no layer."""
    y = self.norm(x)
    return self.q(y) + torch.tanh(y)


def halves(self: Any, x: Tensor) -> Tensor:
    """Layers that read a half each."""
    first, second = self.norm(x).chunk(2, -1)
    return torch.tanh(self.q(first)) + self.k(second)


def within(self: Any, x: Tensor) -> Tensor:
    """A layer with a shortcut around it."""
    y = self.norm(x)
    return self.q(y) + y


def added(self: Any, x: Tensor) -> Tensor:
    """A norm that something is added to in place."""
    y = self.norm(x)
    return self.q(y.add_(1.0))


def last(self: Any, x: Tensor) -> Tensor:
    """A norm of the channels between axes that are moved."""
    return self.c(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def both(self: Any, x: Tensor) -> Tensor:
    """A layer behind a norm, and another behind a view of it."""
    y = self.norm(x.permute(0, 2, 3, 1))
    return torch.tanh(self.c(y.permute(0, 3, 1, 2))) + self.q(y).permute(0, 3, 1, 2)


def split(self: Any, x: Tensor) -> Tensor:
    """Pieces of a norm, one of which goes through an activation."""
    first, second = self.norm(x).chunk(2, -1)
    return self.q(first) + torch.tanh(second)


def folded(self: Any, x: Tensor) -> Tensor:
    """A view that mixes the channels with positions."""
    y = self.norm(x)
    return self.q(y.reshape(y.shape[0], -1, 4))


def linear(outputs: int = 4, inputs: int = 8, bias: bool = True) -> nn.Linear:
    """A layer."""
    return nn.Linear(inputs, outputs, bias)


TAKEN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(8), linear()), TOKENS),
    "no bias behind": (lambda: nn.Sequential(nn.LayerNorm(8), linear(bias=False)), TOKENS),
    "no shift": (lambda: nn.Sequential(nn.LayerNorm(8, bias=False), linear(bias=False)), TOKENS),
    "rms norm": (lambda: nn.Sequential(nn.RMSNorm(8), linear(bias=False)), TOKENS),
    "dropout between": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.1), linear()), TOKENS),
    "own forward": (lambda: nn.Sequential(Own(8), linear()), TOKENS),
    "computed": (lambda: nn.Sequential(parametrizations.weight_norm(nn.LayerNorm(8), dim=None), linear()), TOKENS),
    "function": (
        lambda: net(lambda s, x: s.q(F.layer_norm(x, (8,), s.g, s.b)), g=vector(), b=vector(), q=linear()), TOKENS
    ),
    "function by name": (
        lambda: net(lambda s, x: s.q(F.layer_norm(x, (8,), weight=s.g, eps=1e-3)), g=vector(), q=linear()), TOKENS
    ),
    "of torch": (lambda: net(lambda s, x: s.q(torch.layer_norm(x, (8,), s.g)), g=vector(), q=linear()), TOKENS),
    "computed in a function": (
        lambda: net(lambda s, x: s.q(F.rms_norm(x, (8,), 1 + s.g)), g=vector(), q=linear()), TOKENS
    ),
    "functional layer": (
        lambda: net(lambda s, x: F.linear(s.norm(x), s.w), norm=nn.LayerNorm(8), w=nn.Parameter(torch.randn(3, 8))),
        TOKENS,
    ),
    "three readers": (
        lambda: net(heads, norm=nn.LayerNorm(8), q=linear(), k=linear(bias=False), v=linear(3)), TOKENS
    ),
    "two calls": (
        lambda: net(
            lambda s, x: torch.tanh(s.q(s.norm(x))) + s.k(s.norm(x * 2)), norm=nn.LayerNorm(8), q=linear(), k=linear()
        ),
        TOKENS,
    ),
    "halves": (lambda: net(halves, norm=nn.LayerNorm(8), q=linear(4, 4), k=linear(4, 4)), TOKENS),
    "shortcut": (lambda: net(within, norm=nn.LayerNorm(8), q=linear(8)), TOKENS),
    "axes moved": (lambda: net(last, norm=nn.LayerNorm(8), c=nn.Conv2d(8, 4, 1)), IMAGES),
    "axes moved before taps": (lambda: net(last, norm=nn.LayerNorm(8), c=nn.Conv2d(8, 4, 3)), IMAGES),
    "axes moved for one reader": (
        lambda: net(both, norm=nn.LayerNorm(8), c=nn.Conv2d(8, 4, 1, bias=False), q=linear()), IMAGES
    ),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3)), IMAGES),
    "reflected border": (
        lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")), IMAGES
    ),
    "no shift at a border": (
        lambda: net(
            lambda s, x: s.c(F.group_norm(x, 4, s.g)), g=vector(), c=nn.Conv2d(8, 4, 3, padding=1, bias=False)
        ),
        IMAGES,
    ),
    "depthwise": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, groups=8)), IMAGES),
    "no shift before transposed": (
        lambda: net(lambda s, x: s.c(F.group_norm(x, 4, s.g)), g=vector(), c=nn.ConvTranspose2d(8, 4, 2, 2)), IMAGES
    ),
    "instance norm": (lambda: nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 1)), IMAGES),
    "instance norm of torch.nn.functional": (
        lambda: net(
            lambda s, x: s.c(F.instance_norm(x, None, None, s.g, s.b)), g=vector(), b=vector(), c=nn.Conv2d(8, 4, 1)
        ),
        IMAGES,
    ),
    "axes behind the channels": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Conv1d(8, 4, 3)), (2, 8, 9)),
}  # fmt: skip


def scales(model: nn.Module) -> int:
    """How many numbers norms scale and shift by, and those that stand outside of layers."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return sum(p.numel() for m in model.modules() if not isinstance(m, layers) for p in m.parameters(False))


@GIVEN
@pytest.mark.parametrize("case", TAKEN)
def test_scale_and_shift_go_into_all_readers(case: str, given: bool) -> None:
    build, shape = TAKEN[case]
    model, x = randomize(build(), 1).eval().double(), torch.randn(shape, dtype=torch.float64)
    own = {p for p, _ in model.named_parameters() if p.rpartition(".")[2] in ("g", "b", "original0", "original1")}
    deployed = reptool.deploy(model, x if given else None)
    assert_equivalent(model, deployed, x, vary=False)
    report = reptool.report(deployed)
    assert not [r for r in report.refusals if r.code is not Code.DEARER]
    assert not own & {p for p, _ in deployed.named_parameters()}
    norms = [
        m for m in deployed.modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d))
    ]
    assert not any(True for m in norms for _ in m.parameters())
    assert report.parameters[1] == sum(p.numel() for p in deployed.parameters())
    if "function" not in case:
        assert scales(deployed) == 0


def tied() -> nn.Module:
    """Two norms that share their scale, one of which nothing can take it from."""
    model = net(
        lambda s, x: s.q(s.norm(x)) + s.k(torch.tanh(s.other(x))),
        norm=nn.LayerNorm(8), other=nn.LayerNorm(8), q=linear(), k=linear(),
    )  # fmt: skip
    model.other.weight = model.norm.weight
    return model


LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, Code, str]] = {
    "end": (
        lambda: nn.Sequential(linear(8), nn.LayerNorm(8)), TOKENS, "1", Code.NO_STATISTICS, "the model's output behind"
    ),
    "activation": (
        lambda: nn.Sequential(nn.LayerNorm(8), nn.ReLU(), linear()), TOKENS, "0", Code.NO_STATISTICS, "ReLU behind it"
    ),
    "another reader": (
        lambda: net(beside, norm=nn.LayerNorm(8), q=linear(8)), TOKENS, "norm", Code.NO_STATISTICS,
        "'q', behind it, could take it, but it is also read by <root>: tanh",
    ),
    "one call of two": (
        lambda: net(lambda s, x: s.q(s.norm(x)) + torch.tanh(s.norm(x * 2)), norm=nn.LayerNorm(8), q=linear(8)),
        TOKENS, "norm", Code.NO_STATISTICS, "is called more than once",
    ),
    "one reader that has another source": (
        lambda: net(lambda s, x: s.q(s.norm(x)) + s.q(x), norm=nn.LayerNorm(8), q=linear(8)), TOKENS, "norm",
        Code.NO_STATISTICS, "'q' is called in places that would need different weights",
    ),
    "shift at a border of zeros": (
        lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3, padding=1)), IMAGES, "0", Code.NO_STATISTICS,
        "pads with zeros",
    ),
    "shift before transposed": (
        lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 4, 2, 2)), IMAGES, "0", Code.NO_STATISTICS,
        "spreads the first layer's bias unevenly",
    ),
    "more than the channels": (
        lambda: nn.Sequential(nn.LayerNorm((8, 7, 6)), nn.Conv2d(8, 4, 1)), IMAGES, "0", Code.NO_STATISTICS,
        "varies along more than the channels",
    ),
    "another axis": (
        lambda: nn.Sequential(nn.LayerNorm(6), nn.Conv2d(8, 4, 1)), IMAGES, "0", Code.NO_STATISTICS, "'1', behind it",
    ),
    "attention": (
        lambda: net(
            lambda s, x: s.a(y := s.norm(x), y, y)[0], norm=nn.LayerNorm(8), a=nn.MultiheadAttention(8, 2)
        ),
        TOKENS, "norm", Code.NO_STATISTICS, "MultiheadAttention behind it",
    ),
    "a piece that no layer reads": (
        lambda: net(split, norm=nn.LayerNorm(8), q=linear(4, 4)), TOKENS, "norm", Code.NO_STATISTICS, "tanh behind it"
    ),
    "channels in rows": (
        lambda: net(folded, norm=nn.LayerNorm(8), q=linear(4, 4)), TOKENS, "norm", Code.NO_STATISTICS, "a view behind"
    ),
    "shared tensor": (tied, TOKENS, "norm", Code.NO_STATISTICS, "is shared with"),
    "written in place": (
        lambda: net(added, norm=nn.LayerNorm(8), q=linear(8)), TOKENS, "norm", Code.NO_STATISTICS, "written in place"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_stays_is_named_with_the_reason(case: str) -> None:
    build, shape, place, code, words = LEFT[case]
    model, x = randomize(build(), 1).eval().double(), torch.randn(shape, dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    assert_equivalent(model, deployed, x, vary=False)
    refusals = reptool.report(deployed).refusals
    found = [r for r in refusals if place in r.nodes and r.code is code and words in r.sentence]
    assert found, refusals
    assert "its scale and shift stay" in found[0].sentence
    wanted = {p: t.shape for p, t in model.state_dict().items() if p.startswith(f"{place}.")}
    assert wanted == {p: t.shape for p, t in deployed.state_dict().items() if p.startswith(f"{place}.")}


@pytest.mark.parametrize("at", [0, 1])
def test_a_hook_goes_on_seeing_the_scaled_value(at: int) -> None:
    seen: list[Tensor] = []
    inner = nn.Sequential(nn.LayerNorm(8))
    model = randomize(nn.Sequential(inner, linear()), 1).eval()
    (inner, inner[0])[at].register_forward_hook(lambda m, a, out: seen.append(out))
    x = torch.randn(TOKENS)
    deployed = reptool.deploy(model, x)
    seen.clear()
    model(x)
    deployed(x)
    torch.testing.assert_close(seen[0], seen[1])


def test_a_method_that_gives_the_normalized_value_is_right_or_raises() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(8), linear()

        def features(self, x: Tensor) -> Tensor:
            return self.norm(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))

    model, x = randomize(Reader(), 1).eval(), torch.randn(TOKENS)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecializedError):
        deployed.features(x)


class Holds(nn.Module):
    """A norm and a layer, each by itself."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.a = norm, linear()

    def forward(self, x: Tensor) -> Tensor:
        """The normalized value."""
        return self.norm(x)


class Both(nn.Module):
    """Two readers of a norm that stands in another module, and methods that leave one out."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inner, self.b = Holds(norm), linear()

    def forward(self, x: Tensor) -> Tensor:
        """What both read."""
        y = self.inner(x)
        return self.b(y) + torch.tanh(self.inner.a(y))

    def other(self, x: Tensor) -> Tensor:
        """Another reader in the place of one."""
        y = self.inner(x)
        return torch.sigmoid(y)[..., :4] + self.inner.a(y)

    def normed(self, x: Tensor) -> Tensor:
        """The norm by itself."""
        return self.inner.norm(x)

    def tapped(self, x: Tensor, tap: Callable[[Tensor], Tensor]) -> Tensor:
        """A reader behind what a caller puts there."""
        return self.b(tap(self.inner(x)))


@pytest.mark.parametrize("norm", [nn.LayerNorm, Own])
def test_a_norm_is_right_only_in_the_call_that_holds_all_its_readers(norm: type[nn.Module]) -> None:
    model, x = randomize(Both(norm(8)), 1).eval(), torch.randn(TOKENS)
    deployed = reptool.deploy(model, x)
    assert not any("norm" in n for n, _ in deployed.named_parameters())
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    calls = (lambda m: m.other(x), lambda m: m.normed(x), lambda m: m.tapped(x, torch.tanh), lambda m: m.inner(x))
    for call in (*calls, lambda m: m.inner.norm(x), lambda m: m.b(x)):
        with pytest.raises(SpecializedError):
            call(deployed)


@pytest.mark.parametrize("nested", [False, True])
def test_pieces_of_a_sequence_are_run_whole_or_raise(nested: bool) -> None:
    norm = nn.LayerNorm(8)
    model = randomize(nn.Sequential(nn.Sequential(norm) if nested else norm, linear(), nn.ReLU()), 1).eval()
    deployed, x = reptool.deploy(model), torch.randn(TOKENS)
    for whole in (lambda m: m(x), lambda m: m[:2](x), lambda m: m[2:](m[:2](x))):
        torch.testing.assert_close(whole(deployed), whole(model), rtol=1e-4, atol=1e-5)
    between = (lambda m: m[:1](x), lambda m: m[1:](x), lambda m: nn.Sequential(m[0], nn.Tanh(), m[1])(x))
    for part in (*between, lambda m: nn.Sequential(m[1])(x)):
        with pytest.raises(SpecializedError):
            part(deployed)


def reads_the_value(model: nn.Module, x: Tensor) -> None:
    model.inner.norm.register_forward_hook(lambda m, a, out: out.tanh())


def gets_a_weight(model: nn.Module, x: Tensor) -> None:
    model.inner.norm.weight = nn.Parameter(torch.full((8,), 2.0))


def is_another(model: nn.Module, x: Tensor) -> None:
    model.inner.norm = nn.LayerNorm(8)


def loses_a_reader(model: nn.Module, x: Tensor) -> None:
    model.b = nn.Linear(8, 4)


@pytest.mark.parametrize("change", [reads_the_value, gets_a_weight, is_another, loses_a_reader])
@pytest.mark.parametrize("warm", [False, True])
def test_a_norm_without_its_scale_is_watched(change: Callable[..., None], warm: bool) -> None:
    model, x = randomize(Both(nn.LayerNorm(8)), 1).eval(), torch.randn(TOKENS)
    deployed = reptool.deploy(model, x)
    if warm:
        deployed(x)

    def changed() -> None:
        change(deployed, x)
        deployed(x)

    with pytest.raises(SpecializedError):
        changed()


def test_what_a_norm_has_beside_its_scale_may_change() -> None:
    model, x = randomize(Both(nn.LayerNorm(8)), 1).eval(), torch.randn(TOKENS)
    deployed = reptool.deploy(model, x)
    model.inner.norm.eps = deployed.inner.norm.eps = 0.5
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)


class Joined(nn.Module):
    """A norm behind a part of its own and one that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Both side by side."""
        return self.bn(torch.cat([self.a(x), y], 1))


class Gives(nn.Module):
    """The other part."""

    def __init__(self) -> None:
        super().__init__()
        self.joined, self.b = Joined(), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As it was fused."""
        return self.joined(x, self.b(x)).relu()

    def other(self, x: Tensor) -> Tensor:
        """Another value in the place of one part."""
        return self.joined(x, x[:, :1].expand(-1, 4, -1, -1))


def test_a_norm_that_was_given_to_parts_is_right_only_in_the_call_that_holds_them_all() -> None:
    model, x = randomize(Gives(), 1).eval(), torch.randn(2, 3, 8, 8)
    deployed = reptool.deploy(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    for call in (lambda m: m.other(x), lambda m: m.b(x), lambda m: m.joined(x, model.b(x))):
        with pytest.raises(SpecializedError):
            call(deployed)


def test_a_weight_that_is_read_elsewhere_stays() -> None:
    model = net(lambda s, x: s.q(s.norm(x)) + torch.tanh(x * s.norm.weight), norm=nn.LayerNorm(8), q=linear(8))
    model, x = randomize(model, 1).eval().double(), torch.randn(TOKENS, dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    assert_equivalent(model, deployed, x, vary=False)
    assert deployed.norm.weight is not None


def test_constants_of_another_dtype_stay() -> None:
    wide = net(lambda s, x: s.q(s.norm(x.double()).float()), norm=nn.LayerNorm(8).double(), q=linear(8))
    model, x = randomize(wide, 1).eval(), torch.randn(TOKENS)
    model.norm.double()
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x))
    assert deployed.norm.weight is not None


def test_what_is_loaded_for_an_absorbed_scale_raises() -> None:
    model, x = randomize(nn.Sequential(nn.LayerNorm(8), linear()), 1).eval(), torch.randn(TOKENS)
    deployed = reptool.deploy(model, x)
    with pytest.raises(AbsorbedStateError):
        deployed.load_state_dict(model.state_dict(), strict=False)
    deployed.load_state_dict(copy.deepcopy(deployed).state_dict())


def test_rules_that_leave_scales_out_leave_these() -> None:
    model, x = randomize(nn.Sequential(nn.LayerNorm(8), linear()), 1).eval(), torch.randn(TOKENS)
    deployed = reptool.deploy(model, x, rules=["conv_bn"])
    assert deployed[0].weight is not None
    torch.testing.assert_close(deployed(x), model(x))


def test_a_model_on_meta_is_planned() -> None:
    model = nn.Sequential(nn.LayerNorm(8), linear()).eval()
    told = reptool.explain(model).parameters
    assert reptool.explain(model.to("meta")).parameters == told == (52, 36)


def test_flat_and_changed_in_place() -> None:
    model, x = randomize(net(heads, norm=Own(8), q=linear(), k=linear(), v=linear()), 1).eval(), torch.randn(TOKENS)
    flat = reptool.deploy(model, x, flatten=True)
    for got, wanted in zip(flat(x), model(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert not any("norm" in n for n, _ in flat.named_parameters())


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]), outputs=st.integers(1, 5), size=st.integers(1, 3), stride=st.integers(1, 2),
    dilation=st.integers(1, 2), padding=st.integers(0, 1), shifted=st.booleans(), axes=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_norm_in_front_of_any_convolution(
    groups: int, outputs: int, size: int, stride: int, dilation: int, padding: int, shifted: bool, axes: int, seed: int
) -> None:
    """The result is the model's, also at the border; the constants are gone unless they meet padded zeros."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    layer = kind(8, outputs * groups, size, stride, padding, dilation, groups)
    model = randomize(nn.Sequential(nn.GroupNorm(2, 8), layer), seed).eval().double()
    if not shifted:
        nn.init.zeros_(model[0].bias)
    x = torch.randn(2, 8, *(5, 6, 7)[:axes], dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-9, atol=1e-9)
    assert ("weight" not in dict(deployed[0].named_parameters())) == (not (shifted and padding))


class Around(nn.Module):
    """A norm and its reader in code that does more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(8), linear(8), linear(8)
        self.raw = False

    def penalty(self) -> Tensor:
        """A number from the weights."""
        return self.norm.weight.square().sum()


class AsksForFlag(Around):
    """Code that asks whether the norm scales."""

    def forward(self, x: Tensor) -> Tensor:
        """Another way where it does not."""
        y = self.norm(x)
        return self.q(y if self.norm.elementwise_affine else y * 3)


class AsksByName(Around):
    """Code that asks by name whether the norm scales."""

    def forward(self, x: Tensor) -> Tensor:
        """Another way where it does not."""
        return self.q(self.norm(x)) * (1 if getattr(self.norm, "elementwise_affine", False) else 5)


class AsksForWeight(Around):
    """Code that asks whether the norm has a weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Another way where it has none."""
        y = self.norm(x)
        return self.q(y * 3 if self.norm.weight is None else y)


class AsksForDtype(Around):
    """Code that asks for the dtype of the norm's weight."""

    def forward(self, x: Tensor) -> Tensor:
        """In that dtype."""
        return self.q(self.norm(x.to(self.norm.weight.dtype)))


class AsksForSize(Around):
    """Code that reads the norm in another way at another size."""

    def forward(self, x: Tensor) -> Tensor:
        """An activation for few tokens."""
        return self.q(self.norm(x)) if x.shape[1] > 3 else self.k(torch.relu(self.norm(x)))


class AsksForSetting(Around):
    """Code that gives the norm's value where it is set to."""

    def forward(self, x: Tensor) -> Tensor:
        """The raw value, or a layer's."""
        y = self.norm(x)
        return y if self.raw else self.q(y)


@pytest.mark.parametrize("keep_fallback", [False, True])
@pytest.mark.parametrize("kind", [AsksForFlag, AsksByName, AsksForWeight, AsksForDtype, AsksForSize, AsksForSetting])
def test_code_that_asks_is_right_or_raises(kind: type[Around], keep_fallback: bool) -> None:
    model = randomize(kind(), 1).eval()
    x, few = torch.randn(TOKENS), torch.randn(2, 2, 8)
    deployed = reptool.deploy(model, x, keep_fallback=keep_fallback)
    for value in (x, few):
        torch.testing.assert_close(deployed(value), model(value), rtol=1e-4, atol=1e-5)
    model.raw = deployed.raw = True
    for call in (lambda m: m(x), lambda m: m.penalty()):
        try:
            got = call(deployed)
        except SpecializedError:
            continue
        torch.testing.assert_close(got, call(model), rtol=1e-4, atol=1e-5)


def test_a_method_with_a_fallback_reads_the_norm_as_it_was() -> None:
    model = randomize(AsksForSize(), 1).eval()
    deployed = reptool.deploy(model, torch.randn(TOKENS), keep_fallback=True)
    assert not list(deployed.norm.parameters())
    x = torch.randn(2, 2, 8)
    torch.testing.assert_close(deployed(x), model(x))
