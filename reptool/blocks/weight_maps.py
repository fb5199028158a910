"""Maps from a weight (O, I/g, *K) or (O, I) to one of the same shape.

The rows of a weight are its outputs: v_o has d = I/g * prod(K) entries.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_odd, require
from ._inverse_sqrt import inverse_sqrt
from .ref_conv import Transform, refocus


class Refocus(nn.Module):
    """W_t = W_b * W_r + W_b: a kernel transformed by a convolution of itself.

    Args:
        transform: module or function (1, N, *K) -> (1, N, *K) with N = C_out C_in/g.
        identity: whether W_b is added.

    Paper:
        Cai et al., "RefConv: Re-parameterized Refocusing Convolution for Powerful ConvNets".

    Example:
        >>> import torch
        >>> Refocus(torch.neg)(torch.ones(2, 3, 3, 3)).abs().max()
        tensor(0.)
    """

    def __init__(self, transform: Transform, identity: bool = True) -> None:
        super().__init__()
        self.convmap = transform
        self.identity = identity

    def forward(self, weight: Tensor) -> Tensor:
        """Map W_b to W_t."""
        return refocus(weight, self.convmap, self.identity)


class WeightNorm(nn.Module):
    """w_o = s_o v_o / |v_o|: length and direction of every row apart.

    Args:
        weight: weight whose row lengths the scales s start with.

    Paper:
        Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of
        Deep Neural Networks", NeurIPS 2016.

    Example:
        >>> import torch
        >>> v = torch.tensor([[3.0, 4.0]])
        >>> WeightNorm(v)(2 * v).detach().round()
        tensor([[3., 4.]])
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(_lengths(weight.detach().flatten(1)))

    def forward(self, weight: Tensor) -> Tensor:
        """Map v to w."""
        return (self.scale * F.normalize(weight.flatten(1))).view_as(weight)


class CenteredWeightNorm(nn.Module):
    """w_o = s_o (v_o - mean) / |v_o - mean|: rows of mean zero and trained length.

    Args:
        weight: weight (d >= 2) whose centered row lengths the scales s start with.

    Paper:
        Huang et al., "Centered Weight Normalization in Accelerating Training of Deep Neural Networks", ICCV
        2017.

    Example:
        >>> import torch
        >>> v = torch.tensor([[1.0, 3.0]])
        >>> CenteredWeightNorm(v)(v).detach().round()
        tensor([[-1.,  1.]])
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(_lengths(_centered(weight.detach().flatten(1))))

    def forward(self, weight: Tensor) -> Tensor:
        """Map v to w."""
        return (self.scale * F.normalize(_centered(weight.flatten(1)))).view_as(weight)


class OrthogonalWeightNorm(nn.Module):
    """W = s (Z Z^T)^(-1/2) Z with Z the centered rows of V: orthogonal rows of mean zero and trained length.

    Z Z^T has full rank for at most d - 1 rows; more rows are orthogonalized in groups.

    Args:
        weight: weight (d >= 2) whose centered row lengths the scales s start with.
        group_size: most rows to orthogonalize together, at most d - 1; None takes as many as there are, or
            d - 1.
        eps: added to the eigenvalues of Z Z^T, which are scaled to sum up to one.

    Raises:
        InputError: group_size out of range.

    Paper:
        Huang et al., "Orthogonal Weight Normalization: Solution to Optimization over Multiple Dependent
        Stiefel Manifolds in Deep Neural Networks", AAAI 2018.

    Example:
        >>> import torch
        >>> v = torch.randn(4, 2, 3, 3)
        >>> rows = F.normalize(OrthogonalWeightNorm(v)(v).flatten(1))
        >>> torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-3)
        True
    """

    def __init__(self, weight: Tensor, group_size: int | None = None, eps: float = 1e-7) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        most = rows.shape[1] - 1
        require(
            group_size is None or 1 <= group_size <= most,
            f"OrthogonalWeightNorm with group_size={group_size} for rows of {most + 1} entries",
            f"1 to {most}",
            "use None for the largest possible groups",
        )
        self.scale = nn.Parameter(_lengths(_centered(rows)))
        self.group_size = min(most, rows.shape[0]) if group_size is None else group_size
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        """Map V to W."""
        with _full_precision(weight.device.type):
            rows = _centered(weight.flatten(1)).to(torch.promote_types(weight.dtype, torch.float32))
            groups = [self._orthogonal(group) for group in rows.split(self.group_size)]
            return (self.scale * torch.cat(groups).to(weight.dtype)).view_as(weight)

    def _orthogonal(self, rows: Tensor) -> Tensor:
        """(Z Z^T)^(-1/2) Z, which does not change with the length of Z."""
        unit = F.normalize(rows.flatten(), dim=0).view_as(rows)
        gram = unit @ unit.mT
        return inverse_sqrt(gram + self.eps * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)) @ unit


class DiracNet(nn.Module):
    """w_o = a_o i_o + b_o v_o / |v_o| with i the identity kernel: a shortcut inside the weight.

    Args:
        weight: weight to parametrize.
        groups: groups of the convolution.
        preserve: start with a = 0 and b = |v|, which leaves the weight as it is, instead of a = 1 and b =
            0.1.

    Raises:
        InputError: even kernel.

    Paper:
        Zagoruyko and Komodakis, "DiracNets: Training Very Deep Neural Networks Without Skip-Connections",
        2017.

    Example:
        >>> import torch
        >>> v = torch.randn(2, 2, 3, 3)
        >>> torch.allclose(DiracNet(v, preserve=True)(v), v)
        True
    """

    identity: Tensor

    def __init__(self, weight: Tensor, groups: int = 1, preserve: bool = False) -> None:
        super().__init__()
        check_odd("DiracNet", "kernel_size", tuple(weight.shape[2:]))
        lengths = _lengths(weight.detach().flatten(1))
        self.identity_scale = nn.Parameter(torch.full_like(lengths, 0.0 if preserve else 1.0))
        self.scale = nn.Parameter(lengths if preserve else torch.full_like(lengths, 0.1))
        self.register_buffer("identity", _identity(weight.detach(), groups))

    def forward(self, weight: Tensor) -> Tensor:
        """Map v to w."""
        rows = self.identity_scale * self.identity.flatten(1) + self.scale * F.normalize(weight.flatten(1))
        return rows.view_as(weight)


class WeightStandardization(nn.Module):
    """w_o = (v_o - mean) / sqrt(var + eps): rows of mean zero and variance one.

    Args:
        eps: added to the variance (of all d entries) of a row.

    Paper:
        Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.

    Example:
        >>> import torch
        >>> WeightStandardization(eps=0)(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        """Map v to w."""
        var, mean = torch.var_mean(weight.flatten(1), dim=1, correction=0, keepdim=True)
        return ((weight.flatten(1) - mean) / torch.sqrt(var + self.eps)).view_as(weight)


def _full_precision(device: str) -> AbstractContextManager[None]:
    """Outside of autocast, on devices that have it (the meta device does not)."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return cast("AbstractContextManager[None]", torch.autocast(device, enabled=False))


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=1, keepdim=True)


def _identity(weight: Tensor, groups: int) -> Tensor:
    """The weight that copies input o to output o, within each group."""
    if weight.dim() == 2:
        return torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)
    return nn.init.dirac_(torch.empty_like(weight), groups)
