"""Linear layers and pointwise convolutions take each other's places, and everything computes what it did."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import reptool
from reptool.blocks.switched import ConvAsLinear, LinearAsConv
from reptool.errors import UnsupportedModelError


class Net(nn.Module):
    """Convolutions of several kinds, then linear layers on tokens and on features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.points = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1, bias=False, padding="same"))
        self.grouped, self.strided = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, stride=2)
        self.mixer, self.head = nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8, bias=False)), nn.Linear(8, 4)
        self.line = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images."""
        y = self.strided(self.grouped(self.points(self.stem(x))))
        tokens = self.line(y.flatten(2)).transpose(1, 2)
        found: Tensor = self.head(self.mixer(tokens).mean(1))
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_is_the_other(dtype: torch.dtype) -> None:
    model, x = Net().eval().to(dtype), torch.randn(2, 3, 9, 8, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    linear, points = reptool.to_linear(model), reptool.to_pointwise(model)
    assert [n for n, m in linear.named_modules() if type(m) is ConvAsLinear] == ["points.0", "points.2", "line"]
    assert [n for n, m in points.named_modules() if type(m) is LinearAsConv] == ["mixer.0", "mixer.2", "head"]
    for made in (linear, points, reptool.to_pointwise(linear), pickle.loads(pickle.dumps(linear))):
        assert made.state_dict().keys() == before.keys()
        torch.testing.assert_close(made(x), model(x))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_there_and_back_is_the_same_model() -> None:
    model, x = Net().eval(), torch.randn(2, 3, 9, 8)
    for back in (reptool.to_linear(reptool.to_pointwise(model)), reptool.to_pointwise(reptool.to_linear(model))):
        kinds = {type(m) for m in back.modules()}
        assert kinds & {ConvAsLinear, LinearAsConv} == ({ConvAsLinear} if ConvAsLinear in kinds else {LinearAsConv})
        torch.testing.assert_close(back(x), model(x))
    alone = reptool.to_pointwise(reptool.to_linear(nn.Conv2d(3, 4, 1)))
    assert isinstance(alone, nn.Conv2d)
    assert isinstance(reptool.to_linear(reptool.to_pointwise(nn.Linear(3, 4))), nn.Linear)


def test_inputs_of_every_rank() -> None:
    line, conv = nn.Linear(4, 3), nn.Conv2d(4, 3, 1)
    for shape in ((4,), (5, 4), (2, 5, 4), (2, 3, 5, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(reptool.to_pointwise(line)(x), line(x))
    for shape in ((2, 4, 5, 6), (4, 5, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(reptool.to_linear(conv)(x), conv(x))


def test_gradients_and_modes_are_those_of_the_original() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    model[0].weight.requires_grad_(False)
    made = reptool.to_linear(model)
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in model.parameters()]
    x = torch.randn(2, 3, 5, 5)
    for m in (made, model):
        m(x).square().sum().backward()
    torch.testing.assert_close(made[1].weight.grad, model[1].weight.grad.flatten(1))
    assert made.training
    assert not reptool.to_linear(model.eval())[1].training


def test_special_layers_are_left() -> None:
    class Own(nn.Linear):
        """A subclass."""

    hooked, tied = nn.Linear(3, 3), nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    other = nn.Linear(3, 3)
    other.weight = tied.weight
    model = nn.Sequential(Own(3, 3), hooked, tied, other, parametrizations.weight_norm(nn.Linear(3, 3)))
    assert not [m for m in reptool.to_pointwise(model).modules() if isinstance(m, LinearAsConv)]
    twice = nn.Linear(3, 3)
    made = reptool.to_pointwise(nn.Sequential(twice, nn.ReLU(), twice))
    assert made[0] is made[2]
    assert isinstance(made[0], LinearAsConv)


def test_what_was_switched_is_deployed_like_the_original() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).eval(),
        torch.randn(2, 3, 9, 8),
    )
    made = reptool.deploy(reptool.to_linear(model), x)
    assert reptool.report(made).norms == (1, 0)
    torch.testing.assert_close(made(x), model(x))


def test_no_module_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match="to_linear takes a model"):
        reptool.to_linear({"weight": torch.ones(2)})  # type: ignore[type-var]
