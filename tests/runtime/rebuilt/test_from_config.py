"""What a class builds from its configuration is saved in its own way, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from tests.adapters import LowRank


@dataclass
class Config:
    """Of a `Pretrained`."""

    width: int = 6
    normed: bool = False


class Pretrained(nn.Module):
    """A model that is built from a configuration, and saved and read by its own methods."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = nn.Linear(config.width, config.width), nn.Linear(config.width, 2)
        if config.normed:
            self.norm = nn.BatchNorm1d(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(torch.tanh(self.norm(x) if self.config.normed else x))

    def save_pretrained(self, folder: Path) -> None:
        torch.save((self.config, self.state_dict()), folder / "model.pt")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Any:
        config, state = torch.load(folder / "model.pt", weights_only=False)
        model = cls(config)
        model.load_state_dict(state)
        return model.eval()


def adapted(config: Config) -> tuple[Pretrained, Tensor]:
    torch.manual_seed(0)
    model = Pretrained(config)
    model.first = LowRank(model.first)
    return model.eval(), torch.randn(3, config.width)


def test_a_merged_model_is_read_by_the_class_of_its_base(tmp_path: Path) -> None:
    model, x = adapted(Config())
    deployed = reptool.deploy(model, x, unwrap=True)
    deployed.save_pretrained(tmp_path)
    torch.testing.assert_close(Pretrained.from_pretrained(tmp_path)(x), model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(SpecializedError, match="from_pretrained builds the layers"):
        type(deployed).from_pretrained(tmp_path)


@pytest.mark.parametrize(("config", "unwrap"), [(Config(), False), (Config(normed=True), True)])
def test_what_the_class_would_build_otherwise_is_not_saved(tmp_path: Path, config: Config, unwrap: bool) -> None:
    model, x = adapted(config)
    deployed = reptool.deploy(model, x, unwrap=unwrap)
    with pytest.raises(SpecializedError, match="save_pretrained writes weights"):
        deployed.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_factor_that_went_into_a_weight_is_not_saved(tmp_path: Path) -> None:
    class Scaled(Pretrained):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2.0

    deployed = reptool.deploy(Scaled(Config()).eval(), torch.randn(3, 6), unwrap=True)
    assert len(reptool.report(deployed).regions) == 1
    with pytest.raises(SpecializedError, match="save_pretrained writes weights"):
        deployed.save_pretrained(tmp_path)
