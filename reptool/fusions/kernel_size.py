"""Paradigm 4: parallel kernels of different sizes, dilations and paddings, brought onto one lattice.

Tap `k` of a kernel with dilation `d` and padding `a` before sits at position ``d*k - a``. The union of the
tap positions of several kernels lies on the lattice whose step is the greatest common divisor of all tap
distances; on that lattice every kernel is the same kernel with zeros between and around its taps::

    W'[(d*k - a - p0) / d'] = W[k]        p0 = min over all tap positions, a' = -p0

A 3x3 of dilation 2 beside a 3x3 of dilation 1 is a 5x5; a 1x1 that reads an image cropped by one is the centre
of an unpadded 3x3. Domain: equal strides and equal extents ``a + e - d(K-1)`` per axis. Refused elsewhere:
`stride`, `extent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors


def common_lattice(taps: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """The coarsest lattice that holds every tap of several kernels along one axis.

    Args:
        taps: ``(kernel_size, dilation, padding_before)`` of each kernel.

    Returns:
        ``(kernel_size, dilation, padding_before)`` of the lattice.

    >>> common_lattice([(3, 1, 1), (3, 2, 2), (1, 1, 0)])
    (5, 1, 2)
    >>> common_lattice([(2, 4, 4), (2, 4, 0)])
    (3, 4, 4)
    """
    first = min(-a for _, _, a in taps)
    last = max(d * (k - 1) - a for k, d, a in taps)
    step = gcd(*[d for k, d, _ in taps if k > 1], *[-a - first for _, _, a in taps])
    return ((last - first) // step + 1, step, -first) if step else (1, 1, -first)


def embed_taps(weight: Tensor, size: Sequence[int], start: Sequence[int], step: Sequence[int]) -> Tensor:
    """Write the taps of `weight` into a kernel of zeros: tap `k` goes to ``start + step*k`` on each axis.

    Args:
        weight: ``[O, C, *K]``; never modified.
        size: taps per axis of the result.
        start: where tap 0 goes, per axis.
        step: distance between taps, per axis.

    Returns:
        ``[O, C, *size]`` (a copy).

    >>> import torch
    >>> embed_taps(torch.ones(1, 1, 2), [4], [1], [2]).tolist()
    [[[0.0, 1.0, 0.0, 1.0]]]
    """
    out = weight.new_zeros(*weight.shape[:2], *size)
    where = tuple(slice(a, a + (k - 1) * s + 1, s) for k, a, s in zip(weight.shape[2:], start, step, strict=True))
    everything = (slice(None), slice(None), *where)
    out[everything] = weight
    return out


@takes_tensors
def align_kernels(
    weights: Sequence[Tensor], paddings: Sequence[Sequence[int]], dilations: Sequence[Sequence[int]] | None = None
) -> tuple[list[Tensor], tuple[int, ...], tuple[int, ...]]:
    """Bring parallel kernels onto one lattice, so that `branch_add` or `branch_concat` can merge them.

    Args:
        weights: tensors ``[O, C, *K]`` with any kernel sizes (rectangular and even ones too); never modified.
        paddings: padding before, per axis, of each (negative: a crop); symmetric layers pad as much behind.
        dilations: dilation per axis of each; default 1.

    Returns:
        The embedded weights, the padding before and the dilation of the lattice, per axis.

    Raises:
        InputError: counts differ, or the kernels would write images of different sizes.

    >>> import torch
    >>> ws, padding, dilation = align_kernels([torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)], [(1, 1), (0, 0)])
    >>> ws[1][0, 0].tolist(), padding, dilation
    ([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], (1, 1), (1, 1))
    """
    dilations = dilations or [[1] * (w.dim() - 2) for w in weights]
    if not weights or not len(weights) == len(paddings) == len(dilations):
        raise InputError(
            f"{len(weights)} weights, {len(paddings)} paddings, {len(dilations)} dilations: give one of each"
        )
    geometry = [
        [(k, d, a) for k, d, a in zip(w.shape[2:], ds, ps, strict=True)]
        for w, ps, ds in zip(weights, paddings, dilations, strict=True)
    ]
    extents = {tuple(2 * a - d * (k - 1) for k, d, a in taps) for taps in geometry}
    if len(extents) > 1:
        raise InputError(
            f"the kernels write images of different sizes (extents {sorted(extents)}): equal paddings needed"
        )
    lattice = [common_lattice([taps[axis] for taps in geometry]) for axis in range(len(geometry[0]))]
    embedded = [embed_on(w, taps, lattice) for w, taps in zip(weights, geometry, strict=True)]
    return embedded, tuple(a for _, _, a in lattice), tuple(d for _, d, _ in lattice)


def embed_on(weight: Tensor, taps: Sequence[tuple[int, int, int]], lattice: Sequence[tuple[int, int, int]]) -> Tensor:
    """Embed a kernel with `taps` ``(K, d, a)`` per axis into a `lattice` of the same form.

    >>> import torch
    >>> embed_on(torch.ones(1, 1, 1), [(1, 1, 0)], [(3, 1, 1)]).tolist()
    [[[0.0, 1.0, 0.0]]]
    """
    size = [k for k, _, _ in lattice]
    start = [(wide[2] - own[2]) // wide[1] for own, wide in zip(taps, lattice, strict=True)]
    step = [own[1] // wide[1] if own[0] > 1 else 1 for own, wide in zip(taps, lattice, strict=True)]
    if prod(size) == prod(weight.shape[2:]):
        return weight.clone()
    return embed_taps(weight, size, start, step)
