"""Code that reaches changed modules: it asks what they are, uses parts of them, or was never called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.safety.methods import names_of
from tests.traps import ConvBN, assert_same, check, codes, image, norms, ready


class Without(ConvBN):
    def __init__(self) -> None:
        super().__init__(conv=nn.Conv2d(3, 4, 3, padding=1, bias=False))


class Kind(Without):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y.relu() if isinstance(self.bn, nn.BatchNorm2d) else y.sigmoid()


class Name(Without):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y.relu() if type(self.bn).__name__ == "BatchNorm2d" else y.sigmoid()


class Bias(Without):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y.relu() if self.conv.bias is None else y.sigmoid()


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Without()

    def forward(self, x: Any) -> Any:
        return self.block(x) * sum(isinstance(m, nn.BatchNorm2d) for m in self.modules())


class Inside(Counts):
    def forward(self, x: Any) -> Any:
        y = self.block(x)
        return y.relu() if self.block.conv.bias is None else y


@pytest.mark.parametrize("model", [Kind, Name, Bias, Inside])
def test_a_layer_that_is_asked_what_it_is_stays(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert norms(deployed) == 1
    assert "specialized" in codes(report)


def test_asking_about_something_else_is_no_reason() -> None:
    class Other(Without):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            y = self.bn(self.conv(x))
            return self.act(y) if isinstance(self.act, nn.ReLU) else y

    assert norms(check(ready(Other()))[0]) == 0


def test_a_method_that_is_written_anew_asks_nothing_any_more() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Any) -> Any:
            y = self.bn(self.first(x)).relu()
            y = y if self.first.bias is not None else -y
            return self.a(y) + self.b(y)

    assert norms(check(ready(Counts()))[0]) == 0  # the count it multiplies by is in the layer
    deployed, _ = check(ready(Summed()))
    assert norms(deployed) == 0
    assert sum(isinstance(m, nn.Conv2d) for m in deployed.modules()) == 2


@pytest.mark.parametrize("read", ["weight.dtype", "weight.device", "weight.shape[0]", "weight.ndim", "weight.numel()"])
def test_an_absorbed_layer_whose_weight_is_asked_for_something_stays(read: str) -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.c, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            first, *rest = read.removesuffix("()").removesuffix("[0]").split(".")
            found = getattr(getattr(self.c, first), rest[0])
            y = self.norm(self.c(self.bn(self.a(x))))
            return y.to(found) if read == "weight.dtype" else y

    deployed, _ = check(ready(Peeks()))
    assert norms(deployed) == 0
    assert isinstance(deployed.get_submodule("c"), nn.Conv2d)


class Methods(ConvBN):
    """Methods that run a part of the region, under names that sound like something else, and some that run it whole."""

    def build_features(self, x: Any) -> Any:
        return next(self.conv(v) for v in (x, x))

    def merge_maps(self, x: Any, times: int = 1) -> Any:
        for layer in list(self.children())[:times]:
            x = layer(x)
        return x

    def export_map(self, x: Any, name: str) -> Any:
        return getattr(self, name)(x)

    def _set_map(self, x: Any) -> Any:
        return self.conv(x)

    def load_features(self, x: Any) -> Any:
        return self.bn(self.conv(x)).relu()

    def train_features(self, x: Any) -> Any:
        return self.forward(x).relu()

    def init_count(self, kind: Any) -> int:
        return sum(isinstance(m, kind) for m in self.modules())


PARTS: dict[str, Any] = {
    "build_features": lambda m, x: m.build_features(x),
    "merge_maps": lambda m, x: m.merge_maps(x),
    "export_map": lambda m, x: m.export_map(x, "conv"),
    "_set_map": lambda m, x: m._set_map(x),
}


def test_no_name_of_a_method_exempts_it() -> None:
    model = ready(Methods())
    deployed: Any = reptool.deploy(model)
    x = image()
    assert norms(deployed) == 0
    for call in PARTS.values():
        with pytest.raises(SpecializedError, match="conv"):
            call(deployed, x)
    for name in ("load_features", "train_features"):
        assert_same(getattr(model, name)(x), getattr(deployed, name)(x))
    assert deployed.init_count(nn.Conv2d) == 1


class Weights(ConvBN):
    """Methods that use weights, under names that sound like something else."""

    def init_weights(self) -> None:
        with torch.no_grad():
            self.conv.weight.zero_()

    def load_part(self, scale: float) -> None:
        self.conv.weight.data.mul_(scale)

    def merge_with(self, x: Any) -> Any:
        return nn.functional.conv2d(x, self.conv.weight)

    def freeze(self) -> None:
        for p in self.parameters():
            p.requires_grad_(False)


@pytest.mark.parametrize("name", ["init_weights", "load_part", "merge_with"])
def test_no_name_of_a_method_exempts_its_use_of_weights(name: str) -> None:
    deployed: Any = reptool.deploy(ready(Weights()))
    given = {"load_part": (2.0,), "merge_with": (image(),)}.get(name, ())
    with pytest.raises(SpecializedError, match=name):
        getattr(deployed, name)(*given)
    deployed.freeze()
    assert not deployed.conv.weight.requires_grad


class Parts(nn.Module):
    """A block that is run as it is for large images and part by part for small ones."""

    def __init__(self, weights: bool = False) -> None:
        super().__init__()
        self.block, self.weights = ConvBN(), weights

    def forward(self, x: Any) -> Any:
        if x.shape[-1] > 7:
            return self.block(x)
        return self.block.bn(torch.relu(self.block.conv(x)))


class ReadsWeights(Parts):
    def forward(self, x: Any) -> Any:
        return self.block(x) if x.shape[-1] > 7 else nn.functional.conv2d(x, self.block.conv.weight)


def test_parts_that_run_for_another_answer_alone_are_stopped_by_their_gates() -> None:
    model = ready(Parts())
    deployed = reptool.deploy(model, image())
    assert norms(deployed) == 0
    assert_same(model(image(1, 3, 9, 9)), deployed(image(1, 3, 9, 9)))
    with pytest.raises(SpecializedError, match=r"block\.conv"):
        deployed(image(1, 3, 7, 7))


def test_weights_that_are_read_for_another_answer_alone_stay() -> None:
    deployed, report = check(ready(ReadsWeights()))
    assert norms(deployed) == 1
    assert "specialized" in codes(report)


class Counted(nn.Module):
    """Its forward asks for a size, so that its block is deployed by itself below code that walks over it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return self.block(x)[..., : x.shape[-1] // 2 + int(x.shape[-2] > 20)]

    def count(self, kind) -> int:  # type: ignore[no-untyped-def]
        total = 0
        for m in self.modules():
            total += isinstance(m, kind)
        return total


def test_a_method_that_counts_modules_costs_nothing() -> None:
    deployed, _ = check(ready(Counted()))
    assert norms(deployed) == 0
    assert deployed.count(nn.Conv2d) == 1


class Raw(ConvBN):
    """A helper that runs a part of the region for small images, named by the method that runs the whole of it."""

    def forward(self, x: Any) -> Any:
        if x.shape[2] > 9:
            return self.bn(self.conv(x))
        return self.raw(x)

    def raw(self, x: Any) -> Any:
        return self.conv(x)


class Through(ConvBN):
    """Parts that run in methods which no trace follows: found by a name that is made up, inherited, in a property."""

    def forward(self, x: Any) -> Any:
        return self.bn(getattr(self, "_".join(["run", "conv"]))(x)) + self.again

    def run_conv(self, x: Any) -> Any:
        return self.conv(x)

    @property
    def again(self) -> Any:
        return self.bn(self.conv(image(1, 3, 10, 8)))


def test_a_helper_that_runs_a_part_is_stopped_inside_of_the_method_that_runs_the_whole() -> None:
    model = ready(Raw())
    deployed = reptool.deploy(model, image(1, 3, 10, 10))
    assert norms(deployed) == 0
    assert_same(model(image(1, 3, 12, 10)), deployed(image(1, 3, 12, 10)))
    with pytest.raises(SpecializedError, match="conv"):
        deployed(image(1, 3, 8, 8))


def test_methods_that_the_trace_went_through_are_gone_through_again() -> None:
    deployed, _ = check(ready(Through()), image(2, 3, 10, 8), others=False)
    assert norms(deployed) == 0


class Odd(ConvBN):
    """Members of a class that are no methods, named by a forward that asks for a size and by a method."""

    sizes, kinds, nothing = [1, 2], {nn.ReLU}, property()

    @staticmethod
    def twice(x: Any) -> Any:
        return x * 2

    def forward(self, x: Any) -> Any:
        return self.twice(self.bn(self.conv(x))) if x.shape[2] > self.sizes[0] else x

    def features(self, x: Any) -> Any:
        return self.bn(self.conv(x)) * self.sizes[1] if self.kinds else self.nothing


@pytest.mark.parametrize("fallback", [False, True])
def test_members_that_are_no_methods_do_no_harm(fallback: bool) -> None:
    model, x = ready(Odd()), image()
    deployed: Any = reptool.deploy(model, x, keep_fallback=fallback)
    assert_same(model(x), deployed(x))
    assert_same(model.features(x), deployed.features(x))


def test_a_class_may_hold_a_tensor_without_numbers() -> None:
    class Anchored(nn.Module):
        anchors = torch.empty(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x) + self.anchors.sum()

        def scaled(self, x: Tensor) -> Tensor:
            return x * self.stride  # type: ignore[operator]

    assert {"anchors", "scaled", "stride"} <= names_of(Anchored, "forward")
