"""Gates: a fused layer runs in the calls that were traced, and nowhere else."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.gates.calls import method_names
from reptool.runtime.gates.marker import GATE
from reptool.testing import perturb
from tests.traps import assert_same, ready


class Block(nn.Module):
    """A chain with its norm, and a sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.b = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return (self.a(x) + self.b(x)).relu()


class Net(nn.Module):
    """A stem in the forward itself, blocks, and a layer that means what it meant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        return self.blocks(self.act(self.norm(self.stem(x))))

    def listed(self, x: Tensor) -> list[Tensor]:
        out = [self.act(self.norm(self.stem(x)))]
        for block in self.blocks:
            out.append(block(out[-1]))
        return out

    def build_stem(self, x: Tensor) -> Tensor:
        return self.stem(x)


X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(2, 4, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Make = Callable[[Any], Any]


@pytest.fixture
def model() -> Any:
    return ready(Net())


@pytest.fixture
def deployed(model: Any) -> Any:
    return reptool.deploy(model)


class Wrapper(nn.Module):
    """Holds the layers of another model under the same names, and runs one of them."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.stem, self.norm, self.act = net.stem, net.norm, net.act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.stem(x))


def hooked(m: Any, path: str) -> Any:
    m.get_submodule(path).register_forward_hook(lambda module, args, out: out * 0)
    return m(X)


def patched(m: Any) -> Any:
    m.forward = types.MethodType(lambda self, x: self.stem(x), m)
    return m(X)


def replaced(m: Any, path: str, module: nn.Module) -> Any:
    owner, _, name = path.rpartition(".")
    setattr(m.get_submodule(owner), name, module.double().eval())
    return m(X)


def moved(m: Any, path: str, there: str) -> Any:
    m.set_submodule(there, m.get_submodule(path))
    return m(X)


def lent(m: Any) -> Any:
    fresh = ready(Net())
    fresh.stem = m.stem
    return fresh(X)


OTHERWISE: dict[str, Make] = {
    "a layer in front of its norm": lambda m: m.stem(X),
    "a norm": lambda m: m.norm(Y),
    "a norm by name": lambda m: m.norm(input=Y),
    "a layer by name": lambda m: m.stem(input=X),
    "a branch": lambda m: m.blocks[0].a(Y),
    "the layer of a branch": lambda m: m.blocks[0].a[0](Y),
    "the other branch": lambda m: m.blocks[0].b(Y),
    "a method that was not traced": lambda m: m.build_stem(X),
    "another module": lambda m: Wrapper(m)(X),
    "a container of some of its modules": lambda m: nn.Sequential(m.stem, m.act)(X),
    "a piece of a container": lambda m: m.blocks[0].a[:1](Y),
    "a container that runs branches in a row": lambda m: nn.Sequential(m.blocks[0].a, m.blocks[0].b)(Y),
    "a graph of a branch": lambda m: fx.symbolic_trace(m.blocks[0].a)(Y),
    "a forward that was put in": patched,
    "the forward before it was written anew": lambda m: Block.forward(m.blocks[0], Y),
    "that forward behind the new one": lambda m: [f(Y) for f in (m.blocks[0], partial(Block.forward, m.blocks[0]))],
    "a hook on the layer": lambda m: hooked(m, "stem"),
    "a hook on a branch": lambda m: hooked(m, "blocks.0.a"),
    "another norm": lambda m: replaced(m, "norm", nn.BatchNorm2d(4)),
    "the marker of another norm": lambda m: moved(m, "blocks.0.a.1", "blocks.0.b"),
    "another branch": lambda m: replaced(m, "blocks.1.b", nn.Conv2d(4, 4, 1)),
    "a model that was lent a layer": lent,
}


@pytest.mark.parametrize("how", OTHERWISE)
@pytest.mark.parametrize("copied", ["as it is", "deepcopy", "pickle"])
def test_what_the_trace_did_not_show_raises(deployed: Any, how: str, copied: str) -> None:
    made = {"as it is": lambda m: m, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}
    with pytest.raises(SpecializedError, match=r"deploy\(\)"):
        OTHERWISE[how](made[copied](deployed))


def test_the_error_names_the_layer_its_region_and_what_to_do(deployed: Any) -> None:
    with pytest.raises(SpecializedError, match=r"'blocks.0.a.0' was fused .*'blocks.0.b.1'.*exclude.*release"):
        deployed.blocks[0].a[0](Y)


def collected(m: Any, path: str) -> list[Any]:
    seen: list[Any] = []
    m.get_submodule(path).register_forward_hook(lambda module, args, out: seen.append(out))
    return [m(X), *seen]


def in_backward(m: Any, reentrant: bool) -> Any:
    x = Y.clone().requires_grad_()
    checkpoint(lambda v: m.blocks[0](v), x, use_reentrant=reentrant).sum().backward()
    return x.grad


AS_TRACED: dict[str, Make] = {
    "the model": lambda m: m(X),
    "a method that it calls": lambda m: m.features(X),
    "a method that runs the same": lambda m: m.listed(X),
    "a block": lambda m: m.blocks[1](Y),
    "blocks": lambda m: m.blocks(Y),
    "some blocks": lambda m: m.blocks[1:](Y),
    "a layer that means what it meant": lambda m: m.head(Y),
    "all of it in a row": lambda m: nn.Sequential(*m.children())(X),
    "the stem in a row": lambda m: nn.Sequential(m.stem, m.norm)(X),
    "a graph": lambda m: fx.symbolic_trace(m)(X),
    "a graph of a block": lambda m: fx.symbolic_trace(m.blocks[0])(Y),
    "a part in a function": lambda m: torch.func.functional_call(m, dict(m.named_parameters()), (X,)),
    "a function around it": lambda m: (lambda f: f(X))(m.features),
    "a hook on a block": lambda m: collected(m, "blocks.0"),
    "a hook on what follows": lambda m: collected(m, "act"),
    "checkpoints": lambda m: in_backward(m, False),
    "old checkpoints": lambda m: in_backward(m, True),
    "another place": lambda m: nn.ModuleDict({"net": m})["net"](X),
    "a block in another model": lambda m: nn.Sequential(nn.ReLU(), m.blocks[0])(Y),
}


@pytest.mark.parametrize("how", AS_TRACED)
@pytest.mark.parametrize("copied", ["as it is", "deepcopy", "pickle"])
def test_what_runs_the_regions_as_they_were_traced_stays(model: Any, deployed: Any, how: str, copied: str) -> None:
    made = {"as it is": lambda m: m, "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}
    assert_same(AS_TRACED[how](model), AS_TRACED[how](made[copied](deployed)), how)


def gated(model: nn.Module) -> set[str]:
    return {p for p, m in model.named_modules() if GATE in vars(m)}


def test_only_what_changes_its_meaning_is_gated(deployed: Any) -> None:
    assert "head" not in gated(deployed)
    assert {"stem", "norm", "blocks.0.conv", "blocks.0.a.0"} <= gated(deployed)
    assert gated(reptool.deploy(ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())))) == set()


class Indirect(nn.Module):
    """Runs its layers through plain functions, an inherited forward and a wrapped one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Derived()

    def forward(self, x: Tensor) -> Tensor:
        return run_it(lambda v: self.inner(v), x)


def run_it(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def wrapped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def around(self: Any, x: Tensor) -> Tensor:
        return function(self, x)

    return around


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Derived(Base):
    @torch.no_grad()
    @wrapped
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(super().forward(x))


def test_functions_and_inherited_methods_between_are_no_other_call() -> None:
    model = ready(Indirect())
    deployed: Any = reptool.deploy(model)
    assert len(reptool.report(deployed).regions) == 1
    assert_same(model(X), deployed(X))
    with pytest.raises(SpecializedError):
        Base.forward(deployed.inner, X)


class Prepared(nn.Module):
    """A method that hands its input on, in front of a branch and behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.as_it_is(self.one(x))) + self.other(self.two(self.as_it_is(x)))

    def as_it_is(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_method_that_is_put_on_a_module_later_raises(warm: bool, before: bool) -> None:
    model = ready(Prepared())
    if before:
        vars(model)["as_it_is"] = lambda x: 2 * x
    deployed = reptool.deploy(model)
    if warm or before:
        torch.testing.assert_close(deployed(X), model(X))
    vars(deployed)["as_it_is"] = lambda x: 3 * x
    with pytest.raises(SpecializedError):
        deployed(X)


def test_norms_that_change_places_raise() -> None:
    deployed = reptool.deploy(ready(Prepared()))
    deployed.norm, deployed.other = deployed.other, deployed.norm
    with pytest.raises(SpecializedError, match="was fused by deploy"):
        deployed(X)


def test_methods_are_known_by_their_code() -> None:
    names = method_names(Derived)
    assert names[vars(Base)["__init__"].__code__] == "__init__"
    assert vars(Base)["forward"].__code__ not in names  # what a subclass overrides is no method of it
    assert sorted(set(names.values())) == ["__init__", "forward"]


def test_weights_that_are_pruned_are_no_hook_on_the_values(deployed: Any) -> None:
    torch.nn.utils.prune.l1_unstructured(deployed.stem, "weight", 0.5)
    assert deployed(X).shape == (2, 2, 7, 7)


def test_what_a_call_holds_is_not_kept_alive() -> None:
    import weakref

    class Freeing(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x)).relu()
            seen.append(weakref.ref(y))
            y = self.a(y) + self.b(y)
            alive.append(seen[-1]() is not None)
            return y

    seen: list[Any] = []
    alive: list[bool] = []
    model = ready(Freeing())
    with torch.no_grad():
        model(Y)
        deployed = reptool.deploy(model)
        alive.clear()
        deployed(Y)
    assert not any(alive)


# --- what is inside of a region
class NormAct(nn.BatchNorm2d):
    """A norm with an activation in it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(super().forward(x))


def in_a_row(*behind: nn.Module) -> Any:
    return ready(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), *behind))


@pytest.mark.parametrize("path", ["0", "1", "2"])
def test_another_module_inside_of_a_region_raises(path: str) -> None:
    model = in_a_row(nn.Identity(), NormAct(4))
    deployed = reptool.deploy(model)
    assert_same(model(X), deployed(X))
    deployed.register_module(path, nn.Tanh() if path == "1" else copy.deepcopy(model[int(path)]))
    with pytest.raises(SpecializedError, match=r"deploy\(\)"):
        deployed(X)


@pytest.mark.parametrize("norm", [NormAct, nn.BatchNorm2d])
def test_a_module_of_another_region_is_not_taken_for_one_that_is_missing(norm: Any) -> None:
    model = in_a_row(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), norm(4))
    deployed = reptool.deploy(model)
    deployed[4] = nn.Identity()
    with pytest.raises(SpecializedError, match=r"deploy\(\)"):
        deployed(X)


def test_a_hook_on_an_identity_inside_of_a_region_raises() -> None:
    deployed = reptool.deploy(in_a_row(nn.Identity(), nn.BatchNorm2d(4)))
    deployed[1].register_forward_hook(lambda *_: None)
    with pytest.raises(SpecializedError, match="watched"):
        deployed(X)


def test_a_hook_on_an_identity_behind_a_region_sees_its_value() -> None:
    model = in_a_row(nn.BatchNorm2d(4), nn.Identity(), nn.Identity())
    for seen, wanted in zip(collected(reptool.deploy(model), "2"), collected(model, "2"), strict=True):
        assert_same(wanted, seen)


def test_another_window_raises_in_a_container_too() -> None:
    deployed = reptool.deploy(in_a_row(nn.BatchNorm2d(4)))
    deployed[0].padding = (1, 1)
    with pytest.raises(SpecializedError):
        deployed(X)


def test_inputs_that_a_folded_norm_does_not_take_raise(model: Any, deployed: Any) -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        model(X[0])
    with pytest.raises(SpecializedError, match="dimensions"):
        deployed(X[0])


def test_a_norm_that_takes_two_ranks_is_asked_for_both() -> None:
    deployed = reptool.deploy(ready(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))))
    assert deployed[0].__dict__[GATE].ranks == {2, 3}


class Weighted(nn.Module):
    """A layer that computes its weight from parameters of other names."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.scale = nn.Parameter(torch.rand(4, 3, 3, 3)), nn.Parameter(torch.rand(4, 1, 1, 1))
        self.power = 1

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.base * self.scale**self.power)


@pytest.mark.parametrize("change", ["m[0].base = nn.Parameter(torch.rand(4, 3, 3, 3))", "m[0].power = 2"])
def test_what_a_layer_has_no_use_for_any_more_raises_where_it_is_set(change: str) -> None:
    model = ready(nn.Sequential(Weighted(), nn.ReLU()))
    found = perturb(model, reptool.deploy(model), X, changes=[change])
    assert found.raised.total() == 1


def test_what_a_layer_has_no_use_for_any_more_is_gone() -> None:
    deployed = reptool.deploy(ready(nn.Sequential(Weighted(), nn.ReLU())))
    assert not hasattr(deployed[0], "scale")
    with pytest.raises(SpecializedError, match="'scale' of this Conv2d was folded"):
        deployed[0].scale  # noqa: B018 - it is read
    assert repr(deployed[0]) == "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), bias=False)"


def test_released_any_name_can_be_set() -> None:
    released = reptool.release(reptool.deploy(ready(nn.Sequential(Weighted(), nn.ReLU()))))
    released[0].base = None
    assert released(X).shape == (2, 4, 7, 7)


# --- release
def test_a_released_model_gives_the_same_and_objects_to_nothing(model: Any, deployed: Any) -> None:
    released = reptool.release(copy.deepcopy(deployed))
    assert type(released.norm) is nn.Identity
    assert released.norm.eps == 1e-5
    assert gated(released) == set()
    assert_same(model(X), released(X))
    released.norm.eps = 2.0
    released.stem.register_forward_hook(lambda *_: None)
    released.blocks[0].b = nn.Conv2d(4, 4, 1)
    released.stem.load_state_dict(model.stem.state_dict())
    assert released.stem(X).shape == (2, 4, 7, 7)
    with pytest.raises(SpecializedError):
        deployed.stem(X)


class Checkpointed(nn.Module):
    """Two branches in a part that is checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def both(self, x: Tensor) -> Tensor:
        """Added."""
        return self.a(x) + self.b(x)

    def forward(self, x: Tensor) -> Tensor:
        """Run again in the backward pass."""
        return checkpoint(self.both, x, use_reentrant=False)  # type: ignore[no-any-return]


def test_a_checkpoint_around_a_region_opens_no_gate() -> None:
    model, x = Checkpointed().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    deployed = reptool.deploy(model, x.detach())
    assert len(reptool.report(deployed).regions) == 1
    torch.testing.assert_close(deployed(x), model(x))
    deployed(x).sum().backward()
    deployed.b = nn.Conv2d(3, 4, 1).double()
    with pytest.raises(SpecializedError):
        deployed(x)


class Scaled(nn.Module):
    """A norm that computes in float32, scales in the dtype of its weight, and a layer that takes up the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.linear = nn.Parameter(torch.rand(4) + 0.5), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """What is scaled is as wide as the weight."""
        y = x.float()
        y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.linear(self.weight * y)  # type: ignore[no-any-return]


def test_an_input_of_another_dtype_that_the_original_widens_raises() -> None:
    model, x = Scaled().eval(), torch.randn(2, 4)
    deployed = reptool.deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1
    assert model(x.bfloat16()).dtype is torch.float32
    with pytest.raises(SpecializedError, match="bfloat16"):
        deployed(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(deployed(x), model(x), rtol=0.05, atol=0.05)


class Doubled(nn.Conv2d):
    """Twice what a convolution gives."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice."""
        return super().forward(x) * 2


def runs_parts(module: Any, x: Tensor) -> Tensor:
    """A forward that leaves the norm out."""
    return module.conv(x)  # type: ignore[no-any-return]


CODE = {
    "a layer's forward": lambda m: setattr(m.stem, "forward", torch.tanh),
    "a marker's forward": lambda m: setattr(m.norm, "forward", torch.tanh),
    "a block's forward": lambda m: setattr(m.blocks[0], "forward", types.MethodType(runs_parts, m.blocks[0])),
    "a layer's class": lambda m: setattr(m.stem, "__class__", Doubled),
    "a name in front of a module": lambda m: vars(m).update(norm=nn.Tanh()),
    "a layer of another block": lambda m: setattr(m.blocks[0], "conv", m.blocks[1].conv),
    "a marker of another block": lambda m: setattr(m.blocks[0], "norm", m.blocks[1].norm),
    "a hook put into the table": lambda m: m.norm._forward_pre_hooks.update({1: lambda m, a: (a[0] * 2,)}),
}


@pytest.mark.parametrize("case", CODE)
@pytest.mark.parametrize("warm", [False, True])
def test_other_code_in_the_place_of_a_layers_own_raises(deployed: Any, case: str, warm: bool) -> None:
    other = copy.deepcopy(deployed)
    if warm:
        other(X)
    CODE[case](other)
    with pytest.raises(SpecializedError):
        other(X)


@pytest.mark.parametrize("warm", [False, True])
def test_a_hook_on_all_modules_there_are_raises_unless_it_is_torchs(model: Any, deployed: Any, warm: bool) -> None:
    if warm:
        deployed(X)
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, y: y * 2 if isinstance(m, nn.Conv2d) else y)
    try:
        with pytest.raises(SpecializedError):
            deployed(X)
    finally:
        handle.remove()
    with FlopCounterMode(display=False):
        assert_same(model(X), deployed(X))


def test_a_series_in_another_order_raises() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    deployed = reptool.deploy(model, Y)
    assert_same(nn.Sequential(*list(model)[:2])(Y), nn.Sequential(*list(deployed)[:2])(Y))
    with pytest.raises(SpecializedError):
        nn.Sequential(*list(deployed)[::-1])(Y)


class Inside(nn.Module):
    """Modules between a convolution and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.same, self.norm = nn.Conv2d(4, 4, 1), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        return self.norm(self.same(self.drop(self.conv(x))))  # type: ignore[no-any-return]


INSIDE = {
    "forward": lambda m: setattr(m.drop, "forward", torch.tanh),
    "class": lambda m: setattr(m.same, "__class__", nn.Tanh),
    "mode": lambda m: m.drop.train(),
}


@pytest.mark.parametrize("case", INSIDE)
@pytest.mark.parametrize("warm", [False, True])
def test_a_module_inside_of_a_region_runs_what_it_ran(case: str, warm: bool) -> None:
    model = ready(Inside())
    deployed = reptool.deploy(model, Y)
    assert len(reptool.report(deployed).regions) == 1
    if warm:
        deployed(Y)
    INSIDE[case](deployed)
    with pytest.raises(SpecializedError):
        deployed(Y)


def test_a_model_with_a_dropout_inside_of_a_region_is_trained_as_a_whole() -> None:
    deployed = reptool.deploy(ready(Inside()), Y)
    with pytest.warns(reptool.errors.FoldedNormWarning):
        deployed.train()(Y).sum().backward()
