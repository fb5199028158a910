import torch
from torch import nn

from reptool.demo.others import calibrate


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
