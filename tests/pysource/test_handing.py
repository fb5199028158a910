"""Walks over modules: looking at what they give is not using it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.pysource.handing import asked_for, hands_on


class Looks:
    def kinds(self, kind: type) -> int:
        return sum(isinstance(m, kind) for m in self.modules())

    def names(self, wanted: set[str]) -> list[str]:
        found = []
        for name, module in self.named_modules():
            if len(list(module.children())) == 0 and name.rpartition(".")[0] in wanted:
                found.append("net." + name)
        return found

    def rows(self, state: dict[str, Tensor], count: int) -> int:
        keys = set()
        for name, m in self.named_modules():
            branches = {f"{attr}.{i}": b for attr in ("a", "b") for i, b in enumerate(getattr(m, attr, None) or ())}
            for prefix, branch in branches.items():
                if getattr(branch[-1], "out_channels", None) == count:
                    keys.update(f"{name}.{prefix}.{p}" for p in ("weight", "bias"))
        return sum(state[k].numel() for k in keys & state.keys())

    def every(self, plan: dict[str, str]) -> set[str]:
        known = {str(n) for n, _ in chain(self.named_modules(), self.named_parameters())}
        return known | set(plan)


class Runs:
    def called(self, x: Any) -> Any:
        for m in self.children():
            x = m(x)
        return x

    def kept(self, x: Any) -> Any:
        stages = [m for m in self.children() if len(list(m.parameters()))]
        return stages[0](x)

    def looked_up(self, x: Any, names: list[str]) -> Any:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def handed(self, x: Any) -> Any:
        return nn.Sequential(*self.children())(x)

    def by_forward(self, x: Any) -> Any:
        for m in self.modules():
            x = m.forward(x)
        return x

    def weights(self, x: Any) -> Any:
        for _, m in self.named_modules():
            x = x * m.weight
        return x

    def hidden(self, x: Any) -> Any:
        run = lambda layer, y: layer(y)  # noqa: E731 - a call that no name gives away
        for m in self._modules.values():
            x = run(m, x)
        return x

    def stored(self, x: Any) -> Any:
        self.last = list(self.children())[-1]
        return x


@pytest.mark.parametrize("name", [n for n in vars(Looks) if not n.startswith("__")])
def test_looking_is_not_running(name: str) -> None:
    assert not hands_on(getattr(Looks, name))


@pytest.mark.parametrize("name", [n for n in vars(Runs) if not n.startswith("__")])
def test_running_is_seen(name: str) -> None:
    assert hands_on(getattr(Runs, name))


def test_code_without_text_is_believed_to_run() -> None:
    scope: dict[str, Any] = {}
    exec("def count(self, k): return len(list(self.modules()))", scope)
    assert hands_on(scope["count"])


def test_names_in_getattr_are_read() -> None:
    assert asked_for(Looks.rows) == {"a", "b", "out_channels"}


class Counted(nn.Module):
    """Its forward asks for a size, so that its block is deployed by itself below code that walks over it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)[..., : x.shape[-1] // 2 + int(x.shape[-2] > 20)]

    def count(self, kind) -> int:  # type: ignore[no-untyped-def]
        total = 0
        for m in self.modules():
            total += isinstance(m, kind)
        return total


def test_a_method_that_counts_modules_costs_nothing() -> None:
    model = Counted().eval()
    deployed = reptool.deploy(model)
    assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert deployed.count(nn.Conv2d) == 1
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(deployed(x), model(x))
