"""Deploy the models of public packages and compare them with the originals.

    python benchmarks/families.py [--family NAME ...] [--only TEXT ...] [--out rows.jsonl] [--each SECONDS]

One JSON row a model and way of deploying (with example inputs, and without): errors against float64, at other batch
and image sizes and through the model's other entry points, norms, convolutions and multiplications executed before
and after, what `residue` says could still be collapsed, whether class, original and round trips hold. The exit code
is the number of rows that are not "ok".
"""

import argparse
import copy
import json
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from residue import nested, residue
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import reptool

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Entry = Callable[[nn.Module, Arguments], Any]


@dataclass
class Case:
    """One model.

    Args:
        name: shown in the row.
        build: makes it.
        inputs: (batch, extra pixels) -> arguments of a forward.
        sizes: other (batch, extra pixels) to compare at.
        entries: other ways to call it: name -> call.
        checks: things that must hold of the deployed model: name -> check(deployed, original), which raises.
        exact: whether the outputs depend smoothly on the inputs (no sorting of boxes).
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Arguments]
    sizes: tuple[tuple[int, int], ...] = ((3, 0), (1, 32))
    entries: dict[str, Entry] = field(default_factory=dict)
    checks: dict[str, Callable[[nn.Module, nn.Module], None]] = field(default_factory=dict)
    exact: bool = True


def images(size: int, channels: int = 3) -> Callable[[int, int], Arguments]:
    """Square images as the only argument."""

    def make(batch: int, extra: int) -> Arguments:
        g = torch.Generator().manual_seed(batch + 1000 * extra)
        return (torch.randn(batch, channels, size + extra, size + extra, generator=g),), {}

    return make


# --- torchvision ----------------------------------------------------------------------------------------------------
def torchvision_classification() -> Iterator[Case]:
    """Every classifier below 60 M parameters."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(name)
        if min(int(w.meta["num_params"]) for w in weights) > 60e6:
            continue
        size = 299 if "inception" in name else 224
        fixed = name.startswith(("vit", "maxvit"))
        extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        yield Case(
            f"{name}",
            lambda n=name, e=extra: torchvision.models.get_model(n, weights=None, **e),
            images(size),
            ((3, 0),) if fixed else ((3, 0), (1, 32)),
            {"features": lambda m, a: m.features(*a[0])}
            if name.startswith(("mobilenet", "efficientnet", "densenet", "vgg"))
            else {},
        )


def _boxes(size: int) -> Callable[[int, int], Arguments]:
    def make(batch: int, extra: int) -> Arguments:
        g = torch.Generator().manual_seed(batch + 1000 * extra)
        return ([torch.rand(3, size + extra, size + 2 * extra, generator=g) for _ in range(batch)],), {}

    return make


def _stacked(a: Arguments) -> Tensor:
    return torch.stack(list(a[0][0]))


def torchvision_detection() -> Iterator[Case]:
    """Detectors; the parts before the sorting of boxes are compared by themselves."""
    from torchvision.models import detection as d
    from torchvision.models.detection import backbone_utils
    from torchvision.ops import FrozenBatchNorm2d

    none: dict[str, Any] = {"weights": None, "weights_backbone": None}
    small = {"min_size": 160, "max_size": 256}
    entries: dict[str, Entry] = {"backbone": lambda m, a: m.backbone(_stacked(a))}
    dense = {**entries, "head": lambda m, a: m.head(list(m.backbone(_stacked(a)).values()))}
    rpn = {**entries, "rpn_head": lambda m, a: m.rpn.head(list(m.backbone(_stacked(a)).values()))}
    for name in (
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "maskrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
        "keypointrcnn_resnet50_fpn",
    ):
        yield Case(
            name, lambda n=name: getattr(d, n)(**none, **small), _boxes(160), ((2, 0), (1, 32)), rpn, exact=False
        )
    for name in ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"):
        yield Case(
            name, lambda n=name: getattr(d, n)(**none, **small), _boxes(160), ((2, 0), (1, 32)), dense, exact=False
        )
    for name, size in (("ssd300_vgg16", 300), ("ssdlite320_mobilenet_v3_large", 320)):
        yield Case(name, lambda n=name: getattr(d, n)(**none), _boxes(size), ((2, 0), (1, 32)), dense, exact=False)

    def frozen() -> nn.Module:
        body = backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        )
        return d.FasterRCNN(body, 5, **small)

    yield Case("fasterrcnn_frozen_resnet18", frozen, _boxes(160), ((2, 0), (1, 32)), rpn, exact=False)


def torchvision_segmentation() -> Iterator[Case]:
    """Segmenters, with and without their auxiliary head."""
    from torchvision.models import segmentation as s

    for name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        for aux in (False, True):
            if aux and name.startswith("lraspp"):
                continue
            extra = {"aux_loss": True} if aux else {}
            yield Case(
                f"{name}{'+aux' if aux else ''}",
                lambda n=name, e=extra: getattr(s, n)(weights=None, weights_backbone=None, **e),
                images(128),
                entries={"backbone": lambda m, a: m.backbone(*a[0])},
            )


def torchvision_video() -> Iterator[Case]:
    """Video classifiers."""
    from torchvision.models import video as v

    def clip(frames: int, size: int) -> Callable[[int, int], Arguments]:
        return lambda b, e: (
            (torch.randn(b, 3, frames, size + e, size + e, generator=torch.Generator().manual_seed(b + e)),),
            {},
        )

    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        yield Case(name, lambda n=name: getattr(v, n)(weights=None), clip(8, 64), ((2, 0), (1, 32)))
    yield Case("s3d", lambda: v.s3d(weights=None), clip(16, 224), ((2, 0),))
    yield Case("mvit_v1_b", lambda: v.mvit_v1_b(weights=None), clip(16, 224), ())
    yield Case("swin3d_t", lambda: v.swin3d_t(weights=None), clip(8, 64), ((2, 0), (1, 32)))


# --- ultralytics ----------------------------------------------------------------------------------------------------
YOLOS = (
    "yolov3-tiny",
    "yolov3",
    "yolov5n",
    "yolov6n",
    "yolov8n",
    "yolov8n-p2",
    "yolov8n-ghost",
    "yolov8n-cls",
    "yolov8n-worldv2",
    "yolov9t",
    "yolov9c",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo26n",
    "yoloe-v8n",
    "yoloe-11n",
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov8n-cls",
    "yolov8n-obb",
    "yolo11n-seg",
    "yolo11n-pose",
    "yolo11n-cls",
    "yolo11n-obb",
    "yolo12n-seg",
    "yolo26n-seg",
    "yolo26n-pose",
    "yolov5n-p6",
    "yolov9c-seg",
    "rtdetr-l",
    "rtdetr-resnet50",
    "yolov10b",
)


def _predicts(name: str) -> Callable[[nn.Module, nn.Module], None]:
    def check(deployed: nn.Module, original: nn.Module) -> None:
        import numpy as np
        from ultralytics import RTDETR, YOLO

        wrap = RTDETR if "rtdetr" in name else YOLO
        image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
        found = []
        for model in (deployed, original):
            runner = wrap(f"{name}.yaml")
            runner.model = copy.deepcopy(model)
            found.append(runner(image, imgsz=128, verbose=False, conf=0.0001, max_det=20))
        a, b = (r[0] for r in found)
        assert a.names == b.names
        assert (a.boxes is None) == (b.boxes is None)
        if a.probs is not None:
            torch.testing.assert_close(a.probs.data, b.probs.data, rtol=1e-3, atol=1e-4)

    return check


def _keeps_walk(deployed: nn.Module, original: nn.Module) -> None:
    for a, b in zip(deployed.model, original.model, strict=True):  # type: ignore[arg-type]
        assert (a.f, a.i, a.type) == (b.f, b.i, b.type), (a.f, a.i)
    assert deployed.names == original.names
    stride, wanted = getattr(deployed, "stride", None), getattr(original, "stride", None)
    assert stride is wanted or torch.equal(torch.as_tensor(stride), torch.as_tensor(wanted))
    assert deployed.save == original.save


def _fuses(deployed: nn.Module, original: nn.Module) -> None:
    twin, wanted = copy.deepcopy(deployed), copy.deepcopy(original).fuse(verbose=False)  # type: ignore[operator]
    args = images(64)(1, 0)[0]
    with torch.no_grad():
        before, first = list(nested(twin(*args))), list(nested(original(*args)))
        twin = twin.fuse(verbose=False)
        after, own = list(nested(twin(*args))), list(nested(wanted(*args)))
    assert relative(after, before) < 1e-5
    theirs = relative(first[:1], own[:1])  # what the author's own fusing changes, boxes that change places among it
    assert relative(after[:1], own[:1]) < max(1e-3, 2 * theirs) or getattr(original, "end2end", False)
    assert twin.is_fused(), "is_fused() is False after deploy and fuse"


def ultralytics() -> Iterator[Case]:
    """YOLOs and RT-DETR from their configurations."""
    from ultralytics import RTDETR, YOLO

    def build(name: str) -> nn.Module:
        wrap = RTDETR if name.startswith("rtdetr") else YOLO
        return wrap(f"{name}.yaml").model

    for name in YOLOS:
        checks = {"walk": _keeps_walk, "predictor": _predicts(name), "fuse": _fuses}
        yield Case(name, lambda n=name: build(n), images(96), ((3, 0), (1, 64)), checks=checks)


# --- segmentation models --------------------------------------------------------------------------------------------
ENCODERS = (
    "resnet18",
    "mobileone_s0",
    "mit_b0",
    "efficientnet-b0",
    "timm-efficientnet-b0",
    "mobilenet_v2",
    "vgg11_bn",
    "densenet121",
    "timm-mobilenetv3_small_100",
    "timm-regnetx_002",
    "timm-res2net50_26w_4s",
    "tu-repvgg_a0",
    "tu-fastvit_t8",
    "xception",
    "dpn68",
    "timm-gernet_s",
    "timm-skresnet18",
    "tu-mobileone_s0",
    "tu-convnext_atto",
    "tu-efficientvit_b0",
    "resnext50_32x4d",
    "se_resnet50",
    "inceptionv4",
    "timm-tf_efficientnet_lite0",
)
DECODERS = (
    "Unet",
    "UnetPlusPlus",
    "FPN",
    "PAN",
    "DeepLabV3",
    "DeepLabV3Plus",
    "MAnet",
    "Linknet",
    "PSPNet",
    "Segformer",
    "UPerNet",
)


def segmentation_models() -> Iterator[Case]:
    """Every decoder with a few encoders, and every encoder with one decoder."""
    import segmentation_models_pytorch as smp

    pairs = [(d, e) for d in DECODERS for e in ("resnet18", "timm-efficientnet-b0", "mobileone_s0", "mit_b0")]
    pairs += [("Unet", e) for e in ENCODERS]
    for decoder, encoder in dict.fromkeys(pairs):
        depth = {"encoder_depth": 5}
        entries: dict[str, Entry] = {
            "encoder": lambda m, a: m.encoder(*a[0]),
            "predict": lambda m, a: m.predict(*a[0]),
        }
        extra: dict[str, Any] = {"aux_params": {"classes": 4}} if encoder == "resnet18" and decoder != "PSPNet" else {}
        yield Case(
            f"{decoder}-{encoder}",
            lambda d=decoder, e=encoder, x=extra: getattr(smp, d)(e, encoder_weights=None, classes=3, **x),
            images(128),
            ((3, 0), (1, 64)),
            entries,
        )
        del depth


# --- transformers ---------------------------------------------------------------------------------------------------
def _saves(deployed: nn.Module, original: nn.Module) -> None:
    x = images(64)(1, 0)[0]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            wanted = list(nested(deployed(*x)))
        except Exception:
            x = images(224)(1, 0)[0]
            wanted = list(nested(deployed(*x)))
        deployed.save_pretrained(folder, save_original_format=False)  # type: ignore[operator]
        assert any(Path(folder).glob("*.safetensors"))
        fresh = reptool.deploy(type(original)(original.config).eval(), x)  # type: ignore[call-arg]
        from safetensors.torch import load_file

        state = load_file(next(iter(Path(folder).glob("*.safetensors"))))
        fresh.load_state_dict(state, strict=False)
        assert not set(state) - set(fresh.state_dict()), sorted(set(state) - set(fresh.state_dict()))[:3]
        assert relative(list(nested(fresh(*x))), wanted) < 1e-5, "from_pretrained differs"


def _tuples(m: nn.Module, a: Arguments) -> Any:
    return m(*a[0], return_dict=False)


def _hidden(m: nn.Module, a: Arguments) -> Any:
    return m(*a[0], output_hidden_states=True)


def transformers() -> Iterator[Case]:
    """Models from configurations, with small sizes."""
    import transformers as t

    one = {"num_labels": 5}
    specs: list[tuple[str, str, str, dict[str, Any], int, bool]] = [
        (
            "ResNetBackbone",
            "ResNetBackbone",
            "ResNetConfig",
            {
                "embedding_size": 16,
                "hidden_sizes": [16, 32, 48, 64],
                "depths": [1, 2, 1, 1],
                "out_features": ["stage2", "stage4"],
            },
            64,
            False,
        ),
        (
            "ResNet",
            "ResNetForImageClassification",
            "ResNetConfig",
            {
                "embedding_size": 16,
                "hidden_sizes": [16, 32, 48, 64],
                "depths": [1, 2, 1, 1],
                "layer_type": "basic",
                **one,
            },
            64,
            True,
        ),
        (
            "ResNet-bottleneck",
            "ResNetForImageClassification",
            "ResNetConfig",
            {
                "embedding_size": 16,
                "hidden_sizes": [32, 64, 96, 128],
                "depths": [1, 2, 1, 1],
                "downsample_in_bottleneck": True,
                **one,
            },
            64,
            True,
        ),
        (
            "MobileNetV1",
            "MobileNetV1ForImageClassification",
            "MobileNetV1Config",
            {"depth_multiplier": 0.25, **one},
            64,
            True,
        ),
        (
            "MobileNetV1-torch-padding",
            "MobileNetV1Model",
            "MobileNetV1Config",
            {"depth_multiplier": 0.25, "tf_padding": False},
            64,
            True,
        ),
        (
            "MobileNetV2",
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            {"depth_multiplier": 0.35, **one},
            64,
            True,
        ),
        (
            "MobileNetV2-seg",
            "MobileNetV2ForSemanticSegmentation",
            "MobileNetV2Config",
            {"depth_multiplier": 0.35, **one},
            64,
            True,
        ),
        (
            "ConvNext",
            "ConvNextForImageClassification",
            "ConvNextConfig",
            {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], **one},
            64,
            True,
        ),
        (
            "ConvNextV2",
            "ConvNextV2ForImageClassification",
            "ConvNextV2Config",
            {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], **one},
            64,
            True,
        ),
        (
            "Levit",
            "LevitForImageClassification",
            "LevitConfig",
            {
                "image_size": 224,
                "hidden_sizes": [32, 48, 64],
                "num_attention_heads": [2, 3, 4],
                "depths": [1, 1, 1],
                **one,
            },
            224,
            True,
        ),
        (
            "Levit-teacher",
            "LevitForImageClassificationWithTeacher",
            "LevitConfig",
            {
                "image_size": 224,
                "hidden_sizes": [32, 48, 64],
                "num_attention_heads": [2, 3, 4],
                "depths": [1, 1, 1],
                **one,
            },
            224,
            True,
        ),
        (
            "Segformer",
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            {
                "hidden_sizes": [16, 24, 32, 48],
                "depths": [1, 1, 1, 1],
                "num_attention_heads": [1, 2, 2, 3],
                "decoder_hidden_size": 32,
                **one,
            },
            64,
            True,
        ),
        (
            "Segformer-cls",
            "SegformerForImageClassification",
            "SegformerConfig",
            {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 3], **one},
            64,
            True,
        ),
        (
            "ViT",
            "ViTForImageClassification",
            "ViTConfig",
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "image_size": 64,
                **one,
            },
            64,
            True,
        ),
        (
            "RegNet",
            "RegNetForImageClassification",
            "RegNetConfig",
            {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "groups_width": 8, **one},
            64,
            True,
        ),
        (
            "Swin",
            "SwinForImageClassification",
            "SwinConfig",
            {"image_size": 64, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4, **one},
            64,
            True,
        ),
        (
            "Swinv2",
            "Swinv2ForImageClassification",
            "Swinv2Config",
            {"image_size": 64, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4, **one},
            64,
            True,
        ),
        (
            "EfficientNet",
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, **one},
            64,
            True,
        ),
        (
            "MobileViT",
            "MobileViTForImageClassification",
            "MobileViTConfig",
            {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64], **one},
            64,
            True,
        ),
        (
            "MobileViT-seg",
            "MobileViTForSemanticSegmentation",
            "MobileViTConfig",
            {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64], **one},
            64,
            True,
        ),
        (
            "MobileViTV2",
            "MobileViTV2ForImageClassification",
            "MobileViTV2Config",
            {"image_size": 64, "width_multiplier": 0.5, **one},
            64,
            True,
        ),
        (
            "EfficientFormer-like PVT",
            "PvtV2ForImageClassification",
            "PvtV2Config",
            {
                "hidden_sizes": [16, 32, 40, 64],
                "depths": [1, 1, 1, 1],
                "num_attention_heads": [1, 2, 5, 8],
                "image_size": 64,
                **one,
            },
            64,
            True,
        ),
        (
            "Yolos",
            "YolosForObjectDetection",
            "YolosConfig",
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "image_size": [64, 64],
                "num_detection_tokens": 5,
                **one,
            },
            64,
            True,
        ),
        (
            "BiT",
            "BitForImageClassification",
            "BitConfig",
            {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], **one},
            64,
            True,
        ),
        (
            "PoolFormer",
            "PoolFormerForImageClassification",
            "PoolFormerConfig",
            {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], **one},
            64,
            True,
        ),
        ("DPT-less HGNet", "HGNetV2ForImageClassification", "HGNetV2Config", {**one}, 64, True),
        (
            "CvT",
            "CvtForImageClassification",
            "CvtConfig",
            {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 1, 2], **one},
            64,
            True,
        ),
        (
            "VAN",
            "VanForImageClassification",
            "VanConfig",
            {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], **one},
            64,
            True,
        ),
        (
            "FocalNet",
            "FocalNetForImageClassification",
            "FocalNetConfig",
            {"image_size": 64, "embed_dim": 16, "depths": [1, 1], **one},
            64,
            True,
        ),
        ("SuperPoint", "SuperPointForKeypointDetection", "SuperPointConfig", {}, 64, True),
        (
            "UperNet-convnext",
            "UperNetForSemanticSegmentation",
            "UperNetConfig",
            {"hidden_size": 32, "auxiliary_in_channels": 32, "auxiliary_channels": 16, "pool_scales": [1, 2], **one},
            64,
            True,
        ),
    ]

    def make(cls: str, config: str, values: dict[str, Any]) -> nn.Module:
        if cls.startswith("UperNet"):
            values = dict(
                values,
                backbone_config=t.ConvNextConfig(
                    hidden_sizes=[16, 24, 32, 48],
                    depths=[1, 1, 1, 1],
                    out_features=["stage1", "stage2", "stage3", "stage4"],
                ),
            )
        return getattr(t, cls)(getattr(t, config)(**values))

    for name, cls, config, values, size, plain in specs:
        if not hasattr(t, cls):
            continue
        # LeViT and ViT fix the image size
        sizes = ((3, 0),) if name.startswith(("Levit", "ViT", "Yolos")) else ((3, 0), (1, 32))
        entries: dict[str, Entry] = {"tuple": _tuples, "hidden": _hidden}
        checks = {"saves": _saves} if plain else {}
        exact = name != "SuperPoint"
        yield Case(name, lambda a=(cls, config, values): make(*a), images(size), sizes, entries, checks, exact)
    yield from _detr(t)


def _detr(t: Any) -> Iterator[Case]:
    one = {"num_labels": 5}
    body = t.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        out_features=["stage4"],
        layer_type="basic",
    )
    several = copy.deepcopy(body)
    several.out_features = ["stage2", "stage3", "stage4"]
    small = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 10,
    }

    def rtdetr(kind: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            back = t.RTDetrResNetConfig(
                embedding_size=16,
                hidden_sizes=[16, 32, 48, 64],
                depths=[1, 1, 1, 1],
                out_features=["stage2", "stage3", "stage4"],
                layer_type="basic",
            )
            config = getattr(t, f"{kind}Config")(
                backbone_config=back,
                encoder_in_channels=[32, 48, 64],
                encoder_hidden_dim=32,
                encoder_ffn_dim=48,
                d_model=32,
                decoder_ffn_dim=48,
                num_queries=10,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                decoder_in_channels=[32, 32, 32],
                feat_strides=[8, 16, 32],
                **one,
            )
            return getattr(t, f"{kind}ForObjectDetection")(config)

        return build

    def detr(kind: str, cls: str, back: Any, **extra: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            config = getattr(t, f"{kind}Config")(
                backbone_config=copy.deepcopy(back),
                use_timm_backbone=False,
                use_pretrained_backbone=False,
                backbone=None,
                **small,
                **one,
                **extra,
            )
            return getattr(t, cls)(config)

        return build

    sizes = ((2, 0), (1, 32))
    yield Case("Detr", detr("Detr", "DetrForObjectDetection", body), images(64), sizes, {"tuple": _tuples})
    yield Case(
        "ConditionalDetr",
        detr("ConditionalDetr", "ConditionalDetrForObjectDetection", body),
        images(64),
        sizes,
        {"tuple": _tuples},
    )
    yield Case(
        "DeformableDetr",
        detr("DeformableDetr", "DeformableDetrForObjectDetection", several, num_feature_levels=3),
        images(64),
        sizes,
        {"tuple": _tuples},
    )
    yield Case("RTDetr", rtdetr("RTDetr"), images(64), sizes, {"tuple": _tuples}, exact=False)
    yield Case("RTDetrV2", rtdetr("RTDetrV2"), images(64), sizes, {"tuple": _tuples}, exact=False)


FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    f.__name__: f
    for f in (
        torchvision_classification,
        torchvision_detection,
        torchvision_segmentation,
        torchvision_video,
        ultralytics,
        segmentation_models,
        transformers,
    )
}


EXACT, ILL = 1e-9, 20.0
"""A float64 model that is this close is right; its float32 error may be so many times that of the original."""


# --- measuring ------------------------------------------------------------------------------------------------------
def norms(model: nn.Module) -> list[nn.Module]:
    """Everything that normalizes by stored statistics."""
    return [
        m
        for m in model.modules()
        if isinstance(getattr(m, "running_mean", None), Tensor) and isinstance(getattr(m, "running_var", None), Tensor)
    ]


def prepare(model: nn.Module, arguments: Arguments, seed: int = 0) -> nn.Module:
    """Give every norm its statistics of real inputs, and undo initializations with zero."""
    g = torch.Generator().manual_seed(seed)
    model.eval()
    found = norms(model)
    for m in found:
        weight, bias = getattr(m, "weight", None), getattr(m, "bias", None)
        if isinstance(weight, Tensor):
            weight.data.uniform_(0.6, 1.4, generator=g)
        if isinstance(bias, Tensor):
            bias.data.uniform_(-0.3, 0.3, generator=g)
        m.running_mean.normal_(0, 0.1, generator=g)  # type: ignore[union-attr,operator]
        m.running_var.uniform_(0.5, 2, generator=g)  # type: ignore[union-attr,operator]
    for m in model.modules():
        for name in ("gamma", "layer_scale_parameter", "layer_scale", "layer_scale_1", "layer_scale_2"):
            if isinstance(m._parameters.get(name), nn.Parameter):
                getattr(m, name).data.uniform_(0.3, 0.8, generator=g)

    def calibrate(norm: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        if x.dim() < 2 or x.numel() // x.shape[1] < 2:
            return
        axes = [i for i in range(x.dim()) if i != 1]
        var = x.var(axes)
        norm.running_mean.copy_(x.mean(axes))  # type: ignore[union-attr,operator]
        norm.running_var.copy_(var.clamp_min(0.1 * float(var.mean()) + 1e-4))  # type: ignore[union-attr,operator]

    handles = [m.register_forward_pre_hook(calibrate) for m in found]
    with torch.no_grad():
        model(*arguments[0], **arguments[1])
    for handle in handles:
        handle.remove()
    return model.eval()


def double(value: Any) -> Any:
    """Inputs in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(double(v) for v in value)
    return {k: double(v) for k, v in value.items()} if isinstance(value, dict) else value


def relative(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest difference relative to the largest value, per tensor."""
    if len(found) != len(wanted):
        return float("inf")
    worst = 0.0
    for x, y in zip(found, wanted, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if not y.is_floating_point() or not y.numel():
            continue
        a, b = x.double(), y.double()
        same = (a == b) | (a.isnan() & b.isnan())
        off = torch.where(same, 0.0, (a - b).abs()).max().item()
        finite = b[b.isfinite()]
        worst = max(worst, off / (float(finite.abs().max()) + 1e-12 if finite.numel() else 1.0))
        if off != off:
            return float("nan")
    return worst


class Count(TorchDispatchMode):
    """Counts executed aten operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func._schema.name.split("::")[1].rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


def executed(model: nn.Module, arguments: Arguments) -> dict[str, int]:
    """Norms, convolutions, operations and multiplications of one forward."""
    with torch.no_grad(), Count() as count:
        model(*arguments[0], **arguments[1])
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(*arguments[0], **arguments[1])
    return {
        "norms": sum(v for k, v in count.calls.items() if "batch_norm" in k),
        "convs": count.calls["convolution"],
        "operations": sum(count.calls.values()),
        "macs": flops.get_total_flops() // 2,
    }


def run(call: Entry, model: nn.Module, arguments: Arguments) -> list[Tensor]:
    """All tensors of one call."""
    with torch.no_grad():
        return list(nested(call(model, arguments)))


def plainly(model: nn.Module, arguments: Arguments) -> Any:
    """The model's own call."""
    return model(*arguments[0], **arguments[1])


@dataclass
class Compared:
    """What one comparison found."""

    error: float = 0.0
    base: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(
        self,
        what: str,
        call: Entry,
        deployed: nn.Module,
        original: nn.Module,
        wide: nn.Module | None,
        a: Arguments,
        exact: bool,
    ) -> None:
        """Compare one call at one size."""
        try:
            own = run(call, original, copy.deepcopy(a))
        except Exception:  # the original cannot do this either
            return
        reference = own
        if wide is not None:
            try:
                reference = run(call, wide, double(a))
            except Exception:
                reference = own
        found = run(call, deployed, copy.deepcopy(a))
        if not exact:
            if len(found) != len(own):
                self.wrong.append(f"{what}: {len(found)} tensors, not {len(own)}")
            elif relative(found, own) > 1e-3:
                self.wrong.append(f"({what}: boxes sorted differently, {relative(found, own):.1e})")
            return
        error, base = relative(found, reference), relative(own, reference)
        if base == float("inf"):
            reference, base = own, 1e-6
            error = relative(found, own)
        self.error, self.base = max(self.error, error), max(self.base, base)
        if not error <= max(1e-5, 5 * base):
            self.wrong.append(f"{what}: {error:.2e} (original {base:.2e})")


def complaint(check: Callable[[nn.Module, nn.Module], None], deployed: nn.Module, original: nn.Module) -> str:
    """What a check complains about."""
    try:
        check(deployed, original)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]}"
    return ""


def measured(case: Case, original: nn.Module, example: bool) -> dict[str, Any]:
    """Deploy one model one way; the row."""
    arguments = case.inputs(1, 0)
    keep = {k: v.clone() for k, v in original.state_dict().items()}
    attributes = {n: set(vars(m)) for n, m in original.named_modules()}
    start = time.perf_counter()
    given: Any = arguments[0] if not arguments[1] else dict(arguments[1])
    deployed = reptool.deploy(original, given) if example else reptool.deploy(original)
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 2)}
    state = original.state_dict()
    row["untouched"] = set(keep) == set(state) and all(torch.equal(v, state[k]) for k, v in keep.items())
    changed = [n for n, m in original.named_modules() if set(vars(m)) != attributes[n]]
    if not row["untouched"] or changed:
        row["status"] = "TOUCHED"
    try:
        wide: nn.Module | None = copy.deepcopy(original).double()
    except Exception:
        wide = None
    found = Compared()
    for batch, extra in ((1, 0), *case.sizes):
        a = case.inputs(batch, extra)
        found.add(f"{batch}x{extra}", plainly, deployed, original, wide, a, case.exact)
        for name, entry in case.entries.items():
            found.add(f"{name} {batch}x{extra}", entry, deployed, original, wide, a, True)
    row.update(error=found.error, base=found.base, wrong=found.wrong)
    if wide is not None and any(not w.startswith("(") for w in found.wrong):
        row["float64"] = _exactly(case, wide, given if example else None)
    row["class"] = isinstance(deployed, type(original)) and type(deployed).__name__ == type(original).__name__
    row["before"], row["after"] = executed(original, arguments), executed(deployed, arguments)
    try:
        row["residue"] = dict(residue(deployed, *arguments)[0])
    except Exception as error:
        row["residue"] = {"unmeasured": 1}
        row["residue_error"] = repr(error)[:120]
    row["parameters"] = [sum(p.numel() for p in m.parameters()) for m in (original, deployed)]
    row["untraced"] = reptool.report(deployed).untraced
    failed = [f"{name}: {why}" for name, check in case.checks.items() if (why := complaint(check, deployed, original))]
    row["failed"] = failed
    wrong = [w for w in found.wrong if not w.startswith("(")]
    if wrong and row.get("float64", 1.0) <= EXACT and found.error <= ILL * found.base:
        row["ill"], wrong = wrong, []  # exact where rounding is not seen: one draw of an ill-conditioned model
    status = "WRONG" if wrong else "CHECK" if failed else "CLASS" if not row["class"] else "ok"
    if status == "ok" and row["after"]["macs"] > 1.001 * row["before"]["macs"]:
        status = "DEARER"
    row.setdefault("status", status)
    return row


def _exactly(case: Case, wide: nn.Module, given: Any) -> float:
    """The error of the deployed float64 model at every size and entry."""
    deployed = reptool.deploy(wide, None if given is None else double(given))
    worst = 0.0
    for batch, extra in ((1, 0), *case.sizes):
        a = double(case.inputs(batch, extra))
        for call in (plainly, *case.entries.values()):
            try:
                wanted = run(call, wide, copy.deepcopy(a))
            except Exception:  # the original cannot do this either
                continue
            worst = max(worst, relative(run(call, deployed, copy.deepcopy(a)), wanted))
    return worst


class OverTimeError(Exception):
    """A model took too long."""


def rows(case: Case, seconds: int, both: bool) -> Iterator[dict[str, Any]]:
    """The rows of one model."""

    def late(*_: object) -> None:
        raise OverTimeError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, late)
    for example in (True, False) if both else (True,):
        torch.manual_seed(0)
        signal.alarm(seconds)
        try:
            original = prepare(case.build(), case.inputs(4, 0))
        except Exception as error:
            yield {"example": example, "status": "harness", "error": f"{type(error).__name__}: {error}"[:300]}
            signal.alarm(0)
            return
        try:
            yield {"example": example, **measured(case, original, example)}
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            yield {"example": example, "status": "crash", "error": f"{type(error).__name__}: {error} ({where})"[:400]}
        signal.alarm(0)


def main() -> int:
    """Run the families asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="only models whose name holds one of these"
    )
    parser.add_argument("--out", default=None, metavar="FILE")
    parser.add_argument("--each", type=int, default=180, help="seconds a model may take")
    parser.add_argument("--shard", default="0/1", help="K/N: only every N-th model")
    parser.add_argument("--with-inputs-only", action="store_true", help="skip deploying without example inputs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    shard, shards = map(int, options.shard.split("/"))
    bad = 0
    out = None if options.out is None else Path(options.out)
    for family in options.family:
        for i, case in enumerate(FAMILIES[family]()):
            if i % shards != shard or (options.only and not any(t in case.name for t in options.only)):
                continue
            for row in rows(case, options.each, not options.with_inputs_only):
                bad += row["status"] != "ok"
                line = {"family": family, "model": case.name, **row}
                if out is not None:
                    with out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                counts = (
                    [f"{row['before'][k]}->{row['after'][k]}" for k in ("norms", "convs")] if "before" in row else []
                )
                print(
                    family,
                    case.name,
                    "inputs" if row.get("example") else "bare",
                    row["status"],
                    *counts,
                    row.get("residue", ""),
                    row.get("wrong", ""),
                    row.get("failed", ""),
                    row.get("error", ""),
                    flush=True,
                )
    return bad


if __name__ == "__main__":
    sys.exit(main())
