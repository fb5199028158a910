"""A folded norm's own mode decides nothing any more; whatever else reads the mode stays behind a guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.rewrite import own_mode
from reptool.testing import randomize


class Written(nn.BatchNorm2d):
    """A norm as model zoos write it: in a forward of its own, with an activation and a check."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "images")
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        mean = self.running_mean if not self.training or self.track_running_stats else None
        x = F.batch_norm(x, mean, self.running_var, self.weight, self.bias, by_batch, factor, self.eps)
        return self.activated(self.drop(x))

    def activated(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Dropping(Written):
    def activated(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), 0.5, self.training)


class ByHand(Written):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.relu(x - x.mean((0, 2, 3), keepdim=True))
        return super().forward(x)


class Branching(Written):
    def activated(self, x: Tensor) -> Tensor:
        return F.relu(x) if not self.training else F.gelu(x)


class Kept(Written):
    """A second norm, behind an activation, that nothing takes."""

    def activated(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, training=self.training))


class Scaling(Written):
    """The mode is an argument of an operation that is folded and is no norm."""

    def forward(self, x: Tensor) -> Tensor:
        factor = 2.0 if self.training else 1.5
        return super().forward(x * factor)


def network(kind: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomize(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), kind(8), nn.Conv2d(8, 4, 1)), seed=0).eval()


@pytest.mark.parametrize("shown", [False, True])
def test_a_model_whose_norms_are_folded_can_be_trained_on(shown: bool) -> None:
    model, x = network(Written), torch.rand(2, 3, 8, 8)
    deployed = reptool.deploy(model, x if shown else None)
    assert tuple(reptool.report(deployed).to_dict()["norms"]) == (1, 0)
    torch.testing.assert_close(deployed(x), model(x))
    expected = deployed(x)
    out = deployed.train()(x)
    torch.testing.assert_close(out, expected)
    out.mean().backward()
    assert all(p.grad is not None for p in deployed.parameters())


@pytest.mark.parametrize("kind", [Dropping, ByHand, Branching, Kept, Scaling])
def test_what_else_the_mode_decides_stays_behind_a_guard(kind: type[nn.Module]) -> None:
    model, x = network(kind), torch.rand(2, 3, 8, 8)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x))
    deployed.train()
    with pytest.raises(reptool.errors.SpecializedError, match="training"):
        deployed(x)


class Looking(Written):
    """A norm that looks at its weights."""

    def activated(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.weight.sum() > -1e3 else F.gelu(x)


class Chosen(Written):
    """A norm with a setting."""

    def __init__(self, channels: int, soft: bool = False) -> None:
        super().__init__(channels)
        self.soft = soft

    def activated(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), 0.5, self.training) if self.soft else F.relu(x)


def runs_of(monkeypatch: pytest.MonkeyPatch, *norms: nn.Module) -> int:
    runs = []
    run = own_mode._run
    monkeypatch.setattr(own_mode, "_run", lambda *given: runs.append(given) or run(*given))
    layers = [m for norm in norms for m in (nn.Conv2d(norm.num_features, norm.num_features, 3, bias=False), norm)]
    reptool.deploy(randomize(nn.Sequential(*layers)).eval(), verify=False)
    return len(runs)


@pytest.mark.parametrize("count", [2, 8])
def test_modules_of_one_structure_are_run_once_in_each_mode(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    assert runs_of(monkeypatch, *(Written(4) for _ in range(count))) == 2


def test_modules_whose_settings_differ_or_that_look_at_weights_are_run_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert runs_of(monkeypatch, *(Chosen(4, soft=i == 1) for i in range(3))) == 4
    momentum = Written(4)
    momentum.momentum = 0.2
    assert runs_of(monkeypatch, Written(4), momentum) == 4
    few, many = (runs_of(monkeypatch, *(Looking(4) for _ in range(n))) for n in (2, 4))
    assert many == 2 * few > 0


def test_the_answer_of_one_module_is_not_that_of_one_with_another_setting() -> None:
    model = randomize(
        nn.Sequential(*(m for i in range(4) for m in (nn.Conv2d(4, 4, 1), Chosen(4, soft=i == 2))))
    ).eval()
    deployed, x = reptool.deploy(model), torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(deployed(x), model(x))
    deployed[1].train()
    torch.testing.assert_close(deployed(x), model(x))
    deployed[5].train()
    with pytest.raises(reptool.errors.SpecializedError, match="training"):
        deployed(x)
