"""What an operation between two layers does to its channels, measured: does it scale with them, treat each by itself?

Both are laws of functions, and an operation is asked whether it obeys them, whatever it is called::

    homogeneous     f(s x) = s f(x)             for every s >= 0, one for each channel
    by itself       f(x)[:, some] = f(x[:, some])   for every choice of channels
    elementwise     f(x)[some] = f(x[some])         for every choice of elements
    positionwise    f(x)[..., some] = f(x[..., some])   for every choice of positions

in float64, at random values of every third decade from 1e-30 to 1e30. All but the third also ask that samples do not
meet: without a batch, the first axis is that of the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.models.copies import full_copy
from reptool.models.running import users_code
from reptool.rules.rule import Site

DECADES = range(-30, 31, 3)
SIZES = (7, 6, 5)
EXACT = 1e-13
SAMPLED = 6
"""Channels of what is asked whether it takes any number of them."""

Function = Callable[[Tensor], Tensor]


def through(site: Site, first: fx.Node, last: fx.Node) -> Function | None:
    """The operations from behind one node of a site to another one, as a function; None where one reads other data."""
    nodes = [n for n in site.nodes if site.nodes.index(first) < site.nodes.index(n) <= site.nodes.index(last)]
    graph = fx.Graph()
    known = {first: graph.placeholder("x")}
    for node in nodes:
        for read in node.all_input_nodes:
            if read not in known:
                if read.op != "get_attr":
                    return None
                known[read] = graph.node_copy(read)
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(known[last])
    run = fx.GraphModule(full_copy(site.graph), graph).double()

    def function(x: Tensor) -> Tensor:
        with torch.no_grad(), users_code():
            found: Tensor = run(x.clone())
            return found

    return function


def parameters_between(site: Site) -> bool:
    """Whether an operation between the first and the last node of a site holds tensors, one for each channel maybe."""
    held = [n for n in site.nodes[1:-1] if n.op == "call_module" and any(True for _ in _tensors(site.module(n)))]
    return bool(held) or any(r.op == "get_attr" for n in site.nodes[1:-1] for r in n.all_input_nodes)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def is_homogeneous(function: Function, channels: int, axes: int) -> bool:
    """Whether every scale of the channels that is not negative moves through a function."""
    generator = torch.Generator().manual_seed(0)
    for decade in DECADES:
        x = _values(channels, axes, generator)
        scale = torch.rand(channels, generator=generator, dtype=torch.float64) * 10.0**decade
        scale[0] *= bool(decade % 2)
        column = scale.reshape(-1, *[1] * axes)
        try:
            found, wanted = function(x * column), function(x)
        except Exception:  # it takes nothing of this shape
            return False
        same = wanted.dim() == x.dim() and wanted.shape[1] == channels
        if not same or not _close(found, wanted * column) or not _by_sample(function, x, wanted):
            return False
    return True


def is_by_itself(function: Function, channels: int, axes: int) -> bool:
    """Whether a function treats each channel by itself, and all alike."""
    generator = torch.Generator().manual_seed(0)
    for decade in DECADES:
        x = _values(channels, axes, generator) * 10.0**decade
        some = torch.randperm(channels, generator=generator)[: max(channels // 2, 1)]
        try:
            found, wanted = function(x[:, some]), function(x)
        except Exception:  # it takes nothing of this shape
            return False
        same = wanted.dim() == x.dim() and wanted.shape[1] == channels
        if not same or not _close(found, wanted[:, some]) or not _by_sample(function, x, wanted):
            return False
    return True


def is_elementwise(function: Function, axes: int) -> bool:
    """Whether a function treats each element by itself, and all alike, however many there are."""
    generator = torch.Generator().manual_seed(0)
    for decade in DECADES:
        x = _values(SAMPLED, axes, generator) * 10.0**decade
        fewer = (1, SAMPLED - 1, *[2] * axes)
        some = torch.randperm(x.numel(), generator=generator)[: prod(fewer)]
        try:
            found, wanted = function(x.flatten()[some].reshape(fewer)), function(x)
        except Exception:  # it takes nothing of this shape
            return False
        if wanted.shape != x.shape or not _close(found.flatten(), wanted.flatten()[some]):
            return False
    return True


def is_positionwise(function: Function, channels: int, axes: int) -> bool:
    """Whether a function treats each position by itself, and all alike, however many there are."""
    generator = torch.Generator().manual_seed(0)
    for decade in range(-6, 7, 3):
        x = _values(channels, axes, generator) * 10.0**decade
        size = [n + 2 for n in SIZES[:axes]]
        some = torch.randint(prod(SIZES[:axes]), (prod(size),), generator=generator)
        try:
            found, wanted = function(x.flatten(2)[..., some].reshape(2, channels, *size)), function(x)
        except Exception:  # it takes nothing of this shape
            return False
        if wanted.dim() != x.dim() or wanted.shape[2:] != x.shape[2:] or not _by_sample(function, x, wanted):
            return False
        picked = wanted.flatten(2)[..., some]
        if found.shape[2:] != torch.Size(size) or found.flatten(2).shape != picked.shape:
            return False
        if not bool(((found.flatten(2) - picked).abs() <= EXACT * picked.abs().amax()).all()):
            return False
    return True


def slopes(function: Function, channels: int, axes: int) -> Tensor | None:
    """``[channels, 2]``: the slopes on either side of zero of a function that has one on each; None for others."""
    if not is_homogeneous(function, channels, axes):
        return None
    ones = torch.ones(2, channels, *SIZES[:axes], dtype=torch.float64)
    up, down = function(ones), -function(-ones)
    generator = torch.Generator().manual_seed(0)
    for decade in DECADES:
        x = _values(channels, axes, generator) * 10.0**decade
        if up.shape != x.shape or not _close(function(x), torch.where(x >= 0, up, down) * x):
            return None
    found = torch.stack([up.transpose(0, 1).flatten(1), down.transpose(0, 1).flatten(1)], -1)
    return found[:, 0] if bool((found == found[:, :1]).all()) else None


def equal(site: Site, one: fx.Node, other: fx.Node) -> bool:
    """Whether two operations are the same function."""
    if one.op != other.op or len(one.args) != len(other.args) or one.kwargs.keys() != other.kwargs.keys():
        return False
    if one.op == "call_module":
        a, b = site.module(one), site.module(other)
        return a is b or (type(a) is type(b) and type(a).__module__.startswith("torch.nn.") and _held(a) == _held(b))
    if one.target != other.target:
        return False
    given = [[*n.args, *(n.kwargs[k] for k in sorted(n.kwargs))] for n in (one, other)]
    return all(_equal_arguments(site, a, b) for a, b in zip(*given, strict=True))


def _held(module: nn.Module) -> Any:
    return module.extra_repr(), [(n, t.tolist()) for n, t in module.state_dict().items()]


def _equal_arguments(site: Site, a: Any, b: Any) -> bool:
    constants = [n.op == "get_attr" for n in (a, b) if isinstance(n, fx.Node)]
    if len(constants) == 2 and not any(constants):
        return True  # the value itself
    x, y = ((site.constant(v) if isinstance(v, fx.Node) else v) for v in (a, b))
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and torch.equal(x, y)
    return type(a) is type(b) and bool(a == b)


def _by_sample(function: Function, x: Tensor, wanted: Tensor) -> bool:
    """Whether each of two samples is treated by itself."""
    return _close(function(x[1:]), wanted[1:]) and _close(function(x[:1]), wanted[:1])


def _values(channels: int, axes: int, generator: torch.Generator) -> Tensor:
    return torch.randn(2, channels, *SIZES[:axes], generator=generator, dtype=torch.float64)


def _close(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    return bool(((found - wanted).abs() <= EXACT * wanted.abs()).all())
