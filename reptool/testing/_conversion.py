"""Is our conversion of a model the one that its author's own code makes?"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from reptool.frontends.examples import example_for
from reptool.ir.walk import Inputs, map_tensors
from reptool.probing.operations import count_operations
from reptool.testing._equivalence import assert_equivalent

KINDS = ("convolution", "linear", "batch norm", "pooling", "addition", "multiplication", "concatenation")


def assert_same_conversion(
    ours: nn.Module, theirs: nn.Module, inputs: Inputs | None = None, *, rtol: float = 1e-5, weights: bool = True
) -> None:
    """Assert that two converted models are one: equal outputs, no more operations, and the same layers.

    For those who put `reptool.deploy` in the place of an author's ``switch_to_deploy``.

    Args:
        ours: a model deployed by reptool.
        theirs: the same model converted by other code.
        inputs: what they are compared on, at other sizes too; default inputs that their layers can read.
        rtol: allowed error of outputs and weights, as a fraction of the largest value.
        weights: whether the weights of convolutions and linear layers have to be the same, in some order.

    Raises:
        AssertionError: where the outputs differ, what ours runs more often, which layers theirs has and ours has not.

    >>> import reptool
    >>> block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> theirs = torch.nn.utils.fuse_conv_bn_eval(*block)
    >>> assert_same_conversion(reptool.deploy(block), theirs)
    """
    given = example_for(theirs) if inputs is None else inputs
    wide: Inputs = map_tensors(given, lambda t: t.double() if t.is_floating_point() else t)
    assert_equivalent(theirs, ours, wide, rtol=rtol)
    few, many = count_operations(theirs, given), count_operations(ours, given)
    more = {kind: (many[kind], few[kind]) for kind in KINDS if many[kind] > few[kind]}
    assert not more, f"ours runs more often than theirs: {more}"
    if weights:
        _same_layers(_layers(ours), _layers(theirs), rtol)


def _layers(model: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """Path, weight and bias of every convolution and linear layer."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    found = []
    for path, layer in model.named_modules():
        if isinstance(layer, kinds):
            weight = layer.weight.detach().double()
            count = layer.out_channels if isinstance(layer, nn.modules.conv._ConvNd) else len(weight)
            bias = torch.zeros(count).double() if layer.bias is None else layer.bias.detach().double()
            found.append((path, weight, bias))
    return found


def _same_layers(ours: list[tuple[str, Tensor, Tensor]], theirs: list[tuple[str, Tensor, Tensor]], rtol: float) -> None:
    left = list(ours)
    for path, weight, bias in theirs:
        same = [i for i, (_, w, b) in enumerate(left) if _close(w, weight, rtol) and _close(b, bias, rtol)]
        if not same:
            shapes = Counter(tuple(w.shape) for _, w, _ in left)
            raise AssertionError(
                f"no layer of ours has the weight {tuple(weight.shape)} and bias of their {path or 'model'!r}; those "
                f"that are left have the shapes {dict(shapes)}"
            )
        del left[same[0]]
    assert not left, f"ours has layers that theirs has not: {[path for path, _, _ in left]}"


def _close(a: Tensor, b: Tensor, rtol: float) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= rtol * b.abs().max() + 1e-12).all())
