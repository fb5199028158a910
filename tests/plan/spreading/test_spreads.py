"""Norms and scales behind sums, concatenations and slices: all parts take their share, or none does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.errors import RegionWarning
from reptool.fusions.distribute import distribute_over_sum
from reptool.testing import assert_equivalent, randomize

Forward = Callable[..., Any]


class Two(nn.Module):
    """Two layers of two inputs, and what comes behind them."""

    def __init__(self, first: nn.Module, second: nn.Module, norm: nn.Module, third: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.bn = first, second, norm
        if third is not None:
            self.c = third


def two(forward: Forward, *parts: nn.Module, **more: Any) -> nn.Module:
    """A module of a class of its own with this forward, and random statistics."""
    cls = type("Net", (Two,), {"forward": forward, "__module__": __name__})
    model: nn.Module = cls(*parts)
    for name, value in more.items():
        setattr(model, name, value)
    return randomize(model).eval()


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size unless told otherwise."""
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **options})


def pair(*channels: int, size: tuple[int, ...] = (9, 8)) -> tuple[Tensor, ...]:
    """One batch of values for each number of channels."""
    return tuple(torch.randn(2, c, *size) for c in channels or (3, 5))


def added(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """A norm behind a sum."""
    return torch.relu(self.bn(self.a(x) + self.b(y)))


def joined(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """A norm behind a concatenation (YOLOv5's BottleneckCSP)."""
    return torch.relu(self.bn(torch.cat((self.a(x), self.b(y)), 1)))


def in_place(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """The sum is written into the first summand, and the activation into what the norm gave."""
    out = self.a(x)
    out += self.b(y)
    return self.bn(out).relu_()  # type: ignore[no-any-return]


def mixed(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """A concatenation of a difference and a layer."""
    return torch.relu(self.bn(torch.cat((self.a(x) - self.b(y), self.c(y)), 1)))


def three(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """Three summands."""
    return torch.relu(self.bn(self.a(x) + self.b(y) + self.c(torch.tanh(x))))


def nested(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """One summand is a sum of branches that collapses by itself."""
    return torch.relu(self.bn(self.a(x) + (self.b(y) + self.c(y))))


def weighed(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """The second summand has a factor."""
    return torch.relu(self.bn(torch.sub(self.a(x), self.b(y), alpha=0.3)))


def scaled(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """A scale and a shift per channel, in the code."""
    return torch.relu((self.a(x) + self.b(y)) * self.gamma + self.beta)


def halved(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """One number for all channels."""
    return torch.relu(torch.cat((self.a(x), self.b(y)), 1) * 0.5 - 1.0)


def twice_normed(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """A norm and a scale behind it."""
    return torch.relu(self.bn(self.a(x) + self.b(y)) * self.gamma)


def pooled(self: Any, x: Tensor, y: Tensor) -> Tensor:
    """One summand has one pixel and is broadcast."""
    return torch.relu(self.bn(self.a(x) + self.b(y.mean((2, 3), keepdim=True))))


def gamma(count: int = 8) -> dict[str, nn.Parameter]:
    """A scale and a shift."""
    return {n: nn.Parameter(torch.randn(count, 1, 1)) for n in ("gamma", "beta")}


BN8 = lambda: nn.BatchNorm2d(8)  # noqa: E731
TAKEN: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sum": (lambda: two(added, conv(3, 8, bias=False), conv(5, 8, 1), BN8()), 2),
    "concatenation": (lambda: two(joined, conv(3, 2, bias=False), conv(5, 6, 1), BN8()), 2),
    "strides": (lambda: two(joined, conv(3, 2, 3, stride=2), conv(5, 6, 1, stride=2, padding=0), BN8()), 2),
    "groups": (lambda: two(joined, conv(3, 6, groups=3), conv(5, 5, groups=5), nn.BatchNorm2d(11)), 2),
    "in place": (lambda: two(in_place, conv(3, 8), conv(5, 8, 1), BN8()), 2),
    "both": (lambda: two(mixed, conv(3, 2), conv(5, 2, 1), nn.BatchNorm2d(6), conv(5, 4)), 3),
    "three": (lambda: two(three, conv(3, 8), conv(5, 8, 1), BN8(), conv(3, 8, 5)), 3),
    "branches": (lambda: two(nested, conv(3, 8), conv(5, 8, 1), BN8(), conv(5, 8, 5)), 2),
    "norms inside": (
        lambda: two(added, nn.Sequential(conv(3, 8), BN8()), nn.Sequential(conv(5, 8, 1), BN8()), BN8()), 2,
    ),
    "factor": (lambda: two(weighed, conv(3, 8), conv(5, 8, 1), BN8()), 2),
    "one pixel": (lambda: two(pooled, conv(3, 8), conv(5, 8, 1), BN8()), 2),
    "plain norm": (lambda: two(added, conv(3, 8), conv(5, 8, 1), nn.BatchNorm2d(8, affine=False)), 2),
    "code": (lambda: two(scaled, conv(3, 8), conv(5, 8, 1), nn.Identity(), **gamma()), 2),
    "number": (lambda: two(halved, conv(3, 8), conv(5, 2, 1), nn.Identity()), 2),
    "norm and scale": (lambda: two(twice_normed, conv(3, 8), conv(5, 8, 1), BN8(), **gamma()), 2),
    "transposed": (
        lambda: two(added, nn.ConvTranspose2d(3, 8, 2, 2), nn.ConvTranspose2d(5, 8, 2, 2, bias=False), BN8()), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("given", [False, True])
def test_every_part_takes_its_share(name: str, given: bool) -> None:
    build, layers = TAKEN[name]
    model, x = build(), pair()
    deployed = reptool.deploy(model, x if given else None)
    report = reptool.report(deployed)
    assert len(report.regions) == layers
    assert all("distribute" in r.rules for r in report.regions)
    assert report.norms[1] == 0
    assert not [r for r in report.refusals if r.code is not Code.DEARER]
    assert_equivalent(model.double(), reptool.deploy(model, verify=False), x)
    again = reptool.deploy(deployed, x).state_dict()
    assert not reptool.explain(deployed, x).regions
    assert again.keys() == deployed.state_dict().keys()
    assert all(torch.equal(v, again[k]) for k, v in deployed.state_dict().items())
    assert reptool.explain(model).norms[1] == 0
    loaded = copy.deepcopy(deployed)
    assert torch.equal(loaded.double()(*(t.double() for t in x)), deployed.double()(*(t.double() for t in x)))


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_zero_and_negative_scales(value: float) -> None:
    model = two(joined, conv(3, 2), conv(5, 6, 1), BN8()).double()
    with torch.no_grad():
        model.bn.weight[1:5] = value  # type: ignore[index, union-attr]
    deployed = reptool.deploy(model)
    assert isinstance(deployed.bn, nn.Identity)
    assert_equivalent(model, deployed, pair())


@pytest.mark.parametrize("forward", [added, joined])
def test_linear_layers(forward: Forward) -> None:
    width = 8 if forward is added else 16
    model = two(forward, nn.Linear(3, 8), nn.Linear(5, 8, bias=False), nn.BatchNorm1d(width)).double()
    x = tuple(t.double() for t in pair(size=()))
    deployed = reptool.deploy(model, x)
    assert isinstance(deployed.bn, nn.Identity)
    assert_equivalent(model, deployed, x)


@pytest.mark.parametrize("kind", [1, 3])
def test_other_numbers_of_axes(kind: int) -> None:
    layer: Any = (nn.Conv1d, nn.Conv3d)[kind == 3]
    norm: Any = (nn.BatchNorm1d, nn.BatchNorm3d)[kind == 3]
    model = two(joined, layer(3, 2, 3, padding=1), layer(5, 6, 1), norm(8)).double()
    x = tuple(t.double() for t in pair(size=(6, 5, 4)[:kind]))
    deployed = reptool.deploy(model, x)
    assert isinstance(deployed.bn, nn.Identity)
    assert_equivalent(model, deployed, x)


def test_one_graph() -> None:
    model, x = two(scaled, conv(3, 8), conv(5, 8, 1), nn.Identity(), **gamma()).double(), pair()
    x = tuple(t.double() for t in x)
    flat = reptool.deploy(model, x, flatten=True)
    assert isinstance(flat, torch.fx.GraphModule)
    assert not [n for n in flat.graph.nodes if getattr(n.target, "__name__", "") in ("mul", "batch_norm")]
    assert_equivalent(model, flat, x)


class Behind(nn.Module):
    """A scale by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Each channel by its own."""
        return x * self.gamma


def test_the_norm_may_stand_in_another_module_than_the_layers() -> None:
    model = two(added, conv(3, 8), conv(5, 8, 1), Behind()).double()
    deployed = reptool.deploy(model)
    assert isinstance(deployed.bn, nn.Identity)
    assert_equivalent(model, deployed, pair())


def test_a_module_that_is_called_twice_keeps_its_scale() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return self.bn(torch.relu(self.bn(self.a(x) + self.b(y))))  # type: ignore[no-any-return]

    left(two(forward, conv(3, 8), conv(5, 8, 1), Behind()), Code.SHARED)


def test_nothing_of_it_without_the_rule() -> None:
    model = two(added, nn.Sequential(conv(3, 8), BN8()), conv(5, 8, 1), BN8()).double()
    deployed = reptool.deploy(model, rules=["conv_bn"])
    assert isinstance(deployed.bn, nn.BatchNorm2d)
    assert Code.RULE_OFF in {r.code for r in reptool.report(deployed).refusals}
    assert [r.rules for r in reptool.report(deployed).regions] == [["conv_bn"]]
    assert_equivalent(model, deployed, pair())
    assert isinstance(reptool.deploy(model, rules=["conv_bn", "distribute"]).bn, nn.Identity)


def test_a_plan_on_meta() -> None:
    with torch.device("meta"):
        model = Two(conv(3, 8), conv(5, 8, 1), BN8()).eval()
    model.__class__ = type("Net", (Two,), {"forward": added})
    report = reptool.explain(model)
    assert [r.rules for r in report.regions] == [["conv_bn", "distribute"]] * 2
    assert report.norms == (1, 0)


# --- all or nothing
def left(model: nn.Module, code: Code, x: Any = None, **options: Any) -> nn.Module:
    """Assert that norm and layers stay as they are, and that the report says why."""
    model, x = model.double(), x or pair()
    deployed = reptool.deploy(model, **options)
    state, old = deployed.state_dict(), model.state_dict()
    changed = {k for k in old if not k.startswith(("a.0", "a.1")) and (k not in state or not state[k].equal(old[k]))}
    assert not changed
    assert code in {r.code for r in reptool.report(deployed).refusals}
    assert code in {r.code for r in reptool.explain(model, **options).refusals}
    assert_equivalent(model, deployed, x)
    return deployed


def test_a_part_that_is_the_raw_input() -> None:
    left(
        two(lambda self, x, y: torch.relu(self.bn(self.a(x) + y)), conv(3, 5), nn.Identity(), nn.BatchNorm2d(5)),
        Code.DISTRIBUTE,
    )


def test_a_part_behind_an_activation() -> None:
    left(two(added, nn.Sequential(conv(3, 8), BN8(), nn.ReLU()), conv(5, 8, 1), BN8()), Code.DISTRIBUTE)


def test_a_part_that_is_read_elsewhere() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Any:
        part = self.a(x)
        return torch.relu(self.bn(part + self.b(y))), part

    left(two(forward, conv(3, 8), conv(5, 8, 1), BN8()), Code.READ_ELSEWHERE)


def test_a_sum_that_is_read_elsewhere() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        both = self.a(x) + self.b(y)
        return torch.relu(self.bn(both)) * both.sigmoid()

    left(two(forward, conv(3, 8), conv(5, 8, 1), BN8()), Code.READ_ELSEWHERE)


def test_a_sum_that_is_also_returned() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Any:
        both = self.a(x) + self.b(y)
        return both, torch.relu(self.bn(both))

    left(two(forward, conv(3, 8), conv(5, 8, 1), BN8()), Code.READ_ELSEWHERE)


def test_a_part_that_is_added_to_itself() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        part = self.a(x)
        return torch.relu(self.bn(torch.cat([part, self.b(y), part], 1)))

    left(two(forward, conv(3, 2), conv(5, 4, 1), BN8()), Code.READ_ELSEWHERE)


def test_a_layer_that_is_called_twice() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.bn(self.a(x) + self.b(y))) + self.b(torch.tanh(y))

    left(two(forward, conv(3, 8), conv(5, 8, 1), BN8()), Code.SHARED)


def test_a_norm_that_is_called_twice() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.bn(self.a(x) + self.b(y))) + self.bn(torch.tanh(self.c(y)))

    left(two(forward, conv(3, 8), conv(5, 8, 1), BN8(), conv(5, 8)), Code.SHARED)


def test_tied_weights() -> None:
    model = two(added, conv(3, 8), conv(3, 8), BN8())
    model.b.weight = model.a.weight  # type: ignore[union-attr]
    left(model, Code.SHARED, pair(3, 3))


def test_a_hook() -> None:
    for name in ("bn", "b"):
        model = two(added, conv(3, 8), conv(5, 8, 1), BN8())
        model.get_submodule(name).register_forward_hook(lambda module, args, output: None)
        left(model, Code.HOOK)


def test_a_part_that_is_written() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        part = self.b(y)
        part[:, :2].mul_(2.0)
        return torch.relu(self.bn(self.a(x) + part))

    left(two(forward, conv(3, 8), conv(5, 8, 1), BN8()), Code.MUTATED)


def test_a_scale_that_writes() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        both = self.a(x) + self.b(y)
        both *= self.gamma
        return torch.relu(both)

    left(two(forward, conv(3, 8), conv(5, 8, 1), nn.Identity(), **gamma()), Code.MUTATED)


@pytest.mark.parametrize("name", ["a", "b", "bn"])
def test_what_is_excluded(name: str) -> None:
    left(two(added, conv(3, 8), conv(5, 8, 1), BN8()), Code.EXCLUDED, exclude=name)


def test_code_that_asks() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        both = self.a(x) + self.b(y)
        return torch.relu(self.bn(both)) if x.shape[-1] != 7 else torch.relu(both)

    model = two(forward, conv(3, 8), conv(5, 8, 1), BN8())
    x = tuple(t.double() for t in pair())
    left(model, Code.SPECIALIZED, x, example_inputs=x)
    kept = reptool.deploy(model.double(), x, keep_fallback=True)
    assert_equivalent(model, kept, x)


def test_a_summand_that_hangs_on_a_flag() -> None:
    def forward(self: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
        both = self.a(x)
        if y is not None:
            both = both + self.b(y)
        return torch.relu(self.bn(both))

    model = two(forward, conv(3, 8), conv(5, 8, 1), BN8()).double()
    x = tuple(t.double() for t in pair())
    for given in (None, x, x[0]):
        deployed = reptool.deploy(model, given)
        for call in (x, x[:1]):
            try:
                out = deployed(*call)
            except reptool.ReptoolError:
                continue
            torch.testing.assert_close(out, model(*call))


def test_a_method_that_runs_a_part() -> None:
    def part(self: Any, x: Tensor) -> Tensor:
        return self.a(x)  # type: ignore[no-any-return]

    model = two(added, conv(3, 8), conv(5, 8, 1), BN8()).double()
    type(model).part = part  # type: ignore[attr-defined]
    deployed = reptool.deploy(model)
    x = torch.randn(1, 3, 6, 6).double()
    try:
        found = deployed.part(x)  # type: ignore[operator]
    except reptool.ReptoolError:
        return
    torch.testing.assert_close(found, model.part(x))  # type: ignore[operator]


def test_a_sum_over_broadcast_channels_stays() -> None:
    left(two(added, conv(3, 8), conv(5, 1, 1), BN8()), Code.CHANNELS)


def test_a_concatenation_along_an_image_stays() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.bn(torch.cat([self.a(x), self.b(y)], 2)))

    left(two(forward, conv(3, 8), conv(5, 8, 1), BN8()), Code.LAYOUT)


def test_values_that_do_not_fit_leave_all() -> None:
    model = two(added, conv(3, 8), conv(5, 8, 1), BN8()).half()
    with torch.no_grad():
        model.bn.weight.fill_(3e3)  # type: ignore[union-attr, operator]
        model.b.weight.fill_(3e3)  # type: ignore[union-attr, operator]
    deployed = reptool.deploy(model)
    assert isinstance(deployed.bn, nn.BatchNorm2d)
    assert torch.equal(deployed.a.weight, model.a.weight)  # type: ignore[arg-type, union-attr]
    assert Code.OVERFLOW in {r.code for r in reptool.report(deployed).refusals}


def test_shared_blocks_that_end_in_a_sum() -> None:
    class Block(Two):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.relu(self.bn(self.a(x) + self.b(y)))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(conv(3, 8), conv(5, 8, 1), BN8())

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.block(x, y) + self.block(x, -y)  # type: ignore[no-any-return]

    model = randomize(Twice()).eval().double()
    assert_equivalent(model, reptool.deploy(model), pair())


class Cut(nn.Module):
    """One layer whose output is cut, and norms for the pieces."""

    def __init__(self, forward: Forward, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.own, self.a, self.b = forward, conv(3, 8), conv(3, 8, 1)
        self.norms, self.gamma = nn.ModuleList(norms), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Any:
        """By one of the forms below."""
        return self.own(self, x)


def cut(forward: Forward, *widths: int) -> nn.Module:
    """Such a model with norms of these widths and random statistics."""
    return randomize(Cut(forward, [nn.BatchNorm2d(w) for w in widths]).eval()).double()


def each(self: Any, pieces: Sequence[Tensor]) -> list[Tensor]:
    """A norm and an activation for each piece."""
    return [torch.relu(n(p)) for n, p in zip(self.norms, pieces, strict=True)]


def gated(self: Any, x: Tensor) -> Tensor:
    """A norm for one of two pieces."""
    left_half, right_half = self.a(x).chunk(2, 1)
    return self.norms[0](left_half) * torch.sigmoid(right_half)  # type: ignore[no-any-return]


def gaps(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers behind slices between which there are channels that nobody reads."""
    y = self.a(x)
    return torch.relu(2 * y[:, 1:3]), torch.sigmoid(y[:, 5:7] - 1)


def nested_pieces(self: Any, x: Tensor) -> list[Tensor]:
    """A piece that is cut again."""
    first, second = self.a(x).chunk(2, 1)
    return each(self, [*first.split([1, 3], 1), second])


def rejoined(self: Any, x: Tensor) -> list[Tensor]:
    """A piece that goes, with what another layer gives, through one norm."""
    first, second = self.a(x).chunk(2, 1)
    return each(self, [first, torch.cat([second, self.b(torch.tanh(x))], 1)])


PIECES: dict[str, tuple[Forward, tuple[int, ...], int]] = {
    "chunk": (lambda self, x: each(self, self.a(x).chunk(2, 1)), (4, 4), 1),
    "split": (lambda self, x: torch.cat(each(self, self.a(x).split(3, 1)), 1), (3, 3, 2), 1),
    "sizes": (lambda self, x: each(self, torch.split(self.a(x), [2, 6], dim=-3)), (2, 6), 1),
    "tensor_split": (lambda self, x: each(self, torch.tensor_split(self.a(x), 3, 1)), (3, 3, 2), 1),
    "indexed": (lambda self, x: (lambda y: each(self, [y[:, :3], y[:, 3:]]))(self.a(x)), (3, 5), 1),
    "narrow": (lambda self, x: (lambda y: each(self, [y.narrow(1, 5, 3), y[:, :5]]))(self.a(x)), (3, 5), 1),
    "gate": (gated, (4,), 1),
    "gaps": (gaps, (), 1),
    "nested": (nested_pieces, (1, 3, 4), 1),
    "rejoined": (rejoined, (4, 12), 2),
    "of a sum": (lambda self, x: each(self, (self.a(x) + self.b(torch.tanh(x))).split([4, 4], 1)), (4, 4), 2),
    "no activation": (
        lambda self, x: torch.cat([n(p) for n, p in zip(self.norms, self.a(x).chunk(2, 1), strict=True)][::-1], 1),
        (4, 4), 1,
    ),
    "scales": (
        lambda self, x: [torch.relu(p * self.gamma + i) for i, p in enumerate(self.a(x).split([4, 4], 1))], (), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("given", [False, True])
def test_norms_of_pieces_go_into_the_layer_that_is_cut(name: str, given: bool) -> None:
    forward, widths, layers = PIECES[name]
    model, x = cut(forward, *widths), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, (x,) if given else None)
    report = reptool.report(deployed)
    assert len(report.regions) == layers
    assert not report.refusals
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    for size in ((9, 8), (1, 2), (4, 3)):
        assert_equivalent(model, deployed, torch.randn(2, 3, *size, dtype=torch.float64))


def test_norms_of_pieces_of_a_linear_layer() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return ((q * 0.5) @ k.transpose(1, 2)).softmax(-1) @ v

    model = Attention().eval().double()
    deployed = reptool.deploy(model)
    assert [r.rules for r in reptool.report(deployed).regions] == [["distribute", "scale"]]
    assert_equivalent(model, deployed, torch.randn(2, 5, 6, dtype=torch.float64))


def returned(self: Any, x: Tensor) -> Any:
    """All pieces are also returned as they are."""
    pieces = self.a(x).chunk(2, 1)
    return torch.relu(self.norms[0](pieces[0])), pieces


def whole(self: Any, x: Tensor) -> Any:
    """What is cut is also read as a whole."""
    y = self.a(x)
    return [*each(self, y.chunk(2, 1)), torch.tanh(y)]


def written_piece(self: Any, x: Tensor) -> Any:
    """A piece is written in place, and with it what is cut."""
    y = self.a(x)
    first, second = y[:, :4], y[:, 4:]
    second.relu_()
    return torch.relu(self.norms[0](first)), second, torch.tanh(y)


KEPT: dict[str, tuple[Forward, tuple[int, ...], Code]] = {
    "overlap": (lambda self, x: (lambda y: each(self, [y[:, :5], y[:, 3:]]))(self.a(x)), (5, 5), Code.READ_ELSEWHERE),
    "twice": (lambda self, x: (lambda y: each(self, [y[:, [1, 1]], y[:, 2:]]))(self.a(x)), (2, 6), Code.DISTRIBUTE),
    "returned": (returned, (4,), Code.READ_ELSEWHERE),
    "whole": (whole, (4, 4), Code.READ_ELSEWHERE),
    "written": (written_piece, (4,), Code.MUTATED),
    "one norm": (
        lambda self, x: [torch.relu(self.norms[0](p)) for p in self.a(x).split([4, 4], 1)], (4,), Code.SHARED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_pieces_that_are_read_in_another_way_keep_their_norms(name: str) -> None:
    forward, widths, code = KEPT[name]
    model = cut(forward, *widths)
    deployed = reptool.deploy(model)
    assert code in {r.code for r in reptool.report(deployed).refusals}
    for size in ((9, 8), (1, 2)):
        assert_equivalent(model, deployed, torch.randn(2, 3, *size, dtype=torch.float64))


def test_an_order_of_columns_is_no_slice_of_channels() -> None:
    model = cut(lambda self, x: torch.relu(self.norms[0](self.a(x).flip(-1))), 8)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)  # as many columns as channels
    deployed = reptool.deploy(model, (x,))
    assert not reptool.report(deployed).regions
    assert_equivalent(model, deployed, torch.randn(2, 3, 4, 5, dtype=torch.float64))


def test_a_wrong_share_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> Any:
        return [(s * 1.01, t) for s, t in distribute_over_sum(*args)]

    monkeypatch.setattr("reptool.passages.spread.distribute_over_sum", wrong)
    with pytest.raises(RegionWarning, match=r"distribute.* is off by"):
        reptool.deploy(two(added, conv(3, 8), conv(5, 8, 1), BN8()))


class Measured(nn.Module):
    """A norm behind a sum, of which nothing but the size is used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        """The sizes."""
        return x * self.norm(self.a(x) + self.b(x)).shape[1]


@pytest.mark.parametrize("shown", [True, False])
def test_a_norm_that_nobody_uses_is_left_alone(shown: bool) -> None:
    model, x = randomize(Measured().eval()).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x if shown else None)
    assert torch.equal(deployed(x), model(x))
    assert not reptool.report(deployed).regions


class Features(nn.Module):
    """A norm at the end of what a method gives out, in front of a pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features."""
        return self.norm(self.conv(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        return self.head(self.forward_features(x).mean((2, 3)))


def test_a_norm_stays_in_front_of_what_a_method_gives_out() -> None:
    model, x = randomize(Features()).eval(), torch.randn(2, 3, 9, 9)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed.forward_features(x), model.forward_features(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
