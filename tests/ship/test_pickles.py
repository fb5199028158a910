"""Models in which no method was written anew are pickled so that they load where reptool is not; others are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import RepVGGBlock
from reptool.errors import InputError
from reptool.ship.pickles import globals_of, plain_copy
from reptool.testing import randomize

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Norms behind layers, whose methods stay as they are; with a conversion of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))

    def fuse(self) -> None:
        raise AssertionError("it was converted already")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_it_loads_in_a_process_without_reptool(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    deployed = reptool.deploy(randomize(model.eval()), IMAGES)
    reptool.save(deployed, tmp_path / "m.pt")
    torch.save((IMAGES, deployed(IMAGES).detach()), tmp_path / "io.pt")
    code = (
        "import sys; sys.modules['reptool'] = None; import torch\n"
        "model = torch.load('m.pt', weights_only=False); x, y = torch.load('io.pt')\n"
        "assert torch.equal(model(x), y); model.train()(x); model.load_state_dict(model.state_dict())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not any(name.startswith("reptool") for name in globals_of(tmp_path / "m.pt"))
    assert any(name.startswith("torch.nn.modules.conv") for name in globals_of(tmp_path / "m.pt"))


def test_the_model_itself_stays_guarded() -> None:
    deployed = reptool.deploy(randomize(Net().eval()))
    made = plain_copy(deployed)
    assert type(made) is Net
    assert torch.equal(made(IMAGES), deployed(IMAGES))
    assert reptool.is_deployed(deployed)
    assert deployed.fuse() is deployed
    with pytest.raises(AssertionError, match="converted already"):
        made.fuse()


class Adds(nn.Module):
    """Its forward is written anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x) + self.second(x))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: nn.Sequential(Adds()), "'0' needs reptool to run: forward was written anew"),
        (lambda: RepVGGBlock(3, 4), "'<root>' is a RepVGGBlock of reptool"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "it checks the rank or dtype of its input"),
    ],
)
def test_what_needs_reptool_is_named(model: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        reptool.save(reptool.deploy(model().eval()), tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


def test_what_a_model_holds_beside_is_found(tmp_path: Path) -> None:
    model = reptool.deploy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    model.report = reptool.report(model)
    with pytest.raises(InputError, match=r"would name reptool\.report\.data\.Report"):
        reptool.save(model, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())
