"""`equalize`: ranges of neighbouring layers made alike, on a flattened network.

Formula and domain: `fusions/nonlinear/equalization.py`. Whether what lies between two layers is positively homogeneous,
channel by channel, is measured, not looked up.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from reptool.fusions.nonlinear.equalization import equalized, equalizing_scale
from reptool.rules.channelwise import is_homogeneous, through
from reptool.rules.layers import axes_of, layer_like
from reptool.rules.rule import Site, in_the_way

MAX_BETWEEN, MAX_SWEEPS = 8, 40


def equalize(network: fx.GraphModule) -> fx.GraphModule:
    """Make the ranges of each two layers alike that follow each other through a positively homogeneous operation.

    Meant as a rule of `deploy`, which verifies what comes out in float64. Factors are powers of two alone,
    so that no weight is rounded: what is computed stays the same, and what 8 bits keep of it grows.

    Args:
        network: a flattened network; it is changed.

    Returns:
        The same network.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.

    >>> import reptool, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    >>> model[0].weight.data[0] *= 256
    >>> x = torch.randn(1, 3, 8, 8)
    >>> made = reptool.deploy(model, x, rules=(*reptool.RULES, equalize), flatten=True)
    >>> torch.allclose(made(x), model(x), rtol=1e-4)
    True
    """
    pairs = list(_pairs(network))
    for _ in range(MAX_SWEEPS):
        if not sum(_moved(site) for site in pairs):
            break
    network.graph.lint()
    network.recompile()
    return network


def _pairs(network: fx.GraphModule) -> Iterator[Site]:
    """Two layers of torch's own, each called once, with what is homogeneous between them."""
    calls = [str(n.target) for n in network.graph.nodes if n.op == "call_module"]
    for node in network.graph.nodes:
        row = [node] if axes_of(network, node) is not None else []
        while row and len(row) <= MAX_BETWEEN + 1:
            data = [n for n in row[-1].all_input_nodes if n.op != "get_attr"]
            row = [*row, data[0]] if len(data) == 1 else []
            if row and axes_of(network, row[-1]) is not None:
                site = Site(network, *reversed(row))
                ends = (str(site.nodes[0].target), str(site.nodes[-1].target))
                if all(calls.count(name) == 1 for name in ends) and _fits(site):
                    yield site
                break


def _fits(site: Site) -> bool:
    first, *between, last = site.nodes
    axes, channels = axes_of(site.graph, first), site.module(first).weight.shape[0]
    groups = getattr(site.module(last), "groups", 1)
    if axes is None or axes != axes_of(site.graph, last) or in_the_way(site) is not None:
        return False
    if site.module(last).weight.shape[1] * groups != channels:
        return False
    if not between:
        return True
    function = through(site, first, between[-1])
    return function is not None and is_homogeneous(function, channels, axes)


def _moved(site: Site) -> bool:
    """Whether a factor other than one was moved between two layers."""
    first, last = site.module(site.nodes[0]), site.module(site.nodes[-1])
    groups = getattr(last, "groups", 1)
    scale = equalizing_scale(first.weight, last.weight, groups)
    if bool((scale == 1).all()):
        return False
    bias = None if first.bias is None else first.bias.detach()
    weight, bias, second = equalized(first.weight.detach(), bias, last.weight.detach(), scale, groups)
    site.put(site.nodes[0], layer_like(first, weight, bias))
    site.put(site.nodes[-1], layer_like(last, second, None if last.bias is None else last.bias.detach()))
    return True
