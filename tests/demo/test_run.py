import copy
import io

import pytest
import torch
from rich.console import Console
from torch import nn

import reptool
from reptool.demo.others import DemoError
from reptool.demo.run import collapse_and_compare


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


@pytest.fixture
def model():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )
    return body.eval()


def test_a_collapsed_model_predicts_the_same(console, model, tmp_path):
    assert collapse_and_compare(console, model, torch.rand(9, 1, 8, 8), tmp_path / "model.onnx")
    text = console.file.getvalue()
    assert text.count("9 of 9 predictions are the same") == 2
    assert "BatchNormalization" not in text


def test_one_different_prediction_is_enough_to_fail(console, model, tmp_path, monkeypatch):
    def wrong_deploy(original, _):
        wrong = copy.deepcopy(original)
        with torch.no_grad():
            wrong[-1].bias[0] += 1e3
        return wrong

    monkeypatch.setattr(reptool, "deploy", wrong_deploy)
    monkeypatch.setattr(reptool, "report", lambda _: "no report")
    assert not collapse_and_compare(console, model, torch.rand(9, 1, 8, 8), tmp_path / "model.onnx")


def test_a_model_without_predictions_is_refused(console, tmp_path):
    with pytest.raises(DemoError, match="Identity returns no table"):
        collapse_and_compare(console, nn.Identity(), torch.rand(2, 1, 8, 8), tmp_path / "model.onnx")
