"""Growing blocks into public models, and getting those models back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import (
    OREPA,
    ACBlock,
    DilatedReparamBlock,
    DiverseBranchBlock,
    EdgeOrientedBlock,
    MobileOneBlock,
    QARepVGGBlock,
    RefConv,
    RepVGGBlock,
    parametrizations,
)
from reptool.errors import InputError
from reptool.expansion import expand, expansion_report
from reptool.testing import randomize

pytestmark = pytest.mark.models

BLOCKS: list[Any] = [
    RefConv,
    ACBlock,
    RepVGGBlock,
    DiverseBranchBlock,
    MobileOneBlock,
    OREPA,
    parametrizations.refconv,
    parametrizations.weight_norm,
]


def from_timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        timm = pytest.importorskip("timm")
        model: nn.Module = timm.create_model(name, num_classes=10)
        return model

    return make


def ssdlite() -> nn.Module:
    detection = pytest.importorskip("torchvision.models.detection")
    model: nn.Module = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return model


def deeplab() -> nn.Module:
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    model: nn.Module = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    return model


def run(model: Any, images: Tensor) -> Tensor:
    """The logits (of all boxes, for a detector: its boxes are chosen by comparisons)."""
    with torch.no_grad():
        if hasattr(model, "anchor_generator"):
            heads = model.head(list(model.backbone(images).values()))
            return torch.cat([heads["cls_logits"].flatten(), heads["bbox_regression"].flatten()])
        found = model(images)
    logits: Tensor = found["out"] if isinstance(found, dict) else found
    return logits


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


CASES = [
    pytest.param(make, block, size, id=f"{name}-{block.__name__}")
    for name, make, size, blocks in (
        ("resnet18", from_timm("resnet18"), 64, BLOCKS),
        ("mobilenetv2_100", from_timm("mobilenetv2_100"), 64, BLOCKS),
        ("densenet121", from_timm("densenet121"), 64, [RefConv, ACBlock]),
        ("regnety_002", from_timm("regnety_002"), 64, BLOCKS),
        ("ssdlite320", ssdlite, 160, [RefConv, ACBlock, DiverseBranchBlock]),
        ("mobilenetv3_small_100", from_timm("mobilenetv3_small_100"), 64, [RepVGGBlock, RefConv]),
        ("ghostnet_100", from_timm("ghostnet_100"), 64, [OREPA, QARepVGGBlock]),
        ("resnet34", from_timm("resnet34"), 64, [EdgeOrientedBlock, QARepVGGBlock]),
        ("tf_efficientnet_b0", from_timm("tf_efficientnet_b0"), 65, [ACBlock, RefConv]),
        ("convnext_atto", from_timm("convnext_atto"), 64, [DilatedReparamBlock, DiverseBranchBlock]),
        ("deeplabv3_resnet50", deeplab, 64, [RefConv, RepVGGBlock]),
    )
    for block in blocks
]


@pytest.mark.parametrize(("make", "block", "size"), CASES)
def test_round_trip(make: Callable[[], nn.Module], block: Any, size: int) -> None:
    model = randomize(make()).eval()
    images = torch.randn(2, 3, size, size)
    wanted = run(model, images)
    grown = expand(model, block)
    assert expansion_report(grown).replaced
    assert off(run(grown, images), wanted) < 1e-3
    shown: Any = None
    if hasattr(model, "anchor_generator"):
        shown = ([*images],)  # a detector's heads ask how many maps there are
    elif any(type(m).__name__ == "Conv2dSame" for m in model.modules()):
        shown = images  # the norm behind a convolution that nobody reads may see [N, C, L] for all it knows
    found, plain = (reptool.deploy(m, shown, verify=False) for m in (grown, model))
    assert off(run(found, images), wanted) < 1e-3
    layers = [
        [
            (name, type(layer).__name__, tuple(dict(layer.named_parameters())["weight"].shape))
            for name, layer in model.named_modules()
            if is_layer(layer)
        ]
        for model in (found, plain)
    ]
    assert [shape for _, _, shape in layers[0]] == [shape for _, _, shape in layers[1]]
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in plain.parameters())


def test_padding_that_follows_the_size_of_the_image_stays_in_front() -> None:
    from timm.layers import Conv2dSame

    model = randomize(from_timm("tf_efficientnet_b0")()).eval()
    grown = expand(model, DiverseBranchBlock)
    assert any(isinstance(m, Conv2dSame) for m in model.modules())
    assert not any(isinstance(m, Conv2dSame) for m in grown.modules())
    assert {site.norm is not None for site in expansion_report(grown).replaced} == {True}
    for size in ((65, 70), (48, 33)):
        images = torch.randn(1, 3, *size)
        assert off(run(grown, images), run(model, images)) < 1e-3


def test_kernels_computed_from_weights_stay() -> None:
    model = from_timm("nf_resnet26")()
    with pytest.raises(InputError, match="ScaledStdConv2d has a forward of its own"):
        expand(model, RefConv)


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def test_norms_of_timm_are_taken_over() -> None:
    grown = expand(from_timm("mobilenetv2_100")(), RepVGGBlock)
    assert {site.norm is not None for site in expansion_report(grown).replaced} == {True}
    grown = expand(ssdlite(), RepVGGBlock)
    assert {site.norm is not None for site in expansion_report(grown).replaced} == {True}
