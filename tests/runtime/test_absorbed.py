"""Absorbed modules: what would have no effect on them raises, everything torch does with modules works."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reptool
from reptool.errors import AbsorbedStateError, FoldedNormWarning, SpecializedError
from reptool.runtime.absorbed import Absorbed
from reptool.testing import perturb
from tests.traps import ready


class Branches(nn.Module):
    """A norm in a Sequential that is still run, a norm and a branch that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.wide = nn.Conv2d(4, 4, 3, padding=1)
        self.narrow = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.wide(x) + self.narrow(x)


X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Branches:
    return ready(Branches())


@pytest.fixture
def deployed(model: Branches) -> Any:
    return reptool.deploy(model)


def test_it_stands_for_what_was_absorbed_and_says_so(deployed: Any) -> None:
    assert repr(deployed.stem[1]) == "Absorbed(BatchNorm2d, in 'stem.0')"
    assert repr(deployed.narrow) == "Absorbed(Sequential, in 'wide')"
    assert isinstance(deployed.stem[1], nn.Identity)
    assert deployed.stem[1].eps == 1e-5
    assert deployed.stem[1].num_features == 4


WRITES: dict[str, Callable[[Any], object]] = {
    "a setting": lambda m: setattr(m.stem[1], "eps", 1.0),
    "a setting is deleted": lambda m: delattr(m.stem[1], "eps"),
    "a parameter": lambda m: setattr(m.stem[1], "weight", nn.Parameter(torch.ones(4))),
    "a registered parameter": lambda m: m.stem[1].register_parameter("weight", None),
    "a buffer": lambda m: m.stem[1].register_buffer("running_mean", torch.ones(4)),
    "a child": lambda m: m.narrow.add_module("0", nn.Identity()),
    "a child by name": lambda m: setattr(m.narrow, "act", nn.ReLU()),
    "its mode": lambda m: m.stem[1].train(),
    "a hook": lambda m: m.stem[1].register_forward_hook(lambda *_: None),
    "a hook before": lambda m: m.narrow.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda m: m.narrow.register_full_backward_hook(lambda *_: None),
    "a child is read": lambda m: m.narrow[0],
    "its children are counted": lambda m: len(m.narrow),
    "its children are walked": lambda m: list(m.narrow),
    "a weight is read": lambda m: m.stem[1].weight,
    "statistics are read": lambda m: m.stem[1].running_mean,
}


@pytest.mark.parametrize("what", WRITES)
def test_what_would_have_no_effect_raises(deployed: Any, what: str) -> None:
    with pytest.raises(SpecializedError, match=r"absorbed.*exclude"):
        WRITES[what](deployed)


def test_what_is_gone_is_missing_to_those_who_ask(deployed: Any) -> None:
    norm = deployed.stem[1]
    assert not hasattr(norm, "weight")
    assert getattr(norm, "running_var", None) is None
    assert not hasattr(norm, "what_no_norm_has")
    with pytest.raises(AttributeError, match="what_no_norm_has"):
        _ = norm.what_no_norm_has
    assert bool(deployed.narrow)


def test_what_torch_does_with_every_module_works(deployed: Any) -> None:
    expected = deployed(X)
    deployed.apply(lambda m: None)
    deployed.requires_grad_(False).eval().double()
    deployed.stem[1].eval()
    for module in deployed.modules():
        module._note = 1
        module.qconfig = None
    assert torch.equal(deployed(X), expected)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "script": torch.jit.script,
    "trace": lambda m: torch.jit.trace(m, X),
    "fx": fx.symbolic_trace,
    "export": lambda m: torch.export.export(m, (X,)).module(),
    "compile": lambda m: torch.compile(m, backend="eager"),
    "deploy": reptool.deploy,
    "flatten": lambda m: reptool.deploy(m, flatten=True),
    "double": lambda m: copy.deepcopy(m).float().double(),
    "data parallel": nn.DataParallel,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_copies_and_compiled_forms_give_the_same(model: Branches, deployed: Any, how: str) -> None:
    torch.testing.assert_close(COPIES[how](deployed)(X), model(X), rtol=1e-4, atol=1e-4)


def test_copies_raise_as_well(deployed: Any) -> None:
    for made in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert isinstance(made.stem[1], Absorbed)
        with pytest.raises(SpecializedError):
            made.stem[1].eps = 1.0


def test_its_old_state_is_refused_wherever_it_is_loaded(model: Branches, deployed: Any) -> None:
    whole = model.state_dict()
    for module, state in (
        (deployed, whole),
        (deployed.stem, model.stem.state_dict()),
        (deployed.stem[1], model.stem[1].state_dict()),
        (deployed.narrow, dict(model.narrow.state_dict())),
        (deployed, {k: v for k, v in whole.items() if k.startswith("narrow.0.weight")}),
    ):
        with pytest.raises(AbsorbedStateError, match="load it into the original"):
            module.load_state_dict(state, strict=False)


# --- training mode
def test_training_mode_warns_once_and_says_how_many(deployed: Any) -> None:
    with pytest.warns(FoldedNormWarning, match="2 norms of this Branches are folded") as said:
        deployed.train()
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deployed.train()
        deployed.eval().train()
    assert deployed.stem[1].training
    deployed(X).sum().backward()


def test_training_mode_of_a_part_warns(deployed: Any) -> None:
    with pytest.warns(FoldedNormWarning, match="1 norm of this Sequential is folded"):
        deployed.stem.train()


def test_a_flattened_model_warns_too(model: Branches) -> None:
    flat = reptool.deploy(model, flatten=True)
    with pytest.warns(FoldedNormWarning, match="2 norms"):
        flat.train()


class Whole(nn.Module):
    """A block that becomes one layer, so that nothing stands for its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.conv(x), self.mean, self.var, self.scale)


def test_without_any_absorbed_norm_the_model_itself_warns() -> None:
    deployed = reptool.deploy(nn.Sequential(Whole(), nn.ReLU()).double().eval(), X)
    assert not any(isinstance(m, Absorbed) and m._is_norm for m in deployed.modules())
    again = pickle.loads(pickle.dumps(deployed))
    for made in (deployed, again):
        with pytest.warns(FoldedNormWarning):
            made.train()
        assert made[1].training


def test_a_model_without_norms_says_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)).double().eval()
    deployed = reptool.deploy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deployed.train()
        deployed(X)


def test_a_module_inside_of_what_was_absorbed_is_gone() -> None:
    model = ready(nn.Sequential(Branches(), nn.ReLU()))
    deployed = reptool.deploy(model)
    path = next(p for p, m in deployed.named_modules() if type(m) is Absorbed and len(model.get_submodule(p)._modules))
    name = next(iter(model.get_submodule(path)._modules))
    with pytest.raises(SpecializedError, match=f"the module '{name}' in it is gone"):
        deployed.get_submodule(f"{path}.{name}")


FREE = ["m[1].affine = False", "m[1].num_features = 9", "m[0].in_channels = 5", "m[0].output_padding = (1, 1)"]


@pytest.mark.parametrize("change", FREE)
def test_what_no_code_reads_may_be_set(change: str) -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    assert perturb(model, reptool.deploy(model), X, changes=[change]).agreed == 1


@pytest.mark.parametrize("change", ["m[1].eps = 1.0", "m[1].momentum = None", "m[0].padding = (1, 1)"])
def test_what_its_code_reads_may_not_be_set(change: str) -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    assert perturb(model, reptool.deploy(model), X, changes=[change]).raised.total() == 1


def test_what_other_code_reads_may_not_be_set() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) if self.norm.num_features < 9 else y

    model = ready(Asking())
    assert perturb(model, reptool.deploy(model), X, changes=["m.norm.num_features = 9"]).raised.total() == 1
