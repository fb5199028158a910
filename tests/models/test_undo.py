"""A change that breaks off leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import reptool
from reptool.surgery import apply, conversions, graph_modules
from reptool.testing import randomize


class Residual(nn.Module):
    """A body and a shortcut: its forward is written anew when both become one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + x


def network() -> nn.Module:
    first = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    return randomize(nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), Residual())).eval()


def graph_network() -> nn.Module:
    return torch.fx.symbolic_trace(network())


def described(model: nn.Module) -> list[Any]:
    """Everything that makes up a model, by identity (copying leaves a note on each class)."""
    return [
        (name, id(m), type(m), [(k, id(v)) for k, v in vars(m).items()], set(vars(type(m))) - {"__slotnames__"})
        for name, m in model.named_modules()
    ] + [(name, id(t)) for name, t in (*model.named_parameters(), *model.named_buffers())]


@pytest.mark.parametrize("build", [network, graph_network])
@pytest.mark.parametrize("step", ["set_values", "Absorbed", "set_gates", "set_folded", "derive", "silence", "_drop"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_write_that_breaks_off_changes_nothing(
    build: Callable[[], nn.Module], step: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = build(), torch.randn(2, 3, 9, 9)
    before, wanted = described(model), model(x)
    homes = [m for m in (apply, conversions, graph_modules) if hasattr(m, step)]
    plain = getattr(homes[0], step)

    def breaks(*args: Any, **kwargs: Any) -> Any:
        plain(*args, **kwargs)
        raise error("in between")

    for home in homes:
        monkeypatch.setattr(home, step, breaks)
    with pytest.raises(error, match="in between"):
        reptool.deploy(model, inplace=True, verify=False)
    monkeypatch.undo()
    assert described(model) == before
    assert torch.allclose(model(x), wanted, atol=1e-5)
    reptool.deploy(model, inplace=True)
    assert torch.allclose(model(x), wanted, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
