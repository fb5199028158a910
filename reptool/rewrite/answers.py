"""What a layer says of itself that the module in whose place it is said otherwise: its stride, its groups."""

from __future__ import annotations

from torch import nn

from reptool.rewrite.lower import Geometry, blank
from reptool.runtime.absorbed import plain_attributes


def told_otherwise(module: nn.Module, shape: Geometry) -> frozenset[str]:
    """Names of attributes that a layer answers otherwise than the module that was in its place.

    Args:
        module: what was there.
        shape: of the layer.

    >>> from reptool.rewrite.lower import geometry_of
    >>> sorted(told_otherwise(nn.Conv2d(3, 8, 3, stride=2), geometry_of(nn.Conv2d(3, 8, 5, stride=4))))
    ['kernel_size', 'stride']
    """
    if shape.outer is not None or shape.before or shape.behind or shape.parts:
        return frozenset()  # the layer lies deeper, where nothing was
    new = plain_attributes(blank(shape, True))
    return frozenset(n for n, value in plain_attributes(module).items() if n in new and not _same(value, new[n]))


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other
