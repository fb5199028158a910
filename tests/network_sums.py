"""Sums of many terms of a few values in any order and grouping, concatenations in front of layers, decoders."""

from __future__ import annotations

from tests.network_text import ClassText, Generator, Value, _of, step


def _term(g: Generator, t: ClassText, v: Value, roots: list[str]) -> str:
    """One term of the shape of `v`."""
    n, c = g.axes, v.channels
    root = g.pick(*roots)
    kind = g.pick("3", "3", "1", "dilated", "strip", "norm", "pool", "root", "gate", "shared")
    if kind == "root":
        return root
    if kind == "gate":
        return f"torch.sigmoid({root}) * {g.pick(*roots)}"
    if kind == "norm":
        return f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({root})"
    if kind == "pool":
        return f"F.avg_pool{n}d({root}, 3, 1, 1)"
    if kind == "shared":
        w = t.attribute("w", f"nn.Parameter(torch.randn({c}, {c}{', 3' * n}) / 4)")
        return " + ".join(f"F.conv{n}d({root}, {w}, padding={d}, dilation={d})" for d in (1, 2))
    size, padding, dilation = {
        "3": ((3,) * n, (1,) * n, 1),
        "1": ((1,) * n, (0,) * n, 1),
        "dilated": ((3,) * n, (2,) * n, 2),
        "strip": ((5, *[1] * (n - 1)), (2, *[0] * (n - 1)), 1),
    }[kind]
    layer = f"nn.Conv{n}d({c}, {c}, {size}, padding={padding}, dilation={dilation}, groups={g.pick(1, 1, c)}"
    text = f"{t.attribute('conv', f'{layer}, bias={g.chance(0.5)})')}({root})"
    return f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({text})" if g.chance(0.4) else text


def _added(g: Generator, t: ClassText, terms: list[str], norm: str) -> str:
    """These terms in some grouping."""
    if len(terms) == 1:
        return terms[0]
    cut = g.random.randrange(1, len(terms))
    left, right = _added(g, t, terms[:cut], norm), _added(g, t, terms[cut:], norm)
    kind = g.random.randrange(8)
    if kind == 0 and "(" in left:
        name = t.assign(left)
        t.body.append(f"{name} += {right}")
        return name
    text = g.pick(f"({left} + {right})", f"torch.add({left}, {right})", f"({left} - {right})", f"({left}).add({right})")
    if kind == 1:
        return f"{t.attribute('bn', norm)}({text})"
    if kind == 2:
        return f"F.dropout({text}, 0.1, False)"
    return text


@step
def many_terms(g: Generator, t: ClassText, v: Value) -> Value:
    """A sum of several terms of two or three values."""
    roots = [v.name, t.assign(f"torch.relu({v.name})"), t.assign(f"torch.tanh({v.name})")][: g.random.randint(2, 3)]
    terms = [_term(g, t, v, roots) for _ in range(g.random.randint(3, 5))]
    return _of(g, v, t.assign(_added(g, t, terms, f"nn.BatchNorm{g.axes}d({v.channels})")))


@step
def parts_before_a_layer(g: Generator, t: ClassText, v: Value) -> Value:
    """A concatenation, some parts of which are scaled, in front of one layer or two."""
    n, c = g.axes, v.channels
    norm = t.attribute("bn", f"nn.BatchNorm{n}d({c})")
    gamma = t.attribute("gamma", f"nn.Parameter(torch.rand({g.shape(c)}) + 0.2)")
    parts = [f"{norm}(torch.relu({v.name}))", g.pick(v.name, f"{v.name} * {gamma}", f"torch.sigmoid({v.name})")]
    if g.chance(0.3):
        parts.append(f"torch.tanh({v.name})")
    g.random.shuffle(parts)
    both = t.assign(f"torch.cat([{', '.join(parts)}], 1)")
    size = g.pick(1, 1, 1, 3)
    layer = f"nn.Conv{n}d({c * len(parts)}, {c}, {size}, padding={size // 2})"
    text = f"{t.attribute('conv', layer)}({both})"
    if g.chance(0.3):
        text = f"{text} * torch.sigmoid({t.attribute('conv', layer)}({both}))"
    return _of(g, v, t.assign(text))


@step
def decoders(g: Generator, t: ClassText, v: Value) -> Value:
    """Parallel transposed convolutions of different kernels, brought back to the size they had."""
    n, c = g.axes, v.channels
    shapes = g.random.sample(["2, 2", "4, 2, 1", "3, 2, 1, output_padding=1", "6, 2, 2"], g.random.randint(2, 3))
    terms = [f"{t.attribute('up', f'nn.ConvTranspose{n}d({c}, {c}, {s})')}({v.name})" for s in shapes]
    total = " + ".join(terms)
    if g.chance(0.5):
        total = f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({total})"
    return _of(g, v, t.assign(f"F.max_pool{n}d({total}, 2)"))
