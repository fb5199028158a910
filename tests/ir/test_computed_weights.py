"""Computed weights: what is taken off a copy stays on the original."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import reptool
from reptool.ir.computed_weights import set_plain
from reptool.testing import randomize


class Exponential(nn.Module):
    """A parametrization that has no inverse."""

    def forward(self, weight: Tensor) -> Tensor:
        """The exponential."""
        return weight.exp()


def twice_parametrized() -> nn.Module:
    conv = nn.Conv2d(3, 4, 3)
    parametrize.register_parametrization(conv, "weight", Exponential())
    parametrize.register_parametrization(conv, "bias", Exponential())
    return conv


def test_a_copy_made_plain_leaves_the_class_of_the_original() -> None:
    conv = twice_parametrized()
    x = torch.randn(1, 3, 6, 6)
    wanted = conv(x)
    twin = copy.deepcopy(conv)
    set_plain(twin)
    assert type(twin) is nn.Conv2d
    assert not parametrize.is_parametrized(twin)
    assert torch.equal(twin(x), wanted)
    assert torch.equal(conv(x), wanted)
    assert parametrize.is_parametrized(conv, "bias")


def test_a_model_with_weight_and_bias_parametrized_works_on_after_deploy() -> None:
    model = randomize(nn.Sequential(twice_parametrized(), nn.BatchNorm2d(4)).eval())
    x = torch.randn(2, 3, 6, 6)
    wanted = model(x)
    deployed = reptool.deploy(model)
    assert torch.equal(model(x), wanted)
    assert torch.allclose(deployed(x), wanted, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())


def test_stacked_parametrizations_become_one_plain_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    parametrizations.spectral_norm(parametrizations.weight_norm(model[0]))
    model = randomize(model.eval())
    x = torch.randn(5, 4)
    deployed = reptool.deploy(model, x)
    assert torch.allclose(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    assert {n for n, _ in deployed.named_parameters()} == {"0.weight", "0.bias"}


class FirstRow(nn.Module):
    """A parametrization that gives the first row alone."""

    def forward(self, weight: Tensor) -> Tensor:
        """That row."""
        return weight[[0]]


class Cropped(nn.Module):
    """A parametrization that gives the middle of a kernel."""

    def forward(self, weight: Tensor) -> Tensor:
        """All but the border."""
        return weight[(slice(None), slice(None), *[slice(1, -1)] * (weight.dim() - 2))]


Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
LAYERS: dict[str, Case] = {
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 4, 2, 1), (2, 4, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2), (2, 4, 5, 6)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 6, 3, 2, 1, 1), (2, 4, 3, 4, 3)),
    "no stride": (lambda: nn.ConvTranspose2d(4, 6, 3, 1, 1), (2, 4, 5, 6)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
}
NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of all": lambda m: parametrizations.weight_norm(m, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "hook of weight norm": nn.utils.weight_norm,
    "hook of spectral norm": nn.utils.spectral_norm,
    "of its own": lambda m: parametrize.register_parametrization(m, "weight", Exponential()),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_computed_weights_of_transposed_convolutions_become_plain(layer: str, norm: str) -> None:
    build, shape = LAYERS[layer]
    model = nn.Sequential(NORMS[norm](build()), nn.ReLU()).eval()
    x = torch.randn(shape)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    assert {n for n, _ in (*deployed.named_parameters(), *deployed.named_buffers())} == {"0.weight", "0.bias"}
    assert not deployed[0]._forward_pre_hooks
    assert reptool.report(deployed).refusals == []


SHAPES: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "rows": (nn.Linear(5, 5, bias=False), FirstRow(), (4, 5)),
    "filters": (nn.Conv2d(5, 6, 3, bias=False), FirstRow(), (2, 5, 6, 7)),
    "taps": (nn.Conv2d(4, 6, 5, 2, 1), Cropped(), (2, 4, 9, 8)),
    "same": (nn.Conv1d(4, 6, 5, padding="same"), Cropped(), (2, 4, 9)),
    "taps of a transposed one": (nn.ConvTranspose2d(4, 6, 5, 2, 1), Cropped(), (2, 4, 5, 4)),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("case", SHAPES)
def test_a_parametrization_may_give_another_shape(case: str, behind: bool) -> None:
    layer, rule, shape = SHAPES[case]
    layer = copy.deepcopy(layer)
    parametrize.register_parametrization(layer, "weight", rule, unsafe=True)
    x = torch.randn(shape)
    count = layer(x).shape[1]
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 1](count)
    model = nn.Sequential(layer, norm if behind else nn.ReLU()).eval()
    if behind:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    assert {n.rpartition(".")[2] for n, _ in deployed.named_parameters()} <= {"weight", "bias"}
    assert not any(parametrize.is_parametrized(m) for m in deployed.modules())


def test_a_bias_that_is_no_number_for_each_output_stays_as_it_is() -> None:
    layer = nn.Linear(5, 5)
    parametrize.register_parametrization(layer, "bias", FirstRow(), unsafe=True)
    model, x = nn.Sequential(layer, nn.BatchNorm1d(5)).eval(), torch.randn(4, 5)
    torch.testing.assert_close(reptool.deploy(model, x)(x), model(x))


Rule = Callable[[Tensor], Tensor]
NAMED: dict[str, Rule] = {
    "norm": lambda w: w / (1e-4 + torch.linalg.vector_norm(w, dim=(1, 2), keepdim=True, dtype=torch.float32)),
    "sum": lambda w: w / w.square().sum((1, 2), keepdim=True, dtype=torch.float32),
    "softmax": lambda w: w.softmax(1, dtype=torch.float32),
    "cast": lambda w: w.to(torch.float32) * 2,
    "float": lambda w: w.float() / torch.linalg.vector_norm(w.float(), dtype=torch.float32),
    "half": lambda w: w.to(torch.float16).to(torch.float32),
    "mixed": lambda w: torch.matmul(w.transpose(0, 2), torch.eye(4, dtype=torch.float32)).transpose(0, 2),
    "wider": lambda w: (w / torch.linalg.vector_norm(w, dtype=torch.float64)).float(),
}


class Named(nn.Module):
    """A convolution by a weight in which a dtype is named."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule, self.weight, self.norm = rule, nn.Parameter(torch.randn(4, 4, 3)), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        """With that weight."""
        return self.norm(F.conv1d(x, self.rule(self.weight).to(x.dtype), padding=1))


@pytest.mark.parametrize("rule", NAMED)
@pytest.mark.parametrize("given", [False, True])
def test_a_dtype_may_be_named_in_a_weight(rule: str, given: bool) -> None:
    model, x = randomize(Named(NAMED[rule]), 1).eval(), torch.randn(2, 4, 16)
    deployed = reptool.deploy(model, x if given else None)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(list(deployed.parameters())) == 2


def test_a_dtype_that_rounds_a_weight_rounds_it() -> None:
    model, x = randomize(Named(NAMED["half"]), 1).eval(), torch.randn(2, 4, 16)
    wide = Named(lambda w: w).eval()
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        gap = (reptool.deploy(model, x)(x) - model(x)).abs().max()
        assert gap < 0.01 * (wide(x) - model(x)).abs().max()


class Picky(nn.Module):
    """A parametrization that takes one dtype alone."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight by its norm."""
        return weight / torch.linalg.vector_norm(weight, dtype=torch.float32)


def test_a_parametrization_that_refuses_another_dtype_is_computed_as_the_model_does() -> None:
    layer = nn.Conv2d(3, 4, 3)
    parametrize.register_parametrization(layer, "weight", Picky())
    model, x = randomize(nn.Sequential(layer, nn.BatchNorm2d(4))).eval(), torch.randn(1, 3, 6, 6)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(list(deployed.parameters())) == 2


def test_a_model_whose_computed_weight_was_absorbed_is_explained_again() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    model = nn.Sequential(nn.Conv2d(3, 3, 3), normed, nn.ReLU()).eval()
    deployed = reptool.deploy(model)
    assert reptool.report(deployed).layers == (2, 1)
    assert reptool.explain(deployed).layers[1] == 1
