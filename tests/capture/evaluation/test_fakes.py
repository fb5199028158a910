"""Fake evaluation leaves nothing of itself in the modules that it runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

import reptool
from reptool.capture.evaluation.fakes import Evaluation
from reptool.models.copies import full_copy


class Keeps(nn.Module):
    """Keeps what it computed, in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.every = nn.Conv2d(3, 4, 1), torch.zeros(1), [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.conv(x)
        self.every.append(self.last)
        return self.last


def test_a_module_that_was_run_on_fakes_holds_none() -> None:
    root = nn.ModuleDict({"keeps": Keeps()})
    last, every = root["keeps"].last, root["keeps"].every
    graph, evaluation = fx.Graph(), Evaluation(root)
    x = graph.placeholder("x")
    node = graph.call_module("keeps", (x,))
    node.meta.update(const=False, module=root["keeps"])
    evaluation.fakes[x] = evaluation.fake_mode().from_tensor(torch.zeros(2, 3, 8, 8))
    assert evaluation.of(node).shape == (2, 4, 8, 8)
    assert root["keeps"].last is last
    assert root["keeps"].every is every
    assert len(every) == 1


def test_a_copy_of_a_fake_shares_its_mode() -> None:
    model = nn.ReLU()
    with FakeTensorMode() as mode:
        model.kept = torch.empty(3)
    copied = full_copy(model)
    assert isinstance(copied.kept, FakeTensor)
    assert copied.kept is not model.kept
    assert copied.kept.fake_mode is mode


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_no_reference_to_a_storage_is_copied(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise AssertionError("a reference that counts is copied bit by bit, and given back twice")

    monkeypatch.setattr(StorageWeakRef, "__reduce_ex__", stop)
    conv = getattr(torch.nn.utils, name)(nn.Conv2d(4, 4, (5, 1), padding=(2, 0)))
    model = nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(4), Keeps4()).eval()
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(reptool.deploy(model, x)(x), model(x), rtol=1e-4, atol=1e-5)


class Keeps4(nn.Module):
    """A module whose code cannot be followed, with a layer whose weight a hook computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.weight_norm(nn.Conv2d(4, 4, 1))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = 0.25
        return self.norm(self.conv(y)) if float(y.detach().sum()) < 1e9 else y
