"""The activation behind a block: outside its linear part, chosen by the caller."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Activation = Callable[[], nn.Module] | nn.Module | None
"""A class or function that makes the activation, a module to use as it is, or None for no activation."""


def make_activation(activation: Activation) -> nn.Module:
    """The module to put behind a block."""
    if activation is None:
        return nn.Identity()
    if isinstance(activation, nn.Module):
        return activation
    return activation()
