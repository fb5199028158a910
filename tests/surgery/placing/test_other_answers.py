"""Questions whose other answers run the same operations are forgotten; others are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.refusal import Code
from reptool.testing import randomize


class Upsampler(nn.Module):
    """As diffusion models have it: it asks for sizes and dtypes, and goes on with the same values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 8
        dtype = x.dtype
        if dtype == torch.bfloat16 and torch.__version__ < "1.0":
            x = x.to(torch.float32)
        if x.shape[0] >= 64:
            x = x.contiguous()
        if x.numel() * 2 > 2**31:
            x = x.contiguous()
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x)


class Branch(Upsampler):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] >= 64:
            x = x * 2
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Both(Upsampler):
    """Each answer by itself decides nothing, both together do."""

    def forward(self, x: Tensor) -> Tensor:
        wide, high = x.shape[0] >= 64, x.shape[2] >= 64
        many = bool(wide)
        if bool(high) and many:
            x = x * 2
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Raising(Upsampler):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] >= 64:
            x = x.contiguous()
            x.add_(1)
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Casts(Upsampler):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] >= 64:
            x = x.float()
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Number(Upsampler):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.shape[0]) // 2):
            x = x.contiguous()
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Many(Upsampler):
    def forward(self, x: Tensor) -> Tensor:
        for count in (64, 65, 66, 67, 68):
            if x.shape[0] >= count:
                x = x.contiguous()
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Writes(Upsampler):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] >= 64:
            Path(os.environ["WRITTEN"]).write_text("x")
        return self.conv(F.interpolate(x, scale_factor=2.0))


def model(cls: Any) -> nn.Module:
    return randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), cls(), nn.ReLU())).eval()


@pytest.mark.parametrize("kept", [False, True])
def test_what_decides_nothing_is_forgotten(kept: bool) -> None:
    original, x = model(Upsampler), torch.randn(2, 3, 9, 7)
    deployed = reptool.deploy(original, x, keep_fallback=kept)
    assert isinstance(deployed[2].conv, nn.ConvTranspose2d)  # type: ignore[index,union-attr]
    for y in (x, torch.randn(65, 3, 4, 5)):
        torch.testing.assert_close(deployed(y), original(y), rtol=1e-4, atol=1e-5)
    assert kept or reptool.report(deployed).kept == (0, 0)
    torch.testing.assert_close(deployed.double()(x.double()), original.double()(x.double()), rtol=1e-4, atol=1e-5)
    with pytest.raises(Exception, match="assert"):
        deployed[2](torch.randn(1, 7, 4, 4).double())  # type: ignore[index,operator]


@pytest.mark.parametrize("cls", [Branch, Both, Casts, Raising, Number, Many, Writes])
def test_what_may_decide_is_not(cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRITTEN", str(tmp_path / "written"))
    original, x = model(cls), torch.randn(2, 3, 9, 7)
    deployed = reptool.deploy(original, x)
    assert isinstance(deployed[2].conv, nn.Conv2d)  # type: ignore[index,union-attr]
    assert Code.SPECIALIZED in {r.code for r in reptool.report(deployed).refusals}
    assert not (tmp_path / "written").exists()
    y = torch.randn(65, 3, 4, 5)
    torch.testing.assert_close(deployed(y), original(y), rtol=1e-4, atol=1e-5)


def test_without_example_inputs_nothing_is_tried() -> None:
    assert isinstance(reptool.deploy(model(Upsampler))[2].conv, nn.Conv2d)  # type: ignore[index,union-attr]


class Wide(nn.Module):
    """Decides by the size of a value that one layer would not have."""

    def __init__(self, axis: int, limit: int) -> None:
        super().__init__()
        self.a, self.b, self.axis, self.limit = nn.Conv2d(3, 40, 1), nn.Conv2d(40, 5, 3), axis, limit

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if y.shape[self.axis] > self.limit else self.b(y) * 2


@pytest.mark.parametrize(("axis", "limit"), [(1, 32), (2, 6)])
def test_a_value_whose_size_decides_stays_beside_a_fallback(axis: int, limit: int) -> None:
    model, x = Wide(axis, limit).eval(), torch.randn(2, 3, 8, 8)
    deployed = reptool.deploy(model, x, keep_fallback=True)
    for given in (x, x[..., :5, :5]):
        torch.testing.assert_close(deployed(given), model(given))
    assert "read-elsewhere" in {r.code.value for r in reptool.report(deployed).refusals}
