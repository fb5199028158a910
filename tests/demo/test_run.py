import copy
import io

import pytest
import torch
from rich.console import Console
from torch import nn

import reptool
from reptool.demo import run
from reptool.demo.measure import outputs_of
from reptool.demo.others import DemoError


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


@pytest.fixture
def model():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return body.eval()


def test_a_collapsed_model_predicts_the_same(console, model, tmp_path):
    assert run.collapse_and_compare(console, model, torch.rand(9, 1, 8, 8), tmp_path / "model.onnx")
    text = console.file.getvalue()
    assert text.count("9 of 9 predictions are the same") == 2
    assert "BatchNormalization" not in text


def test_a_different_prediction_in_pytorch_is_enough_to_fail(console, model, tmp_path, monkeypatch):
    images = torch.rand(9, 1, 8, 8)

    def wrong_deploy(original, _):
        wrong = copy.deepcopy(original)
        with torch.no_grad():
            wrong[-1].bias[0] += 1e3
        return wrong

    monkeypatch.setattr(reptool, "deploy", wrong_deploy)
    monkeypatch.setattr(reptool, "report", lambda _: "no report")
    monkeypatch.setattr(run, "run_onnx", lambda *_: outputs_of(model, images))
    assert not run.collapse_and_compare(console, model, images, tmp_path / "model.onnx")
    assert console.file.getvalue().count("9 of 9 predictions are the same") == 1


def test_one_different_prediction_in_onnx_is_enough_to_fail(console, model, tmp_path, monkeypatch):
    images = torch.rand(9, 1, 8, 8)

    def wrong_run(*_):
        (logits,) = outputs_of(model, images)
        logits[4] = -logits[4]
        return [logits]

    monkeypatch.setattr(run, "run_onnx", wrong_run)
    assert not run.collapse_and_compare(console, model, images, tmp_path / "model.onnx")
    assert "ONNX Runtime: 8 of 9 predictions" in console.file.getvalue()


def test_a_model_without_predictions_is_refused(console, tmp_path):
    with pytest.raises(DemoError, match="Identity returns no table"):
        run.collapse_and_compare(console, nn.Identity(), torch.rand(2, 1, 8, 8), tmp_path / "model.onnx")
