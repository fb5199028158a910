"""Blocks of random networks: each writes a class and says what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.network_text import STEPS, ClassText, Generator, Value

Block = Callable[[Generator, ClassText, Value], Value]
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Register a block under its function's name."""
    BLOCKS[function.__name__] = function
    return function


def written(g: Generator, name: str, v: Value) -> tuple[str, Value]:
    """Write the class of a block that reads `v`: the text that makes one, and what it gives."""
    text = g.new_class("".join(part.capitalize() for part in name.split("_")))
    out = BLOCKS[name](g, text, replace(v, name="x"))
    text.body.append(f"return {out.name}")
    return f"{g.finish(text)}()", out


def _allowed(g: Generator) -> list[str]:
    return [name for name in STEPS if g.ops is None or name in g.ops] or ["conv"]


def _maybe(g: Generator, t: ClassText, x: str, channels: int, norm: float = 0.9) -> str:
    return f"{t.attribute('bn', g.norm(channels))}({x})" if g.chance(norm) else x


# --- blocks of one step after another
@block
def steps(g: Generator, t: ClassText, v: Value) -> Value:
    """A DAG: each step reads some value written before, sums and concatenations join them."""
    live = [v]
    for _ in range(g.random.randint(3, 7)):
        source = live[-1] if g.chance(0.65) else g.random.choice(live)
        name = g.random.choice(
            [*_allowed(g), *[n for n in ("conv", "norm", "conv", "norm", "pool") if n in _allowed(g)]]
        )
        live.append(STEPS[name](g, t, source))
        if g.chance(0.35):
            live.append(_joined(g, t, live))
    last = live[-1]
    for other in live[1:-1]:
        if g.chance(0.15) and other.fits(last):
            last = replace(
                last,
                name=t.assign(f"torch.cat([{last.name}, {other.name}], 1)"),
                channels=last.channels + other.channels,
            )
    return _narrow(g, t, last)


def _joined(g: Generator, t: ClassText, live: list[Value]) -> Value:
    last = live[-1]
    close = [o for o in live[:-1] if o.fits(last)]
    if g.chance(0.1):  # equal at this size, not at every size
        close += [o for o in live[:-1] if o.sizes == last.sizes]
    if not close:
        return last
    other = g.random.choice(close)
    a, b = last.name, other.name
    if other.channels == last.channels and g.chance(0.75):
        kind = g.random.randrange(7)
        if kind == 0:
            t.body.append(f"{a} += {b}")
            return last
        text = [
            f"{a} + {b}",
            f"torch.add({a}, {b})",
            f"{a} - {b}",
            f"{a}.add({b}, alpha=2)",
            f"{b} + {a}",
            f"{a} * {b}",
        ]
        return replace(last, name=t.assign(text[kind - 1]))
    return replace(last, name=t.assign(f"torch.cat([{b}, {a}], dim=1)"), channels=last.channels + other.channels)


def _narrow(g: Generator, t: ClassText, v: Value) -> Value:
    """Keep networks small."""
    if v.channels <= 12:
        return v
    layer = t.attribute("narrow", f"nn.Conv{g.axes}d({v.channels}, 4, 1)")
    return replace(v, name=t.assign(f"{layer}({v.name})"), channels=4)


@block
def sequence(g: Generator, t: ClassText, v: Value) -> Value:
    """A Sequential of convolutions, norms and activations in every order."""
    layers, out = [], v
    for _ in range(g.random.randint(1, 3)):
        conv, after = g.conv(out)
        order = g.pick("cna", "cna", "nca", "cn", "c", "acn", "can", "cnn", "cpn")
        for letter in order:
            if letter == "c":
                layers.append(conv)
                out = after
            elif letter == "n":
                layers.append(g.norm(out.channels))
            elif letter == "p":
                layers.append(f"nn.AvgPool{g.axes}d(3, 1, 1)")
            else:
                layers.append(g.activation())
    if g.chance(0.3):
        cut = g.random.randint(0, len(layers))
        layers = [f"nn.Sequential({', '.join(layers[:cut])})", f"nn.Sequential({', '.join(layers[cut:])})"]
    made = t.attribute("layers", f"nn.Sequential({', '.join(layers)})")
    if g.chance(0.15):
        y = t.fresh()
        t.body += [f"{y} = {v.name}", f"for layer in {made}:", f"    {y} = layer({y})"]
        return replace(out, name=y)
    return replace(out, name=t.assign(f"{made}({v.name})"))


# --- structural re-parameterization
@block
def rep_vgg(g: Generator, t: ClassText, v: Value) -> Value:
    n, stride = g.axes, 2 if min(v.sizes) >= 6 and g.chance(0.3) else 1
    writes = v.channels if stride == 1 and g.chance(0.7) else g.pick(4, 6)
    groups = g.groups(v.channels, writes)
    branches = []
    for k in g.pick((3, 1), (3, 1), (5, 3, 1), (3, 3)):
        kept = f"stride={stride}, padding={k // 2}, groups={groups}, bias={g.chance(0.2)}"
        text = f"nn.Conv{n}d({v.channels}, {writes}, {k}, {kept})"
        branches.append(_maybe(g, t, f"{t.attribute('conv', text)}({v.name})", writes))
    if stride == 1 and writes == v.channels:
        branches.append(_maybe(g, t, v.name, writes))
    total = f"sum([{', '.join(branches)}])" if g.chance(0.2) else " + ".join(branches)
    y = t.assign(f"{t.attribute('act', g.activation())}({total})")
    out = v.moved((0,) * n, (stride,) * n)
    return replace(out, name=y, channels=writes)


@block
def ac_block(g: Generator, t: ClassText, v: Value) -> Value:
    n, writes = g.axes, g.pick(3, v.channels)
    branches = []
    for axis in (None, *range(n)):
        size = [3] * n if axis is None else [3 if i == axis else 1 for i in range(n)]
        padding = [k // 2 for k in size]
        kept = f"padding={tuple(padding)}, bias={g.chance(0.3)}"
        text = f"nn.Conv{n}d({v.channels}, {writes}, {tuple(size)}, {kept})"
        branches.append(_maybe(g, t, f"{t.attribute('conv', text)}({v.name})", writes))
    return replace(v, name=t.assign(" + ".join(branches)), channels=writes)


@block
def diverse_branch(g: Generator, t: ClassText, v: Value) -> Value:
    n, writes = g.axes, g.pick(3, v.channels)
    x, reads = v.name, v.channels

    def conv(a: int, b: int, k: int, p: int, bias: bool = False) -> str:
        return t.attribute("conv", f"nn.Conv{n}d({a}, {b}, {k}, padding={p}, bias={bias})")

    def bn(c: int) -> str:
        return t.attribute("bn", f"nn.BatchNorm{n}d({c})")

    branches = [
        f"{bn(writes)}({conv(reads, writes, 3, 1)}({x}))",
        f"{bn(writes)}({conv(reads, writes, 1, 0)}({x}))",
    ]
    middle = g.pick(reads, 2)
    padded = g.chance(0.6)  # the padding belongs to the first layer; the other way round is refused
    a, b = (1, 0) if padded else (0, 1)
    branches.append(f"{bn(writes)}({conv(middle, writes, 3, b)}({bn(middle)}({conv(reads, middle, 1, a)}({x}))))")
    pool = t.attribute("pool", f"nn.AvgPool{n}d(3, 1, 1)" if g.chance(0.5) else f"nn.AvgPool{n}d(3, 1, 0)")
    pads = "" if "0)" not in t.setup[-1] else "padded"
    inner = f"{conv(reads, writes, 1, 1 if pads else 0)}({x})"
    branches.append(f"{bn(writes)}({pool}({inner}))")
    g.random.shuffle(branches)
    return replace(v, name=t.assign(" + ".join(branches[: g.random.randint(2, 4)])), channels=writes)


@block
def mobile_one(g: Generator, t: ClassText, v: Value) -> Value:
    """Several equal branches in a ModuleList, summed in a loop, depthwise then pointwise."""
    n, c, x = g.axes, v.channels, v.name
    depthwise = f"nn.Conv{n}d({c}, {c}, 3, padding=1, groups={c}, bias=False)"
    branch = f"nn.Sequential({depthwise}, nn.BatchNorm{n}d({c}))"
    made = t.attribute("rbr", f"nn.ModuleList([{branch} for _ in range(3)])")
    skip = t.attribute("skip", f"nn.BatchNorm{n}d({c})" if g.chance(0.7) else "nn.Identity()")
    y = t.fresh()
    t.body += [
        f"{y} = {skip}({x})",
        f"for branch in {made}:",
        f"    {y} {g.pick('+=', '= ' + y + ' +')} branch({x})",
    ]
    writes = g.pick(c, 4)
    point = t.attribute("point", f"nn.Conv{n}d({c}, {writes}, 1, bias=False)")
    return replace(v, name=t.assign(f"{_maybe(g, t, f'{point}({y})', writes)}"), channels=writes)


@block
def residual(g: Generator, t: ClassText, v: Value) -> Value:
    n, c, x = g.axes, v.channels, v.name
    stride = 2 if min(v.sizes) >= 6 and g.chance(0.35) else 1
    writes = c if stride == 1 and g.chance(0.7) else g.pick(4, 6)
    conv1 = t.attribute("conv", f"nn.Conv{n}d({c}, {writes}, 3, stride={stride}, padding=1, bias=False)")
    conv2 = t.attribute("conv", f"nn.Conv{n}d({writes}, {writes}, 3, padding=1, bias={g.chance(0.3)})")
    a, b = (t.attribute("bn", f"nn.BatchNorm{n}d({writes})") for _ in range(2))
    act = t.attribute("act", g.pick("nn.ReLU(inplace=True)", "nn.ReLU()", "nn.Identity()"))
    short = x
    if stride != 1 or writes != c:
        layers = [
            f"nn.Conv{n}d({c}, {writes}, 1, stride={stride}, bias=False)",
            f"nn.BatchNorm{n}d({writes})",
        ]
        if stride == 2 and g.chance(0.3):  # equal sizes for even images only
            odd = any(size % 2 for size in v.sizes)
            layers[0] = f"nn.Conv{n}d({c}, {writes}, 1, bias=False)"
            layers.insert(0, f"nn.AvgPool{n}d(2, 2{', ceil_mode=True' if odd else ''})")
        down = f"nn.Sequential({', '.join(layers)})"
        short = f"{t.attribute('downsample', down)}({x})"
    y = t.assign(f"{b}({conv2}({act}({a}({conv1}({x})))))")
    t.body.append(f"{y} += {short}" if g.chance(0.5) else f"{y} = {y} + {short}")
    out = replace(v.moved((0,) * n, (stride,) * n), channels=writes)
    return replace(out, name=t.assign(f"{act}({y})"))


@block
def inception(g: Generator, t: ClassText, v: Value) -> Value:
    n, x = g.axes, v.name
    parts, total = [], 0
    for k in g.random.sample((1, 3, 5), g.random.randint(2, 3)):
        writes = g.pick(2, 3)
        layer = t.attribute("conv", f"nn.Conv{n}d({v.channels}, {writes}, {k}, padding={k // 2}, bias={g.chance(0.5)})")
        parts.append(_maybe(g, t, f"{layer}({x})", writes))
        total += writes
    if g.chance(0.4):
        parts.append(g.pick(x, f"F.avg_pool{n}d({x}, 3, 1, 1)", f"F.max_pool{n}d({x}, 3, 1, 1)"))
        total += v.channels
    y = t.assign(f"torch.cat([{', '.join(parts)}], 1)")
    if g.chance(0.6):
        y = t.assign(_maybe(g, t, y, total, 1.0))
    return _narrow(g, t, replace(v, name=y, channels=total))


@block
def inverted_residual(g: Generator, t: ClassText, v: Value) -> Value:
    n, c = g.axes, v.channels
    wide = 2 * c
    texts = [
        f"nn.Conv{n}d({c}, {wide}, 1, bias=False)",
        f"nn.BatchNorm{n}d({wide})",
        g.activation(),
        f"nn.Conv{n}d({wide}, {wide}, 3, padding=1, groups={wide}, bias=False)",
        f"nn.BatchNorm{n}d({wide})",
        g.activation(),
        f"nn.Conv{n}d({wide}, {c}, 1, bias=False)",
        f"nn.BatchNorm{n}d({c})",
    ]
    body = t.attribute("body", f"nn.Sequential({', '.join(texts)})")
    y = f"{body}({v.name})"
    return replace(
        v,
        name=t.assign(
            g.pick(
                f"{v.name} + {y}",
                y,
                f"{v.name} + {t.attribute('gamma', 'nn.Parameter(torch.ones(1))')} * {y}",
            )
        ),
    )


@block
def focus(g: Generator, t: ClassText, v: Value) -> Value:
    """Space to depth, then a convolution."""
    n = g.axes
    if min(v.sizes) < 6 or any(size % 2 for size in v.sizes) or v.channels > 3 or n == 3:
        return sequence(g, t, v)
    starts = ((0, 0), (1, 0), (0, 1), (1, 1)) if n == 2 else ((0,), (1,))
    parts = [f"{v.name}[{', '.join([':', ':', *[f'{i}::2' for i in start]])}]" for start in starts]
    y = t.assign(f"torch.cat([{', '.join(parts)}], 1)")
    layer = t.attribute("conv", f"nn.Conv{n}d({v.channels * len(parts)}, 4, 3, padding=1)")
    out = g.tagged(v.moved((-1,) * n, (2,) * n))
    return replace(out, name=t.assign(_maybe(g, t, f"{layer}({y})", 4)), channels=4)


@block
def nested(g: Generator, t: ClassText, v: Value) -> Value:
    """Blocks within a block: by attribute, in a Sequential, in a ModuleList, in a ModuleDict."""
    inner, out = [], v
    for _ in range(g.random.randint(2, 3)):
        text, out = written(g, g.pick("sequence", "rep_vgg", "residual", "ac_block", "steps", "inverted_residual"), out)
        inner.append(text)
    kind = g.pick("attributes", "Sequential", "ModuleList", "ModuleDict")
    if kind == "attributes":
        y = v.name
        for text in inner:
            y = f"{t.attribute('block', text)}({y})"
        return replace(out, name=t.assign(y))
    if kind == "Sequential":
        return replace(
            out,
            name=t.assign(f"{t.attribute('blocks', 'nn.Sequential(' + ', '.join(inner) + ')')}({v.name})"),
        )
    y = t.fresh()
    items = ", ".join(inner) if kind == "ModuleList" else ", ".join(f"'b{i}': {text}" for i, text in enumerate(inner))
    made = t.attribute("blocks", f"nn.ModuleList([{items}])" if kind == "ModuleList" else f"nn.ModuleDict({{{items}}})")
    each = made if kind == "ModuleList" else f"{made}.values()"
    t.body += [f"{y} = {v.name}", f"for block in {each}:", f"    {y} = block({y})"]
    return replace(out, name=y)


@block
def reused(g: Generator, t: ClassText, v: Value) -> Value:
    """One block called twice; it keeps channels and sizes."""
    text, out = written(g, g.pick("ac_block", "rep_vgg", "inverted_residual", "sequence"), v)
    layer = t.attribute("block", text)
    if out.channels != v.channels or not out.fits(v) or out.sizes != v.sizes:
        return replace(out, name=t.assign(f"{layer}({v.name})"))
    return replace(
        out,
        name=t.assign(g.pick(f"{layer}({layer}({v.name}))", f"{layer}({v.name}) + {layer}({v.name} * 0.5)")),
    )
