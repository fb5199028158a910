"""Random whole networks, written as Python source: modules in modules, and everything people do in them.

``random_network(seed)`` gives the module and example inputs; ``network_source(seed)`` the text, which is
also the reproducer of a failure.
"""

from __future__ import annotations

import linecache
import sys
import types
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import tests.network_layouts
import tests.network_passages
import tests.network_sums  # noqa: F401
from reptool.testing import randomize
from tests.network_blocks import BLOCKS, written
from tests.network_text import ClassText, Generator, Value

_HEADER = '''import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn


def double_output(module, inputs, output):
    return output * 2


def double_input(module, inputs):
    return (inputs[0] * 2, *inputs[1:])


def do_nothing(module, inputs, output):
    return None


class NormAct(nn.BatchNorm{axes}d):
    """A norm with an activation in it, as in timm."""

    def forward(self, x):
        return F.relu(super().forward(x), inplace=True)
'''

_SIZES = {1: (20,), 2: (12, 10), 3: (8, 6, 6)}


def _head(g: Generator, t: ClassText, v: Value) -> str:
    """A classifier, or nothing."""
    n, c = g.axes, v.channels
    kind = g.pick("none", "none", "none", "pooled", "flatten", "norm", "mean", "pointwise")
    if kind == "none":
        return v.name
    if kind == "flatten":
        pool = t.attribute("pool", f"nn.AdaptiveAvgPool{n}d(2)")
        tail = "nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)"
        head = f"nn.Sequential(nn.Flatten(), nn.Linear({c * 2**n}, 6), {tail})"
        return t.assign(f"{t.attribute('head', head)}({pool}({v.name}))")
    if kind == "pointwise":
        tail = f"nn.AdaptiveAvgPool{n}d(1), nn.Flatten()"
        layers = f"nn.Sequential(nn.Conv{n}d({c}, 5, 1), nn.BatchNorm{n}d(5), {tail})"
        return t.assign(f"{t.attribute('head', layers)}({v.name})")
    dims = tuple(range(2, n + 2))
    pooled = t.assign(
        f"F.adaptive_avg_pool{n}d({v.name}, 1).flatten(1)" if kind == "pooled" else f"{v.name}.mean({dims})"
    )
    if kind == "norm":
        bn, fc = t.attribute("bn", f"nn.BatchNorm1d({c})"), t.attribute("fc", f"nn.Linear({c}, 4)")
        out = t.attribute("bn", "nn.BatchNorm1d(4)")
        return t.assign(f"{out}({fc}({bn}({pooled})))")
    first, second = (
        t.attribute("fc", f"nn.Linear({c}, 4)"),
        t.attribute("fc", f"nn.Linear(4, 2, bias={g.chance(0.5)})"),
    )
    return t.assign(g.pick(f"{second}({first}({pooled}))", f"{second}(F.relu({first}({pooled})))"))


def _second_input(g: Generator, t: ClassText, v: Value, kind: str) -> Value:
    """Join the network's second input with the first."""
    if kind == "sum":
        return replace(v, name=t.assign(f"{v.name} + y"))
    if kind == "optional":
        t.body += ["if y is not None:", f"    {v.name} = {v.name} * y"]
        return v
    text, branch = g.conv(replace(v, name="y"), keep=True)
    y = t.assign(f"{t.attribute('stem', text)}(y)")
    return replace(v, name=t.assign(f"torch.cat([{v.name}, {y}], 1)"), channels=v.channels + branch.channels)


def _network(g: Generator) -> tuple[ClassText, str]:
    """The outermost class, and the text of its example inputs."""
    n, sizes = g.axes, _SIZES[g.axes]
    channels = g.pick(1, 2, 3, 4)
    second = g.pick(None, None, None, None, "sum", "cat", "optional")
    inputs = "x" if second is None else "x, y=None" if second == "optional" else "x, y"
    t = ClassText("Network", inputs)
    v = Value("x", channels, sizes, ((0, 1),) * n)
    if second is not None:
        v = _second_input(g, t, v, second)
    names = list(BLOCKS)
    if g.ops is not None:
        names = [name for name in names if name in g.ops] or ["steps"]
    kept: list[str] = []
    pending: list[str] = []
    for _ in range(g.random.randint(1, 4)):
        text, out = written(g, g.random.choice([*names, *[x for x in ("steps",) if x in names]]), v)
        if g.chance(0.3):
            pending.append(text)
            v = replace(out, name=v.name)
            continue
        if out.channels == v.channels and out.fits(v) and g.chance(0.3):
            pending.append(text)  # the same class twice
        layer = t.attribute("stage", f"nn.Sequential({', '.join([*pending, text])})" if pending else text)
        pending = []
        v = replace(out, name=t.assign(f"{layer}({v.name})"))
        if g.chance(0.25):
            kept.append(v.name)
    if pending:
        v = replace(v, name=t.assign(f"{t.attribute('stage', 'nn.Sequential(' + ', '.join(pending) + ')')}({v.name})"))
    result = _head(g, t, v)
    if not kept:
        t.body.append(f"return {result}")
    else:
        names_text = ", ".join(kept)
        t.body.append(
            g.pick(
                f"return {result}, [{names_text}]",
                f"return {{'out': {result}, 'kept': ({names_text},)}}",
                f"return ({names_text}, {result})",
            )
        )
    shape = ", ".join(map(str, (2, channels, *sizes)))
    one = f"torch.randn({shape})"
    given = {
        None: one,
        "sum": f"({one}, {one})",
        "cat": f"({one}, {one})",
        "optional": g.pick(one, f"({one}, {one})", f"{{'x': {one}}}"),
    }
    return t, given[second]


def network_source(seed: int, ops: Collection[str] | None = None) -> str:
    """The source of a random network: run it, then ``model, example_inputs = make()``.

    Args:
        seed: equal seeds give equal source.
        ops: names of the steps and blocks to use, all when None (see `STEPS` and `BLOCKS`).
    """
    g = Generator(seed, ops)
    t, inputs = _network(g)
    classes = "\n\n\n".join(map(str, [*g.classes, t]))
    make = f"""

def make():
    torch.manual_seed({seed})
    return Network().eval(), {inputs}
"""
    return f"{_HEADER.format(axes=g.axes)}\n\n{classes}\n{make}"


def build(source: str, seed: int) -> tuple[nn.Module, Any]:
    """Run `source` as a module of its own, so that its classes pickle and show their source.

    Args:
        source: as `network_source` gives it.
        seed: of the statistics.
    """
    name = f"generated_network_{seed}"
    module = types.ModuleType(name)
    module.__file__ = f"<{name}>"
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(keepends=True), module.__file__)
    sys.modules[name] = module
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    with torch.no_grad():  # masked and normed weights are attributes that could not be copied otherwise
        model, inputs = module.make()
    return randomize(model, seed, extreme=seed % 7 == 0), inputs


def random_network(seed: int, ops: Collection[str] | None = None) -> tuple[nn.Module, Any]:
    """A random network in eval mode, with statistics as after training, and example inputs.

    Args:
        seed: equal seeds give equal networks.
        ops: names of the steps and blocks to use, all when None.
    """
    return build(network_source(seed, ops), seed)
