"""Somebody else's model, with batch-norm statistics that a trained one could have."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["DemoError", "calibrate"]


class DemoError(Exception):
    """What was asked of the demo cannot be done; the message says why and what to do."""


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
