"""Steps of random networks: norms and scales on either side of what treats all channels alike."""

from __future__ import annotations

from dataclasses import replace

from tests.network_text import ClassText, Generator, Value, _of, step


def _positive(g: Generator, t: ClassText, channels: int) -> str:
    """A norm, half of the time with scales that are not negative."""
    name = t.attribute("bn", f"nn.BatchNorm{g.axes}d({channels})")
    if g.chance(0.5):
        hold = t.attribute("bn", f"nn.BatchNorm{g.axes}d({channels}, affine=False)")
        return hold if g.chance(0.5) else name
    return name


def _scaled(g: Generator, t: ClassText, x: str, channels: int) -> str:
    """A norm or scale behind a value."""
    if g.chance(0.7):
        return f"{_positive(g, t, channels)}({x})"
    gamma = t.attribute("gamma", f"nn.Parameter(torch.rand({g.shape(channels)}) + 0.2)")
    return g.pick(f"{x} * {gamma}", f"{x} * {gamma} - 0.5", f"0.7 * {x}")


def _kept(g: Generator, v: Value, x: str) -> str:
    """Something that treats all channels alike and gives a value of the size of `v`."""
    n, size = g.axes, f"size={v.name}.shape[2:]"
    mode = {1: "linear", 2: g.pick("bilinear", "bicubic"), 3: "trilinear"}[n]
    dims = tuple(range(2, n + 2))
    texts = [
        f"F.avg_pool{n}d({x}, 3, 1, 1, count_include_pad={g.chance(0.5)})",
        f"F.max_pool{n}d({x}, 3, 1, 1)",
        f"F.interpolate({x}, {size}, mode='{mode}', align_corners={g.chance(0.5)})",
        f"F.interpolate({x}, scale_factor=1.0, mode='nearest')",
        f"{x} + {x}.mean({dims}, keepdim=True)",
        f"{x}.mean({dims}, keepdim=True).expand({v.name}.shape)",
        f"torch.flip({x}, (2,))",
        f"torch.roll({x}, 1, -1)",
        f"{x}.flatten(2).reshape({x}.shape)",
        f"F.dropout({x}, 0.1, False)",
    ]
    return g.pick(*texts)


@step
def passed_back(g: Generator, t: ClassText, v: Value) -> Value:
    """A layer, what treats all channels alike, a norm."""
    layer, out = g.conv(v, keep=True)
    x = t.assign(f"{t.attribute('conv', layer)}({v.name})")
    middle = t.assign(_kept(g, replace(out, name=x), x))
    if g.chance(0.3):
        middle = t.assign(_kept(g, replace(out, name=x), middle))
    y = t.assign(_scaled(g, t, middle, out.channels))
    return _of(g, out, y if g.chance(0.7) else t.assign(g.pick(f"{y} + {x}", f"F.relu({y})", f"{y} + {middle}")))


@step
def passed_ahead(g: Generator, t: ClassText, v: Value) -> Value:
    """A norm behind an activation, what treats all channels alike, layers."""
    x = t.assign(f"torch.tanh({v.name})")
    y = t.assign(_scaled(g, t, x, v.channels))
    middle = t.assign(_kept(g, v, y))
    writes = g.pick(2, 4, v.channels)
    first = t.attribute("conv", f"nn.Conv{g.axes}d({v.channels}, {writes}, 1, bias={g.chance(0.5)})")
    if g.chance(0.3):
        second = t.attribute("conv", f"nn.Conv{g.axes}d({v.channels}, {writes}, 3, padding=1)")
        return _of(g, v, t.assign(f"F.relu({first}({middle})) + {second}({g.pick(middle, y)})"), writes)
    return _of(g, v, t.assign(f"F.relu({first}({middle}))"), writes)


@step
def pooled_and_back(g: Generator, t: ClassText, v: Value) -> Value:
    """Down by a pooling, a layer, up again, joined with a layer of the whole size, a norm."""
    n = g.axes
    if min(v.sizes) < 4:
        return v
    low = t.assign(f"{g.pick(f'F.max_pool{n}d', f'F.avg_pool{n}d')}({v.name}, 2)")
    a = t.attribute("conv", f"nn.Conv{n}d({v.channels}, 3, 1)")
    b = t.attribute("conv", f"nn.Conv{n}d({v.channels}, {g.pick(3, 4)}, 3, padding=1)")
    wide = int(t.setup[-1].split(",")[1])
    up = t.assign(f"F.interpolate({a}({low}), size={v.name}.shape[2:])")
    both = wide == 3 and g.chance(0.5)
    y = t.assign(f"{up} + {b}({v.name})" if both else f"torch.cat([{up}, {b}({v.name})], 1)")
    count = wide if both else 3 + wide
    return _of(g, v, t.assign(f"F.relu({_scaled(g, t, y, count)})"), count)


@step
def halved(g: Generator, t: ClassText, v: Value) -> Value:
    """A layer, a pooling by two, a norm, a layer."""
    n = g.axes
    if min(v.sizes) < 6:
        return v
    layer, out = g.conv(v, keep=True)
    pool = g.pick(f"nn.MaxPool{n}d(2)", f"nn.AvgPool{n}d(2)")
    x = t.assign(f"{t.attribute('pool', pool)}({t.attribute('conv', layer)}({v.name}))")
    y = t.assign(_scaled(g, t, x, out.channels))
    return _of(g, out.moved((-1,) * n, (2,) * n), y)


@step
def norm_of_tokens(g: Generator, t: ClassText, v: Value) -> Value:
    """A norm over the features of tokens, between two transposes, in front of linear layers."""
    c, x = v.channels, v.name
    norm = t.attribute("bn", f"nn.BatchNorm1d({c})")
    fc = t.attribute("fc", f"nn.Linear({c}, {c}, bias={g.chance(0.5)})")
    tokens = t.assign(f"torch.tanh({x}).flatten(2).transpose(1, 2)")
    normed = t.assign(f"{norm}({tokens}.transpose(1, 2)).transpose(1, 2)")
    text = f"{fc}({normed})" if g.chance(0.6) else f"F.gelu({fc}({normed})) + {fc}({g.pick(normed, tokens)})"
    return _of(g, v, t.assign(f"({text}).transpose(1, 2).reshape({x}.shape)"))


@step
def shuffled_up(g: Generator, t: ClassText, v: Value) -> Value:
    """A layer, a pixel shuffle, a norm, and down again."""
    if g.axes != 2:
        return v
    writes = g.pick(2, 3)
    layer = t.attribute("conv", f"nn.Conv2d({v.channels}, {4 * writes}, 3, padding=1)")
    x = t.assign(f"F.pixel_shuffle({layer}({v.name}), 2)")
    y = t.assign(_scaled(g, t, x, writes))
    return _of(g, v, t.assign(f"{g.pick('F.max_pool2d', 'F.avg_pool2d')}({y}, 2)"), writes)
