"""More steps of random networks: layouts, scales and shifts in every spelling, weights in every spelling, crops."""

from __future__ import annotations

from dataclasses import replace

from tests.network_text import ClassText, Generator, Value, _of, step


@step
def scaled(g: Generator, t: ClassText, v: Value) -> Value:
    """A scale or shift along the channels, as people write them."""
    x, c = v.name, v.channels
    one = t.attribute("gamma", f"nn.Parameter(torch.randn({g.shape(c)}))")
    two = t.attribute("beta", f"nn.Parameter(torch.randn(1, {g.shape(c)}))")
    flat = t.attribute("scale", f"nn.Parameter(torch.randn({c}))")
    column = ", ".join([":", *["None"] * g.axes])
    view = ", ".join(["1", "-1", *["1"] * g.axes])
    text = g.pick(
        f"torch.addcmul({two}, {x}, {one})",
        f"torch.lerp({x}, 2.0 * {x}, 0.25)",
        f"{x}.sub({one}).div(1.75)",
        f"torch.sub({one}, {x}, alpha=0.5)",
        f"{x} * {flat}[{column}]",
        f"{x} * {flat}.view({view}) + {two}",
        f"{x}.mul({one}).neg()",
        f"{x} / ({one}.abs() + 0.5)",
        f"{x} - {flat}.abs().sqrt().view({view})",
        f"torch.true_divide({x}, 4.0) + {x}",
        f"torch.rsub({x}, 1.5)",
    )
    return _of(g, v, t.assign(text))


@step
def frozen_norm(g: Generator, t: ClassText, v: Value) -> Value:
    """A frozen norm, as detectors write it."""
    c = v.channels
    name = t.fresh("frozen")
    for kind in ("weight", "bias", "running_mean"):
        t.setup.append(f"self.register_buffer('{name}_{kind}', torch.randn({c}))")
    t.setup.append(f"self.register_buffer('{name}_running_var', torch.rand({c}) + 0.3)")
    view = ", ".join(["1", "-1", *["1"] * g.axes])
    scale, bias = t.fresh("scale"), t.fresh("bias")
    t.body.append(f"{scale} = self.{name}_weight * (self.{name}_running_var + 1e-5).rsqrt()")
    t.body.append(f"{bias} = self.{name}_bias - self.{name}_running_mean * {scale}")
    return _of(g, v, t.assign(f"{v.name} * {scale}.view({view}) + {bias}.view({view})"))


@step
def channels_last(g: Generator, t: ClassText, v: Value) -> Value:
    """A pointwise stack on values whose channels stand last."""
    n, c = g.axes, v.channels
    there, back = (0, *range(2, n + 2), 1), (0, n + 1, *range(1, n + 1))
    writes = g.pick(2, 4, c)
    layers = t.attribute("fc", f"nn.Linear({c}, {writes}, bias={g.chance(0.7)})")
    text = f"{layers}({v.name}.permute{there})"
    if g.chance(0.4):
        text = f"{t.attribute('fc', f'nn.Linear({writes}, {writes})')}({text})"
    if g.chance(0.3):
        text = f"{text} * {t.attribute('gamma', f'nn.Parameter(torch.randn({writes}))')}"
    if g.chance(0.3):
        text = f"F.gelu({text})"
    y = t.assign(f"({text}).permute{back}")
    if g.chance(0.5):
        y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{n}d({writes})')}({y})")
    return _of(g, v, y, writes)


@step
def tokens(g: Generator, t: ClassText, v: Value) -> Value:
    """Image to tokens, a chain of linear layers, and back."""
    c, x = v.channels, v.name
    layer = t.attribute("fc", f"nn.Linear({c}, {c}, bias={g.chance(0.5)})")
    text = f"{layer}({x}.flatten(2).transpose(1, 2))"
    if g.chance(0.5):
        text = f"{t.attribute('fc', f'nn.Linear({c}, {c})')}({text})"
    return _of(g, v, t.assign(f"{text}.transpose(1, 2).reshape({x}.shape)"))


@step
def cropped(g: Generator, t: ClassText, v: Value) -> Value:
    """A padded convolution and a crop behind it, or in front."""
    n, c = g.axes, v.channels
    if min(v.sizes) < 6:
        return v
    layer = t.attribute("conv", f"nn.Conv{n}d({c}, {c}, 3, padding=2, bias={g.chance(0.5)})")
    y = t.assign(f"{layer}({v.name})")
    if g.chance(0.5):
        y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({y})")
    inner = ", ".join(["...", *["1:-1"] * n])
    narrow = y
    for axis in range(2, n + 2):
        narrow = f"{narrow}.narrow({axis}, 1, {y}.shape[{axis}] - 2)"
    return _of(g, v, t.assign(g.pick(f"{y}[{inner}]", f"F.pad({y}, {(-1,) * 2 * n})", narrow)))


@step
def picked(g: Generator, t: ClassText, v: Value) -> Value:
    """Channels picked by an index, a narrow or a matrix."""
    c, x, n = v.channels, v.name, g.axes
    if c < 2:
        return v
    kind = g.pick("index", "narrow", "flip", "roll", "stack", "unsqueeze")
    if kind == "index":
        name = t.fresh("index")
        order = sorted(range(c), key=lambda i: g.random.random())
        t.setup.append(f"self.register_buffer('{name}', torch.tensor({order}))")
        return _of(g, v, t.assign(g.pick(f"{x}.index_select(1, self.{name})", f"{x}[:, self.{name}]")))
    if kind == "narrow":
        return _of(g, v, t.assign(f"{x}.narrow(1, 1, {c - 1})"), c - 1)
    if kind == "flip":
        return _of(g, v, t.assign(f"{x}.flip(1)"))
    if kind == "roll":
        return _of(g, v, t.assign(f"torch.roll({x}, 1, 1)"))
    if kind == "stack":
        convs = [t.attribute("conv", f"nn.Conv{n}d({c}, {c}, {k}, padding={k // 2})") for k in (1, 3)]
        return _of(g, v, t.assign(f"torch.stack([{convs[0]}({x}), {convs[1]}({x})]).sum(0)"))
    return _of(g, v, t.assign(f"{x}.unsqueeze(0).squeeze(0)"))


@step
def made_weight(g: Generator, t: ClassText, v: Value) -> Value:
    """A convolution whose weight is computed: low rank, flipped, a RefConv, a DiracNet, a difference."""
    n, c = g.axes, v.channels
    shape = ", ".join(map(str, [c, c, *[3] * n]))
    dims = tuple(range(2, n + 2))
    weight = t.attribute("weight", f"nn.Parameter(torch.randn({shape}) * 0.3)")
    kind = g.pick("low rank", "flipped", "dirac", "difference", "map", "scaled", "cast")
    if kind == "low rank":
        a, b = (t.attribute("lora", f"nn.Parameter(torch.randn({s}) * 0.3)") for s in (f"{c}, 2", f"2, {c * 3**n}"))
        text = f"{weight} + ({a} @ {b}).view({shape})"
    elif kind == "flipped":
        text = f"{weight}.flip({dims})"
    elif kind == "dirac":
        name = t.fresh("delta")
        t.setup.append(f"self.register_buffer('{name}', nn.init.dirac_(torch.empty({shape})))")
        text = f"0.5 * self.{name} + {weight} / {weight}.norm()"
    elif kind == "difference":
        view = ", ".join([":", ":", *["None"] * n])
        text = f"{weight} - {weight}.sum({dims})[{view}] / {3**n}"
    elif kind == "map":
        layer = t.attribute("convmap", f"nn.Conv{n}d(1, 1, 3, padding=1, bias=False)")
        flat = ", ".join(map(str, [c * c, 1, *[3] * n]))
        text = f"{weight} + {layer}({weight}.view({flat})).view({shape})"
    elif kind == "scaled":
        gain = t.attribute("gain", f"nn.Parameter(torch.ones({c}, {', '.join(['1'] * (n + 1))}))")
        text = f"{weight} * {gain}.sigmoid()"
    else:
        text = f"{weight}.to({v.name}.dtype)"
    y = t.assign(f"F.conv{n}d({v.name}, {text}, None, padding=1)")
    if g.chance(0.7):
        y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({y})")
    return _of(g, v, y)


@step
def pruned(g: Generator, t: ClassText, v: Value) -> Value:
    """A convolution with a mask by `torch.nn.utils.prune`, a legacy weight norm, or an orthogonal weight."""
    text, out = g.conv(v, keep=True)
    layer = t.attribute("conv", text)
    t.setup.append(
        g.pick(
            f"torch.nn.utils.prune.l1_unstructured({layer}, 'weight', 0.3)",
            f"torch.nn.utils.weight_norm({layer})",
            f"torch.nn.utils.parametrizations.orthogonal({layer})",
            f"torch.nn.utils.parametrizations.weight_norm({layer}, dim=1)",
        )
    )
    y = t.assign(f"{layer}({v.name})")
    if g.chance(0.7):
        y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{g.axes}d({out.channels})')}({y})")
    return replace(out, name=y)


@step
def bn_and_pad(g: Generator, t: ClassText, v: Value) -> Value:
    """A norm, then a border of what the norm makes of zero: exact where a convolution with padding follows."""
    n, c = g.axes, v.channels
    first = t.attribute("conv", f"nn.Conv{n}d({v.channels}, {c}, 1, bias=False)")
    bn = t.attribute("bn", f"nn.BatchNorm{n}d({c})")
    y = t.assign(f"F.pad({bn}({first}({v.name})), {(1,) * 2 * n})")
    scale = f"{bn}.weight.detach() / ({bn}.running_var + {bn}.eps).sqrt()"
    value = t.assign(f"{bn}.bias.detach() - {bn}.running_mean * {scale}")
    view = f"{value}.view(1, -1, {', '.join(['1'] * n)})"
    for axis in range(n):
        colons = ", ".join([":"] * (2 + axis))
        rest = ", ".join([":"] * (n - axis - 1))
        for end in ("0:1", "-1:"):
            t.body.append(f"{y}[{colons}, {end}{', ' + rest if rest else ''}] = {view}")
    second = t.attribute("conv", f"nn.Conv{n}d({c}, {c}, 3, bias={g.chance(0.5)})")
    return _of(g, v, t.assign(f"{second}({y})"))


@step
def two_transposed(g: Generator, t: ClassText, v: Value) -> Value:
    """Parallel transposed convolutions, summed, with a norm."""
    n, c = g.axes, v.channels
    if max(v.sizes) > 16:
        return v
    groups = g.pick(1, c)
    layers = [
        t.attribute("up", f"nn.ConvTranspose{n}d({c}, {c}, 3, stride=2, padding=1, output_padding=1, groups={groups})")
        for _ in range(2)
    ]
    y = t.assign(f"{layers[0]}({v.name}) + {layers[1]}({v.name})")
    y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({y})")
    return g.tagged(replace(v, name=y, sizes=tuple(2 * size for size in v.sizes)))


@step
def spread_norm(g: Generator, t: ClassText, v: Value) -> Value:
    """A norm behind a sum or a concatenation of different values."""
    n, c = g.axes, v.channels
    first = t.attribute("conv", f"nn.Conv{n}d({c}, {c}, 3, padding=1, bias={g.chance(0.5)})")
    second = t.attribute("conv", f"nn.Conv{n}d({c}, {c}, 1, bias={g.chance(0.5)})")
    left, right = f"{first}({v.name})", f"{second}(F.relu({v.name}))"
    joined = g.pick(f"{left} + {right}", f"torch.cat([{left}, {right}], 1)")
    channels = c * 2 if "cat" in joined else c
    y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{n}d({channels})')}({joined})")
    return _of(g, v, y, channels)
