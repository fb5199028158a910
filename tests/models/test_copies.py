"""A copy of a model is the model again: class, mode, flags, hooks, slots, graphs and what its attributes hold."""

from __future__ import annotations

import copy
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.nn.utils import parametrizations, prune

import reptool
from reptool.errors import SpecializedError, UnsupportedModelError
from reptool.models.copies import full_copy, independent_copy, shallow_copy
from reptool.testing import randomize

COPIES = [shallow_copy, full_copy, independent_copy]


def plain() -> nn.Sequential:
    return randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).eval()


def image() -> Tensor:
    return torch.randn(2, 3, 9, 9)


class Forgetful(nn.Sequential):
    """Its own copying keeps neither mode nor hooks nor flags."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Forgetful:
        made = Forgetful(*(copy.deepcopy(m, memo).train() for m in self))
        return made.requires_grad_(True)


class Shared(nn.Sequential):
    """Its own copying gives itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self


class Slotted(nn.Module):
    __slots__ = ("gain",)

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.gain = plain(), [3.0]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x) * self.gain[0]
        return y


class Parent(nn.Module):
    """Its child knows it by a weak reference, and a list beside the registered ones holds the child."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Module()
        self.child.parent = weakref.ref(self)
        self.also = {"child": [self.child]}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("build", [lambda: Forgetful(*plain()).eval(), lambda: Shared(*plain()).eval(), plain])
def test_mode_flags_and_hooks_are_kept_whatever_a_class_does(build: Any, copied: Any) -> None:
    model = build().requires_grad_(False)
    model[0].train()
    seen: list[Any] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    model.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs), with_kwargs=True)
    model[0].weight.note = {"axis": 0}
    made = copied(model)
    assert made is not model
    assert [m.training for m in made.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in made.parameters()] == [False] * 4
    assert made[0].weight.note == {"axis": 0}
    x = image()
    assert torch.equal(made(x), model(x))
    assert seen == [1, 1]
    assert not {id(m) for m in made.modules()} & {id(m) for m in model.modules()}
    assert (made[0].weight is model[0].weight) is (copied is shallow_copy)


@pytest.mark.parametrize("copied", COPIES)
def test_slots_weak_references_and_lists_of_parts_follow(copied: Any) -> None:
    slotted = Slotted().eval()
    made: Any = copied(slotted)
    assert made.gain == [3.0]
    assert made.gain is not slotted.gain
    x = image()
    assert torch.equal(made(x), slotted(x))
    parent: Any = copied(Parent())
    assert parent.child.parent() is parent
    assert parent.also["child"][0] is parent.child


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LSTM(3, 4),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5),
    ],
)
def test_layers_that_keep_books_of_their_own(build: Any, copied: Any) -> None:
    with torch.no_grad():
        model = build().eval()
    made = copied(model)
    assert [vars(m).keys() for m in made.modules()] == [vars(m).keys() for m in model.modules()]
    assert made.state_dict().keys() == model.state_dict().keys()
    wide = full_copy(made).double()
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- graphs
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("lazy", [False, True])
def test_a_graph_module_keeps_mode_hooks_and_what_is_not_in_its_graph(copied: Any, lazy: bool) -> None:
    with _use_lazy_graph_module(lazy):
        graph = fx.symbolic_trace(plain())
    graph.eval()
    graph.register_forward_hook(lambda m, a, out: out + 1)
    graph.note = [1]
    graph.register_buffer("spare", torch.ones(2), persistent=False)
    made = copied(graph)
    x = image()
    graph(x)  # a lazy one runs its hooks twice at its first call
    assert type(made) is not type(graph)
    assert type(made).__mro__[1] is type(graph).__mro__[1]
    assert torch.equal(made(x), graph(x))
    assert made.graph.owning_module is made
    assert (made.training, made.note, list(made.state_dict())) == (False, [1], list(graph.state_dict()))
    made.graph.erase_node(next(n for n in reversed(made.graph.nodes) if n.op == "output"))
    assert any(n.op == "output" for n in graph.graph.nodes)


def test_a_graph_that_was_changed_and_not_compiled_runs_what_it_ran() -> None:
    graph = fx.symbolic_trace(plain())
    x = image()
    wanted = graph(x)
    last = next(n for n in graph.graph.nodes if n.op == "output")
    last.args = (last.args[0].args[0],)  # without the ReLU, from the next recompile on
    assert torch.equal(full_copy(graph)(x), wanted)
    assert torch.allclose(reptool.deploy(graph, x)(x), wanted, atol=1e-5)


class Modes(fx.GraphModule):
    """Two graphs, as torchvision's feature extractors have them."""

    def __init__(self, root: nn.Module, train_graph: fx.Graph, eval_graph: fx.Graph) -> None:
        super().__init__(root, train_graph)
        self.train_graph, self.eval_graph = train_graph, eval_graph

    def __deepcopy__(self, memo: dict[int, Any]) -> Modes:
        made = fx.GraphModule.__deepcopy__(self, memo)
        made.train_graph, made.eval_graph = (copy.deepcopy(g) for g in (self.train_graph, self.eval_graph))
        made.train()
        return made  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Modes:
        self.graph = self.train_graph if mode else self.eval_graph
        return super().train(mode)  # type: ignore[return-value]


class Doubles(nn.Module):
    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.one, self.two, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) + self.two(x)
        if self.twice and self.training:
            y = y * 2
        return self.bn(y)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_a_module_of_two_graphs_is_deployed_in_the_mode_it_is_in(twice: bool, shown: bool) -> None:
    net, x = randomize(Doubles(twice)), image()
    train_graph, eval_graph = (fx.Tracer().trace(net.train(mode)) for mode in (True, False))
    model = Modes(net, train_graph, eval_graph).eval()
    wanted = model(x)
    deployed = reptool.deploy(model, x if shown else None)
    assert not deployed.training
    assert torch.allclose(deployed(x), wanted, atol=1e-5)
    assert reptool.report(deployed).norms == (1, 0)
    if twice:  # code that no surgery saw
        with pytest.raises(SpecializedError, match="train_graph"):
            deployed.train()(x)
    else:
        assert torch.allclose(deployed.train()(x), wanted, atol=1e-5)
    assert torch.allclose(deployed.eval()(x), wanted, atol=1e-5)
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_lazy_graph_module_deploys(shown: bool, inplace: bool) -> None:
    net, x = plain(), image()
    wanted = net(x)
    with _use_lazy_graph_module(True):
        graph = fx.symbolic_trace(nn.Sequential(net, fx.symbolic_trace(nn.Sigmoid()))).eval()
    deployed = reptool.deploy(graph, x if shown else None, inplace=inplace)
    assert torch.allclose(deployed(x), wanted.sigmoid(), atol=1e-5)
    assert reptool.report(deployed).norms == (1, 0)
    assert torch.allclose(pickle.loads(pickle.dumps(deployed))(x), wanted.sigmoid(), atol=1e-5)


def test_what_a_backend_of_torch_compile_is_given_deploys() -> None:
    net, x, seen = plain(), image(), []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.append(graph)
        return reptool.deploy(graph.eval(), tuple(inputs))

    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.allclose(torch.compile(net, backend=backend)(x), net(x), atol=1e-5)
    assert seen


# --- what cannot be copied
class Guarded(nn.Module):
    """A lock of its own, which its class makes anew in a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = threading.Lock()


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.lock = model, threading.Lock()


def locked(where: str) -> nn.Module:
    model = plain()
    if where == "list":
        model.held = [1, {"lock": threading.Lock(), "conv": model[0]}]
    elif where == "object":
        model[0].trainer = Trainer(model)
    elif where == "hook":
        model.register_forward_hook(_Logger())
    else:
        model.get_submodule(where).lock = threading.Lock()
    return model


class _Logger:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("where", ["", "0", "1", "2", "list", "object", "hook"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_in_place_nothing_is_copied_that_cannot_be(where: str, verify: bool, shown: bool) -> None:
    model, x = locked(where), image()
    with torch.no_grad():
        wanted = model(x)
    before = vars(model.get_submodule("0" if where in ("0", "object") else "")).copy()
    deployed = reptool.deploy(model, x if shown else None, inplace=True, verify=verify)
    assert deployed is model
    assert torch.allclose(model(x), wanted, atol=1e-5)
    assert reptool.report(model).norms == (1, 0)
    for name in ("lock", "held", "trainer"):
        if name in before and where != "1":
            assert vars(model.get_submodule("0" if where in ("0", "object") else ""))[name] is before[name]


@pytest.mark.parametrize(("where", "named"), [("", "its attribute 'lock'"), ("0", "'lock' of '0'"), ("list", "'held'")])
def test_a_copy_to_hand_out_names_what_cannot_be_copied(where: str, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{named} holds what .*lock.*deploy with inplace=True"):
        reptool.deploy(locked(where))


def test_a_class_that_knows_how_to_copy_itself_is_asked_for_what_nobody_else_can_copy() -> None:
    model = nn.Sequential(plain(), Guarded())
    made: Any = independent_copy(model)
    assert made[1].lock is not model[1].lock
    assert not made.training or made.training == model.training
    with made[1].lock:
        assert not model[1].lock.locked()  # type: ignore[union-attr]


def test_what_is_shared_is_shared_alone() -> None:
    model = locked("list")
    made: Any = full_copy(model)
    held, theirs = model.held[1], made.held[1]  # type: ignore[index]
    assert theirs["lock"] is held["lock"]
    assert theirs["conv"] is made[0]


class Cached(nn.Module):
    """A norm, and an offset that is computed once and kept for the next call, like a table of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.table = nn.Parameter(torch.randn(4, 1, 1))
        self.kept: dict[str, Tensor] = {}
        self.scaled = False

    def forward(self, x: Tensor) -> Tensor:
        if "table" not in self.kept:
            self.kept["table"] = self.table * 2
        y = self.norm(self.conv(x))
        return (y * 0.5 if self.scaled else y) * self.kept["table"].exp()


def test_what_a_run_left_behind_in_a_cache_stops_no_copy() -> None:
    model = randomize(Cached()).eval()
    deployed = reptool.deploy(model, image())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    x = image()
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
