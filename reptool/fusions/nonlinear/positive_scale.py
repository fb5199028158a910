"""A scale per channel that is not negative, moved through what is positively homogeneous.

For `f` with ``f(s x) = s f(x)`` for every ``s >= 0``, channel by channel (ReLU, leaky ReLU, PReLU, absolute values,
maximum and average pooling, and any chain of these)::

    s f(W * x + b)  =  f((s W) * x + (s b))

Domain: ``s >= 0`` in every channel. Refused elsewhere: a negative factor turns the maximum around and swaps the slopes
(`distribute`); an activation with a corner beside zero, such as ReLU6 (`distribute`); a factor that varies along other
axes than the channels (`broadcast`).
"""

from __future__ import annotations

from torch import Tensor

from reptool.errors import InputError
from reptool.fusions.conv_bn import scale_rows
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def scale_before_activation(weight: Tensor, bias: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer in front, for the scale behind the activation.

    Args:
        weight: ``[O, ...]``; never modified.
        bias: ``[O]`` or None.
        scale: ``[O]``, no factor below zero.

    Returns:
        ``s W`` and ``s b``.

    Raises:
        InputError: a factor is negative.

    >>> import torch
    >>> w, b = scale_before_activation(torch.ones(2, 1), torch.ones(2), torch.tensor([2.0, 0.0]))
    >>> w.flatten().tolist(), b.tolist()
    ([2.0, 0.0], [2.0, 0.0])
    """
    if not bool((scale >= 0).all()):
        raise InputError(f"a scale of {float(scale.min()):g} does not move through an activation; give none below zero")
    return scale_rows(weight, bias, scale, None)
