"""`ranges`: how far apart the channels of each layer are, and what 8 bits keep of its weight.

For a weight `W` with channels `o`, symmetric quantization to 8 bits has the step ``max |W| / 127``, or a step for each
channel, ``max |W_o| / 127``. The spread is ``max_o max |W_o|`` over the median of ``max |W_o|``: with one step for all,
the typical channel has that many times fewer steps than with one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from reptool.api.reporting import report
from reptool.errors import InputError
from reptool.report.totals import is_layer

STEPS = 127


@dataclass(frozen=True)
class Range:
    """One layer.

    Args:
        layer: its path.
        spread: largest range of a channel over the median one.
        before: the largest spread among the layers that it was made of; None where the original was not given.
        per_tensor: what 8 bits with one step lose of a channel, ``|Q(W_o) - W_o| / |W_o|``, mean over the channels.
        per_channel: what they lose with a step for each channel.
    """

    layer: str
    spread: float
    before: float | None
    per_tensor: float
    per_channel: float


def ranges(deployed: nn.Module, original: nn.Module | None = None) -> list[Range]:
    """The ranges of the layers that `deploy` made, the widest spread first.

    Args:
        deployed: a model that `reptool.deploy` returned.
        original: the model that it was made of, for the spreads before.

    Raises:
        InputError: it was not deployed.

    >>> import reptool
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> model[1].weight.data[0] = 100.0
    >>> (found,) = ranges(reptool.deploy(model), model)
    >>> found.spread > 50 > found.before, found.per_tensor > 5 * found.per_channel
    (True, True)
    """
    if original is not None and not isinstance(original, nn.Module):
        raise InputError(f"original is the module that was deployed, got {type(original).__name__}")
    modules = dict(deployed.named_modules())
    found: list[Range] = []
    for region in report(deployed).regions:
        weight = getattr(modules.get(region.layer), "weight", None)
        if isinstance(weight, Tensor):
            before = None if original is None else _before(original, region.absorbed)
            found.append(Range(region.layer, spread(weight), before, lost(weight), lost(weight, True)))
    return sorted(found, key=lambda r: -r.spread)


def _before(original: nn.Module, paths: list[str]) -> float | None:
    modules = dict(original.named_modules())
    layers = [m for p in paths if (m := modules.get(p)) is not None and is_layer(m)]
    return max((spread(m.weight) for m in layers if isinstance(m.weight, Tensor)), default=None)


def spread(weight: Tensor) -> float:
    """The largest range of a channel over the median one; channels of zeros do not count.

    Args:
        weight: ``[O, ...]``.
    """
    sizes = [s for s in _sizes(weight).tolist() if s > 0]
    return max(sizes) / median(sizes) if sizes else 1.0


@torch.no_grad()
def lost(weight: Tensor, by_channel: bool = False) -> float:
    """What symmetric quantization to 8 bits loses of a channel, ``|Q(W_o) - W_o| / |W_o|``, mean over the channels.

    Args:
        weight: ``[O, ...]``; channels of zeros do not count.
        by_channel: whether each channel has a step of its own.
    """
    wide = weight.detach().double().flatten(1)
    wide = wide[wide.abs().amax(1) > 0]
    if not wide.numel():
        return 0.0
    step = (wide.abs().amax(1, keepdim=True) if by_channel else wide.abs().amax()) / STEPS
    return float(((torch.round(wide / step) * step - wide).norm(dim=1) / wide.norm(dim=1)).mean())


def _sizes(weight: Tensor) -> Tensor:
    return weight.detach().abs().flatten(1).amax(1)
