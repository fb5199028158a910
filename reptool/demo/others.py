"""Somebody else's model, by name, with batch-norm statistics that a trained one could have."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["DemoError", "calibrate", "input_shape", "load"]


class DemoError(Exception):
    """What was asked of the demo cannot be done; the message says why and what to do."""


def load(spec: str) -> nn.Module:
    """Build the model that `spec` names, with random weights, in eval mode.

    Args:
        spec: `timm:NAME`, `torchvision:NAME` or `package.module:callable`, the callable taking no arguments.
    """
    source, colon, name = spec.partition(":")
    if not (source and colon and name):
        raise DemoError(f"model {spec!r}: expected timm:NAME, torchvision:NAME or package.module:callable")
    try:
        model = _builder(source, name)()
    except ImportError as error:
        hint = "timm and torchvision come with: pip install 'reptool[models]'"
        raise DemoError(f"model {spec!r}: {error}; {hint}") from error
    except (AttributeError, RuntimeError, ValueError) as error:
        raise DemoError(f"model {spec!r}: {error}") from error
    if not isinstance(model, nn.Module):
        raise DemoError(f"model {spec!r}: expected a torch.nn.Module, found {type(model).__name__}")
    return model.eval()


def _builder(source: str, name: str) -> Callable[[], object]:
    if source == "timm":
        timm = importlib.import_module("timm")
        return lambda: timm.create_model(name, pretrained=False)
    if source == "torchvision":
        models = importlib.import_module("torchvision.models")
        return lambda: models.get_model(name, weights=None)
    builder: Callable[[], object] = getattr(importlib.import_module(source), name)
    return builder


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width that `model` says it was made for, or (3, 224, 224)."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    return int(channels), int(height), int(width)


@torch.no_grad()
def calibrate(model: nn.Module, batch: Tensor, *, batches: int = 3, seed: int = 0) -> None:
    """Give every batch norm of `model` a scale, a shift and the statistics of random images, in place.

    Fresh norms have scale 1 or 0, shift 0, mean 0 and variance 1, which would hide most mistakes.

    Args:
        model: in eval mode, before and after.
        batch: an example of the input (N, C, H, W), N >= 2; only its shape and dtype matter.
        batches: random batches that the statistics are taken from.
        seed: chooses scales, shifts and images.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        if norm.affine:
            norm.weight.uniform_(0.6, 1.4, generator=generator)
            norm.bias.uniform_(-0.3, 0.3, generator=generator)
        norm.train()
    for _ in range(batches):
        model(torch.randn(batch.shape, generator=generator, dtype=batch.dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
