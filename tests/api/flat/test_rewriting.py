"""Rules that rewrite: applied where they are exact, refused where not, and every fault is told apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reptool
from reptool import Code, Refusal
from reptool.errors import AbsorbedStateError, InputError, RegionWarning, RuleError
from reptool.rules import Rule, Site, chain
from reptool.testing import assert_equivalent, randomize

X = torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(0))


class Merge(Rule):
    """A ReLU of a ReLU is one ReLU."""

    name = "merge"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        yield from chain(graph, ("relu", nn.ReLU), ("relu", nn.ReLU))

    def check(self, site: Site) -> Any:
        return True

    def rewrite(self, site: Site, evidence: Any) -> None:
        site.replace(site.nodes[1], site.nodes[0])


class Wider(Rule):
    """A tanh of a value clamped to ``[-1, 1]`` is none of a value that is not: wrong, in one of two ways."""

    name = "wider"

    def __init__(self, only_small: bool = False) -> None:
        self.only_small = only_small

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        yield from chain(graph, nn.Hardtanh, nn.Tanh)

    def check(self, site: Site) -> Any:
        limit = site.module(site.nodes[0]).max_val
        return Refusal(Code.RULE, f"it is clamped at {limit}") if self.only_small and limit < 1e6 else limit

    def rewrite(self, site: Site, evidence: Any) -> None:
        site.nodes[1].replace_input_with(site.nodes[0], site.nodes[0].args[0])  # type: ignore[arg-type]


def twice() -> nn.Module:
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return randomize(made, 0).eval()


def clamped(*limits: float) -> nn.Module:
    parts = [p for limit in limits for p in (nn.Conv2d(3, 3, 1), nn.Hardtanh(-limit, limit), nn.Tanh())]
    return randomize(nn.Sequential(*parts), 0).eval()


def made(model: nn.Module, *rules: Any, x: Tensor | None = X, **options: Any) -> Any:
    return reptool.deploy(model, x, rules=(*reptool.RULES, *rules), flatten=True, **options)


def count(model: fx.GraphModule, kind: type) -> int:
    return sum(isinstance(m, kind) for m in model.modules())


@pytest.mark.parametrize("x", [X, None], ids=["shown", "made up"])
def test_a_rule_is_applied_until_nothing_changes(x: Tensor | None) -> None:
    model = twice()
    deployed = made(model, Merge(), x=x)
    assert count(deployed, nn.ReLU) == 1
    assert count(deployed, nn.BatchNorm2d) == 0
    found = reptool.report(deployed)
    assert [(r.rule, r.places) for r in found.rewritten] == [("merge", ["2, 3"]), ("merge", ["2, 4"])]

    assert "rewritten by the rule 'merge': 2, 3: off by 0.0e+00 at" in str(found)
    assert deployed.state_dict().keys() == {"0.weight", "0.bias", "5.weight", "5.bias"}
    assert {t.dtype for t in deployed.state_dict().values()} == {torch.float32}
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)
    assert count(made(model), nn.ReLU) == 3


def test_sites_that_are_wrong_are_refused_and_the_others_stand() -> None:
    model = clamped(1e9, 0.1, 1e8)
    with pytest.warns(RegionWarning, match=r"rule 'wider' at 4, 5 computes something else: off by"):
        deployed = made(model, Wider())
    assert [m.max_val for m in deployed.modules() if isinstance(m, nn.Hardtanh)] == [0.1]
    found = reptool.report(deployed)
    assert [(r.code, r.nodes) for r in found.refusals] == [(Code.UNVERIFIED, ("4, 5",))]
    assert [r.places for r in found.rewritten] == [["1, 2", "7, 8"]]
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)


def test_a_rule_says_why_it_does_not_act() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deployed = made(clamped(1e9, 0.1), Wider(only_small=True))
    (refusal,) = reptool.report(deployed).refusals
    assert str(refusal) == "rule: rule 'wider': it is clamped at 0.1 [4, 5]"


def test_what_is_dearer_is_done_when_it_is_forced() -> None:
    class Dear(Merge):
        def price(self, site: Site, evidence: Any) -> float:
            return 3.0

    left = made(twice(), Dear())
    assert count(left, nn.ReLU) == 3
    assert {r.code for r in reptool.report(left).refusals} == {Code.DEARER}
    assert count(made(twice(), Dear(), force=True), nn.ReLU) == 1


def test_inner_values_that_others_read_are_in_the_way() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(self.conv(x))
            return self.b(y) + y

    deployed = made(Both().eval(), Merge())
    assert count(deployed, nn.ReLU) == 2
    assert [r.code for r in reptool.report(deployed).refusals] == [Code.READ_ELSEWHERE]


def test_what_writes_into_a_value_from_outside_is_in_the_way() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.ReLU()).eval()
    deployed = made(model, Merge())
    assert [r.code for r in reptool.report(deployed).refusals] == [Code.MUTATED]


def test_a_function_of_the_graph_is_run_once_and_compared() -> None:
    def no_dropout(graph: fx.GraphModule) -> fx.GraphModule:
        for node in list(graph.graph.nodes):
            if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Dropout):
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
        return graph

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(), nn.ReLU()).eval()
    deployed = made(model, no_dropout)
    assert count(deployed, nn.Dropout) == 0
    assert [r.rule for r in reptool.report(deployed).rewritten] == ["no_dropout"]
    assert not reptool.report(made(twice(), no_dropout)).rewritten


def test_a_function_that_is_wrong_is_left_out() -> None:
    def careless(graph: fx.GraphModule) -> fx.GraphModule:
        with torch.no_grad():
            next(graph.parameters()).mul_(1.001)
        return graph

    model = twice()
    with pytest.warns(RegionWarning, match="rule 'careless' at the whole network computes something else"):
        deployed = made(model, careless)
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)


def test_values_that_a_function_changed_take_no_state_of_the_original() -> None:
    def moved(graph: fx.GraphModule) -> fx.GraphModule:
        first, second = graph.get_submodule("0"), graph.get_submodule("2")
        with torch.no_grad():
            first.weight.mul_(2.0)  # type: ignore[operator, union-attr]
            first.bias.mul_(2.0)  # type: ignore[operator, union-attr]
            second.weight.mul_(0.5)  # type: ignore[operator, union-attr]
        return graph

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)).eval()
    deployed = made(model, moved)
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)
    deployed.load_state_dict(deployed.state_dict())
    with pytest.raises(AbsorbedStateError):
        deployed.load_state_dict(model.state_dict())


def rule(**methods: Any) -> Rule:
    return type("Broken", (Merge,), {"name": "broken", **methods})()


class PingPong(Rule):
    """Puts an identity where there is none, and takes it away."""

    def __init__(self, name: str, one: Any, other: type) -> None:
        self.name, self.one, self.other = name, one, other

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        yield from chain(graph, self.one)

    def check(self, site: Site) -> Any:
        return True

    def rewrite(self, site: Site, evidence: Any) -> None:
        site.put(site.nodes[0], self.other())


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (rule(match=lambda self, graph: 1 / 0), "rule 'broken' at the whole network: match raised ZeroDivisionError"),
        (rule(match=lambda self, graph: [3]), "match has to give Sites"),
        (rule(check=lambda self, site: None), "rule 'broken' at 2, 3: check returned None"),
        (rule(check=lambda self, site: site.nothing), "at 2, 3: check raised AttributeError"),
        (rule(rewrite=lambda self, site, e: 1 / 0), "at 2, 3: rewrite raised ZeroDivisionError"),
        (
            rule(rewrite=lambda self, site, e: site.graph.get_submodule("0").weight.data.mul_(2)),
            "wrote into '0.weight'",
        ),
        (lambda graph: 3, "rule '<lambda>' returned a int; return a GraphModule"),
        (rule(rewrite=lambda self, site, e: site.graph.graph.erase_node(site.nodes[1])), "rewrite raised RuntimeError"),
    ],
)
def test_what_breaks_is_an_error_that_names_the_rule_and_the_place(broken: Any, told: str) -> None:
    model = twice()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuleError, match=told):
        made(model, broken)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_endless_rewriting_names_the_rules() -> None:
    ping, pong = PingPong("ping", nn.ReLU, nn.ReLU6), PingPong("pong", nn.ReLU6, nn.ReLU)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardtanh(-1, 1), nn.ReLU()).eval()  # at most one: both are the same
    with pytest.raises(RuleError, match="the rules 'ping', 'pong' go on rewriting what they wrote"):
        made(model, ping, pong)


def test_what_rules_may_be_given() -> None:
    model = twice()
    with pytest.raises(InputError, match="'merge' rewrite the network as one graph"):
        reptool.deploy(model, X, rules=(*reptool.RULES, Merge()))
    with pytest.raises(InputError, match="rules need names"):
        made(model, Merge(), Merge())
    with pytest.raises(InputError, match="is no rule"):
        made(model, 3)
    with pytest.raises(InputError, match="is no rule"):
        made(model, Merge)


class Entry:
    """An entry point of an installed package."""

    def __init__(self, name: str, rule: Any) -> None:
        self.name, self.rule, self.value, self.dist, self.loaded = name, rule, f"package:{name}", None, 0

    def load(self) -> Any:
        """What it names."""
        self.loaded += 1
        if isinstance(self.rule, Exception):
            raise self.rule
        return self.rule


def test_rules_of_packages_are_loaded_when_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry("merge", Merge), Entry("other", Merge()), Entry("broken", ImportError("no such thing"))]
    monkeypatch.setattr(
        "reptool.api.rules_given.entry_points", lambda group: entries if group == "reptool.rules" else []
    )
    deployed = made(twice(), "merge")
    assert count(deployed, nn.ReLU) == 1
    assert [e.loaded for e in entries] == [1, 0, 0]
    with pytest.raises(RuleError, match=r"rule 'broken' \(package:broken of a package\) cannot be loaded: ImportError"):
        made(twice(), "broken")
    with pytest.raises(InputError, match=r"unknown rules \['nothing'\]; the rules are .*, broken, merge, other"):
        made(twice(), "nothing")
