"""Random statistics and parameters, so that no error is hidden by zeros and ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def randomize(
    module: Module,
    seed: int = 0,
    *,
    extreme: bool = False,
    scales: Sequence[float] = (),
    variances: Sequence[float] = (),
) -> Module:
    """Give `module` (in place) statistics as after training, and return it.

    Fresh statistics are the identity and hide errors at borders; a scale of zero hides everything behind it.
    So every normalization gets means, variances, scales of both signs and shifts, and every other parameter
    whose entries are all equal (a scale that starts at zero or one) gets values of its own.

    Args:
        module: changed in place, buffers and parameters both.
        seed: equal seeds give equal values.
        extreme: some scales zero or tiny and some variances tiny or large.
        scales: further scales, each of which some channel of every norm gets; of a channel drawn twice the last one.
        variances: further variances, in the same way.

    >>> bn = randomize(nn.BatchNorm2d(4))
    >>> bool((bn.running_var != 1).all() and (bn.weight != 1).all())
    True
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    def write(target: Tensor, values: Tensor) -> None:
        target.copy_(values.to(target))

    with torch.no_grad():
        written: set[int] = set()
        for part in module.modules():
            mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
            if not (isinstance(mean, Tensor) and isinstance(variance, Tensor)):
                continue
            write(mean, normal(mean) * 0.5)
            write(variance, normal(variance).mul(0.7).exp())
            scale, shift = getattr(part, "weight", None), getattr(part, "bias", None)
            if isinstance(scale, Tensor):
                write(scale, (normal(scale) * 0.4 + 1.0) * normal(scale).add(0.8).sign())
                written.add(id(scale))
            if isinstance(shift, Tensor):
                write(shift, normal(shift) * 0.5)
                written.add(id(shift))
            if extreme:
                _stress(variance, (1e-10, 1e4), generator)
                if isinstance(scale, Tensor):
                    _stress(scale, (0.0, -1e-12), generator)
            _stress(variance, variances, generator)
            if isinstance(scale, Tensor):
                _stress(scale, scales, generator)
        for parameter in module.parameters():
            if id(parameter) in written or not parameter.is_floating_point() or not parameter.numel():
                continue
            if bool((parameter == parameter.flatten()[0]).all()):
                write(parameter, normal(parameter) * 0.5 + 0.7)
    return module


def _stress(target: Tensor, values: Sequence[float], generator: torch.Generator) -> None:
    for value in values:
        target[torch.randint(len(target), (1,), generator=generator)] = value
