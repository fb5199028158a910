"""What planning reads off values is asked once, remembered, and stands when the plan is made again without them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.api.pipeline.modules import make_plan
from reptool.blocks import DiverseBranchBlock
from reptool.ir.decisions import Decisions, decided, deciding
from reptool.models.copies import full_copy
from reptool.plan.options import Options
from reptool.surgery.units import Plan
from reptool.testing import randomize


def norm(channels: int, shift: float = 0.0) -> nn.BatchNorm2d:
    """A norm with a positive scale and the same shift on every channel."""
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        made.weight.uniform_(0.5, 1.5)
        made.running_var.uniform_(0.5, 1.5)
        made.bias.fill_(shift)
    return made


class Picks(nn.Module):
    """Channels in the order that a buffer tells, into a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.next(self.conv(x).index_select(1, self.order))


class Asks(nn.Module):
    """Code that decides by a number in a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), norm(4, 0.5)
        self.gain, self.pad = nn.Parameter(torch.ones(1)), nn.Sequential(norm(4), nn.Conv2d(4, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.pad(x) if self.gain.item() > 0 else F.relu(x)


class Crosses(nn.Module):
    """A norm behind a max pooling, which scales that are not negative cross."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.norm = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), norm(4, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pool(self.conv(x)))


def prelu() -> nn.Module:
    """An activation that changes nothing by the slopes it holds."""
    act = nn.PReLU(4)
    nn.init.ones_(act.weight)
    return nn.Sequential(nn.Conv2d(3, 4, 3), act, norm(4, 0.5))


BY_VALUES: dict[str, Callable[[], nn.Module]] = {
    "norm before a padding": lambda: nn.Sequential(norm(3), nn.Conv2d(3, 4, 3, padding=1)),
    "slopes of one": prelu,
    "order of channels": Picks,
    "a number that code asks for": Asks,
    "positive scales": Crosses,
    "BN-and-pad": lambda: DiverseBranchBlock(3, 4),
}


def planned(model: nn.Module, decisions: Decisions, values: bool = True) -> Plan:
    """The plan of a model."""
    with deciding(decisions):
        return make_plan(model, None, {}, Options(), values=values, cast=True)


def regions(plan: Plan) -> list[object]:
    """What becomes which layer."""
    found = [(u.prefix, s.slot, s.shape, sorted(n.name for n in s.region.form.ops)) for u in plan.units
             for s in u.surgery.sites]  # fmt: skip
    return sorted(map(str, found))


@pytest.mark.parametrize("name", BY_VALUES)
def test_the_same_plan_without_the_values(name: str) -> None:
    model = BY_VALUES[name]().eval()
    first = Decisions()
    wanted = regions(planned(model, first))
    assert wanted
    assert first.found, "nothing was decided by values"
    other = full_copy(model)
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            tensor.add_(1) if name.endswith("running_var") else tensor.sub_(20)
    assert regions(planned(other, Decisions(), values=False)) != wanted, "the values did not decide"
    assert regions(planned(other, Decisions(first.found), values=False)) == wanted
    assert regions(planned(other.to("meta"), Decisions(first.found), values=False)) == wanted


def test_planning_with_given_answers_looks_at_no_value() -> None:
    model = nn.Sequential(norm(3), nn.Conv2d(3, 4, 3, padding=1)).eval()
    shifted = randomize(copy.deepcopy(model))
    assert len(regions(planned(shifted, Decisions()))) < len(regions(planned(model, Decisions())))
    assert regions(planned(model, Decisions({}), values=False)) == regions(planned(shifted, Decisions()))


def test_deploying_by_itself_asks_nobody() -> None:
    assert decided("is one", (), lambda: 1, 0) == 1
    with deciding(Decisions({})):
        assert decided("is one", (), lambda: 1, 0) == 0
    assert reptool.deploy(nn.Sequential(norm(3), nn.Conv2d(3, 4, 3, padding=1)).eval()) is not None
