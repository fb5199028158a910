"""`perturb` finds each kind of unsound deployed model that is planted here, and passes those that are right."""

from __future__ import annotations

import copy
import functools
import os
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import InputError, SpecializedError
from reptool.testing import PERTURBED_KINDS, Perturbed, perturb, randomize

HALVED = False
OPTIONS = {"mode": {"halved": False}}


def enclosing(halved: bool) -> Callable[[Tensor], Tensor]:
    """A function with a setting in its closure."""

    def halves(x: Tensor) -> Tensor:
        return x / 2 if halved else x

    return halves


def defaulting(x: Tensor, halved: bool = False) -> Tensor:
    """A function with a setting among the defaults of its arguments."""
    return x / 2 if halved else x


@dataclass
class Inner:
    """A configuration inside of another one."""

    halved: bool = False


@dataclass(frozen=True)
class Frozen:
    """A configuration that is replaced, not written to."""

    halved: bool = False


@dataclass
class Config:
    """A configuration object."""

    inner: Inner = field(default_factory=Inner)
    frozen: Frozen = field(default_factory=Frozen)


class Net(nn.Module):
    """A convolution and a norm; what follows is asked of a setting."""

    shared = False

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.halved, self.count, self.word = False, 0, "plain"
        self.config = Config()
        self.options = {"mode": [False, {"halved": False}]}
        self.chosen: set[str] = set()
        self.pair = (False, 1)
        self.function = enclosing(False)
        self.me = 0

    def halves(self, x: Tensor) -> bool:
        """Whether the result is halved: by no setting, here."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y / 2 if self.halves(x) else y


def asking(halves: Callable[[Any, Tensor], Any], base: type = Net) -> type:
    """A network that asks this."""
    return type("Asking", (base,), {"halves": halves, "__module__": __name__})


ASKED: dict[str, tuple[str, Callable[[Any, Tensor], Any]]] = {
    "flag": ("attribute", lambda m, x: m.halved),
    "number": ("attribute", lambda m, x: m.count == 5),
    "word": ("attribute", lambda m, x: m.word == "half"),
    "two together": ("attribute", lambda m, x: m.count == 5 and m.word == "half"),
    "attribute of a child": ("attribute", lambda m, x: m.conv.padding_mode == "reflect" or m.bn.eps > 0.5),
    "added": ("added", lambda m, x: getattr(m, "late", False)),
    "added to a child": ("added", lambda m, x: hasattr(m.conv, "late")),
    "nested object": ("config", lambda m, x: m.config.inner.halved),
    "frozen object": ("config", lambda m, x: m.config.frozen.halved),
    "item of a list": ("container", lambda m, x: m.options["mode"][0]),
    "item of a dictionary": ("container", lambda m, x: m.options["mode"][1]["halved"]),
    "key of a dictionary": ("container", lambda m, x: "halved" in m.options),
    "length of a list": ("container", lambda m, x: len(m.options["mode"]) == 3),
    "member of a set": ("container", lambda m, x: "halved" in m.chosen),
    "item of a tuple": ("container", lambda m, x: m.pair[0]),
    "class": ("class", lambda m, x: m.shared),
    "global": ("global", lambda m, x: HALVED),
    "nested global": ("global", lambda m, x: OPTIONS["mode"]["halved"]),
    "closure": ("closure", lambda m, x: not torch.equal(m.function(x), x)),
    "default": ("default", lambda m, x: not torch.equal(defaulting(x), x)),
    "number of axes": ("rank", lambda m, x: x.dim() == 3),
    "size": ("size", lambda m, x: x.shape[-1] > 8),
    "batch": ("batch", lambda m, x: len(x) == 1),
    "dtype": ("dtype", lambda m, x: x.dtype == torch.float32),
    "mode of a child": ("mode", lambda m, x: m.conv.training),
    "requires_grad": ("grad", lambda m, x: not m.conv.weight.requires_grad),
    "environment": ("environment", lambda m, x: os.environ.get("HALVED") == "1"),
    "switch": ("switch", lambda m, x: torch.get_default_dtype() == torch.float64),
    "hook": ("hook", lambda m, x: bool(m.conv._forward_hooks)),
    "replaced": ("replace", lambda m, x: not isinstance(m.bn, nn.BatchNorm2d)),
    "copied": ("copy", lambda m, x: m.me not in (0, id(m))),
}


class Unbatched(Net):
    """A network without a norm, which takes images without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.Identity()  # type: ignore[assignment]


def ready(model: nn.Module) -> nn.Module:
    """In float64, with random statistics."""
    return randomize(model, 1).double().eval()


def image() -> Tensor:
    """An input."""
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def as_class(model: nn.Module, kind: type) -> Any:
    """A copy whose class is another one."""
    other = copy.deepcopy(model)
    other.__class__ = kind
    return other


def planted(name: str) -> tuple[nn.Module, nn.Module]:
    """A model, and a copy that does not ask what it asks."""
    base = Unbatched if name == "number of axes" else Net
    model = ready(asking(ASKED[name][1], base)())
    if name == "copied":
        model.me = id(model)  # type: ignore[assignment]
    return model, as_class(model, base)


@pytest.mark.parametrize("name", ASKED)
def test_a_copy_that_does_not_ask_is_found(name: str) -> None:
    model, wrong = planted(name)
    kind = ASKED[name][0]
    with pytest.raises(AssertionError, match="differs and says nothing") as caught:
        perturb(model, wrong, image(), tries=400, kinds=[kind])
    changes = _changes(caught)
    assert len(changes) <= (2 if name == "two together" else 1)
    with pytest.raises(AssertionError, match="differs and says nothing"):
        perturb(model, wrong, image(), changes=changes)


@pytest.mark.parametrize("name", [name for name in ASKED if name != "copied"])
def test_a_copy_that_asks_passes(name: str) -> None:
    model, _ = planted(name)
    found = perturb(model, copy.deepcopy(model), image(), tries=150)
    assert (found.tried, found.agreed) == (150, 150)


@pytest.mark.parametrize("name", ["flag", "nested global", "number of axes", "item of a list"])
def test_a_copy_that_raises_passes_and_what_raised_is_counted(name: str) -> None:
    kind, asks = ASKED[name]
    model, wrong = planted(name)

    class Guarded(type(wrong)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            if asks(self, x):
                raise SpecializedError("another setting")
            return super().forward(x)

    guarded = as_class(model, Guarded)
    found = perturb(model, guarded, image(), tries=150, kinds=[kind])
    assert found.raised[kind] > 0
    assert found.agreed + sum(found.raised.values()) == found.tried
    assert not found.needless


def test_what_is_guarded_needlessly_is_counted() -> None:
    model = ready(Net())

    class Strict(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.word != "plain":
                raise SpecializedError("another word")
            return super().forward(x)

    found = perturb(model, as_class(model, Strict), image(), tries=100, kinds=["attribute"])
    assert found.needless["m.word"] > 0
    assert set(found.needless) == {"m.word"}
    assert "needlessly" in str(found)


def _changes(caught: Any) -> list[str]:
    text = str(caught.value)
    assert "again: perturb(model, deployed, inputs, changes=" in text
    return list(eval(text.rpartition("changes=")[2].rstrip(")")))


# --- calls, methods, state
class Whole(nn.Module):
    """A convolution, a norm, and everything public beside a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor, raw: bool = False) -> Tensor:
        return self.stem[0](x) if raw else self.stem(x)

    def features(self, x: Tensor) -> Tensor:
        return self.stem[0](x)


class Generating(Whole):
    features = None  # type: ignore[assignment]

    def steps(self, x: Tensor) -> Any:
        for layer in self.stem:
            x = layer(x)
            yield x


class Static(Whole):
    features = None  # type: ignore[assignment]

    @staticmethod
    def static(model: Any, x: Tensor) -> Tensor:
        return model.stem[0](x)


class Classy(Whole):
    features = None  # type: ignore[assignment]

    @classmethod
    def classy(cls, model: Any, x: Tensor) -> Tensor:
        return model.stem[0](x)


class Later(Whole):
    features = None  # type: ignore[assignment]

    async def later(self, x: Tensor) -> Tensor:
        return self.stem[0](x)


class Having(Whole):
    features = None  # type: ignore[assignment]

    @property
    def first(self) -> nn.Module:
        return self.stem[0]


class Weighing(Whole):
    features = None  # type: ignore[assignment]

    @property
    def kernel(self) -> Tensor:
        return self.stem[0].weight


class Indexed(Whole):
    features = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> nn.Module:
        return self.stem[index]


class Iterated(Whole):
    features = None  # type: ignore[assignment]

    def __iter__(self) -> Any:
        return iter(self.stem)


class Moded(Whole):
    features = None  # type: ignore[assignment]

    def __call__(self, x: Tensor, first: bool = False, **others: Any) -> Tensor:
        return self.stem[0](x) if first else super().__call__(x, **others)


def folded(model: Any) -> Any:
    """The norm folded into the convolution and nothing guarded, as a careless tool would do it."""
    other = copy.deepcopy(model)
    other.stem[0] = torch.nn.utils.fuse_conv_bn_eval(other.stem[0], other.stem[1])
    other.stem[1] = nn.Identity()
    return other


@pytest.mark.parametrize(
    "kind", [Whole, Generating, Static, Classy, Later, Having, Weighing, Indexed, Iterated], ids=lambda k: k.__name__
)
def test_what_is_public_is_called(kind: type) -> None:
    model = ready(kind())
    with pytest.raises(AssertionError, match="differs and says nothing"):
        perturb(model, folded(model), image(), tries=100, kinds=["method"])
    assert perturb(model, copy.deepcopy(model), image(), tries=100, kinds=["method"]).agreed == 100


@pytest.mark.parametrize("kind", [Whole, Moded], ids=lambda k: k.__name__)
def test_arguments_are_given_that_need_not_be(kind: type) -> None:
    model = ready(kind())
    with pytest.raises(AssertionError, match="differs and says nothing"):
        perturb(model, folded(model), image(), tries=100, kinds=["argument"])


@pytest.mark.parametrize("kind", ["submodule", "hook", "load", "replace", "weight", "mode"])
def test_a_fold_that_nothing_guards_is_found(kind: str) -> None:
    model = ready(Whole())
    with pytest.raises(AssertionError, match="differs and says nothing"):
        perturb(model, folded(model), image(), tries=200, kinds=[kind], allow=["foreign"])


def test_an_error_of_another_kind_is_a_fault_unless_it_is_allowed() -> None:
    model = ready(Whole())
    with pytest.raises(AssertionError, match="an error that is not reptool's"):
        perturb(model, folded(model), image(), tries=50, kinds=["read"])
    perturb(model, folded(model), image(), tries=50, kinds=["read"], allow=["foreign"])


def test_a_result_where_the_original_raises_is_a_fault_unless_it_is_allowed() -> None:
    model = ready(Whole())
    with pytest.raises(AssertionError, match="the original raises ValueError"):
        perturb(model, folded(model), image(), tries=20, kinds=["rank"])
    perturb(model, folded(model), image(), tries=20, kinds=["rank"], allow=["lenient"])


class Nested(nn.Module):
    """Arguments in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
        found = [self.conv(x) for x in images]
        return [x * 2 for x in found] if options["double"][0] else found


class Deaf(Nested):
    """The same, without the option."""

    def forward(self, images: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
        return [self.conv(x) for x in images]


def test_values_inside_of_arguments_are_changed() -> None:
    model = ready(Nested())
    inputs = ([image(), image()], {"double": [False]})
    for given in (inputs, {"images": inputs[0], "options": inputs[1]}):
        with pytest.raises(AssertionError, match="double"):
            perturb(model, as_class(model, Deaf), given, tries=200, kinds=["argument"])
    assert perturb(model, copy.deepcopy(model), inputs, tries=200).agreed == 200


def test_objects_among_the_arguments_are_changed_and_put_back() -> None:
    class Configured(nn.Module):
        def forward(self, x: Tensor, config: Any) -> Tensor:
            return x / 2 if config.inner.halved else x

    class Fixed(nn.Module):
        def forward(self, x: Tensor, config: Any) -> Tensor:
            return x

    config = Config()
    with pytest.raises(AssertionError, match="halved"):
        perturb(Configured(), Fixed(), (image(), config), tries=100, kinds=["argument"])
    assert perturb(Configured(), Configured(), (image(), config), tries=100, kinds=["argument"]).agreed == 100
    assert config == Config()


class Told(Whole):
    """Warns when it is trained, once."""

    told = False

    def train(self, mode: bool = True) -> Any:
        if mode and not Told.told:
            Told.told = True
            warnings.warn("norms of this deployed model are folded", UserWarning, stacklevel=2)
        return super().train(mode)


def test_training_mode_is_loud_where_reptool_warns_of_it() -> None:
    model = ready(Whole())
    deployed = as_class(folded(model), Told)
    found = perturb(model, deployed, image(), tries=30, kinds=["mode"], changes=["m.train()"])
    assert found.tried == 1
    Told.told = False
    with pytest.raises(AssertionError, match="differs"):  # a single norm has no method that warns
        perturb(model, deployed, image(), changes=["m.stem[1].train()"])


# --- undoing
def test_everything_is_put_back() -> None:
    model = ready(asking(ASKED["nested global"][1])())
    deployed = copy.deepcopy(model)
    before = [_everything(m) for m in (model, deployed)]
    state = {k: v.clone() for m in (model, deployed) for k, v in m.state_dict().items()}
    generator = torch.get_rng_state()
    environment, dtype = dict(os.environ), torch.get_default_dtype()
    perturb(model, deployed, image(), tries=600)
    assert [_everything(m) for m in (model, deployed)] == before
    assert all(torch.equal(state[k], v) for m in (model, deployed) for k, v in m.state_dict().items())
    assert (OPTIONS, HALVED, Net.shared) == ({"mode": {"halved": False}}, False, False)
    assert defaulting.__defaults__ == (False,)
    assert torch.equal(generator, torch.get_rng_state())
    assert (dict(os.environ), torch.get_default_dtype()) == (environment, dtype)


def _everything(model: nn.Module) -> Any:
    described = []
    for path, module in model.named_modules():
        plain = {k: repr(v) for k, v in vars(module).items() if not k.startswith("_")}
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        ids = {k: (id(v), v.dtype, v.requires_grad) for k, v in module._parameters.items() if v is not None}
        described.append((path, type(module), plain, hooks, ids, [id(c) for c in module.children()]))
    return described


def test_what_was_found_is_put_back_too() -> None:
    model, wrong = planted("nested object")
    with pytest.raises(AssertionError):
        perturb(model, wrong, image(), tries=300, kinds=["config"])
    assert not model.config.inner.halved
    assert torch.equal(model(image()), wrong(image()))


# --- odd ones
def test_equal_seeds_give_equal_tries() -> None:
    model, wrong = planted("item of a list")
    texts = []
    for _ in range(2):
        with pytest.raises(AssertionError) as caught:
            perturb(model, wrong, image(), tries=300, seed=3, kinds=["container"])
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_a_model_that_differs_without_any_change_is_a_failure() -> None:
    model = ready(Whole())
    with pytest.raises(AssertionError, match="no change at all"):
        perturb(model, ready(Whole()).double(), image(), tries=1)


def test_unknown_kinds_are_refused() -> None:
    model = ready(Whole())
    with pytest.raises(InputError, match="kinds="):
        perturb(model, model, image(), kinds=["settings"])


def test_nothing_to_change_of_a_kind_is_no_error() -> None:
    model = ready(Whole())
    assert perturb(model, model, image(), kinds=["environment"]) == Perturbed(seconds=pytest.approx(0, abs=10))


def test_equal_infinities_and_nan_are_equal() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x / 0, torch.log(x)]

    assert perturb(Odd(), Odd(), image(), tries=20).agreed == 20


def test_errors_of_reptool_are_agreement_where_the_original_raises_another() -> None:
    class Fails(Whole):
        def forward(self, x: Tensor, raw: bool = False) -> Tensor:
            if raw:
                raise ValueError("not raw")
            return super().forward(x)

    class Guarded(Whole):
        def forward(self, x: Tensor, raw: bool = False) -> Tensor:
            if raw:
                raise SpecializedError("raw")
            return super().forward(x)

    class Foreign(Whole):
        def forward(self, x: Tensor, raw: bool = False) -> Tensor:
            if raw:
                raise KeyError("raw")
            return super().forward(x)

    model = ready(Fails())
    assert perturb(model, as_class(model, Guarded), image(), tries=50, kinds=["argument"]).raised["argument"] > 0
    with pytest.raises(AssertionError, match="KeyError"):
        perturb(model, as_class(model, Foreign), image(), tries=50, kinds=["argument"])


def test_functions_kept_as_attributes_and_partial_ones() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = lambda x: x * 2
            self.partial = functools.partial(defaulting, halved=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.partial(self.twice(x))

    class Fixed(Holding):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    model = Holding()
    assert perturb(model, copy.deepcopy(model), image(), tries=100).agreed == 100
    with pytest.raises(AssertionError, match=r"m\.twice"):
        perturb(model, as_class(model, Fixed), image(), tries=100, kinds=["attribute"])
    with pytest.raises(AssertionError, match=r"m\.partial"):
        perturb(model, as_class(model, Fixed), image(), tries=100, kinds=["container"])


def test_other_containers_and_simple_namespaces() -> None:
    class Spaced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.space = types.SimpleNamespace(inner=types.SimpleNamespace(raw=False))

        def forward(self, x: Tensor) -> Tensor:
            return x if self.space.inner.raw else x * 2

    class Fixed(Spaced):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    model = Spaced()
    with pytest.raises(AssertionError, match=r"space\.inner\.raw"):
        perturb(model, as_class(model, Fixed), image(), tries=50, kinds=["config"])


def test_all_kinds_are_tested_here() -> None:
    tested = {kind for kind, _ in ASKED.values()}
    assert tested | {"method", "argument", "submodule", "load", "weight", "read"} == set(PERTURBED_KINDS)
    assert sys.modules[__name__].HALVED is False


def test_a_deployed_sequential_agrees_at_sizes_batches_and_arguments() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    deployed = reptool.deploy(model, image())
    found = perturb(model, deployed, image(), tries=100, kinds=["size", "batch", "copy", "argument"])
    assert found.agreed == 100
    found = perturb(model, deployed, image(), tries=20, kinds=["dtype"])  # where the original raises, it says why
    assert found.agreed + found.raised["dtype"] == 20
    assert not found.needless


def test_what_is_deep_inside_is_put_back() -> None:
    model: nn.Module = ready(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    for _ in range(12):
        model = nn.Sequential(model)
    before = _everything(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    perturb(model, copy.deepcopy(model), image(), tries=300)
    assert _everything(model) == before
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_deployed_model_that_raises_without_any_change_is_told_of() -> None:
    class Raises(nn.Identity):
        def forward(self, input: Tensor) -> Tensor:
            """Nothing."""
            raise SpecializedError("never")

    with pytest.raises(AssertionError, match="no change at all"):
        perturb(nn.Identity(), Raises(), torch.zeros(1))
