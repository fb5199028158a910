"""Known calls: what was right once is not looked at in full again, and what has changed since is still seen."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import reptool
from reptool.blocks import RepVGGBlock
from reptool.errors import SpecializedError
from reptool.runtime.gates import check, known
from reptool.runtime.gates.marker import GATE
from tests.runtime.gates.test_gate import OTHERWISE, Net, X
from tests.traps import assert_same, ready


def warmed(model: nn.Module, *given: Any) -> Any:
    deployed = reptool.deploy(model)
    deployed(*given)
    return deployed


@pytest.mark.parametrize("model", [Net, lambda: nn.Sequential(RepVGGBlock(3, 3, 3), nn.ReLU())])
def test_a_second_call_is_known(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ready(model())
    deployed = warmed(original, X)
    monkeypatch.setattr(check, "_check_all", None)
    assert_same(original(X), deployed(X))
    with pytest.raises(TypeError):
        copy.deepcopy(deployed)(X)  # nothing is known of other layers


@pytest.mark.parametrize("how", OTHERWISE)
def test_what_is_called_otherwise_after_that_raises(how: str) -> None:
    with pytest.raises(SpecializedError, match=r"deploy\(\)"):
        OTHERWISE[how](warmed(ready(Net()), X))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another window": lambda m: setattr(m[0].branches.dense.conv, "padding", (2, 2)),
    "a hook on a container": lambda m: m[0].branches.dense.register_forward_hook(lambda *_: None),
    "another container": lambda m: setattr(m[0].branches, "dense", nn.Sequential(*m[0].branches.dense)),
    "another branch": lambda m: setattr(m[0].branches, "point", nn.Identity()),
    "another code": lambda m: setattr(m[0], "forward", lambda x: m[0].branches.dense(x)),
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_is_changed_after_that_raises(how: str) -> None:
    deployed = warmed(ready(nn.Sequential(RepVGGBlock(3, 3, 3), nn.ReLU())), X)
    CHANGES[how](deployed)
    with pytest.raises(SpecializedError):
        deployed(X)


def test_copies_and_pickles_hold_nothing_of_it() -> None:
    deployed = warmed(ready(Net()), X)
    assert_same(deployed(X), pickle.loads(pickle.dumps(deployed))(X))
    assert "Known" not in repr(vars(deployed.stem))


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MAX_KNOWN", 3)
    deployed = warmed(ready(Net()), X)
    assert len(known._KNOWN) <= 4
    assert_same(deployed(X), deployed(X))


def test_a_layer_at_the_address_of_another_is_not_mistaken_for_it() -> None:
    one, other = warmed(ready(Net()), X), reptool.deploy(ready(Net()))
    known._KNOWN[id(other.stem)] = known._KNOWN[id(one.stem)]
    assert not known.is_known(other.stem, other.stem.__dict__[GATE])
    with pytest.raises(SpecializedError):
        other.stem(X)
