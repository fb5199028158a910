import io

import pytest
import torch
from rich.console import Console
from torch import nn

from reptool.demo.data import Digits, load_digits
from reptool.demo.train import accuracy, shifted, train


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80)


def test_a_linear_model_learns_and_ends_in_eval_mode(console):
    torch.manual_seed(0)
    digits = load_digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.0))
    untrained = accuracy(model, digits.test_images, digits.test_labels)
    reached = train(model, digits, console, epochs=3)
    assert untrained < 0.3
    assert reached > 0.6
    assert reached == accuracy(model, digits.test_images, digits.test_labels)
    assert not any(module.training for module in model.modules())
    assert "66/66" in console.file.getvalue()


def test_two_runs_give_the_same_weights(console):
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    digits = Digits(images, labels, images, labels)

    def weights():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        train(model, digits, console, epochs=2, batch=10)
        return model[1].weight

    assert torch.equal(weights(), weights())


def test_accuracy_counts_the_right_ones():
    images = torch.eye(4).reshape(4, 4, 1, 1)
    assert accuracy(nn.Flatten(), images, torch.tensor([0, 1, 2, 0])) == 0.75


def test_a_shift_moves_by_at_most_one_pixel():
    images = torch.zeros(1, 1, 5, 5)
    images[0, 0, 2, 2] = 1
    generator = torch.Generator().manual_seed(0)
    places = {tuple(shifted(images, generator)[0, 0].nonzero()[0].tolist()) for _ in range(200)}
    assert places == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
