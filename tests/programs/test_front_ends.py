"""Norms go where they go in a module, out of an exported program and ONNX: to parts in front, and to layers behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

import reptool
from reptool.errors import RegionWarning
from reptool.programs import collapse as collapsing
from reptool.refusal import Code
from reptool.testing import randomize
from tests.fuzz_programs import FRONT_ENDS, _error, _run
from tests.passages.test_own_affines import TAKEN as OWN
from tests.passages.test_passages import AHEAD, CASES, Behind
from tests.plan.spreading.test_spreads import PIECES, TAKEN, cut, pair
from tests.plan.spreading.test_way import FOLDED, LEFT, C
from tests.plan.test_terms import SIGNS, Signs

EXACT, SINGLE = 1e-10, 2e-4
Given = tuple[nn.Module, tuple[Tensor, ...]]
CALLS = {
    "one layer twice": 2,
    "one layer three times": 3,
    "one weight, two dilations, two values": 2,
    "one weight, one norm": 3,
}
"""Layers of programs where the module has one: a program has a layer for each call."""


def through(kind: str, model: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, reptool.Report]:
    """A model, exported and collapsed; it computes what it computed."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    dtype = torch.float32 if kind == "onnx" else torch.float64
    args = tuple(a.to(dtype) for a in args)
    program = FRONT_ENDS[kind](model.eval().to(dtype), args)
    wanted = _run(program, args)
    made = reptool.deploy(program)
    assert _error(_run(made, args), wanted) < (SINGLE if kind == "onnx" else EXACT)
    return made, reptool.report(made)


def pairs(names: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Each of these names with its front end."""
    return [(name, kind) for kind, some in names.items() for name in some]


def apart(name: str) -> Given:
    """A norm behind a sum or concatenation of different values."""
    return TAKEN[name][0](), pair()


@pytest.mark.parametrize(
    ("name", "kind"), pairs({"training": TAKEN, "onnx": TAKEN, "core": ("sum", "both", "branches")})
)
def test_every_part_takes_its_share(name: str, kind: str) -> None:
    _, report = through(kind, *apart(name))
    assert report.norms[1] == 0
    assert report.layers[1] == len(report.regions) == TAKEN[name][1]
    assert all("distribute" in r.rules for r in report.regions)


@pytest.mark.parametrize(("name", "kind"), pairs({"training": FOLDED, "onnx": [n for n in FOLDED if n not in CALLS]}))
def test_norms_fold(name: str, kind: str) -> None:
    model, layers = FOLDED[name]
    _, report = through(kind, randomize(model, 3), (torch.randn(2, C, 9, 8),))
    assert report.norms[1] == 0
    assert report.layers[1] == CALLS.get(name, layers)


@pytest.mark.parametrize(
    ("name", "kind"),
    pairs(
        {
            "training": [n for n, (_, code) in LEFT.items() if code is not Code.SHARED],
            "onnx": [n for n, (_, code) in LEFT.items() if code not in (Code.SHARED, Code.MUTATED)],
        }
    ),
)
def test_norms_that_stay(name: str, kind: str) -> None:
    """In programs no layer is shared, and in ONNX nothing is written."""
    model, code = LEFT[name]
    _, report = through(kind, randomize(model, 3), (torch.randn(2, C, 9, 8),))
    assert report.norms[1] == report.norms[0]
    assert code in {r.code for r in report.refusals}, report.refusals


@pytest.mark.parametrize(("name", "kind"), pairs({"training": PIECES, "core": ("chunk", "rejoined")}))
def test_a_layer_that_is_cut_stays_one_layer(name: str, kind: str) -> None:
    forward, widths, layers = PIECES[name]
    made, report = through(kind, cut(forward, *widths), (torch.randn(2, 3, 9, 8),))
    assert report.norms[1] == 0
    targets = [str(n.target) for n in made.graph.nodes]
    called = sum("aten.conv" in t for t in targets)
    assert called == layers
    assert not any("aten.clone" in t for t in targets)


@pytest.mark.parametrize("name", AHEAD)
def test_a_norm_goes_through_passages_into_the_layers_behind(name: str) -> None:
    _, report = through("training", AHEAD[name](), (torch.randn(3, 2, 8, 6),))
    assert report.norms[1] == 0
    assert "distribute" in {rule for region in report.regions for rule in region.rules}


IN_CORE = (
    "nearest", "nearest down", "bilinear", "area", "average", "adaptive average", "maximum", "adaptive maximum",
    "largest", "sum", "one row", "pooled and flattened", "tokens", "positions in another order",
)  # fmt: skip
IN_ONNX = (
    "maximum", "maximum, ceiling", "maximum, dilated", "adaptive maximum", "nearest", "bilinear", "bicubic", "shuffled",
    "largest", "smallest", "one row", "mean", "average",
)  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), pairs({"core": IN_CORE, "onnx": IN_ONNX}))
def test_a_norm_goes_back_through_passages(name: str, kind: str) -> None:
    case = CASES[name]
    _, report = through(kind, Behind(case, True, True, True), (torch.randn(2, 2, 8, 6),))
    assert report.norms[1] == (0 if case.shifts else 1), report.refusals


@pytest.mark.parametrize(
    ("name", "kind"), pairs({"training": SIGNS, "onnx": SIGNS, "core": ("norm behind", "decoders")})
)
def test_terms_merge_whatever_their_sign(name: str, kind: str) -> None:
    form, least = SIGNS[name]
    _, report = through(kind, randomize(Signs(form), 5), (torch.randn(2, 3, 8, 8),))
    otherwise = {("in place", "training"): 3, ("one layer twice", "training"): 2, ("one layer twice", "onnx"): 2}
    assert report.layers[1] == otherwise.get((name, kind), least)  # what is written in place stays; a call is a layer
    assert report.norms[1] == 0


GROUPED: dict[str, tuple[Callable[..., Tensor], int]] = {
    "three and three dilated": (lambda m, z: m.a(z) + m.d(z) + z, 2),
    "three and three dilated, otherwise": (lambda m, z: (z + m.d(z)) + m.a(z), 2),
    "strips": (lambda m, z: (m.tall(z) + m.wide(z)) + m.small(z), 2),
    "strips, otherwise": (lambda m, z: m.tall(z) + (m.small(z) + m.wide(z)), 2),
}


class Grouped(nn.Module):
    """Terms of one value, of which not all pay as one layer."""

    def __init__(self, form: Callable[..., Tensor]) -> None:
        super().__init__()
        self.form, each = form, {"groups": 4}
        self.a, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.tall, self.wide = (nn.Conv2d(4, 4, k, padding=(k[0] // 2, k[1] // 2), **each) for k in ((51, 5), (5, 51)))
        self.small = nn.Conv2d(4, 4, 5, padding=2, **each)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, torch.relu(x))


@pytest.mark.parametrize(("name", "kind"), pairs({"module": GROUPED, "training": GROUPED, "onnx": GROUPED}))
def test_the_cheapest_grouping_is_found(name: str, kind: str) -> None:
    form, least = GROUPED[name]
    made, _ = through(kind, randomize(Grouped(form), 5), (torch.randn(2, 4, 18, 17),))
    if kind == "onnx":
        assert sum(n.op_type == "Conv" for n in made.graph) == least
    else:
        assert sum("aten.conv2d" in str(n.target) for n in made.graph.nodes) == least


def scales(made: ExportedProgram) -> int:
    """How many numbers a program scales and shifts norms by."""
    norms = [n for n in made.graph.nodes if "norm" in str(n.target)]
    return sum(i.op == "placeholder" and i.name.startswith("p_") for n in norms for i in n.all_input_nodes)


OWN_IN_CORE = ("group norm", "axes moved before taps", "depthwise", "instance norm")
"""There, linear layers stand between views."""
OWN_IN_TRAINING = (*OWN_IN_CORE, "reflected border", "three readers", "halves", "function", "shortcut")


@pytest.mark.parametrize(("name", "kind"), pairs({"training": OWN_IN_TRAINING, "core": OWN_IN_CORE}))
def test_scale_and_shift_go_into_all_readers(name: str, kind: str) -> None:
    build, shape = OWN[name]
    made, report = through(kind, randomize(build(), 1), (torch.randn(shape),))
    assert scales(made) == 0
    assert not [r for r in report.refusals if r.code.value == "no-statistics"]


def test_a_norm_that_another_reader_needs_keeps_its_scale() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.q = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x)
            return self.q(y), torch.tanh(y)

    made, report = through("training", randomize(Two(), 1), (torch.randn(2, 5, 8),))
    assert scales(made) == 2
    assert "no-statistics" in {r.code.value for r in report.refusals}


class Flat(nn.Module):
    """A norm whose sizes are joined behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm2d(2), nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(x.tanh()).view(x.size(0), -1))  # type: ignore[no-any-return]


def sized(dynamic: Any) -> Iterator[tuple[ExportedProgram, fx.GraphModule]]:
    """A program of such sizes, before and after."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = randomize(Flat()).double().eval(), torch.randn(3, 2, 8, 6, dtype=torch.float64)
        given = export(model, (x,), dynamic_shapes=dynamic)
    yield given, reptool.deploy(given)


@pytest.mark.parametrize("dynamic", [None, ({0: Dim.DYNAMIC},)])
def test_the_batch_is_known_by_its_symbol_and_where_the_program_fixes_it(dynamic: Any) -> None:
    for given, made in sized(dynamic):
        assert reptool.report(made).norms == (1, 0)
        for batch in (3, 5) if dynamic else (3,):
            x = torch.randn(batch, 2, 8, 6, dtype=torch.float64)
            torch.testing.assert_close(made.module()(x), given.module()(x), rtol=1e-10, atol=1e-10)


def test_a_norm_that_is_given_out_keeps_its_place() -> None:
    """What an output was named it is named still, and has the strides it had."""

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.a(x) + self.b(x.tanh()))  # type: ignore[no-any-return]

    x = torch.randn(2, 3, 9, 8)
    made, report = through("training", randomize(Out()), (x,))
    assert report.norms[1] == 0
    assert report.layers[1] == 2
    assert made.module()(x.double()).is_contiguous()
    if "onnx" in FRONT_ENDS:
        pytest.importorskip("onnxruntime")
        program = FRONT_ENDS["onnx"](Out().eval(), (x,))
        named = [v.name for v in program.graph.outputs]
        assert [v.name for v in reptool.deploy(program).graph.outputs] == named


@pytest.mark.parametrize("error", [None, 1.0])
def test_a_share_that_is_another_norm_is_noticed(error: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapsing, "measure_spread", lambda *_: error)
    with pytest.warns(RegionWarning, match="off by"):
        _, report = through("training", *apart("sum"))
    assert report.norms == (1, 1)
    assert "unverified" in {r.code.value for r in report.refusals}


def test_a_scale_that_is_another_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapsing, "measure_bare", lambda *_: 1.0)
    build, shape = OWN["group norm"]
    with pytest.warns(RegionWarning, match="off by"):
        made, _ = through("training", randomize(build(), 1), (torch.randn(shape),))
    assert scales(made) == 2


@pytest.mark.parametrize("kind", ["training", "onnx"])
def test_nothing_of_it_without_the_rule(kind: str) -> None:
    model, args = apart("sum")
    dtype = torch.float32 if kind == "onnx" else torch.float64
    program = FRONT_ENDS[kind](model.eval().to(dtype), tuple(a.to(dtype) for a in args))
    report = reptool.report(reptool.deploy(program, rules=["conv_bn"]))
    assert report.norms == (1, 1)
    assert "rule-off" in {r.code.value for r in report.refusals}
    assert not report.regions
