"""Models that an earlier release deployed and pickled still load and run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from reptool.errors import AbsorbedStateError, SpecializedError

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.pt"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_pickle_of_an_earlier_release_computes_what_it_computed(file: Path) -> None:
    held = torch.load(file, weights_only=False)
    torch.testing.assert_close(held["model"](held["input"]), held["output"], rtol=1e-4, atol=1e-5)


def test_its_guards_still_hold() -> None:
    held = torch.load(DATA / "guarded_0_1_0.pt", weights_only=False)
    model = held["model"]
    x = torch.randn(1, 4, 5, 5)
    with pytest.raises(SpecializedError):
        model[2](x, double=True)
    with pytest.raises(SpecializedError):
        model[4](x[0, 0])
    with pytest.raises(AbsorbedStateError):
        model.load_state_dict({"0.branches.point.conv.weight": torch.zeros(1)}, strict=False)


def test_its_fallback_still_runs() -> None:
    model = torch.load(DATA / "fallback_0_1_0.pt", weights_only=False)["model"]
    small = torch.randn(1, 4, 8, 8)
    kept = model.reptool_original
    wanted = torch.tanh(kept.bn(kept.a(small)))
    torch.testing.assert_close(model(small), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Gate", "Chain", "Link", "runs_in_its_region"])
def test_a_gate_is_found_at_its_old_address(name: str) -> None:
    assert pickle.loads(f"creptool.runtime.gate\n{name}\n.".encode()).__name__ == name


def test_there_are_files() -> None:
    assert len(FILES) == 2
