import re

import pytest
import torch

from reptool.demo.__main__ import main


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_demo_trains_to_97_percent_and_every_prediction_is_the_same(tmp_path, capsys):
    path = tmp_path / "digits.onnx"
    assert main(["--onnx", str(path), "--threads", "1"]) == 0
    text = capsys.readouterr().out
    accuracy = re.search(r"accuracy on the test images: ([\d.]+)%", text)
    assert accuracy is not None
    assert float(accuracy[1]) > 97
    assert text.count("360 of 360 predictions are the same") == 2
    assert path.exists()


@pytest.mark.models
def test_the_demo_collapses_somebody_elses_model(tmp_path, capsys):
    path = tmp_path / "resnet.onnx"
    assert main(["--model", "timm:test_resnet", "--onnx", str(path), "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert text.count("16 of 16 predictions are the same") == 2
    assert "BatchNormalization" not in text


def test_a_model_that_does_not_exist_is_an_error_with_a_sentence(capsys):
    assert main(["--model", "nowhere", "--threads", "1"]) == 2
    assert "expected timm:NAME" in " ".join(capsys.readouterr().out.split())
