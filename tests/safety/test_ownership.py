"""Who else has a hand on a module or a value: sharing, in-place writes, hooks, references kept elsewhere."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from tests.traps import Branches, ConvBN, assert_same, check, codes, image, norms, ready


def _convs(count: int, channels: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(channels, 4, 3, padding=1) for _ in range(count)]


# --- modules and parameters used more than once ---------------------------------------------------------------------
class TwoInputs(ConvBN):
    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x)) + self.conv(x.relu())


class SharedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        (self.conv,) = _convs(1)
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: Any) -> Any:
        return [bn(self.conv(v)) for bn, v in zip(self.bns, (x, x.relu(), F.max_pool2d(x, 2)), strict=True)]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = _convs(2)
        self.b.weight = self.a.weight
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return self.bn(self.a(x)).relu() * self.b(x)


class AliasElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        (self.a,) = _convs(1)
        self.b = self.a
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return self.bn(self.b(x)) + self.a(x).relu()


class InPlainList(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.conv, self.bn]

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


class InClosure(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.settings = {"norm": (self.bn,)}

    def forward(self, x: Any) -> Any:
        return self.settings["norm"][0](self.conv(x))


@pytest.mark.parametrize("model", [TwoInputs, SharedHead, Tied, AliasElsewhere, InPlainList, InClosure])
def test_what_is_shared_stays(model: type[nn.Module]) -> None:
    _, report = check(ready(model()))
    assert "shared" in codes(report)
    assert not report.regions


def test_a_weight_that_other_code_reads_stays_its_own() -> None:
    class Reads(ConvBN):
        def forward(self, x: Any) -> Any:
            return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)

    class ReadsAll(ConvBN):
        def forward(self, x: Any) -> Any:
            return (
                self.bn(self.conv(x)).relu() + self.conv.weight.sum() + self.bn.bias.sum() + self.bn.running_var.sum()
            )

    check(ready(Reads()))
    check(ready(ReadsAll()))


class CalledOnLevels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(*_convs(1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return [self.block(v) for v in (x, x * 2, F.max_pool2d(x, 2))]


class MethodOnLevels(ConvBN):
    def block(self, x: Any) -> Any:
        return self.bn(self.conv(x)).relu()

    def forward(self, x: Any) -> Any:
        return [self.block(v) for v in (x, x * 2, F.max_pool2d(x, 2))]


class Aliased(AliasElsewhere):
    def forward(self, x: Any) -> Any:
        return self.bn(self.b(x)) + self.bn(self.a(x.relu()))


def registered_twice() -> nn.Module:
    conv, bn, relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
    return nn.Sequential(conv, bn, relu, conv, bn, relu)


class InLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Branches(4, 4)

    def forward(self, x: Any) -> Any:
        for _ in range(3):
            x = self.block(x)
        return x


@pytest.mark.parametrize("model", [CalledOnLevels, MethodOnLevels, Aliased, registered_twice, InLoop])
def test_what_is_used_the_same_way_everywhere_fuses(model: Any) -> None:
    deployed, report = check(ready(model()), image(2, 4, 10, 8) if model is InLoop else None)
    assert len(report.regions) == 1
    assert norms(deployed) == 0


def test_one_norm_behind_two_convolutions_fuses_into_both() -> None:
    class OneNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = _convs(2)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            return self.bn(self.a(x)).relu() * self.bn(self.b(x)).sigmoid()

    deployed, report = check(ready(OneNorm()))
    assert norms(deployed) == 0
    assert len(report.regions) == 2


# --- values that somebody else reads or writes ----------------------------------------------------------------------
class ReadTwice(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return self.bn(y) * y.sigmoid()


class WrittenBetween(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        a = y.sigmoid()
        y.relu_()
        return self.bn(y) * a


class WrittenAfter(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        z = self.bn(y)
        F.relu(y, inplace=True)
        return z, y


class PartWritten(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        y.split(2, 1)[0].add_(1)
        return self.bn(y)


class ItemAssigned(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        y[:, :2] = y[:, :2].relu()
        return self.bn(y)


class KeptInList(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        self.features.append(y)
        return self.bn(y), list(self.features)


class KeptAsAttribute(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        self.cache = y
        return self.bn(y)


KEPT: list[Any] = []


class KeptInGlobal(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        KEPT.append(y)
        return self.bn(y)


@pytest.mark.parametrize("model", [ReadTwice, WrittenBetween, WrittenAfter, PartWritten, ItemAssigned, KeptInList])
def test_a_value_that_is_read_or_written_elsewhere_is_still_computed(model: type[nn.Module]) -> None:
    deployed, _ = check(ready(model()))
    assert norms(deployed) == 1


@pytest.mark.parametrize(("model", "kept"), [(KeptAsAttribute, lambda m: m.cache), (KeptInGlobal, lambda m: KEPT[-1])])
def test_a_value_kept_outside_is_the_original_one(model: type[nn.Module], kept: Any) -> None:
    check(ready(model()), calls={"kept": lambda m, x: (m(x), kept(m))})


def test_a_method_that_keeps_values_is_not_written_anew() -> None:
    class Keeps(Branches):
        def __init__(self) -> None:
            super().__init__()
            self.features: list[Tensor] = []

        def forward(self, x: Any) -> Any:
            y = self.bn(self.a(x) + self.b(x))
            self.features.append(y)
            return y.relu(), list(self.features)

    _, report = check(ready(Keeps()))
    assert codes(report) & {"method", "specialized"}


class AddsToInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = ConvBN(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1))
        self.b = ConvBN(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x: Any) -> Any:
        shortcut = x
        shortcut += self.a(x)
        return self.b(x) + shortcut


class ViewsWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = ConvBN()
        self.b = ConvBN(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1))

    def forward(self, x: Any) -> Any:
        y = self.a(x)
        p, q = y.chunk(2, 1)
        p.mul_(2)
        c = self.b(q)
        q.relu_()
        return y, c, self.b(p)


@pytest.mark.parametrize("model", [AddsToInput, ViewsWritten])
def test_writes_in_place_are_seen_by_who_saw_them(model: type[nn.Module]) -> None:
    check(ready(model()), calls={"both": lambda m, x: (m(x), x)})


def test_branches_added_in_place_fuse() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = ConvBN(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1))
            self.b = ConvBN(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))

        def forward(s, x: Any) -> Any:
            y = s.a(x)
            y += s.b(x)
            y += x
            return y.relu_()

    _, report = check(ready(InPlace()), calls={"both": lambda m, x: (m(x), x)})
    assert len(report.regions) == 1


# --- constants that are none ----------------------------------------------------------------------------------------
class Counts(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.count.add_(1)
        return self.bn(self.a(x) * self.count + self.b(x)), self.count.clone()


class Draws(Branches):
    def forward(self, x: Any) -> Any:
        return self.bn(self.a(x) + self.b(x)) * torch.rand(1, dtype=x.dtype)


class DrawsInPython(ConvBN):
    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x) * random.random())


@pytest.mark.parametrize("model", [Counts, Draws, DrawsInPython])
def test_what_is_written_or_drawn_at_every_call_is_no_constant(model: type[nn.Module]) -> None:
    def seeded(m: nn.Module, x: Any) -> Any:
        torch.manual_seed(5)
        random.seed(5)
        return m(x)

    state = torch.get_rng_state()
    reptool.deploy(ready(model()).double())
    torch.set_rng_state(state)
    check(ready(model()), calls={"seeded": seeded})


# --- hooks ----------------------------------------------------------------------------------------------------------
def _hook(module: nn.Module, kind: str, seen: list[int]) -> None:
    if kind == "forward":
        module.register_forward_hook(lambda m, i, o: o * 2)
    elif kind == "pre":
        module.register_forward_pre_hook(lambda m, i: (i[0] * 2,))
    elif kind == "pre with kwargs":
        module.register_forward_pre_hook(lambda m, a, k: ((a[0] * 2,), k), with_kwargs=True)
    elif kind == "backward":
        module.register_full_backward_hook(lambda m, i, o: seen.append(1))
    else:
        module.register_full_backward_pre_hook(lambda m, o: seen.append(1))


KINDS = ["forward", "pre", "pre with kwargs", "backward", "backward pre"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["conv", "bn"])
def test_a_hook_on_an_absorbed_layer_refuses_the_site(path: str, kind: str) -> None:
    model = ConvBN()
    _hook(model.get_submodule(path), kind, [])
    deployed, report = check(ready(model))
    assert "hook" in codes(report)
    assert norms(deployed) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["", "a", "b"])
def test_a_hook_around_a_region_still_fires_where_it_was(path: str, kind: str) -> None:
    model, seen = Branches(), []
    _hook(model.get_submodule(path), kind, seen)
    deployed, report = check(ready(model))
    assert len(report.regions) == (1 if path == "" else 2)
    seen.clear()
    deployed(image().requires_grad_()).sum().backward()
    assert len(seen) == kind.startswith("backward")


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_on_all_modules_see_what_they_saw(kind: str) -> None:
    hooks: dict[str, Any] = {
        "forward": lambda m, i, o: o * 2 if isinstance(m, nn.Conv2d) else None,
        "forward_pre": lambda m, i: (i[0] * 2,) if isinstance(m, nn.BatchNorm2d) else None,
        "full_backward": lambda m, i, o: None,
    }
    handle = getattr(torch.nn.modules.module, f"register_module_{kind}_hook")(hooks[kind])
    try:
        _, report = check(ready(ConvBN()))
    finally:
        handle.remove()
    assert codes(report) == {"hook"}
    assert not report.regions


@torch.library.custom_op("reptool_tests::scale", mutates_args=("x",))
def scale(x: Tensor, by: float) -> None:
    """Writes its argument."""
    x.mul_(by)


@torch.library.custom_op("reptool_tests::add", mutates_args=())
def add(x: Tensor, y: Tensor) -> Tensor:
    """Not the sum that its name says."""
    return x + 2 * y


WRITES: dict[str, Any] = {
    "operator": lambda y: torch.ops.reptool_tests.scale(y, 3.0),
    "aten": lambda y: torch.ops.aten.mul_.Tensor(y, 3.0),
    "list": lambda y: torch._foreach_mul_([y], 3.0),
    "init": lambda y: nn.init.constant_(y, 2.0),
    "asarray": lambda y: torch.asarray(y).mul_(3.0),
    "as_tensor": lambda y: torch.as_tensor(y).mul_(3.0),
    "hsplit": lambda y: torch.hsplit(y, 2)[0].mul_(3.0),
    "ravel": lambda y: y.ravel().mul_(3.0),
    "broadcast": lambda y: torch.broadcast_tensors(y, y)[0].mul_(3.0),
    "einsum": lambda y: torch.einsum("nchw->nhwc", y).mul_(3.0),
    "aten slice": lambda y: torch.ops.aten.slice.Tensor(y, 1, 0, 2).mul_(3.0),
}


class WritesBetween(nn.Module):
    """Two branches read a value before and after something writes it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.pre = how, nn.Sequential(*_convs(1), nn.ReLU())
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Any) -> Any:
        y = self.pre(x)
        z = self.a(y)
        WRITES[self.how](y)
        return z + self.b(y)


@pytest.mark.parametrize("how", WRITES)
def test_every_way_of_writing_is_seen(how: str) -> None:
    model, x = ready(WritesBetween(how)), image()
    with torch.no_grad():
        deployed = reptool.deploy(model, verify=False)
        assert_same(model(x), deployed(x))
    assert not reptool.report(deployed).regions


def test_an_operator_with_a_known_name_is_not_known() -> None:
    class Sums(Branches):
        def forward(self, x: Any) -> Any:
            return self.bn(torch.ops.reptool_tests.add(self.a(x), self.b(x)))

    with torch.no_grad():
        deployed = reptool.deploy(ready(Sums()))
        assert_same(ready(Sums())(image()).shape, deployed(image()).shape)
    assert norms(deployed) == 1
