"""Weight re-parameterizations: other ways to write the kernel of a layer that stays the layer it is.

Every class maps a weight (O, I/g, *K) or (O, I) to one of the same shape; every function puts one on a layer
by `torch.nn.utils.parametrize` and returns that layer. The rows of a weight are its outputs: v_o has
d = I/g * prod(K) entries. `torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")` bakes the
kernel in.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._checks import Size, require
from .ref_conv import Factory, Init, MapGroups, Transform, map_for
from .weight_maps import (
    CenteredWeightNorm,
    DiracNet,
    OrthogonalWeightNorm,
    Refocus,
    WeightNorm,
    WeightStandardization,
)

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


def refconv(
    layer: Layer,
    *,
    map_kernel_size: Size = 3,
    map_groups: MapGroups = None,
    init: Init = "xavier",
    identity: bool = True,
    train_basis: bool = False,
    transform: Transform | Factory | None = None,
) -> Layer:
    """Refocus the kernel of a convolution: RefConv on a layer that stays an `nn.Conv*d` to everybody.

    The basis weights `layer.parametrizations.weight.original` are frozen unless `train_basis`.

    Args:
        layer: convolution to change in place.
        map_kernel_size: odd size of the refocusing kernel.
        map_groups: groups of the refocusing convolution, as for `RefConv`.
        init: as for `RefConv`.
        identity: whether the basis is added to the transformed kernel.
        train_basis: whether the basis weights are trained too.
        transform: module or function (1, N, *K) -> (1, N, *K) in place of the refocusing convolution, or a function
            (shape, groups) that makes one.

    Raises:
        InputError: not a convolution, or options that RefConv refuses.

    Example:
        >>> import torch
        >>> conv = refconv(nn.Conv2d(4, 4, 3, groups=4))
        >>> [name for name, p in conv.named_parameters() if p.requires_grad]
        ['bias', 'parametrizations.weight.0.convmap.weight']
    """
    weight = _weight(layer, "refconv", LAYERS[:3])
    made = map_for(tuple(weight.shape), _groups(layer), transform, map_kernel_size, map_groups, init)
    _register(layer, Refocus(made, identity))
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
        >>> import torch.nn.functional as F
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


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1
