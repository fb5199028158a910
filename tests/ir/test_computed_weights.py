"""Computed weights: what is taken off a copy stays on the original."""

import copy

import torch
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
