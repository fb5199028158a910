"""What a surgery may hold: each rule, broken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.ir.spec import SpecError
from reptool.plan.select import Chooser
from reptool.runtime.method import Method
from reptool.surgery import apply
from reptool.surgery.site import Site, Surgery
from reptool.surgery.spec import check_surgery
from reptool.surgery.surgeon import Surgeon
from tests.plan.programs import traced


class Net(nn.Module):
    """A region in a row, and a sum that needs its method written anew."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        y = torch.relu(self.norm(self.conv(x)))
        return self.a(y) + self.b(y)


def worked_out() -> tuple[Surgery, Surgeon]:
    """The surgery of it; working it out checks it."""
    trace, found = traced(Net().eval(), torch.randn(1, 3, 6, 6))
    surgeon = Surgeon(trace, found, set(), {}, set())
    sites = [surgeon.site(r) for r in Chooser(found, lambda node, form: None, False).regions()]
    surgery = surgeon.operate([s for s in sites if isinstance(s, Site)])
    assert isinstance(surgery, Surgery)
    assert len(surgery.sites) == len(sites) == 2
    return surgery, surgeon


def off_the_way(surgery: Surgery) -> None:
    surgery.sites[0].onpath.clear()


def absorbed(surgery: Surgery) -> None:
    surgery.identities["conv"] = "absorbed"


def shared(surgery: Surgery) -> None:
    surgery.sites.append(replace(surgery.sites[1], slot=surgery.sites[0].slot))


def nowhere(surgery: Surgery) -> None:
    surgery.guards["elsewhere"] = 4


def no_method(surgery: Surgery) -> None:
    surgery.methods[""]["backward"] = Method("backward", "def backward(self): pass")


def no_tensor(surgery: Surgery) -> None:
    surgery.dropped.add("conv.scale")


BROKEN: dict[Callable[[Surgery], None], str] = {
    off_the_way: "the way through the region of norm is not what it consists of",
    absorbed: "'conv' holds a layer and is absorbed",
    shared: "'conv' holds two layers",
    nowhere: "there is no module at 'elsewhere'",
    no_method: "the module at '' has no method 'backward'",
    no_tensor: "there is nothing at 'conv.scale'",
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda f: f.__name__)
def test_a_surgery_that_breaks_a_rule_is_an_error(
    breaks: Callable[[Surgery], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    surgery, surgeon = worked_out()
    assert check_surgery(surgery, surgeon) is surgery
    breaks(surgery)
    with pytest.raises(SpecError, match=BROKEN[breaks]):
        check_surgery(surgery, surgeon)
    monkeypatch.setenv("REPTOOL_CHECK", "0")
    assert check_surgery(surgery, surgeon) is surgery


@pytest.mark.parametrize("build", [Net, lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2))])
def test_a_module_that_computes_something_else_and_has_no_gate_is_an_error(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = build().eval(), torch.randn(1, 3, 6, 6)
    reptool.deploy(model, x)
    monkeypatch.setattr(apply, "set_gates", lambda *_: None)
    with pytest.raises(SpecError, match="has no gate"):
        reptool.deploy(model, x)
    monkeypatch.setenv("REPTOOL_CHECK", "0")
    reptool.deploy(model, x)
