"""The order and the grouping in which a sum is written decide nothing: not the result, not the number of layers."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.testing import randomize
from tests.networks import build

C = 3
LAYERS = {
    "a": f"nn.Conv2d({C}, {C}, 3, padding=1)",
    "b": f"nn.Conv2d({C}, {C}, 1)",
    "c": f"nn.Sequential(nn.Conv2d({C}, {C}, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d({C}))",
    "tall": f"nn.Conv2d({C}, {C}, (51, 3), padding=(25, 1), groups={C})",
    "wide": f"nn.Conv2d({C}, {C}, (3, 51), padding=(1, 25), groups={C})",
    "small": f"nn.Conv2d({C}, {C}, 3, padding=1, groups={C})",
    "p": f"nn.Sequential(nn.Conv2d({C}, {C}, 1, bias=False), nn.AvgPool2d(3, 1, 1))",
    "n": f"nn.BatchNorm2d({C})",
}
TERMS = {**{k: f"self.{k}(z)" for k in LAYERS}, "z": "z", "r": "r", "q": "torch.sigmoid(self.q(r))"}


def network(terms: list[str], seed: int) -> tuple[nn.Module, Tensor]:
    draw = random.Random(seed)
    body: list[str] = []

    def value(terms: list[str]) -> str:
        if len(terms) == 1:
            return TERMS[terms[0]]
        cut = draw.randrange(1, len(terms))
        left, right = value(terms[:cut]), value(terms[cut:])
        kind = draw.randrange(4)
        if kind == 3 and left not in ("z", "r"):
            body.extend([f"v{len(body)} = {left}", f"v{len(body)} += {right}"])
            return f"v{len(body) - 2}"
        text = (
            f"({left} + {right})",
            f"torch.add({left}, {right})",
            f"self.plus({left}, {right})",
            f"{left}.add({right})",
        )[kind]
        return f"self.drop({text})" if draw.random() < 0.2 else text

    last = value(draw.sample(terms, len(terms)))
    setup = "\n".join(
        f"        self.{k} = {v}" for k, v in {**LAYERS, "q": f"nn.Conv2d({C}, {C}, 1)"}.items() if k in terms
    )
    text = "\n".join(f"        {line}" for line in [*body, f"return {last}"])
    source = f"""import torch
from torch import nn


class Plus(nn.Module):
    def forward(self, x, y):
        return x + y


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.plus, self.drop = Plus(), nn.Dropout(0.1)
{setup}

    def forward(self, x):
        z, r = torch.relu(x), torch.tanh(x)
{text}


def make():
    torch.manual_seed(0)
    return Sums().eval(), torch.randn(2, {C}, 13, 12)
"""
    model, x = build(source, seed)
    return model, x


def merged(model: nn.Module, x: Tensor) -> tuple[int, list[str]]:
    """Layers that are left, and the codes of refusals; the outputs are the original's at two sizes."""
    deployed = reptool.deploy(model, x)
    for given in (x, torch.randn(1, *x.shape[1:2], 17, 21)):
        torch.testing.assert_close(deployed(given), model(given), rtol=1e-4, atol=1e-4)
    report = reptool.report(deployed)
    return report.layers[1], [r.code.value for r in report.refusals]


@pytest.mark.parametrize(("terms", "least"), [
    ("a b r", 1), ("a c z", 2), ("tall wide small", 2), ("tall wide small z r", 2), ("a b z q", 2), ("a b q r", 2),
    ("a p r", 1), ("a n r q", 2), ("a c z r n", 2),
])  # fmt: skip
def test_order_and_grouping_decide_nothing(terms: str, least: int) -> None:
    counts = {seed: merged(*network(terms.split(), seed))[0] for seed in range(8)}
    assert set(counts.values()) == {least}, counts


def additions(model: nn.Module, x: Tensor) -> int:
    """Additions that a run makes."""
    return sum(n.target in (operator.add, torch.add) for n in reptool.deploy(model, x, flatten=True).graph.nodes)


def test_what_costs_nothing_by_itself_saves_its_addition() -> None:
    deployed = randomize(Partly().eval(), 1)
    assert additions(deployed, torch.randn(2, 8, 13, 12)) == 1
    assert any("shortcut" in region.rules for region in reptool.report(reptool.deploy(deployed)).regions)


class Partly(nn.Module):
    """Of two kernels that do not merge, one takes up the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.near(x) + self.far(x) + x


class Two(nn.Module):
    """Two branches of one value and another value, added by a function."""

    def __init__(self, join: Callable[..., Tensor], groups: int = 1) -> None:
        super().__init__()
        self.join = join
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        z, r = torch.relu(x), torch.tanh(x)
        return self.join(self, z, r)


def with_shape(m: Two, z: Tensor, r: Tensor) -> Tensor:
    y = r + m.a(z)
    return y.reshape(y.shape) + m.b(z)


def read_twice(m: Two, z: Tensor, r: Tensor) -> Tensor:
    y = r + m.a(z)
    return y * torch.sigmoid(y + m.b(z))


def into_another(m: Two, z: Tensor, r: Tensor) -> Tensor:
    y = z.clone().sigmoid()
    s = m.a(z)
    s += y
    s += m.b(z)
    return s + y


def two_in_place(m: Two, z: Tensor, r: Tensor) -> Tensor:
    b = m.b(z)
    b += r
    b -= m.a(z)
    return b + r


@pytest.mark.parametrize(("join", "least"), [
    (lambda m, z, r: (m.a(z) + r) - m.b(z), 1),
    (lambda m, z, r: m.a(z) - (r + m.b(z)), 1),
    (lambda m, z, r: (r - m.a(z)) + m.b(z), 1),
    (lambda m, z, r: torch.add(m.a(z), r, alpha=2) + m.b(z), 1),
    (lambda m, z, r: torch.add(r, m.a(z), alpha=2) + m.b(z), 1),
    (lambda m, z, r: r - m.a(z) - m.b(z), 1),
    (lambda m, z, r: (m.a(z) - r) + m.b(z), 1),
    (lambda m, z, r: r.mean((2, 3), keepdim=True) + m.a(z) + m.b(z), 1),
    (lambda m, z, r: m.a(z) + r.mean((2, 3), keepdim=True) + m.b(z), 1),
    (lambda m, z, r: (m.a(z) + r) * 2 + m.b(z), 2),
    (with_shape, 2), (read_twice, 2), (into_another, 1), (two_in_place, 1),
])  # fmt: skip
def test_sums_of_three(join: Callable[..., Tensor], least: int) -> None:
    model = randomize(Two(join).eval(), 1)
    assert merged(model, torch.randn(2, C, 9, 8))[0] == least


class Adds(nn.Module):
    """Adds what it is given, as some settings say."""

    def __init__(self) -> None:
        super().__init__()
        self.on = True

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self.on else x


class Around(Two):
    """The inner sum is made by a module that has a switch, and given out by a method."""

    def __init__(self) -> None:
        super().__init__(lambda m, z, r: m.inner(z, r) + m.b(z))
        self.adds = Adds()

    def inner(self, z: Tensor, r: Tensor) -> Tensor:
        return self.adds(r, self.a(z))


def test_what_lies_between_is_guarded() -> None:
    model, x = randomize(Around().eval(), 2), torch.randn(2, C, 9, 8)
    deployed = reptool.deploy(model, x)
    assert reptool.report(deployed).layers == (2, 1)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(reptool.ReptoolError):
        deployed.inner(torch.relu(x), torch.tanh(x))
    deployed.adds.on = False
    with pytest.raises(reptool.ReptoolError):
        deployed(x)


@pytest.mark.parametrize("seed", range(4))
def test_terms_that_share_a_layer_are_left_alone(seed: int) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)

        def forward(self, x: Tensor) -> Tensor:
            z, r = torch.relu(x), torch.tanh(x)
            y = r + self.a(z) + self.b(z) if seed % 2 else self.a(z) + r + self.b(z)
            return y + torch.relu(self.a(y)) if seed < 2 else y + torch.relu(r + self.a(y) + self.b(y))

    model = randomize(Shared().eval(), seed)
    assert merged(model, torch.randn(2, C, 9, 8))[0] in (1, 2)


class Signs(nn.Module):
    """A sum of a given form, of maps of `z` and of another value."""

    def __init__(self, form: Callable[..., Tensor]) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 1)
        self.c, self.n = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.up, self.wide = nn.ConvTranspose2d(C, C, 2, 2), nn.ConvTranspose2d(C, C, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, torch.relu(x), torch.tanh(x))


SIGNS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "r - a - b": (lambda m, z, r: r - m.a(z) - m.b(z), 1),
    "r - (a - b)": (lambda m, z, r: r - (m.a(z) - m.b(z)), 1),
    "r - (a + b)": (lambda m, z, r: r - (m.a(z) + m.b(z)), 1),
    "a - r - b": (lambda m, z, r: m.a(z) - r - m.b(z), 1),
    "z - r - a": (lambda m, z, r: z - r - m.a(z), 1),
    "r + 2a - 3b": (lambda m, z, r: torch.sub(torch.add(r, m.a(z), alpha=2), m.b(z), alpha=3), 1),
    "r - 2a - 3b": (lambda m, z, r: torch.sub(r, m.a(z), alpha=2).sub(m.b(z), alpha=3), 1),
    "in place": (lambda m, z, r: m.c(r).sub_(m.a(z)).sub_(m.b(z)), 2),
    "norm behind": (lambda m, z, r: m.n(m.c(r) - m.a(z) - m.b(z)), 2),
    "one layer twice": (lambda m, z, r: -m.a(z) + m.c(r) - (m.b(z) + m.c(r)), 3),
    "decoders": (lambda m, z, r: r.repeat(1, 1, 2, 2) - m.up(z) - m.wide(z), 1),
}


def layers_called(model: nn.Module, x: Tensor) -> int:
    """How many layers run."""
    seen: list[nn.Module] = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(lambda m, *_: seen.append(m)) for m in model.modules() if isinstance(m, kinds)]
    model(x)
    for hook in hooks:
        hook.remove()
    return len(seen)


@pytest.mark.parametrize("name", SIGNS)
def test_terms_that_are_taken_away_merge_like_those_that_are_added(name: str) -> None:
    form, least = SIGNS[name]
    model, x = randomize(Signs(form).eval(), 5).double(), torch.randn(2, C, 8, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    assert layers_called(reptool.release(deployed), x) == least
    for size in ((8, 8), (5, 7)):
        y = torch.randn(1, C, *size, dtype=torch.float64)
        torch.testing.assert_close(deployed(y), model(y), rtol=1e-10, atol=1e-10)


def test_a_layer_that_is_taken_away_is_the_sum_of_what_was() -> None:
    """``r - a(z) - b(z) = r - (a + b)(z)``: the layer has the sign of its place, not that of the group."""
    model, x = randomize(Signs(SIGNS["r - a - b"][0]).eval(), 5).double(), torch.randn(2, C, 8, 8, dtype=torch.float64)
    layer = reptool.deploy(model, x).a
    center = model.a.weight.clone()
    center[:, :, 1:2, 1:2] += model.b.weight
    torch.testing.assert_close(layer.weight, center, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.bias, model.a.bias + model.b.bias, rtol=1e-12, atol=1e-12)


def test_a_term_that_is_added_with_nothing_stays() -> None:
    """By zero: no layer in that place gives the sum."""
    model = Signs(lambda m, z, r: torch.add(torch.add(r, m.a(z), alpha=0), m.b(z), alpha=0)).eval().double()
    x = torch.randn(2, C, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(reptool.deploy(model, x)(x), model(x), rtol=1e-10, atol=1e-10)
