import copy

import pytest
import torch
from torch import nn

from reptool.demo.measure import interleaved, measure, outputs_of, predictions, relative_error


@pytest.fixture
def model():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def test_what_is_counted_is_what_is_run(model):
    shorter = nn.Sequential(model[0], model[2], *model[3:])
    before, after = measure(model, shorter, torch.randn(2, 3, 6, 6), repeats=2)
    assert (before.convolutions, before.norms) == (2, 1)
    assert (after.convolutions, after.norms) == (2, 0)
    assert before.operations == after.operations + 1
    assert before.parameters == after.parameters + 8
    assert before.milliseconds > 0
    assert after.milliseconds > 0


def test_the_error_is_that_against_float64_and_sees_a_changed_weight(model):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[2].weight[0, 0] += 0.5
    before, after = measure(model, changed, torch.randn(2, 3, 6, 6), repeats=1)
    assert 0 <= before.error < 1e-6
    assert after.error > 1e-3
    assert next(model.parameters()).dtype == torch.float32


def test_outputs_are_found_in_whatever_they_are_nested_in():
    class Nested(nn.Module):
        def forward(self, x):
            return {"a": x, "b": [x + 1, (x + 2, "text")]}

    outputs = outputs_of(Nested(), torch.zeros(1))
    assert [output.item() for output in outputs] == [0, 1, 2]


def test_only_tables_of_logits_are_predictions():
    (found,) = predictions([torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), torch.zeros(1, 2, 3, 3)])
    assert found.tolist() == [1, 0]


def test_the_error_is_relative_to_the_largest_value_of_the_same_output():
    exact = [torch.tensor([0.0, -4.0]), torch.tensor([1.0])]
    assert relative_error([torch.tensor([1.0, -4.0]), torch.tensor([1.0])], exact) == 0.25
    assert relative_error(exact, exact) == 0


def test_calls_are_timed_in_turn():
    order = []
    times = interleaved([lambda: order.append("a"), lambda: order.append("b")], repeats=2, warmup=1)
    assert "".join(order) == "ababab"
    assert len(times) == 2
    assert all(time >= 0 for time in times)
