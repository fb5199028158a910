"""Random networks that ask settings: flags, configurations, globals, arguments; and methods that use a part of them.

Each block computes something that can be collapsed, unless a setting, which is off, says that it computes a part of
it by itself. ``settings_source(seed)`` gives the text, `tests.networks.build` the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.network_blocks import written
from tests.network_text import ClassText, Generator, Value
from tests.networks import _HEADER

_MORE = '''
import os
from dataclasses import dataclass
from types import SimpleNamespace


@dataclass
class Options:
    """A configuration."""

    raw: bool = False
    level: int = 0
    mode: str = "plain"


class Settings:
    """A configuration that holds another one."""

    def __init__(self):
        self.options = Options()
        self.names = ["plain"]


def enclosing(raw):
    def asks():
        return raw

    return asks


def asks_late(module):
    return getattr(module, "late", False)


def asks_flag(module, name):
    return getattr(module, name)
'''


@dataclass
class Asked:
    """What is written while a network with settings is.

    Args:
        g: what everything is drawn from.
        header: lines of the module, before the classes.
    """

    g: Generator
    header: list[str] = field(default_factory=list)

    def fresh(self, prefix: str) -> str:
        """A name for the module."""
        self.g.count += 1
        return f"{prefix}_{self.g.count}"


Setting = Callable[[Asked, ClassText], str]
SETTINGS: dict[str, Setting] = {}
"""Each writes a setting that is off and gives the expression that asks for it."""


def setting(function: Setting) -> Setting:
    """Register a setting under its function's name."""
    SETTINGS[function.__name__] = function
    return function


@setting
def flag(a: Asked, t: ClassText) -> str:
    name = t.attribute("flag", "False")
    return a.g.pick(name, f"not (not {name})", f"{name} is True")


@setting
def number(a: Asked, t: ClassText) -> str:
    name = t.attribute("level", "0")
    return a.g.pick(f"{name} == 5", f"{name} > 2", f"{name} in (3, 4)", f"{name} != 0")


@setting
def word(a: Asked, t: ClassText) -> str:
    name = t.attribute("mode", "'plain'")
    return a.g.pick(f"{name} == 'raw'", f"{name} in ('raw', 'bare')", f"{name}.startswith('raw')")


@setting
def pair(a: Asked, t: ClassText) -> str:
    return f"{t.attribute('level', '0')} == 5 and {t.attribute('mode', repr('plain'))} == 'raw'"


@setting
def nothing_there(a: Asked, t: ClassText) -> str:
    return f"{t.attribute('extra', 'None')} is not None"


@setting
def config(a: Asked, t: ClassText) -> str:
    kind = a.g.pick("space", "dataclass", "own", "list in it")
    if kind == "space":
        return f"{t.attribute('config', 'SimpleNamespace(model=SimpleNamespace(raw=False))')}.model.raw"
    if kind == "dataclass":
        name = t.attribute("options", "Options()")
        return a.g.pick(f"{name}.raw", f"{name}.level == 3", f"{name}.mode == 'raw'")
    name = t.attribute("settings", "Settings()")
    return f"{name}.options.raw" if kind == "own" else f"{name}.names[0] == 'raw'"


@setting
def container(a: Asked, t: ClassText) -> str:
    kind = a.g.pick("list", "any", "dict", "nested", "get", "key", "set", "tuple", "length")
    if kind in ("list", "any"):
        name = t.attribute("flags", f"[False] * {a.g.pick(1, 3, 20)}")
        return f"{name}[0]" if kind == "list" else f"any({name})"
    if kind == "dict":
        return f"{t.attribute('table', '{' + repr('raw') + ': False}')}['raw']"
    if kind == "nested":
        return f"{t.attribute('table', '{' + repr('mode') + ': [{' + repr('raw') + ': False}]}')}['mode'][0]['raw']"
    if kind == "get":
        return f"{t.attribute('table', '{}')}.get('raw', False)"
    if kind == "key":
        return f"'raw' in {t.attribute('table', '{}')}"
    if kind == "set":
        return f"'raw' in {t.attribute('chosen', 'set()')}"
    if kind == "tuple":
        return f"{t.attribute('pair', '(False, 1)')}[0]"
    return f"len({t.attribute('stack', '[]')}) > 0"


@setting
def added(a: Asked, t: ClassText) -> str:
    return a.g.pick("getattr(self, 'late', False)", "hasattr(self, 'late')", "asks_late(self)")


@setting
def of_the_class(a: Asked, t: ClassText) -> str:
    name = t.fresh("shared")
    t.methods += ["", f"{name} = False"]
    return f"self.{name}"


@setting
def of_the_module(a: Asked, t: ClassText) -> str:
    name = a.fresh("RAW")
    kind = a.g.pick("plain", "dict", "space")
    a.header.append(
        {
            "plain": f"{name} = False",
            "dict": f"{name} = {{'raw': False}}",
            "space": f"{name} = SimpleNamespace(raw=False)",
        }[kind]
    )
    return {"plain": name, "dict": f"{name}['raw']", "space": f"{name}.raw"}[kind]


@setting
def enclosed(a: Asked, t: ClassText) -> str:
    if a.g.chance(0.5):
        return f"{t.attribute('asks', 'enclosing(False)')}()"
    name = a.fresh("asks")
    a.header.append(f"{name} = enclosing(False)")
    return f"{name}()"


@setting
def by_a_function(a: Asked, t: ClassText) -> str:
    name = t.attribute("flag", "False")
    return f"asks_flag(self, {name[5:]!r})"


@setting
def by_a_method(a: Asked, t: ClassText) -> str:
    name, method = t.attribute("flag", "False"), t.fresh("asks")
    is_property = a.g.chance(0.4)
    t.methods += ["", *(["@property"] if is_property else []), f"def {method}(self):", f"    return {name}"]
    return f"self.{method}" if is_property else f"self.{method}()"


@setting
def of_a_child(a: Asked, t: ClassText) -> str:
    child = t.attribute("act", "nn.ReLU()")
    return a.g.pick(f"getattr({child}, 'late', False)", f"{child}.training", f"{child}.inplace")


@setting
def of_the_process(a: Asked, t: ClassText) -> str:
    return a.g.pick("os.environ.get('NETWORK_RAW') == '1'", "torch.get_default_dtype() == torch.float64")


@setting
def default(a: Asked, t: ClassText) -> str:
    method = t.fresh("asks")
    t.methods += ["", f"def {method}(self, raw=False):", "    return raw"]
    return f"self.{method}()"


# --- what is computed, and parts of it
@dataclass
class Region:
    """An expression that can be collapsed, and parts of it that have the same shape."""

    whole: str
    parts: list[str]


def _region(g: Generator, t: ClassText, v: Value) -> Region:
    n, c, x = g.axes, v.channels, v.name

    def conv(size: int, bias: bool = True) -> str:
        text = f"nn.Conv{n}d({c}, {c}, {size}, padding={size // 2}, bias={bias})"
        return t.attribute("conv", text)

    def norm() -> str:
        return t.attribute("bn", f"nn.BatchNorm{n}d({c})")

    kind = g.pick("norm", "norm", "sum", "branches", "chain", "scale", "sequential", "norm first")
    if kind == "norm":
        a, b = conv(g.pick(1, 3)), norm()
        return Region(f"{b}({a}({x}))", [f"{a}({x})", f"{b}({x})", f"{b}({a}({x})) * 2"])
    if kind == "norm first":
        a, b = conv(1), norm()
        return Region(f"{a}({b}({x}))", [f"{a}({x})", f"{b}({x})"])
    if kind == "sum":
        a, b, d = conv(3), conv(1), norm()
        return Region(f"{d}({a}({x}) + {b}({x}))", [f"{a}({x})", f"{d}({b}({x}))", f"{a}({x}) + {b}({x})"])
    if kind in ("branches", "sequential"):
        texts = [
            f"nn.Sequential(nn.Conv{n}d({c}, {c}, {k}, padding={k // 2}, bias=False), nn.BatchNorm{n}d({c}))"
            for k in (3, 1)
        ]
        a = t.attribute("branch", texts[0])
        if kind == "sequential":
            return Region(f"{a}({x})", [f"{a}[0]({x})", f"{a}[1]({x})"])
        b = t.attribute("branch", texts[1])
        return Region(f"{a}({x}) + {b}({x})", [f"{a}({x})", f"{b}({x})", f"{a}[0]({x})", f"{a}({x}) - {b}({x})"])
    if kind == "chain":
        a, b = conv(1), conv(g.pick(1, 3))
        return Region(f"{b}({a}({x}))", [f"{a}({x})", f"{b}({x})"])
    a = conv(3)
    scale = t.attribute("scale", f"nn.Parameter(torch.randn({g.shape(1, c)}))")
    return Region(f"{a}({x}) * {scale}", [f"{a}({x})", f"{a}({x} * {scale})"])


def _asked(a: Asked, t: ClassText, v: Value, conditions: list[str]) -> Value:
    """One region under one or two settings."""
    region, g = _region(a.g, t, v), a.g
    condition = g.pick(" or ", " or ").join(conditions)
    part = g.random.choice(region.parts)
    kind = g.pick("expression", "statement", "early", "method", "behind")
    y = t.fresh()
    if kind == "expression":
        t.body.append(f"{y} = {part} if {condition} else {region.whole}")
    elif kind == "statement":
        t.body += [f"if {condition}:", f"    {y} = {part}", "else:", f"    {y} = {region.whole}"]
    elif kind == "early":
        t.body += [f"if {condition}:", f"    return {part}", f"{y} = {region.whole}"]
    elif kind == "behind":
        t.body += [f"{y} = {region.whole}", f"if {condition}:", f"    {y} = {part}"]
    else:
        method = t.fresh("compute")
        arguments = ", ".join(["self", v.name, *_arguments(t)])
        t.methods += ["", f"def {method}({arguments}):", f"    if {condition}:", f"        return {part}"]
        t.methods += [f"    return {region.whole}"]
        t.body.append(
            f"{y} = self.{method}({', '.join([v.name, *(name.partition('=')[0] for name in _arguments(t))])})"
        )
    if g.chance(0.3):
        _public(g, t, v.name, g.random.choice(region.parts))
    return replace(v, name=t.assign(f"{y}.relu()") if g.chance(0.6) else y)


def _arguments(t: ClassText) -> list[str]:
    return [part.strip() for part in t.inputs.split(",")[1:]]


def _public(g: Generator, t: ClassText, x: str, part: str) -> None:
    """Another way to a part of a region."""
    part = part.replace(f"({x})", "(y)").replace(f"({x} ", "(y ")
    if f"{x})" in part.replace("(y)", ""):
        return
    name = t.fresh(g.pick("features", "build_map", "export", "set_map", "steps"))
    kind = g.pick("method", "method", "generator", "static", "property")
    if kind == "method":
        t.methods += ["", f"def {name}(self, y):", f"    return {part}"]
    elif kind == "generator":
        t.methods += ["", f"def {name}(self, y):", f"    yield {part}", "    yield y"]
    elif kind == "static":
        part = part.replace("self.", "module.")
        t.methods += ["", "@staticmethod", f"def {name}(module, y):", f"    return {part}"]
    else:
        layer = part.partition("(")[0]
        t.methods += ["", "@property", f"def {name}(self):", f"    return {layer}"]


def _block(a: Asked, v: Value) -> tuple[str, Value]:
    t = a.g.new_class("Asking")
    out = replace(v, name="x")
    for _ in range(a.g.random.randint(1, 2)):
        names = a.g.random.sample(sorted(SETTINGS), a.g.pick(1, 1, 2))
        out = _asked(a, t, out, [SETTINGS[name](a, t) for name in names])
    t.body.append(f"return {out.name}")
    return f"{a.g.finish(t)}()", out


def _network(a: Asked, sizes: tuple[int, ...]) -> tuple[ClassText, int]:
    g = a.g
    channels = g.pick(2, 3, 4)
    arguments = g.pick([], ["raw=False"], ["mode='plain'"], ["raw=False", "level=0"], ["mask=None"])
    t = ClassText("Network", ", ".join(["x", *arguments]))
    v = Value("x", channels, sizes, ((0, 1),) * g.axes)
    conditions = {
        "raw=False": "raw",
        "mode='plain'": "mode == 'raw'",
        "level=0": "level > 2",
        "mask=None": "mask is not None",
    }
    if arguments:
        v = _asked(a, t, v, [conditions[argument] for argument in arguments])
    for _ in range(g.random.randint(1, 3)):
        if g.chance(0.2):
            text, out = written(g, g.pick("rep_vgg", "sequence", "residual"), v)
        else:
            text, out = _block(a, v)
        if g.chance(0.3):
            text = f"nn.Sequential({text}, nn.ReLU())"
        v = replace(out, name=t.assign(f"{t.attribute('stage', text)}({v.name})"))
    t.body.append(f"return {v.name}")
    return t, channels


def settings_source(seed: int) -> str:
    """The source of a random network that asks settings: run it, then ``model, example_inputs = make()``.

    Args:
        seed: equal seeds give equal source.
    """
    g = Generator(seed)
    sizes = {1: (11,), 2: (8, 7), 3: (6, 5, 5)}[g.axes]
    asked = Asked(g)
    t, channels = _network(asked, sizes)
    classes = "\n\n\n".join(map(str, [*g.classes, t]))
    header = "\n".join([_HEADER.format(axes=g.axes), _MORE, *asked.header])
    shape = ", ".join(map(str, (2, channels, *sizes)))
    return f"""{header}


{classes}


def make():
    torch.manual_seed({seed})
    return Network().eval(), torch.randn({shape})
"""
