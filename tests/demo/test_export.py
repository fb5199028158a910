import logging

import pytest
import torch
from torch import nn

from reptool.demo.export import export_onnx, onnx_operators, run_onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)).eval()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, torch.rand(2, 1, 8, 8), path)
    return model, path


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_size_is_free_and_the_outputs_are_the_same(exported, batch):
    model, path = exported
    images = torch.rand(batch, 1, 8, 8)
    (output,) = run_onnx(path, images)
    with torch.no_grad():
        torch.testing.assert_close(output, model(images))


def test_the_file_holds_the_layers_of_the_model_and_its_weights(exported):
    _, path = exported
    operators = onnx_operators(path)
    assert operators["Conv"] == 1
    assert operators["Relu"] == 1
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_the_exporter_can_be_heard_again_afterwards(exported):
    assert logging.getLogger("torch.onnx").level == logging.NOTSET
