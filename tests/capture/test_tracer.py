"""What code can be followed: structures in and out, loops, checkpointing, subclasses, and what cannot be followed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import reptool
from reptool.errors import InputError
from tests.traps import Branches, ConvBN, assert_same, check, codes, image, norms, ready


# --- structures -----------------------------------------------------------------------------------------------------
@dataclass
class Sample:
    image: Tensor
    label: object = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Positional(ConvBN):
    def forward(self, *images: Any, **rest: Any) -> Any:
        return [self.bn(self.conv(x)).relu() for x in images]


class Keyword(ConvBN):
    def forward(self, *, image: Any) -> Any:
        return {"out": (self.bn(self.conv(image)).relu(), [image])}


class FromDict(Branches):
    def forward(self, sample: Any) -> Any:
        return {"out": super().forward(sample["image"]), "rest": (sample["image"], [1, None])}


class FromDataclass(ConvBN):
    def forward(self, sample: Any) -> Any:
        return Sample(self.bn(self.conv(sample.image)).relu(), 2)


class FromPair(Branches):
    def forward(self, pair: Any) -> Any:
        first, _ = pair
        return Pair(self.bn(self.a(first) + self.b(first)), pair.second)


X = image()
STRUCTURES = [
    (Positional, (X, X * 2), lambda m, x: m(*x)), (Keyword, {"image": X}, lambda m, x: m(**x)),
    (FromDict, ({"image": X},), lambda m, x: m(*x)), (FromDataclass, (Sample(X),), lambda m, x: m(*x).image),
    (FromPair, (Pair(X, X * 2),), lambda m, x: m(*x)),
]  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "call"), STRUCTURES)
def test_structures_go_in_and_out(model: type[nn.Module], inputs: Any, call: Any) -> None:
    deployed, report = check(ready(model()), inputs, {"call": call})
    assert len(report.regions) >= 1
    assert norms(deployed) == 0


def test_functions_in_a_method_that_is_written_anew() -> None:
    class Acts(Branches):
        def __init__(self) -> None:
            super().__init__()
            self.act = lambda x: x * torch.sigmoid(x)
            self.leaky = functools.partial(F.leaky_relu, negative_slope=0.2)

        def forward(self, x: Any) -> Any:
            def inner(v: Any) -> Any:
                return v.relu() + 1

            return inner(self.leaky(self.act(self.bn(self.a(x) + self.b(x)))))

    _, report = check(ready(Acts()))
    assert len(report.regions) == 1


# --- ways of calling modules ----------------------------------------------------------------------------------------
class Walks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)])
        self.heads = nn.ModuleDict({"a": ConvBN(conv=nn.Conv2d(4, 4, 1)), "b": ConvBN(conv=nn.Conv2d(4, 4, 3))})

    def forward(self, x: Any) -> Any:
        i = 0
        while i < len(self.layers):
            x = self.layers[i](x)
            i += 1
        return {name: head(x) for name, head in self.heads.items()}


class Children(ConvBN):
    def forward(self, x: Any) -> Any:
        for _, module in self.named_children():
            x = module(x)
        return x


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return self.layers[2:](self.layers[:2](x))


class Property(ConvBN):
    @property
    def block(self) -> nn.Module:
        return nn.Sequential(self.conv, self.bn)

    @property
    def scale(self) -> Tensor:
        return self.bn.weight.mean()

    def forward(self, x: Any) -> Any:
        return self.block(x) * self.scale


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Branches(3, 3), Branches(3, 3)])
        self.tail = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Any) -> Any:
        for reentrant, block in zip((False, True), self.blocks, strict=True):
            x = checkpoint(block, x, use_reentrant=reentrant)
        return checkpoint_sequential(self.tail, 1, x, use_reentrant=False)


class Dropped(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(F.dropout(x, 0.5, self.training))
        return y if self.training else self.bn(y)


@pytest.mark.parametrize("model", [Walks, Children, Sliced, Property, Checkpointed, Dropped])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_every_way_of_calling_modules_fuses(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert norms(deployed) == 0
    assert not report.untraced


# --- how layers are called ------------------------------------------------------------------------------------------
class ByKeyword(ConvBN):
    def forward(self, x: Any) -> Any:
        return self.bn(input=self.conv(input=x)).relu()


class FunctionByKeyword(ConvBN):
    def forward(self, x: Any) -> Any:
        return self.bn(F.conv2d(input=x, weight=self.conv.weight, bias=self.conv.bias, padding=1)).relu()


class TorchNorm(ConvBN):
    """The function of `torch` has another order of arguments than that of `torch.nn.functional`."""

    def forward(self, x: Any) -> Any:
        bn = self.bn
        y = torch.batch_norm(
            self.conv(x), bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps, False
        )
        return y.relu()


@pytest.mark.parametrize("model", [ByKeyword, FunctionByKeyword, TorchNorm])
@pytest.mark.parametrize("shown", [False, True])
def test_how_a_layer_is_called_makes_no_difference(model: type[nn.Module], shown: bool) -> None:
    _, report = check(ready(model()), shown=[shown])
    assert [list(r.rules) for r in report.regions] == [["conv_bn"]]
    assert not codes(report)


# --- subclasses -----------------------------------------------------------------------------------------------------
class NormAct(nn.BatchNorm2d):
    def forward(self, x: Any) -> Any:
        return F.relu(super().forward(x))


class FunctionalNormAct(nn.BatchNorm2d):
    def forward(self, x: Any) -> Any:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.silu(x)


class Frozen(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((n,), value))

    def forward(self, x: Any) -> Any:
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class Affine(nn.BatchNorm2d):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2 + 1


class Standardized(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        h, w = x.shape[-2:]
        pad = [max((-(-n // s) - 1) * s + 3 - n, 0) for n, s in zip((w, h), self.stride[::-1], strict=True)]
        x = F.pad(x, [q for p in pad for q in (p // 2, p - p // 2)])
        return F.conv2d(x, self.weight, self.bias, self.stride)


def _untracked() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.track_running_stats = False
    return norm


FUSED = [
    (NormAct(4), None), (FunctionalNormAct(4), None), (Frozen(4), None), (Affine(4), None), (nn.SyncBatchNorm(4), None),
    (nn.BatchNorm2d(4, affine=False), None), (_untracked(), None), (None, Standardized(3, 4, 3, padding=1)),
    (None, Same(3, 4, 3, stride=2)), (None, nn.ConvTranspose2d(3, 4, 3, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("norm", "conv"), FUSED)
def test_subclasses_are_judged_by_what_they_do(norm: nn.Module | None, conv: nn.Module | None) -> None:
    _, report = check(ready(ConvBN(norm, conv)))
    assert len(report.regions) == 1


class Other(nn.BatchNorm2d):
    def forward(self, x: Any) -> Any:
        return x * self.weight.view(1, -1, 1, 1) + x.mean((2, 3), keepdim=True)


class Absolute(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return super().forward(x).abs()


class Doubled(nn.Conv2d):
    def _conv_forward(self, x: Any, weight: Any, bias: Any) -> Any:
        return super()._conv_forward(x, weight * 2, bias)


class FromData(nn.Conv2d):
    def forward(self, x: Any) -> Any:
        return self._conv_forward(x, self.weight * x.mean(), self.bias)


LEFT = [
    (Other(4), None), (nn.BatchNorm2d(4, track_running_stats=False), None), (nn.InstanceNorm2d(4, affine=True), None),
    (nn.InstanceNorm2d(4, track_running_stats=True), None), (nn.GroupNorm(2, 4), None), (None, Absolute(3, 4, 3)),
    (None, Doubled(3, 4, 3)), (None, FromData(3, 4, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("norm", "conv"), LEFT)
def test_what_only_looks_like_it_is_left_alone(norm: nn.Module | None, conv: nn.Module | None) -> None:
    model = ready(ConvBN(norm, conv))
    deployed, _ = check(model)
    assert norms(deployed) == norms(model)


def test_a_norm_in_training_mode_or_without_statistics_is_named() -> None:
    model = ready(ConvBN())
    model.bn.train()
    assert "training-norm" in codes(check(model)[1])
    model = ready(ConvBN(nn.BatchNorm2d(4, track_running_stats=False)))
    assert "no-statistics" in codes(check(model)[1])


# --- what cannot be followed ----------------------------------------------------------------------------------------
class Opaque(nn.Module):
    """Asks for a value that is not known, then uses its block in some way."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Any) -> Any:
        return self.use(x) if x.sum().item() > -1e9 else x

    def use(self, x: Any) -> Any:
        return self.block(x)


class ReadsInside(Opaque):
    def use(self, x: Any) -> Any:
        return self.block(x) + self.block.conv.weight.sum() + self.block.bn.bias.sum()


class CallsInside(Opaque):
    def use(self, x: Any) -> Any:
        return self.block.conv(x)


class WalksInside(Opaque):
    def use(self, x: Any) -> Any:
        outs = []
        for layer in self.block:
            x = layer(x)
            outs.append(x)
        return outs


class SlicesInside(Opaque):
    def use(self, x: Any) -> Any:
        return self.block[:1](x)


CALLS = {"forward": lambda m, x: m(x), "block": lambda m, x: m.block(x)}


def _sequential() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


@pytest.mark.parametrize("block", [ConvBN, Branches, _sequential])
def test_below_a_parent_that_cannot_be_followed_blocks_fuse(block: Any) -> None:
    deployed, report = check(ready(Opaque(block())), calls=CALLS)
    assert list(report.untraced) == [""]
    assert norms(deployed) == 0


@pytest.mark.parametrize(
    ("parent", "block"),
    [(ReadsInside, ConvBN), (CallsInside, ConvBN), (WalksInside, _sequential), (SlicesInside, _sequential)],
)
def test_a_parent_that_cannot_be_followed_and_reaches_inside_refuses(parent: Any, block: Any) -> None:
    deployed, report = check(ready(parent(block())), calls=CALLS)
    assert "untraceable" in codes(report)
    assert norms(deployed) == 1


def test_a_question_whose_error_is_caught_is_not_followed() -> None:
    class Catches(ConvBN):
        def forward(self, x: Any) -> Any:
            try:
                normed = int(x.shape[0]) > 0
            except Exception:
                normed = False
            return self.bn(self.conv(x)) if normed else self.conv(x)

    check(ready(Catches()))


class Endless(ConvBN):
    def forward(self, x: Any) -> Any:
        while True:
            x = self.conv(x)


class Recursive(ConvBN):
    def forward(self, x: Any) -> Any:
        return self(self.conv(x))


class RecursiveMethod(ConvBN):
    def again(self, x: Any) -> Any:
        return self.again(self.conv(x))

    def forward(self, x: Any) -> Any:
        return self.again(x)


class Raises(ConvBN):
    def forward(self, x: Any) -> Any:
        raise ValueError("broken")


@pytest.mark.parametrize(
    ("model", "why"),
    [(Endless, "does it end"), (Recursive, "nested"), (RecursiveMethod, "nested"), (Raises, "broken")],
)
def test_a_broken_forward_is_named_and_ends(model: type[nn.Module], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptool.capture.graph_builder.MAX_NODES", 2_000)
    report = reptool.report(reptool.deploy(ready(model())))
    assert why in report.untraced[""]
    assert not report.regions


def test_a_forward_that_raises_on_the_example_inputs_is_the_callers_error() -> None:
    with pytest.raises(InputError, match="broken"):
        reptool.deploy(ready(Raises()), image())


def test_tracing_leaves_no_traces() -> None:
    model = ready(Walks())
    call, factory, state = nn.Module.__call__, torch.zeros, torch.get_rng_state()
    before = {n: set(vars(m)) for n, m in model.named_modules()}
    reptool.deploy(model)
    assert (nn.Module.__call__, torch.zeros) == (call, factory)
    assert torch.equal(torch.get_rng_state(), state)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == before
    assert_same(model(image()), model(image()))


# --- code that must not see symbolic values, or that runs around a forward ------------------------------------------
@torch.jit.script
def doubled(x: Tensor) -> Tensor:
    return x * 2 + 1


class CallsScripted(ConvBN):
    def forward(self, x: Any) -> Any:
        return self.bn(doubled(self.conv(x)))


class HoldsScripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = ConvBN()
        self.head = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))

    def forward(self, x: Any) -> Any:
        return self.head(self.block(x))


class ConvCalled(nn.Conv2d):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x) * 2 + 1


class NormCalled(nn.BatchNorm2d):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x).abs()


class BlockCalled(ConvBN):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x) * 2 + 1


class Clamped(nn.Conv2d):
    @property
    def weight(self) -> Tensor:
        return self.raw.clamp(-0.1, 0.1)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.raw = value


def _clamped() -> nn.Module:
    conv = Clamped.__new__(Clamped)
    nn.Module.__init__(conv)
    plain = nn.Conv2d(3, 4, 3, padding=1)
    vars(conv).update({k: v for k, v in vars(plain).items() if k not in ("_parameters", "_modules", "_buffers")})
    conv.raw, conv.bias = nn.Parameter(plain.weight.detach().clone()), None
    return conv


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (CallsScripted, 1),
        (HoldsScripted, 0),
        (lambda: ConvBN(conv=ConvCalled(3, 4, 3)), 0),
        (lambda: ConvBN(NormCalled(4)), 1),
        (lambda: nn.Sequential(BlockCalled()), 0),
        (lambda: ConvBN(conv=_clamped()), 1),
    ],
)
def test_code_around_a_forward_is_run_once_and_where_it_was(model: Any, left: int) -> None:
    deployed, _ = check(ready(model()))
    assert norms(deployed) == left


# --- answers that come back by another way --------------------------------------------------------------------------
class TwoNorms(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(4)


class Picks(TwoNorms):
    def pick(self, x: Any) -> nn.Module:
        return self.bn if x.shape[0] > 1 else self.other

    def forward(self, x: Any) -> Any:
        return self.pick(x)(self.conv(x))


class Router(nn.Module):
    def forward(self, x: Any) -> int:
        return int(x.shape[0] > 1)


class Routed(TwoNorms):
    def __init__(self) -> None:
        super().__init__()
        self.router = Router()

    def forward(self, x: Any) -> Any:
        return (self.other, self.bn)[self.router(x)](self.conv(x))


class Handles(ConvBN):
    def forward(self, x: Any) -> Any:
        try:
            return self.bn(self.conv(x[:, :, 1:4, 1:4]))
        except RuntimeError:
            return self.conv(x)


class ByRank(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return self.bn(y) if x.dim() == 4 else y


class ByGradient(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return y if x.requires_grad else self.bn(y)


class ByType(ConvBN):
    def forward(self, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [self.conv(v) for v in x]
        return self.bn(self.conv(x))


ANSWERS: dict[str, Any] = {
    "one pixel": lambda m, x: m(x[:1, :, :1, :1]), "unbatched": lambda m, x: m(x[0]),
    "gradient": lambda m, x: m(x.requires_grad_()), "list": lambda m, x: m([x, x]), "as shown": lambda m, x: m(x),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Picks, "one pixel"), (Routed, "one pixel"), (Handles, "one pixel"), (ByRank, "unbatched"),
        (ByGradient, "gradient"), (ByType, "list"),
    ],
)  # fmt: skip
def test_another_answer_is_right_or_raises(model: type[nn.Module], name: str) -> None:
    check(ready(model()), calls={n: ANSWERS[n] for n in ("as shown", name)}, raises=[name], others=name == "one pixel")


def test_a_forward_that_cannot_run_as_it_was_shown_is_not_followed() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.words = ConvBN(), nn.Embedding(7, 4)

        def forward(self, image: Any = None, words: Any = None) -> Any:
            return self.block(image) + self.words(words).mean(1)[:, :, None, None]

    deployed, _ = check(
        ready(Words()), {"image": image(), "words": torch.ones(2, 3).long()}, {"f": lambda m, x: m(**x)}
    )
    assert norms(deployed) == 0


def test_a_norm_behind_a_linear_layer_is_right_or_raises_at_another_rank() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

        def forward(self, x: Any) -> Any:
            return self.norm(self.linear(x))

    calls: Any = {"rows": lambda m, x: m(x), "three": lambda m, x: m(x.expand(2, 5, 6))}
    check(ready(Dense()), image(5, 6), calls, raises=["three"])


def test_a_float_model_with_stubs_for_quantization_is_a_plain_model() -> None:
    class Stubs(ConvBN):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
            self.math = torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: Any) -> Any:
            y = self.bn(self.conv(self.quant(x)))
            return self.dequant(self.math.add(y, y.relu()))

    assert norms(check(ready(Stubs()))[0]) == 0
