"""What the tests of ownership, surgery and capture share: deploy a model, compare every way of calling it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.testing import perturb, randomize, tensors_in

PERTURB = int(os.environ.get("REPTOOL_PERTURB", "0"))
"""Every model that `check` deploys is also changed so many times (`reptool.testing.perturb`)."""
PERTURB_KINDS = os.environ.get("REPTOOL_PERTURB_KINDS", "").split() or None
"""Which kinds of changes, all if none are named."""
Call = Callable[[nn.Module, Any], Any]


def image(*size: int, seed: int = 0) -> Tensor:
    """A float64 image."""
    return torch.randn(*(size or (2, 3, 10, 8)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ready(model: nn.Module) -> nn.Module:
    """The model with random statistics, in float64 and eval mode."""
    return randomize(model, 1).double().eval()


def assert_same(wanted: Any, given: Any, where: str = "") -> None:
    """The same tensors up to rounding."""
    a, b = list(tensors_in(wanted)), list(tensors_in(given))
    assert [t.shape for _, t in a] == [t.shape for _, t in b], where
    for (path, x), (_, y) in zip(a, b, strict=True):
        x, y = x.detach(), y.detach()
        scale = float(x.double().abs().max()) if x.numel() else 0.0
        assert x.numel() == 0 or float((x.double() - y.double()).abs().max()) <= 1e-9 * scale + 1e-12, f"{where} {path}"


def codes(report: reptool.Report) -> set[str]:
    """The codes of everything that was refused."""
    return {r.code.value for r in report.refusals}


def norms(model: nn.Module) -> int:
    """How many batch norms are left."""
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def check(
    model: nn.Module,
    inputs: Any = None,
    calls: Mapping[str, Call] | None = None,
    *,
    raises: Iterable[str] = (),
    shown: Iterable[bool] = (False, True),
    others: bool = True,
) -> tuple[nn.Module, reptool.Report]:
    """Deploy with and without example inputs; every call gives what the original gives.

    Args:
        model: as `ready` makes it; must stay as it is.
        inputs: example inputs, an image if none are given.
        calls: name -> a way to use the model; by default its forward.
        raises: names of calls for which the deployed model may raise `SpecializedError` instead.
        shown: whether example inputs are given to `deploy`, for each deployment.
        others: also compare at other sizes and batch sizes.

    Returns:
        The model deployed last, and its report.
    """
    inputs = image() if inputs is None else inputs
    calls = calls or {"forward": lambda m, x: m(x)}
    cases = [inputs]
    if others and isinstance(inputs, Tensor) and inputs.dim() == 4:
        cases += [image(n, inputs.shape[1], h, w, seed=n) for n, h, w in ((1, 7, 9), (3, 12, 5))]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    deployed = model
    for show in shown:
        deployed = reptool.deploy(model, inputs if show else None)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the original was changed"
        for name, call in calls.items():
            for case in cases:
                with torch.no_grad():
                    wanted = call(copy.deepcopy(model), copy.deepcopy(case))
                    try:
                        given = call(copy.deepcopy(deployed), copy.deepcopy(case))
                    except SpecializedError:
                        assert name in raises, f"{name} raised"
                        continue
                assert_same(wanted, given, name)
        if PERTURB:
            perturb(model, deployed, inputs, tries=PERTURB, kinds=PERTURB_KINDS)
    return deployed, reptool.report(deployed)


class ConvBN(nn.Module):
    """A convolution and a norm; the forward is up to the subclass."""

    def __init__(self, norm: nn.Module | None = None, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 4, 3, padding=1)
        self.bn = norm or nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x))


class Branches(nn.Module):
    """A sum of two branches behind a norm: its forward has to be written anew."""

    def __init__(self, channels: int = 3, out: int = 4) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out))
        self.b = nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out))
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Any) -> Any:
        return self.bn(self.a(x) + self.b(x)).relu()
