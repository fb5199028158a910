"""`insert_norms`: measured batch norms behind the layers of a deployed model, for retraining and quantization.

Behind a layer ``y = W x + b`` whose outputs have mean `m` and variance `v` over some batches stands, in eval mode,

    gamma * (W x - (m - b)) / sqrt(v + eps) + beta,    gamma = sqrt(v + eps), beta = m,

which is y. In training mode the norm normalizes by its batch, as behind any convolution without a bias.

Paradigm: `insert_bn` of RepVGG (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", 2021).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.errors import InputError, VerificationError
from reptool.expansion.calibrate import Batches
from reptool.expansion.where import CONVS, Conv, Where, select
from reptool.frontends.given import check_is_module, names_itself
from reptool.models.copies import independent_copy
from reptool.recipes.fingerprint import MARK
from reptool.recipes.step import RECIPE
from reptool.report.data import Report
from reptool.runtime.containers import leaves, mapped
from reptool.runtime.gates.marker import TOLD
from reptool.runtime.gates.release import release

NORMS: dict[type[nn.Module], type[_BatchNorm]] = dict(
    zip(CONVS, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), strict=True)
)
CLOSE = 1e-4
"""Largest difference that inserting may make to an output, as a fraction of the largest value."""
CONSTANT = 1e-12
"""A variance below this is that of a constant channel, which there is nothing to normalize in."""
M = TypeVar("M", bound=nn.Module)


def is_deployed(model: nn.Module) -> bool:
    """Whether `reptool.deploy` returned this model, or one that it was copied or loaded from.

    Args:
        model: any module.

    >>> import reptool
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> is_deployed(model), is_deployed(reptool.deploy(model))
    (False, True)
    """
    return isinstance(getattr(model, "_reptool_report", None), Report)


@names_itself
def insert_norms(deployed: M, batches: Batches, *, where: Where = None) -> M:
    """Put measured batch norms behind the layers of a deployed model; its outputs in eval mode stay what they are.

    Args:
        deployed: a model that `reptool.deploy` returned, or, with `where`, any model. It stays as it is.
        batches: one input, or several, to measure the outputs of the layers on; each a tensor, a tuple of arguments
            or a dict of keyword arguments.
        where: which convolutions, as for `reptool.expand`; None means the convolutions that `deploy` made.

    Returns:
        A copy that trains: its checks are taken away as by `reptool.release`, and each of these layers is a
        `Sequential` of ``conv`` (without a bias) and ``norm``. `deploy` folds them again.

    Raises:
        InputError: no batches, no such layers, or layers that none of the batches reaches.
        VerificationError: an output in eval mode would be another one.

    >>> import reptool
    >>> deployed = reptool.deploy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval())
    >>> x = torch.randn(4, 3, 9, 9)
    >>> trained = insert_norms(deployed, [x])
    >>> [type(m).__name__ for m in trained[0]], torch.allclose(trained(x), deployed(x), atol=1e-5)
    (['Conv2d', 'BatchNorm2d'], True)
    """
    check_is_module(deployed, "insert_norms")
    inputs: list[Any] = [batches] if isinstance(batches, Tensor) else list(batches)
    if not inputs:
        raise InputError("no batches were given; pass a tensor or a list of inputs")
    paths = _chosen(deployed, where)
    model = release(independent_copy(deployed))
    mode = model.training
    model.eval()
    measured = _measured(model, paths, inputs)
    before = _run(model, inputs[0])
    for path, (mean, variance) in measured.items():
        _insert(model, path, mean, variance)
    _check(before, _run(model, inputs[0]))
    for name in ("_reptool_report", RECIPE, MARK):
        model.__dict__.pop(name, None)
    model.__dict__[TOLD] = True  # there are norms again: train() has nothing to tell
    return model.train(mode)


def _chosen(model: nn.Module, where: Where) -> list[str]:
    if where is not None:
        return list(select(model, where))
    if not is_deployed(model):
        raise InputError(f"this {type(model).__name__} was not returned by reptool.deploy; name its layers with where")
    found: Report = model._reptool_report  # type: ignore[assignment]
    made = {region.layer for region in found.regions}
    modules = dict(model.named_modules())
    paths = [p for p, m in modules.items() if isinstance(m, CONVS) and (p in made or p.rpartition(".")[0] in made)]
    if not paths:
        raise InputError(f"deploy made no convolution of this {type(model).__name__} that could get a norm")
    return paths


@torch.no_grad()
def _measured(model: nn.Module, paths: list[str], inputs: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel of each layer's outputs, in float64."""
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def add(path: str, out: Tensor) -> None:
        held = out.detach().double().transpose(0, 1 if out.dim() > _axes(model, path) + 1 else 0).flatten(1)
        count, first, second = sums.get(path, (0, held.new_zeros(()).cpu(), held.new_zeros(()).cpu()))
        sums[path] = (count + held.shape[1], first + held.sum(1).cpu(), second + held.square().sum(1).cpu())

    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, __, out, p=path: add(p, out)) for path in paths
    ]
    try:
        for given in inputs:
            _run(model, given)
    finally:
        for handle in handles:
            handle.remove()
    missed = [p for p in paths if p not in sums]
    if missed:
        raise InputError(f"none of the batches reaches {missed[0]!r}; give others, or choose other layers with where")
    out = {}
    for path, (count, first, second) in sums.items():
        mean = first / count
        out[path] = mean, (second / count - mean**2).clamp_min(0)
    return out


@torch.no_grad()
def _run(model: nn.Module, given: Any) -> list[Tensor]:
    """The tensors that a model gives for a copy of one input: it may write into that."""
    given = mapped(given, lambda v: v.clone() if isinstance(v, Tensor) else v)
    args = () if isinstance(given, Mapping) else given if isinstance(given, tuple) else (given,)
    out = model(*args, **(given if isinstance(given, Mapping) else {}))
    return [leaf for leaf in leaves(out) if isinstance(leaf, Tensor)]


def _axes(model: nn.Module, path: str) -> int:
    found: Any = model.get_submodule(path)
    return len(found.kernel_size)


def _insert(model: nn.Module, path: str, mean: Tensor, variance: Tensor) -> None:
    """Put a norm behind one layer, under every path that the layer has."""
    conv: Any = model.get_submodule(path)
    norm = _norm(conv, mean, variance)
    pair = nn.Sequential(OrderedDict(conv=conv, norm=norm)).eval()
    for owner in list(model.modules()):
        for name, inner in owner._modules.items():
            if inner is conv and owner is not pair:
                owner._modules[name] = pair
    conv.register_parameter("bias", None)


def _norm(conv: Conv, mean: Tensor, variance: Tensor) -> _BatchNorm:
    cls = next(norm for kind, norm in NORMS.items() if isinstance(conv, kind))
    norm: Any = cls(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
    variance = torch.where(variance < CONSTANT, torch.ones_like(variance), variance)
    bias = 0.0 if conv.bias is None else conv.bias.detach().double().cpu()
    with torch.no_grad():
        norm.running_mean.copy_(mean - bias)
        norm.running_var.copy_(variance)
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(mean)
    return norm


def _check(before: list[Tensor], after: list[Tensor]) -> None:
    """Raise where an output is another one."""
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.is_floating_point() and a.numel():
            off = float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-30))
            if not off <= max(CLOSE, 40 * torch.finfo(a.dtype).eps):
                raise VerificationError(
                    f"with norms behind its layers, output {i} of the model is off by {off:.3g} of its largest value: "
                    "other code reads what a layer gives or holds; choose other layers with where"
                )
