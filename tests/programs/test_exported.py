"""Exported programs: the layers of the module they were made of, in every IR; all that is no layer as it was."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx.passes.utils.source_matcher_utils import get_source_partitions

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.errors import InputError, RequirementError, UnsupportedModelError, VerificationError
from reptool.programs import exported
from reptool.testing import randomize
from tests.networks import random_network
from tests.sparse import sparse
from tests.traps import codes

DYNAMIC = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)


class Net(nn.Module):
    """Branches, a shortcut, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8), DiverseBranchBlock(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean((2, 3)))  # type: ignore[no-any-return]


def ready(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomize(model).double().eval()


def program(model: nn.Module, *args: Any, **options: Any) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(model, args, **options)


def image(*size: int) -> Tensor:
    return torch.randn(size or (2, 3, 12, 11), dtype=torch.float64)


def targets(graph: fx.Graph, *kinds: str) -> list[str]:
    return [str(n.target) for n in graph.nodes if any(k in str(n.target) for k in kinds) and n.op == "call_function"]


def run(given: Any, *args: Any) -> Any:
    return (given.module() if isinstance(given, ExportedProgram) else given)(*args)


def same(found: Any, wanted: Any, *args: Any) -> None:
    torch.testing.assert_close(run(found, *args), wanted(*args), rtol=1e-10, atol=1e-10)


IRS: dict[str, Any] = {
    "training": lambda p: p,
    "core": lambda p: p.run_decompositions(),
    "module": lambda p: p.module(),
    "core module": lambda p: p.run_decompositions().module(),
}


@pytest.mark.parametrize("ir", IRS)
def test_a_program_has_the_layers_of_its_module_at_every_size(ir: str) -> None:
    model = ready(Net())
    given = IRS[ir](program(model, image(), dynamic_shapes=DYNAMIC))
    before = str(given.graph), sorted(given.state_dict if hasattr(given, "graph_signature") else given.state_dict())
    made = reptool.deploy(given, None if hasattr(given, "graph_signature") else image())
    report, of_module = reptool.report(made), reptool.report(reptool.deploy(model))
    assert report.layers[1] == of_module.layers[1]
    assert report.norms == (of_module.norms[0], 0)
    assert type(made) is type(given) or isinstance(made, fx.GraphModule)
    assert len(targets(made.graph, "conv")) == 3
    assert not targets(made.graph, "norm", "aten.add.")
    for size in ((2, 3, 12, 11), (1, 3, 7, 9), (3, 3, 17, 6)):
        same(made, model, image(*size))
    state = made.state_dict if isinstance(made, ExportedProgram) else made.state_dict()
    assert {n for n in state if "bn" in n} == set()
    assert "stages.0.branches.dense.conv.weight" in state
    assert before == (
        str(given.graph),
        sorted(given.state_dict if isinstance(given, ExportedProgram) else given.state_dict()),
    )


def test_a_program_can_be_saved_loaded_and_exported_again(tmp_path: Path) -> None:
    model = ready(Net()).float()
    x = image().float()
    made = reptool.deploy(program(model, x, dynamic_shapes=DYNAMIC))
    file = reptool.save(made, tmp_path / "made.pt2")
    torch.testing.assert_close(torch.export.load(file).module()(x), made.module()(x))
    again = reptool.deploy(made)
    assert not reptool.report(again).regions
    assert len(targets(made.run_decompositions().graph, "aten.convolution")) == 3


class Kinds(nn.Module):
    """A layer of each kind with a norm or a scale behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.reflect = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4))
        self.replicate = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"), nn.BatchNorm2d(4))
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6))
        self.causal = nn.Sequential(nn.ZeroPad2d((2, 0, 1, 0)), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.line = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))
        self.first, self.second = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.causal(self.up(self.replicate(self.reflect(x))).relu()).relu()
        x = self.line(x.flatten(2)).transpose(1, 2)
        return self.second(self.first(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("ir", IRS)
def test_layers_of_every_kind(ir: str) -> None:
    model = ready(Kinds())
    given = IRS[ir](program(model, image()))
    made = reptool.deploy(given, None if isinstance(given, ExportedProgram) else image())
    report = reptool.report(made)
    assert report.norms == (5, 0)
    assert report.layers[1] == (7 if "core" in ir else 5)  # in the core, views stand around linear layers
    same(made, model, image())


@pytest.mark.parametrize("ir", IRS)
def test_quantizers_find_the_layers_by_what_the_exporter_noted(ir: str) -> None:
    asymmetric = nn.Sequential(nn.ZeroPad2d((1, 0, 0, 1)), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    model = ready(nn.Sequential(Net().stages, asymmetric, nn.Flatten(), nn.Linear(200, 5), nn.BatchNorm1d(5)))
    made = reptool.deploy(IRS[ir](program(model, image())))
    found = get_source_partitions(made.graph, [nn.Conv2d, nn.Linear])
    convs, linears = (found[kind] for kind in (nn.Conv2d, nn.Linear))
    assert (len(convs), len(linears)) == (4, 1)
    for partition in (*convs, *linears):
        (y,) = partition.output_nodes
        assert any(name in str(y.target) for name in ("conv", "linear", "addmm"))


def test_circular_padding_is_no_operator_of_the_core() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)))
    made = reptool.deploy(program(model, image()))
    assert reptool.report(made).norms == (1, 0)
    same(made, model, image())
    core = reptool.deploy(program(model, image()).run_decompositions())
    same(core, model, image())


class Keeps(nn.Module):
    """Counts its calls, writes its input, and decides by it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        other.mul_(2)
        y = self.bn(self.conv(x))
        z = torch.cond(y.sum() > 0, lambda v: v + 1, lambda v: v - 1, (y,))
        return z, y * self.calls


def test_what_is_no_layer_is_kept() -> None:
    model = ready(Keeps())
    given = program(model, image(), image(3))
    made = reptool.deploy(given)
    report = reptool.report(made)
    assert report.norms == (1, 0)
    assert len(targets(made.graph, "cond")) == 1
    for p in (given, made):
        module, other = p.module(), torch.ones(3, dtype=torch.float64)
        outs = [module(image(2, 3, 12, 11).fill_(0.3), other) for _ in range(2)]
        assert float(module.calls) == 2
        assert other.tolist() == [4.0] * 3
        torch.testing.assert_close(outs[1][1], outs[0][1] * 2)


class Written(nn.Module):
    """An input that is written between two reads of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sigmoid()
        y = self.a(x)
        x.mul_(x.tanh())
        return self.bn(y) + self.b(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("ir", IRS)
def test_what_is_written_in_place_is_another_value(ir: str) -> None:
    model = ready(Written())
    given = IRS[ir](program(model, image()))
    made = reptool.deploy(given, None if isinstance(given, ExportedProgram) else image())
    same(made, model, image())
    if ir == "training":
        assert codes(reptool.report(made)) <= {"mutated", "no-layer", "read-elsewhere", "dearer"}


class Terms(nn.Module):
    """A sum in which two terms of one value are apart, and some are taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)
        self.d, self.e = nn.Conv2d(3, 3, 5, padding=2), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        return self.a(x) - self.b(x).relu() + self.c(x) - (self.d(y) - self.e(y))  # type: ignore[no-any-return]


@pytest.mark.parametrize("ir", IRS)
def test_terms_of_one_value_are_one_layer(ir: str) -> None:
    model = ready(Terms())
    given = IRS[ir](program(model, image()))
    made = reptool.deploy(given, None if isinstance(given, ExportedProgram) else image())
    assert reptool.report(made).layers == (5, 3)
    assert len(targets(made.graph, "conv")) == 3
    same(made, model, image())


def test_options_mean_what_they_mean_for_modules() -> None:
    given = program(ready(Net()), image())
    assert not reptool.report(reptool.deploy(given, exclude="stages.*")).regions
    assert len(reptool.report(reptool.deploy(given, include="stages.1")).regions) == 1
    assert not reptool.report(reptool.deploy(given, rules="linear")).regions
    assert len(reptool.explain(given).regions) == 3
    assert reptool.report(reptool.deploy(given, verify=False)).regions[0].error is None
    reptool.deploy(given, image(), require="no_batchnorm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inplace": True}, "inplace= is for modules"),
        ({"flatten": True}, "flatten= is for modules"),
        ({"keep_fallback": True}, "keep_fallback= is for modules"),
        ({"affine": "stages"}, "affine= is for modules"),
        ({"include": "nothing"}, "matches no parameter"),
        ({"exclude": nn.Conv2d}, "patterns on paths alone"),
        ({"rules": "fold"}, "unknown rules"),
        ({"example_inputs": torch.ones(3)}, "does not run on example_inputs"),
    ],
)
def test_options_that_make_no_sense_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reptool.deploy(program(ready(Net()), image()), **options)


def test_requirements_are_checked() -> None:
    model = ready(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    with pytest.raises(RequirementError, match="no layer is next to it"):
        reptool.deploy(program(model, image()), require="no_batchnorm")


def test_a_program_without_data_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Conv2d(3, 3, 1)
    given = program(model.eval(), torch.empty(1, 3, 4, 4, device="meta"))
    with pytest.raises(UnsupportedModelError, match="has no data"):
        reptool.deploy(given)


def test_a_lowered_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = program(ready(Net()), image())
    monkeypatch.setattr(ExportedProgram, "dialect", "EDGE")
    with pytest.raises(UnsupportedModelError, match=r"lowered already.*before to_edge"):
        reptool.deploy(given)


def test_weights_that_are_not_finite_are_named() -> None:
    model = ready(Net())
    model.stages[1].branches["dense"][0].weight.data[0, 0, 0, 0] = float("nan")  # type: ignore[index,union-attr]
    with pytest.raises(InputError, match=r"NaN or infinity.*stages.1"):
        reptool.deploy(program(model, image()))


def test_a_whole_that_differs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    given = program(ready(Net()), image())
    right = exported.collapse

    def wrong(*args: Any) -> Any:
        made = right(*args)
        made.layers[0].pieces[0].weight.mul_(1.5)
        return made

    monkeypatch.setattr(exported, "collapse", wrong)
    with pytest.raises(VerificationError, match="nothing was changed"):
        reptool.deploy(given)


@pytest.mark.parametrize("seed", sparse(range(24)))
def test_random_networks_agree_in_every_ir(seed: int) -> None:
    model, inputs = random_network(seed)
    model = model.double()
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    args = tuple(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in given)
    wide = list(IRS)[seed % len(IRS)]

    def fresh() -> tuple[Any, ...]:
        return tuple(v.clone() if isinstance(v, Tensor) else v for v in args)

    before = program(model, *fresh())
    handed = IRS[wide](before)
    made = reptool.deploy(handed, None if isinstance(handed, ExportedProgram) else fresh())
    torch.testing.assert_close(run(made, *fresh()), run(before, *fresh()), rtol=1e-10, atol=1e-10)


class Sums(nn.Module):
    """Branches of one value with another value between them, in several groupings."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.c, self.d = nn.Conv2d(3, 3, (9, 1), padding=(4, 0)), nn.Conv2d(3, 3, (1, 9), padding=(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        z, r = torch.relu(x), torch.tanh(x)
        a, b, c, d = self.a(z), self.b(z), self.c(r), self.d(z)
        return (
            lambda: r + a + b,
            lambda: (a + r.sin()) + ((c + d) + (b + r)),
            lambda: (a - r) + (z + (r.cos() + b)),
            lambda: (a + c) + (r + (b + (d + z))) + a * c,
        )[self.kind]()


@pytest.mark.parametrize("kind", range(4))
def test_terms_merge_in_any_order(kind: int) -> None:
    model, x = ready(Sums(kind)), image()
    given = program(model, x, dynamic_shapes=DYNAMIC)
    found = reptool.deploy(given)
    assert len(targets(given.graph, "conv")) == 4
    assert len(targets(found.graph, "conv")) == 3
    assert "<" not in str([r.nodes for r in reptool.report(found).refusals])
    for size in ((2, 3, 12, 11), (1, 3, 15, 20)):
        y = image(*size)
        torch.testing.assert_close(run(found, y), model(y), rtol=1e-10, atol=1e-10)
