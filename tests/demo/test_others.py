import pytest
import torch
from torch import nn

from reptool.demo.others import DemoError, calibrate, input_shape, load


def test_a_callable_of_any_module_is_called():
    model = load("torch.nn:Identity")
    assert isinstance(model, nn.Identity)
    assert not model.training


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("repvgg_a0", "expected timm:NAME"),
        ("timm:", "expected timm:NAME"),
        ("no_such_package:model", "no_such_package"),
        ("torch.nn:NoSuchLayer", "NoSuchLayer"),
        ("torch:get_num_threads", "found int"),
    ],
)
def test_what_cannot_be_built_is_said(spec, message):
    with pytest.raises(DemoError, match=message):
        load(spec)


def test_the_input_shape_is_the_models_own_or_the_usual_one():
    model = nn.Identity()
    assert input_shape(model) == (3, 224, 224)
    model.pretrained_cfg = {"input_size": (1, 32, 48)}
    assert input_shape(model) == (1, 32, 48)


def test_calibrated_norms_standardize_and_stay_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.2), nn.Dropout(0.5)).eval()
    nn.init.zeros_(model[1].weight)
    model[1].running_mean.fill_(100)
    model[1].num_batches_tracked.fill_(50)
    calibrate(model, torch.randn(64, 3, 9, 9))
    norm = model[1]
    assert not any(module.training for module in model.modules())
    assert norm.momentum == 0.2
    with torch.no_grad():
        standardized = (norm(model[0](torch.randn(64, 3, 9, 9))) - norm.bias[:, None, None]) / norm.weight[
            :, None, None
        ]
    assert norm.weight.min() >= 0.6
    assert norm.bias.abs().min() > 0
    assert standardized.mean((0, 2, 3)).abs().max() < 0.2
    assert (standardized.std((0, 2, 3)) - 1).abs().max() < 0.2


@pytest.mark.models
@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:mobilenet_v3_small"])
def test_public_models_are_built_by_name(spec):
    model = load(spec)
    calibrate(model, torch.randn(2, *input_shape(model)), batches=1)
    with torch.no_grad():
        assert model(torch.randn(2, *input_shape(model))).shape == (2, 1000)


@pytest.mark.models
@pytest.mark.parametrize("spec", ["timm:no_such_model", "torchvision:no_such_model"])
def test_unknown_names_are_said(spec):
    with pytest.raises(DemoError, match="no_such_model"):
        load(spec)
