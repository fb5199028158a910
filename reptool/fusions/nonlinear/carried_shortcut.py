"""Paradigm 6b: a shortcut around several layers is carried through them, as more channels.

For layers ``W_1 .. W_n`` with ``n >= 2`` and activations ``a_1 .. a_{n-1}`` between them::

    y  =  W_n * a_{n-1}( ... a_1(W_1 * x + b_1) ... ) + b_n + s(x)

every layer but the last also writes copies of ``x`` (Dirac rows ``D``, ``D_t = -D`` for a negated one), every layer
behind the first reads them, and the last one adds them up, weighted by ``back``::

    W_1' = [W_1; t D]      W_i' = [W_i 0; 0 I]      W_n' = [W_n, back D]

    y  =  W_n' * a_{n-1}( ... a_1(W_1' * x + b_1') ... ) + b_n       with  sum_t back_t A(t x) = s(x)

where ``A = a_{n-1} o .. o a_1``. Domain: each activation treats every channel by itself and all alike; each layer has
stride 1, writes as many positions as it reads, and has a tap at the position itself. Then it is exact for

- the same activations on the shortcut, ``s = A``: one copy, ``back = 1``, whatever the activations are;
- ``A`` and ``s`` of one slope on either side of zero (`sides_of_slopes`), such as no activation on the shortcut:
  ``x = relu(x) - relu(-x)``; a leaky ReLU of slope ``q`` gives ``(f(x) - f(-x)) / (1 + q)``;
- channels whose activation has slopes of their own (PReLU): a copy gets the slope 1.

Grouped layers stay grouped where their groups divide the channels of the shortcut: the rows of a group are followed by
the copies of its own channels (``interleaved``). Refused elsewhere: `distribute`, `channels`, `stride`, `extent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors

LOSS = 8.0
"""How much larger than their sum the parts may be of which a value is made: rounding grows by as much."""


@dataclass(frozen=True)
class Widened:
    """One layer that carries the copies.

    Args:
        weight: ``[O', C'/groups, *K]``.
        bias: ``[O']`` or None.
        groups: its groups.
        originals: ``[O]``, which of its rows are those of the layer as it was.
        copies: ``[channels, copies]``, which rows carry a channel of the shortcut; empty for the last layer.
    """

    weight: Tensor
    bias: Tensor | None
    groups: int
    originals: Tensor
    copies: Tensor


@takes_tensors
def carry_shortcut(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    groups: Sequence[int] | None = None,
    *,
    centres: Sequence[Sequence[int]] | None = None,
    signs: Sequence[float] = (1.0,),
    back: Tensor | None = None,
    layout: str = "interleaved",
) -> list[Widened]:
    """Layers that compute what a chain of layers and the shortcut around it compute together.

    Args:
        weights: two or more, ``[O_i, O_{i-1}/groups_i, *K_i]``; the last one writes as many channels as the first one
            reads. Nothing that is given is modified.
        biases: one ``[O_i]`` or None for each.
        groups: groups of each; default 1.
        centres: for each layer the tap, per axis, that reads the position itself; default ``K // 2``.
        signs: the factor of each copy.
        back: ``[channels, copies]``, what the last layer multiplies the copies by; default 1.
        layout: ``"interleaved"`` keeps groups that divide the channels of the shortcut; ``"concatenated"`` writes all
            copies behind all channels, and grouped layers become dense.

    Returns:
        The widened layers, in order.

    Raises:
        InputError: counts or shapes do not fit, or the layout is unknown.

    Paper:
        "An Introduction to Structural Reparameterization", section 6b.

    >>> import torch
    >>> first, last = carry_shortcut([torch.full((1, 1), 5.0), torch.full((1, 1), 7.0)], [None, None])
    >>> first.weight.tolist(), last.weight.tolist()
    ([[5.0], [1.0]], [[7.0, 1.0]])
    """
    chain = _Chain.checked(weights, biases, groups, centres, layout)
    channels, count, last = chain.channels, len(signs), len(weights) - 1
    if count < 1 or (back is not None and tuple(back.shape) != (channels, count)):
        given = None if back is None else tuple(back.shape)
        raise InputError(f"back is [channels, copies] = [{channels}, {count}], got {given}")
    x = torch.arange(channels)
    out: list[Widened] = []
    reads = _Places(x, x[:, None].expand(-1, count), channels)
    for i, weight in enumerate(weights):
        rows = _places(chain.blocks[i], weight.shape[0], 0 if i == last else channels, count)
        factors = weight.new_ones(channels, count)
        if i == 0:
            factors = factors * weight.new_tensor(list(signs))
        if i == last:
            rows = _Places(rows.originals, x[:, None].expand(-1, count), rows.width)
            factors = factors if back is None else back.to(weight)
        wide = _layer(weight, chain.groups[i], chain.kept[i], reads, rows, factors, chain.centres[i])
        bias = biases[i]
        if bias is not None:
            bias = wide.new_zeros(len(wide)).index_copy(0, rows.originals.to(bias.device), bias.to(wide))
        copies = rows.copies[:0] if i == last else rows.copies
        out.append(Widened(wide, bias, chain.kept[i], rows.originals, copies))
        reads = rows
    return out


def sides_of_slopes(through: Tensor, wanted: Tensor) -> tuple[tuple[float, ...], Tensor] | None:
    """Which copies, weighted how, make ``wanted`` of what activations leave of them; None where none do.

    For functions of one slope on either side of zero, ``A(x) = p x`` for ``x >= 0`` and ``q x`` below it, a copy and a
    negated one give ``u A(x) + v A(-x)``, and so ``s(x)`` of slopes ``p', q'`` where::

        u p - v q = p'      u q - v p = q'

    Args:
        through: ``[channels, 2]``, the slopes ``p, q`` of the activations.
        wanted: ``[channels, 2]``, those of the shortcut.

    Returns:
        The signs of the copies and ``back`` for `carry_shortcut`; one copy where that is enough.

    >>> sides_of_slopes(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    ((1.0, -1.0), tensor([[ 1., -1.]]))
    """
    p, q = through.unbind(1)
    up, down = wanted.unbind(1)
    one = up / p
    if bool((p != 0).all()) and bool((one * q == down).all()):
        return (1.0,), one[:, None]
    with_sum, with_difference = (up + down) / (p + q), (up - down) / (p - q)
    with_sum = torch.where(up + down == 0, 0.0, with_sum)
    with_difference = torch.where(up - down == 0, 0.0, with_difference)
    back = torch.stack([with_difference + with_sum, with_difference - with_sum], 1) / 2
    largest = torch.maximum(p.abs(), q.abs()) * back.abs().sum(1)
    if not bool((largest <= LOSS * torch.maximum(up.abs(), down.abs())).all()):
        return None
    return (1.0, -1.0), back


@dataclass(frozen=True)
class _Chain:
    """Layers in order, with the groups that each keeps, and into how many blocks its rows are ordered."""

    channels: int
    groups: list[int]
    centres: list[list[int]]
    kept: list[int]
    blocks: list[int]

    @classmethod
    def checked(
        cls,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        groups: Sequence[int] | None,
        centres: Sequence[Sequence[int]] | None,
        layout: str,
    ) -> _Chain:
        """The chain, where everything fits."""
        own = [1] * len(weights) if groups is None else list(groups)
        taps = [[k // 2 for k in w.shape[2:]] for w in weights] if centres is None else [list(c) for c in centres]
        if len(weights) < 2 or not len(weights) == len(biases) == len(own) == len(taps):
            raise InputError(f"{len(weights)} weights, {len(biases)} biases, {len(own)} groups: two or more of each")
        if layout not in ("interleaved", "concatenated"):
            raise InputError(f"layout {layout!r}: give 'interleaved' or 'concatenated'")
        wide = weights[0].shape[1] * own[0]
        for i, (w, g) in enumerate(zip(weights, own, strict=True)):
            read = wide if i == 0 else weights[i - 1].shape[0]
            if w.shape[1] * g != read or w.shape[0] % g or len(taps[i]) != w.dim() - 2:
                raise InputError(f"weight {i} of shape {tuple(w.shape)} and {g} groups does not read {read} channels")
        if weights[-1].shape[0] != wide:
            raise InputError(f"the last layer writes {weights[-1].shape[0]} channels beside a shortcut of {wide}")
        kept = [gcd(g, wide) if layout == "interleaved" else 1 for g in own]
        blocks = [lcm(a, b) for a, b in zip(kept, [*kept[1:], kept[-1]], strict=True)]
        return cls(wide, own, taps, kept, blocks)


@dataclass(frozen=True)
class _Places:
    """Where channels stand: ``[O]`` those of a layer as it was, ``[channels, copies]`` the copies, among `width`."""

    originals: Tensor
    copies: Tensor
    width: int


def _places(blocks: int, rows: int, channels: int, count: int) -> _Places:
    """Every block of rows, followed by the copies of its block of channels."""
    own, more = rows // blocks, channels * count // blocks
    at = torch.arange(blocks)[:, None] * (own + more)
    originals = (at + torch.arange(own)).flatten()
    return _Places(originals, (at + own + torch.arange(more)).reshape(channels, count), rows + channels * count)


def _layer(
    weight: Tensor, groups: int, kept: int, reads: _Places, rows: _Places, factors: Tensor, centre: Sequence[int]
) -> Tensor:
    """A weight among those of the copies, one block for each of the groups that are kept."""
    wide, channels = reads.width // kept, len(factors) // kept
    out = weight.new_zeros(rows.width, wide, *weight.shape[2:])
    own, read = weight.shape[0] // groups, weight.shape[1]
    tap: tuple[slice | int, ...] = (slice(None), slice(None), *centre)
    taps = out[tap]
    for g in range(groups):
        block = g * kept // groups
        at = rows.originals[g * own : (g + 1) * own]
        of = reads.originals[g * read : (g + 1) * read] - block * wide
        out[at[:, None], of] = weight[g * own : (g + 1) * own]
    for block in range(kept):
        mine = slice(block * channels, (block + 1) * channels)
        taps[rows.copies[mine], reads.copies[mine] - block * wide] += factors[mine]
    return out
