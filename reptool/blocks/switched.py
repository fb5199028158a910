"""Paradigm 9 as modules: a pointwise convolution computed as a linear layer, and a linear layer as a convolution."""

from __future__ import annotations

from torch import Tensor, nn


class ConvAsLinear(nn.Module):
    """A 1x1 convolution as a linear layer: it takes and gives the same values, with the channels second.

    Args:
        weight: ``[O, C]``.
        bias: ``[O]`` or None.
        axes: axes behind the channels, 1, 2 or 3.

    Paper:
        "An Introduction to Structural Reparameterization", section 9.

    Example:
        >>> import torch
        >>> layer = ConvAsLinear(torch.ones(4, 3), None, axes=2)
        >>> layer(torch.ones(2, 3, 5, 6)).shape
        torch.Size([2, 4, 5, 6])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, axes: int) -> None:
        super().__init__()
        self.axes = axes
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...), or both without N."""
        at = -1 - self.axes
        return nn.functional.linear(x.movedim(at, -1), self.weight, self.bias).movedim(-1, at)

    def extra_repr(self) -> str:
        """Channels and axes."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, axes={self.axes}, bias={self.bias is not None}"


class LinearAsConv(nn.Module):
    """A linear layer as a 1x1 convolution over all positions: it takes and gives the same values, the channels last.

    Values without any position (an empty batch) raise, as of any convolution.

    Args:
        weight: ``[O, C, 1]``.
        bias: ``[O]`` or None.

    Paper:
        "An Introduction to Structural Reparameterization", section 9.

    Example:
        >>> import torch
        >>> layer = LinearAsConv(torch.ones(4, 3, 1), None)
        >>> layer(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., O)."""
        positions = x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
        y = nn.functional.conv1d(positions, self.weight, self.bias).transpose(1, 2)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def extra_repr(self) -> str:
        """Features."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"
