"""Source text of random modules: classes, values with exact sizes, and the single steps of a forward."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

Geometry = tuple[tuple[int, int], ...]
"""Per axis ``(T, s)``: the size is ``floor((n + T - 1)/s) + 1`` of the network's input size n."""

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Value:
    """A variable of a generated forward."""

    name: str
    channels: int
    sizes: tuple[int, ...]
    geometry: Geometry
    tag: int = 0  # values whose size no formula gives have a tag of their own

    def moved(self, extent: tuple[int, ...], stride: tuple[int, ...]) -> Value:
        """Behind a layer of this extent and stride."""
        sizes = tuple((n + t - 1) // s + 1 for n, t, s in zip(self.sizes, extent, stride, strict=True))
        grown = tuple((t + s * dt, s * ds) for (t, s), dt, ds in zip(self.geometry, extent, stride, strict=True))
        return replace(self, sizes=sizes, geometry=grown)

    def fits(self, other: Value) -> bool:
        """Whether both have the same size whatever the input's size is."""
        return self.geometry == other.geometry and self.tag == other.tag


@dataclass
class ClassText:
    """The source of one `nn.Module` class."""

    name: str
    inputs: str = "x"
    setup: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    count: int = 0

    def fresh(self, prefix: str = "v") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def attribute(self, prefix: str, expression: str) -> str:
        name = self.fresh(prefix)
        self.setup.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def assign(self, expression: str) -> str:
        name = self.fresh()
        self.body.append(f"{name} = {expression}")
        return name

    def __str__(self) -> str:
        lines = [f"class {self.name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self.setup]
        lines += ["", f"    def forward(self, {self.inputs}):"]
        lines += [f"        {line}" for line in self.body]
        lines += [f"    {line}".rstrip() for line in self.methods]
        return "\n".join(lines)


class Generator:
    """What all steps draw from: one random stream, one number of axes, the classes written so far."""

    def __init__(self, seed: int, ops: Collection[str] | None = None) -> None:
        self.random = Random(seed)
        self.axes = self.random.choice([2, 2, 2, 2, 1, 3])
        self.ops = ops
        self.classes: list[ClassText] = []
        self.tags = 0
        self.count = 0

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *options: Choice) -> Choice:
        return self.random.choice(options)

    def new_class(self, prefix: str, inputs: str = "x") -> ClassText:
        self.count += 1
        return ClassText(f"{prefix}{self.count}", inputs)

    def finish(self, text: ClassText) -> str:
        self.classes.append(text)
        return text.name

    def tagged(self, value: Value) -> Value:
        self.tags += 1
        return replace(value, tag=self.tags)

    def per_axis(self, values: tuple[int, ...]) -> str:
        return str(values[0]) if len(set(values)) == 1 else str(values)

    def shape(self, *lead: int) -> str:
        """Text of a shape that broadcasts along the channels."""
        return ", ".join(map(str, [*lead, *[1] * self.axes]))

    # --- layers
    def groups(self, reads: int, writes: int) -> int:
        common = [g for g in range(1, min(reads, writes) + 1) if reads % g == writes % g == 0]
        return self.pick(1, 1, common[-1], self.random.choice(common))

    def geometry(
        self, value: Value, keep: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Kernel size, stride, padding and dilation, per axis."""
        n = self.axes
        size, stride, padding, dilation = [3] * n, [1] * n, [1] * n, [1] * n
        kind = self.pick("3", "3", "1", "1", "5", "dilated", "rectangular")
        roomy = min(value.sizes) >= 6
        if not keep and self.chance(0.45):
            kind = self.pick("valid", "even", "padded 1", "wide", "strided", "strided 1", "strided even", "mixed")
        if kind == "1":
            size, padding = [1] * n, [0] * n
        elif kind == "5":
            size, padding = [5] * n, [2] * n
        elif kind == "dilated":
            padding, dilation = [2] * n, [2] * n
        elif kind == "rectangular":
            axis = self.random.randrange(n)
            size, padding = [1] * n, [0] * n
            size[axis], padding[axis] = self.pick((3, 1), (5, 2))
        elif kind == "valid" and roomy:
            padding = [0] * n
        elif kind == "even":
            size, padding = [2] * n, [0 if roomy else 1] * n
        elif kind == "padded 1":
            size, padding = [1] * n, [1] * n
        elif kind == "wide":
            padding = [2] * n
        elif kind == "strided" and roomy:
            stride = [2] * n
        elif kind == "strided 1" and roomy:
            size, stride, padding = [1] * n, [2] * n, [0] * n
        elif kind == "strided even" and roomy:
            size, stride, padding = [2] * n, [2] * n, [0] * n
        elif kind == "mixed" and roomy:
            axis = self.random.randrange(n)
            size[axis], stride[axis] = 4, self.pick(1, 2)
        return tuple(size), tuple(stride), tuple(padding), tuple(dilation)

    def conv(
        self, value: Value, writes: int | None = None, keep: bool = False, bias: bool | None = None
    ) -> tuple[str, Value]:
        """The text of a convolution that reads `value`, and what it gives."""
        writes = writes or self.pick(2, 3, 4, 6, 8, value.channels, value.channels)
        size, stride, padding, dilation = self.geometry(value, keep)
        parts = [str(value.channels), str(writes), self.per_axis(size)]
        if set(stride) != {1}:
            parts.append(f"stride={self.per_axis(stride)}")
        extent = tuple(2 * p - d * (k - 1) for p, d, k in zip(padding, dilation, size, strict=True))
        if set(padding) != {0}:
            same = set(extent) == {0} and set(stride) == {1} and self.chance(0.15)
            parts.append("padding='same'" if same else f"padding={self.per_axis(padding)}")
        if set(dilation) != {1}:
            parts.append(f"dilation={self.per_axis(dilation)}")
        groups = self.groups(value.channels, writes)
        if groups > 1:
            parts.append(f"groups={groups}")
        if not (self.chance(0.5) if bias is None else bias):
            parts.append("bias=False")
        if self.chance(0.08) and max(padding) < min(value.sizes) and max(padding) == 1:
            parts.append(f"padding_mode={self.pick('reflect', 'replicate', 'circular')!r}")
        text = f"nn.Conv{self.axes}d({', '.join(parts)})"
        return text, replace(value.moved(extent, stride), channels=writes)

    def norm(self, channels: int) -> str:
        kind = f"nn.BatchNorm{self.axes}d"
        extra = self.pick("", "", "", "", ", eps=1e-3", ", affine=False", ", track_running_stats=False")
        if self.chance(0.08):
            return f"NormAct({channels})"
        return f"{kind}({channels}{extra})"

    def activation(self) -> str:
        return self.pick(
            "nn.ReLU()",
            "nn.ReLU(inplace=True)",
            "nn.ReLU(inplace=True)",
            "nn.SiLU()",
            "nn.Hardswish()",
            "nn.PReLU()",
            "nn.Identity()",
            "nn.Dropout(0.3)",
        )


Step = Callable[[Generator, ClassText, Value], Value]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    """Register a step under its function's name."""
    STEPS[function.__name__] = function
    return function


def _of(generator: Generator, value: Value, name: str, channels: int | None = None) -> Value:
    return replace(value, name=name, channels=channels or value.channels)


# --- affine steps
@step
def conv(g: Generator, t: ClassText, v: Value) -> Value:
    text, out = g.conv(v)
    return replace(out, name=t.assign(f"{t.attribute('conv', text)}({v.name})"))


@step
def norm(g: Generator, t: ClassText, v: Value) -> Value:
    return _of(g, v, t.assign(f"{t.attribute('bn', g.norm(v.channels))}({v.name})"))


@step
def pool(g: Generator, t: ClassText, v: Value) -> Value:
    n = g.axes
    kind = g.pick("same", "same", "max", "half", "ceil", "uncounted", "divisor")
    if kind == "max":
        return _of(g, v, t.assign(f"F.max_pool{n}d({v.name}, 3, 1, 1)"))
    if kind == "uncounted":
        made = t.attribute("pool", f"nn.AvgPool{n}d(3, 1, 1, count_include_pad=False)")
        return _of(g, v, t.assign(f"{made}({v.name})"))
    if kind == "divisor" and n > 1:
        return _of(g, v, t.assign(f"F.avg_pool{n}d({v.name}, 3, 1, 1, divisor_override=4)"))
    if kind in ("half", "ceil") and min(v.sizes) >= 6:
        extra = ", ceil_mode=True" if kind == "ceil" else ""
        made = t.assign(f"{t.attribute('pool', f'nn.AvgPool{n}d(2{extra})')}({v.name})")
        out = replace(v.moved((-1,) * n, (2,) * n), name=made)
        if kind == "ceil":
            out = replace(g.tagged(out), sizes=tuple(-(-size // 2) for size in v.sizes))
        return out
    return _of(g, v, t.assign(f"{t.attribute('pool', f'nn.AvgPool{n}d(3, stride=1, padding=1)')}({v.name})"))


@step
def affine(g: Generator, t: ClassText, v: Value) -> Value:
    shape = g.shape(v.channels)
    parameter = f"nn.Parameter(torch.randn({shape}))"
    x = v.name
    kind = g.random.randrange(8)
    if kind < 3:
        scale = t.attribute("scale", parameter)
        return _of(g, v, t.assign([f"{x} * {scale}", f"{x} + {scale}", f"{scale} - {x}"][kind]))
    if kind == 3:
        t.setup.append(f"self.register_buffer('mean{t.count}', torch.randn(1, {shape}))")
        return _of(g, v, t.assign(f"({x} - self.mean{t.count}) / 1.5"))
    if kind == 4:  # not along the channels alone
        return _of(g, v, t.assign(f"{x} * torch.linspace(0.5, 1.5, {x}.shape[-1], dtype={x}.dtype)"))
    return _of(g, v, t.assign(g.pick(f"-{x}", f"{x} * 0.5", f"2.0 * {x} + 1.0", f"torch.add({x}, {x}, alpha=0.5)")))


@step
def functional_conv(g: Generator, t: ClassText, v: Value) -> Value:
    writes = g.pick(2, 4, v.channels)
    groups = g.groups(v.channels, writes)
    k = g.pick(1, 3)
    shape = ", ".join(map(str, [writes, v.channels // groups, *[k] * g.axes]))
    weight = t.attribute("weight", f"nn.Parameter(torch.randn({shape}) * 0.3)")
    bias = t.attribute("bias", f"nn.Parameter(torch.randn({writes}))") if g.chance(0.5) else "None"
    kind = g.pick("plain", "plain", "masked", "standardized", "sum", "data")
    if kind == "masked":
        t.setup.append(f"self.register_buffer('mask{t.count}', (torch.randn({shape}) > 0).float())")
        weight = f"{weight} * self.mask{t.count}"
    elif kind == "standardized":
        dims = tuple(range(1, g.axes + 2))
        centred = f"({weight} - {weight}.mean({dims}, keepdim=True))"
        weight = f"{centred} / ({weight}.std({dims}, keepdim=True, correction=0) + 1e-5)"
    elif kind == "sum":
        other = t.attribute("weight", f"nn.Parameter(torch.randn({shape}) * 0.3)")
        weight = f"{weight} + {other}"
    elif kind == "data":  # depends on the image: nothing to fold
        weight = f"{weight} * {v.name}.mean()"
    text = f"F.conv{g.axes}d({v.name}, {weight}, {bias}, padding={k // 2}, groups={groups})"
    return _of(g, v, t.assign(text), writes)


@step
def functional_norm(g: Generator, t: ClassText, v: Value) -> Value:
    c = v.channels
    if g.chance(0.5):
        bn = t.attribute("bn", f"nn.BatchNorm{g.axes}d({c})")
        arguments = f"{bn}.running_mean, {bn}.running_var, {bn}.weight, {bn}.bias, False, 0.1, {bn}.eps"
    else:
        name = t.fresh()
        t.setup.append(f"self.register_buffer('mean_{name}', torch.randn({c}))")
        t.setup.append(f"self.register_buffer('var_{name}', torch.rand({c}) + 0.5)")
        gamma = t.attribute("gamma", f"nn.Parameter(torch.randn({c}))")
        arguments = f"self.mean_{name}, self.var_{name}, {gamma}, None, self.training, 0.1, 1e-4"
    return _of(g, v, t.assign(f"F.batch_norm({v.name}, {arguments})"))


@step
def pad(g: Generator, t: ClassText, v: Value) -> Value:
    n = g.axes
    if g.chance(0.3) and min(v.sizes) >= 6:
        before, after, extra = g.pick((-1, 0, ""), (-1, -1, ""), (-1, 1, ""), (2, -1, ""))
    else:
        before, after, extra = g.pick(
            (1, 0, ""), (1, 1, ""), (2, 1, ""), (1, 1, ", value=0.5"), (1, 1, ", mode='reflect'")
        )
        if "reflect" in extra and min(v.sizes) < 3:
            extra = ""
    pads = tuple([before, after] * n)
    out = v.moved((before + after,) * n, (1,) * n)
    return replace(out, name=t.assign(f"F.pad({v.name}, {pads}{extra})"))


@step
def pad_then_conv(g: Generator, t: ClassText, v: Value) -> Value:
    """Causal, TensorFlow-like and even-kernel padding."""
    n = g.axes
    k = g.pick(2, 3, 4)
    before = g.pick(k - 1, (k - 1) // 2)
    pads = tuple([before, k - 1 - before] * n)
    writes = g.pick(4, v.channels)
    layer = t.attribute("conv", f"nn.Conv{n}d({v.channels}, {writes}, {k}, bias={g.chance(0.5)})")
    return _of(g, v, t.assign(f"{layer}(F.pad({v.name}, {pads}))"), writes)


@step
def slices(g: Generator, t: ClassText, v: Value) -> Value:
    c, x = v.channels, v.name
    if c < 2:
        return v
    half = c // 2
    kind = g.random.randrange(5)
    if kind == 0:
        start = g.pick(0, half)
        return _of(g, v, t.assign(f"{x}[:, {start}:]"), c - start)
    if kind == 1 and c % 2 == 0:
        parts = t.fresh(), t.fresh()
        t.body.append(f"{parts[0]}, {parts[1]} = {x}.chunk(2, 1)")
        first = t.attribute("conv", f"nn.Conv{g.axes}d({half}, {half}, 3, padding=1)")
        order = g.pick(f"{first}({parts[0]}), {parts[1]}", f"{parts[1]}, {first}({parts[0]})")
        return _of(g, v, t.assign(f"torch.cat([{order}], 1)"))
    if kind == 2:
        parts = t.fresh(), t.fresh()
        t.body.append(f"{parts[0]}, {parts[1]} = torch.split({x}, [{half}, {c - half}], dim=1)")
        layers = [t.attribute("conv", f"nn.Conv{g.axes}d({n}, {n}, 1)") for n in (half, c - half)]
        return _of(g, v, t.assign(f"torch.cat(({layers[0]}({parts[0]}), {layers[1]}({parts[1]})), dim=1)"))
    if kind == 3:
        return _of(g, v, t.assign(f"{x}[:, {sorted(range(c), key=lambda i: g.random.random())}]"))
    return _of(g, v, t.assign(f"torch.cat([{x}, {x}[:, :1]], 1)"), c + 1)


@step
def strided_slice(g: Generator, t: ClassText, v: Value) -> Value:
    if min(v.sizes) < 6 or v.channels > 4:
        return v
    n = g.axes
    if g.chance(0.5):
        return replace(v.moved((0,) * n, (2,) * n), name=t.assign(f"{v.name}[{', '.join([':', ':', *['::2'] * n])}]"))
    inner = ", ".join([":", ":", *["1:-1"] * n])
    return replace(v.moved((-2,) * n, (1,) * n), name=t.assign(f"{v.name}[{inner}]"))


@step
def transposed(g: Generator, t: ClassText, v: Value) -> Value:
    n, c = g.axes, v.channels
    if max(v.sizes) > 16 or g.chance(0.5):
        layer = t.attribute("up", f"nn.ConvTranspose{n}d({c}, {c}, 3, padding=1)")
        out = v
    else:
        layer = t.attribute("up", f"nn.ConvTranspose{n}d({c}, {c}, 2, stride=2, bias={g.chance(0.5)})")
        out = g.tagged(replace(v, sizes=tuple(2 * size for size in v.sizes)))
    y = t.assign(f"{layer}({v.name})")
    if g.chance(0.6):
        y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({y})")
    return replace(out, name=y)


@step
def beside_a_skip(g: Generator, t: ClassText, v: Value) -> Value:
    """Upsampled by two beside a map of that size, and a convolution of both."""
    n, c = g.axes, v.channels
    if max(v.sizes) > 16:
        return v
    low = t.assign(f"F.relu({t.attribute('low', f'nn.Conv{n}d({c}, 12, 1)')}({v.name}))")
    high = t.assign(f"torch.sigmoid({t.attribute('high', f'nn.ConvTranspose{n}d({c}, 4, 2, stride=2)')}({v.name}))")
    told = g.pick("scale_factor=2.0", "scale_factor=2.0, mode='nearest-exact'", f"size={high}.shape[2:]")
    parts = g.pick(f"[F.interpolate({low}, {told}), {high}]", f"[{high}, F.interpolate({low}, {told})]")
    layer = g.pick("3, padding=1", "3, padding=1, bias=False", "1", "5, padding=2", "3, padding=2, dilation=2")
    y = t.assign(f"{t.attribute('conv', f'nn.Conv{n}d(16, {c}, {layer})')}(torch.cat({parts}, 1))")
    if g.chance(0.6):
        y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{n}d({c})')}({y})")
    return replace(g.tagged(replace(v, sizes=tuple(2 * size for size in v.sizes))), name=y)


@step
def linear_last(g: Generator, t: ClassText, v: Value) -> Value:
    """A linear layer over the channels, moved to the end and back."""
    writes = g.pick(3, v.channels)
    layer = t.attribute("fc", f"nn.Linear({v.channels}, {writes}, bias={g.chance(0.7)})")
    if g.chance(0.4):
        layer2 = t.attribute("fc", f"nn.Linear({writes}, {writes})")
        return _of(g, v, t.assign(f"{layer2}({layer}({v.name}.movedim(1, -1))).movedim(-1, 1)"), writes)
    return _of(g, v, t.assign(f"{layer}({v.name}.movedim(1, -1)).movedim(-1, 1)"), writes)


# --- steps that are not affine, or no steps at all
@step
def act(g: Generator, t: ClassText, v: Value) -> Value:
    x = v.name
    if g.chance(0.5):
        return _of(g, v, t.assign(f"{t.attribute('act', g.activation())}({x})"))
    return _of(g, v, t.assign(g.pick(f"F.relu({x})", f"{x}.relu()", f"torch.tanh({x})", f"{x} * torch.sigmoid({x})")))


@step
def nothing(g: Generator, t: ClassText, v: Value) -> Value:
    x = v.name
    text = g.pick(
        f"F.dropout({x}, 0.5, self.training)",
        f"{x}.contiguous()",
        f"{x}.clone()",
        f"{x}.to({x}.dtype)",
        f"{x} if not self.training else {x} * 0.0",
        f"{x}.reshape({x}.shape)",
        f"{t.attribute('drop', f'nn.Dropout{g.axes}d(0.5)')}({x})",
        f"{x}.reshape({x}.size(0), {v.channels}, -1).view_as({x})" if g.chance(0.3) else x,
    )
    return _of(g, v, t.assign(text))


@step
def in_place(g: Generator, t: ClassText, v: Value) -> Value:
    """A write between two reads: `v` keeps being read by others."""
    x = v.name
    kept = t.assign(g.pick(f"{x} * 1.0", x, x))
    scale = t.attribute("scale", f"nn.Parameter(torch.randn({g.shape(v.channels)}))")
    t.body.append(
        g.pick(
            f"{x}.add_(0.5)",
            f"{x} += 1.0",
            f"{x} *= {scale}",
            f"F.relu({x}, inplace=True)",
            f"{x}.mul_({scale})",
            f"{x}[:, :1].mul_(2.0)",
            f"{x}[:, 0] = 0.25",
            f"{x}.relu_()",
        )
    )
    return _of(g, v, t.assign(f"{kept} + {x}") if g.chance(0.4) else g.pick(kept, x))


@step
def gate(g: Generator, t: ClassText, v: Value) -> Value:
    c, n = v.channels, g.axes
    layers = [t.attribute("fc", f"nn.Conv{n}d({a}, {b}, 1)") for a, b in ((c, 2), (2, c))]
    pooled = g.pick(f"F.adaptive_avg_pool{n}d({v.name}, 1)", f"{v.name}.mean({tuple(range(2, n + 2))}, keepdim=True)")
    return _of(g, v, t.assign(f"{v.name} * {layers[1]}(F.relu({layers[0]}({pooled}))).sigmoid()"))


@step
def shuffle(g: Generator, t: ClassText, v: Value) -> Value:
    if v.channels % 2:
        return v
    x = v.name
    split = f"{x}.reshape({x}.shape[0], 2, {v.channels // 2}, *{x}.shape[2:])"
    return _of(g, v, t.assign(f"{split}.transpose(1, 2).reshape({x}.shape)"))


@step
def other_norm(g: Generator, t: ClassText, v: Value) -> Value:
    text = g.pick(f"nn.GroupNorm(1, {v.channels})", f"nn.InstanceNorm{g.axes}d({v.channels})", "nn.Identity()")
    if "Instance" in text and max(v.sizes) < 4:
        text = "nn.Identity()"
    return _of(g, v, t.assign(f"{t.attribute('norm', text)}({v.name})"))


# --- ownership
@step
def twice(g: Generator, t: ClassText, v: Value) -> Value:
    """One module called twice, with a norm behind one or both calls."""
    text, _ = g.conv(v, v.channels, keep=True)
    layer = t.attribute("shared", text)
    bn = t.attribute("bn", f"nn.BatchNorm{g.axes}d({v.channels})")
    first = t.assign(f"{bn}({layer}({v.name}))")
    second = g.pick(
        f"{layer}({first})",
        f"{bn}({layer}({first}))",
        f"{layer}({v.name})",
        f"F.relu({bn}({layer}({first})))",
    )
    return _of(g, v, t.assign(f"{second} + {first}" if g.chance(0.5) else second))


@step
def tied(g: Generator, t: ClassText, v: Value) -> Value:
    """Two layers with one Parameter, two norms that are one, or a module under two names."""
    c, n = v.channels, g.axes
    one, two = (t.attribute("conv", f"nn.Conv{n}d({c}, {c}, 3, padding=1)") for _ in range(2))
    kind = g.pick("weight", "bias", "module", "alias")
    if kind in ("weight", "bias"):
        t.setup.append(f"{two}.{kind} = {one}.{kind}")
    elif kind == "alias":
        t.setup.append(f"self.alias{t.count} = {one}")
    a, b = (t.attribute("bn", f"nn.BatchNorm{n}d({c})") for _ in range(2))
    if kind == "module":
        t.setup.append(f"{b} = {a}")
    joined = g.pick(f"{b}({two}({a}({one}({v.name}))))", f"{a}({one}({v.name})) + {b}({two}({v.name}))")
    return _of(g, v, t.assign(joined))


@step
def reads_parameters(g: Generator, t: ClassText, v: Value) -> Value:
    """Code that asks about a layer that could be fused."""
    c, n = v.channels, g.axes
    layer = t.attribute("conv", f"nn.Conv{n}d({c}, {c}, 1)")
    bn = t.attribute("bn", f"nn.BatchNorm{n}d({c})")
    y = t.assign(f"{bn}({layer}({v.name}))")
    asked = g.pick(
        f"{y} * {layer}.weight.mean()",
        f"{y} + {bn}.bias.sum()",
        f"{y}.to({layer}.weight.dtype)",
        f"{y} * {bn}.eps",
        f"{y} + {layer}.out_channels",
        f"{y} if {layer}.bias is not None else -{y}",
        f"{y} * (2.0 if hasattr(self, '{bn[5:]}') else 3.0)",
    )
    return _of(g, v, t.assign(asked))


@step
def hooked(g: Generator, t: ClassText, v: Value) -> Value:
    text, out = g.conv(v, keep=True)
    layer = t.attribute("conv", text)
    bn = t.attribute("bn", f"nn.BatchNorm{g.axes}d({out.channels})")
    t.setup.append(
        g.pick(
            f"{layer}.register_forward_hook(double_output)",
            f"{layer}.register_forward_pre_hook(double_input)",
            f"{bn}.register_forward_hook(double_output)",
            f"{bn}.register_forward_hook(do_nothing)",
        )
    )
    return replace(out, name=t.assign(f"{bn}({layer}({v.name}))"))


@step
def parametrized(g: Generator, t: ClassText, v: Value) -> Value:
    text, out = g.conv(v, keep=True)
    wrap = g.pick("weight_norm", "spectral_norm")
    layer = t.attribute("conv", f"nn.utils.parametrizations.{wrap}({text})")
    y = t.assign(f"{layer}({v.name})")
    if g.chance(0.7):
        y = t.assign(f"{t.attribute('bn', f'nn.BatchNorm{g.axes}d({out.channels})')}({y})")
    return replace(out, name=y)


@step
def branching(g: Generator, t: ClassText, v: Value) -> Value:
    """Control flow over shapes, flags and indices."""
    c, n, x = v.channels, g.axes, v.name
    kind = g.pick("shape", "loop", "method", "plain list", "no_grad", "attribute", "flag")
    convs = t.attribute("convs", f"nn.ModuleList([nn.Conv{n}d({c}, {c}, 3, padding=1) for _ in range(2)])")
    bns = t.attribute("bns", f"nn.ModuleList([nn.BatchNorm{n}d({c}) for _ in range(2)])")
    y = t.fresh()
    if kind == "shape":
        t.body.append(f"{y} = {bns}[0]({convs}[0]({x}))")
        t.body.append(f"if {x}.shape[-1] > 6:")
        t.body.append(f"    {y} = {bns}[1]({convs}[1]({y}))")
    elif kind == "loop":
        t.body.append(f"{y} = {x}")
        t.body.append(f"for conv, bn in zip({convs}, {bns}):")
        t.body.append(f"    {y} = bn(conv({y})) + {y}")
    elif kind == "method":
        name = t.fresh("branch")
        t.methods += ["", f"def {name}(self, x, i):", f"    return {bns}[i]({convs}[i](x))"]
        t.body.append(f"{y} = self.{name}({x}, 0) + self.{name}({x}, {g.pick(0, 1)})")
    elif kind == "plain list":
        hidden = t.attribute("hidden", f"[{convs}[0], {bns}[0]]")
        t.body.append(f"{y} = {x}")
        t.body.append(f"for layer in {hidden}:")
        t.body.append(f"    {y} = layer({y})")
        t.body.append(f"{y} = {y} + {convs}[1]({x})")
    elif kind == "no_grad":
        t.body.append("with torch.no_grad():")
        t.body.append(f"    {y} = {bns}[0]({convs}[0]({x}))")
    elif kind == "attribute":
        t.body.append(f"self.last = {y} = {bns}[0]({convs}[0]({x}))")
    else:
        flag = t.attribute("flag", str(g.chance(0.5)))
        t.body.append(f"{y} = {bns}[0]({convs}[0]({x})) if {flag} else {bns}[1]({convs}[1]({x}))")
    return _of(g, v, y)
