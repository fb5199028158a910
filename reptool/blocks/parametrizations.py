"""Weight re-parameterizations: other ways to write the kernel of a layer that stays the layer it is.

Every class maps a weight (O, I/g, *K) or (O, I) to one of the same shape; every function puts one on a layer
by `torch.nn.utils.parametrize` and returns that layer. The rows of a weight are its outputs: v_o has
d = I/g * prod(K) entries. `torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")` bakes the
kernel in.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._checks import Size, check_odd, require
from ._inverse_sqrt import inverse_sqrt
from .ref_conv import Init, Transform, refocus, refocusing_map

__all__ = [
    "CenteredWeightNorm",
    "DiracNet",
    "OrthogonalWeightNorm",
    "Refocus",
    "WeightNorm",
    "WeightStandardization",
    "centered_weight_norm",
    "dirac_net",
    "orthogonal_weight_norm",
    "refconv",
    "weight_norm",
    "weight_standardization",
]

Layer = TypeVar("Layer", bound=nn.Module)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


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


def refconv(
    layer: Layer,
    *,
    map_kernel_size: Size = 3,
    map_groups: int | None = None,
    init: Init = "xavier",
    identity: bool = True,
    train_basis: bool = False,
    transform: Transform | None = None,
) -> Layer:
    """Refocus the kernel of a convolution: RefConv on a layer that stays an `nn.Conv*d` to everybody.

    The basis weights `layer.parametrizations.weight.original` are frozen unless `train_basis`.

    Args:
        layer: convolution to change in place.
        map_kernel_size: odd size of the refocusing kernel.
        map_groups: groups of the refocusing convolution; None takes C_out C_in/g^2.
        init: "xavier" or "zeros".
        identity: whether the basis is added to the transformed kernel.
        train_basis: whether the basis weights are trained too.
        transform: module or function (1, N, *K) -> (1, N, *K) in place of the refocusing convolution.

    Raises:
        InputError: not a convolution, or options that RefConv refuses.

    Example:
        >>> import torch
        >>> conv = refconv(nn.Conv2d(4, 4, 3, groups=4))
        >>> [name for name, p in conv.named_parameters() if p.requires_grad]
        ['bias', 'parametrizations.weight.0.convmap.weight']
    """
    weight = _weight(layer, "refconv", LAYERS[:3])
    if transform is None:
        transform = refocusing_map(tuple(weight.shape), _groups(layer), map_kernel_size, map_groups, init)
    _register(layer, Refocus(transform, identity))
    layer.get_parameter("parametrizations.weight.original").requires_grad_(train_basis)
    return layer


def weight_norm(layer: Layer) -> Layer:
    """Train length and direction of every row of the weight apart; the layer computes what it did.

    Args:
        layer: convolution or linear layer to change in place.

    Raises:
        InputError: another kind of layer.

    Example:
        >>> import torch
        >>> weight_norm(nn.Linear(3, 2)).parametrizations.weight[0].scale.shape
        torch.Size([2, 1])
    """
    return _register(layer, WeightNorm(_weight(layer, "weight_norm")))


def centered_weight_norm(layer: Layer) -> Layer:
    """Center the rows of the weight and train their lengths; the layer loses the means of its rows.

    Args:
        layer: convolution or linear layer to change in place.

    Raises:
        InputError: another kind of layer, or rows of one entry.

    Example:
        >>> import torch
        >>> centered_weight_norm(nn.Linear(3, 2)).weight.sum(1).abs().max() < 1e-6
        tensor(True)
    """
    return _register(layer, CenteredWeightNorm(_weight(layer, "centered_weight_norm", least=2)))


def orthogonal_weight_norm(layer: Layer, group_size: int | None = None) -> Layer:
    """Make the rows of the weight centered and orthogonal and train their lengths; the layer changes.

    Args:
        layer: convolution or linear layer to change in place.
        group_size: most rows to orthogonalize together; None takes as many as possible.

    Raises:
        InputError: another kind of layer, rows of one entry, or group_size out of range.

    Example:
        >>> import torch
        >>> weight = F.normalize(orthogonal_weight_norm(nn.Linear(9, 2)).weight)
        >>> abs(float(weight[0].detach() @ weight[1].detach())) < 1e-4
        True
    """
    weight = _weight(layer, "orthogonal_weight_norm", least=2)
    return _register(layer, OrthogonalWeightNorm(weight, group_size))


def dirac_net(layer: Layer, preserve: bool = False) -> Layer:
    """Add a trained multiple of the identity to the normalized weight.

    Args:
        layer: convolution or linear layer to change in place.
        preserve: start from the layer as it is instead of the paper's initialization.

    Raises:
        InputError: another kind of layer, or an even kernel.

    Example:
        >>> import torch
        >>> conv = nn.Conv2d(4, 4, 3, padding=1)
        >>> x = torch.randn(1, 4, 5, 5)
        >>> before = conv(x)
        >>> torch.allclose(dirac_net(conv, preserve=True)(x), before, atol=1e-6)
        True
    """
    return _register(layer, DiracNet(_weight(layer, "dirac_net"), _groups(layer), preserve))


def weight_standardization(layer: Layer, eps: float = 1e-5) -> Layer:
    """Give the rows of the weight mean zero and variance one; the layer changes.

    Args:
        layer: convolution or linear layer to change in place.
        eps: added to the variance of a row.

    Raises:
        InputError: another kind of layer, or rows of one entry.

    Example:
        >>> import torch
        >>> weight = weight_standardization(nn.Conv2d(4, 4, 3)).weight
        >>> torch.allclose(weight.var((1, 2, 3), correction=0), torch.ones(4), atol=1e-2)
        True
    """
    _weight(layer, "weight_standardization", least=2)
    return _register(layer, WeightStandardization(eps))


def _weight(layer: nn.Module, name: str, kinds: tuple[type[nn.Module], ...] = LAYERS, least: int = 1) -> Tensor:
    """The weight of `layer`, checked: rows are outputs and have at least `least` entries."""
    require(
        isinstance(layer, kinds),
        f"{name} of {type(layer).__name__}",
        f"one of {', '.join(kind.__name__ for kind in kinds)}",
        "parametrize the convolutions of a model one by one",
    )
    weight = layer.weight
    assert isinstance(weight, Tensor)
    entries = weight[0].numel()
    require(
        entries >= least,
        f"{name} of a layer whose rows have {entries} entry",
        f"at least {least} (one entry less its mean is zero)",
        "leave such layers as they are",
    )
    return weight


def _register(layer: Layer, parametrization: nn.Module) -> Layer:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", parametrization.to(weight))
    return layer


def _full_precision(device: str) -> AbstractContextManager[None]:
    """Outside of autocast, on devices that have it (the meta device does not)."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return cast("AbstractContextManager[None]", torch.autocast(device, enabled=False))


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=1, keepdim=True)


def _identity(weight: Tensor, groups: int) -> Tensor:
    """The weight that copies input o to output o, within each group."""
    if weight.dim() == 2:
        return torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)
    return nn.init.dirac_(torch.empty_like(weight), groups)
