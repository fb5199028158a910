"""No method that was written anew is handed out that has not run beside the original."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.errors import RegionWarning
from reptool.rewrite import printer
from reptool.runtime.method import Method
from reptool.verify import methods
from tests.traps import Branches, assert_same, codes, image, ready


class Words(nn.Module):
    """Reads numbers of words: no images that anybody makes up suit it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, words: Any) -> Any:
        x = self.table(words)
        return torch.relu(self.a(x) + self.b(x))


def test_a_method_that_nothing_runs_is_not_written() -> None:
    model, words = ready(Words()), torch.randint(0, 10, (3, 5))
    deployed = reptool.deploy(model)
    (refusal,) = [r for r in reptool.report(deployed).refusals if r.code is Code.NOT_RUN]
    assert refusal.sentence.startswith("<root>.forward would be written anew")
    assert "example_inputs" in refusal.sentence
    assert type(deployed) is Words
    assert_same(model(words), deployed(words))
    shown = reptool.deploy(model, words)
    assert len(reptool.report(shown).regions) == 1
    assert_same(model(words), shown(words))


class Inner(nn.Module):
    """A sum of branches in the middle of a model that takes numbers of words."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.a(x) + self.b(x))


class Outer(nn.Module):
    """Words, and a module behind them that can be run by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(10, 8), Inner()

    def forward(self, words: Any) -> Any:
        return self.inner(self.table(words))


def test_the_smallest_call_that_holds_the_regions_is_enough() -> None:
    model, words = ready(Outer()), torch.randint(0, 10, (3, 5))
    deployed = reptool.deploy(model)
    assert len(reptool.report(deployed).regions) == 1
    assert reptool.report(deployed).rehearsed == 1
    assert_same(model(words), deployed(words))


class Two(nn.Module):
    """Two inputs of which nothing says how many axes they have."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.scale = nn.Parameter(torch.ones(1))
        self.a, self.b = kind(6, 4, 3, padding=1), kind(6, 4, 1)

    def forward(self, x: Any, y: Any) -> Any:
        z = torch.relu(x * y)
        return torch.tanh(self.a(z) + self.b(z))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_inputs_are_made_up_for_several_parameters(axes: int) -> None:
    model = ready(Two(axes))
    deployed = reptool.deploy(model)
    assert len(reptool.report(deployed).regions) == 1, reptool.report(deployed)
    x, y = (torch.randn(2, 6, *(5, 6, 7)[:axes], dtype=torch.float64) for _ in range(2))
    assert_same(model(x, y), deployed(x, y))


def miswritten(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Methods in which one word of the source is another."""
    body = printer.Printer.body
    monkeypatch.setattr(printer.Printer, "body", lambda self: [line.replace(old, new) for line in body(self)])


class TwoParts(nn.Module):
    """Two sums of branches, of which one is followed by something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Branches(3, 4), Other(4, 4)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


class Other(Branches):
    """The same with another activation."""

    def forward(self, x: Any) -> Any:
        return self.bn(self.a(x) + self.b(x)).tanh()


@pytest.mark.parametrize(("new", "why"), [("sigmoid", "is off by"), ("missing", "fails where the original runs")])
@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_what_computes_something_else_is_given_up_by_itself(
    monkeypatch: pytest.MonkeyPatch, new: str, why: str, shown: bool, inplace: bool, verify: bool
) -> None:
    model, x = ready(TwoParts()), image()
    wanted = model(x)
    miswritten(monkeypatch, ".tanh(", f".{new}(")
    options: dict[str, Any] = {"inplace": inplace, "verify": verify}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RegionWarning, match=f"second {why}"):
        reptool.deploy(model, x if shown else None, **options)
    assert {k: torch.equal(v, before[k]) for k, v in model.state_dict().items()} == dict.fromkeys(before, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegionWarning)
        deployed = reptool.deploy(model, x if shown else None, **options)
    assert_same(wanted, deployed(x))
    report = reptool.report(deployed)
    assert "unverified" in codes(report)
    assert report.regions[0].layer.startswith("first")
    assert isinstance(deployed.second, Other)
    assert type(deployed.second) is Other


def test_a_warning_names_the_line_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    miswritten(monkeypatch, ".tanh(", ".sigmoid(")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        reptool.deploy(ready(TwoParts()))
    assert [w.filename for w in told if w.category is RegionWarning] == [__file__]


def test_methods_are_data() -> None:
    method = Method("forward", "def forward(self):\n    return _c0\n", constants=(("_c0", 1.5),))
    scope = method.scope()
    exec(method.source, scope)
    assert scope["forward"](None) == 1.5
    assert method.key() == Method("forward", method.source, constants=(("_c0", 1.5),)).key()
    assert method.key() != Method("forward", method.source, constants=(("_c0", 2.5),)).key()


def test_large_volumes_are_run_small(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ups = nn.Sequential(*[nn.ConvTranspose3d(4, 4, 2, stride=2) for _ in range(4)])
            self.a, self.b = nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x) + self.b(x)) + 0 * self.ups(x).mean()  # type: ignore[no-any-return]

    made: list[int] = []
    own = methods.outputs

    def counted(module: nn.Module, args: Any, kwargs: Any) -> Any:
        made.append(args[0].numel() * 2**12)
        return own(module, args, kwargs)

    monkeypatch.setattr(methods, "outputs", counted)
    reptool.deploy(ready(Net()))
    assert made
    assert max(made) < 10_000_000
