import pytest
import torch

from reptool.blocks import ACBlock, DiverseBranchBlock, RefConv, RepVGGBlock
from reptool.demo.network import DigitNet


@pytest.mark.parametrize("block", [RepVGGBlock, ACBlock, DiverseBranchBlock, RefConv])
def test_every_block_has_a_part(block):
    assert any(isinstance(module, block) for module in DigitNet().modules())


def test_logits_for_every_image_and_features_of_twice_the_width():
    model = DigitNet(width=4, classes=3).eval()
    images = torch.rand(2, 1, 8, 8)
    assert model.forward_features(images).shape == (2, 8)
    assert model(images).shape == (2, 3)
