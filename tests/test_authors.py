"""Structures of published blocks that behave specially, in our own words: each becomes exactly one convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool


class CroppedBranches(nn.Module):
    """ACNet: a square kernel beside its row and its column; with little padding the inputs of the two are cropped."""

    def __init__(self, kernel: int, padding: int) -> None:
        super().__init__()
        half = padding - kernel // 2
        self.cut = max(-half, 0)
        kept = max(half, 0)
        self.square, self.square_norm = nn.Conv2d(4, 8, kernel, padding=padding, bias=False), nn.BatchNorm2d(8)
        self.column, self.column_norm = (
            nn.Conv2d(4, 8, (kernel, 1), padding=(padding, kept), bias=False),
            nn.BatchNorm2d(8),
        )
        self.row, self.row_norm = nn.Conv2d(4, 8, (1, kernel), padding=(kept, padding), bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        tall = x[:, :, :, self.cut : -self.cut] if self.cut else x
        wide = x[:, :, self.cut : -self.cut, :] if self.cut else x
        out = self.square_norm(self.square(x)) + self.column_norm(self.column(tall))
        return out + self.row_norm(self.row(wide))


class NormThenPad(nn.Module):
    """DBB: what a norm makes of zeros is written around its output, so that the padding survives the norm."""

    def __init__(self, pixels: int, channels: int) -> None:
        super().__init__()
        self.norm, self.pixels = nn.BatchNorm2d(channels), pixels

    def forward(self, x: Tensor) -> Tensor:
        out, n = F.pad(self.norm(x), [self.pixels] * 4), self.norm
        border = n.bias.detach() - n.running_mean * n.weight.detach() / torch.sqrt(n.running_var + n.eps)
        border = border.view(1, -1, 1, 1)
        out[:, :, : self.pixels, :] = border
        out[:, :, -self.pixels :, :] = border
        out[:, :, :, : self.pixels] = border
        out[:, :, :, -self.pixels :] = border
        return out


class NearIdentity(nn.Conv2d):
    """DBB: a pointwise kernel kept as its difference to the identity, and a method that tells the kernel."""

    def __init__(self, groups: int) -> None:
        super().__init__(8, 8, 1, groups=groups, bias=False)
        self.identity = torch.eye(8 // groups).repeat(groups, 1)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight + self.identity.to(self.weight.device)
        return F.conv2d(x, kernel, None, stride=1, padding=0, dilation=self.dilation, groups=self.groups)

    def actual_kernel(self) -> Tensor:
        return self.weight + self.identity.to(self.weight.device)


class Diverse(nn.Module):
    """DBB: KxK, 1x1, 1x1 then average pool, 1x1 then KxK, summed in place."""

    def __init__(self, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        half = kernel // 2
        pointwise = {"kernel_size": 1, "groups": groups, "bias": False}
        self.plain = nn.Sequential(nn.Conv2d(8, 8, kernel, stride, half, groups=groups, bias=False), nn.BatchNorm2d(8))
        self.point = nn.Sequential(nn.Conv2d(8, 8, stride=stride, **pointwise), nn.BatchNorm2d(8))
        self.pooled = nn.Sequential(
            nn.Conv2d(8, 8, **pointwise), NormThenPad(half, 8), nn.AvgPool2d(kernel, stride), nn.BatchNorm2d(8)
        )
        self.deep = nn.Sequential(
            NearIdentity(groups),
            NormThenPad(half, 8),
            nn.Conv2d(8, 8, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.plain(x)
        out += self.point(x)
        out += self.pooled(x)
        out += self.deep(x)
        return out


class SmallMixer(nn.Module):
    """RepNeXt: depthwise 3x3, a dilated 2x2, and rows and columns: summed at stride 1, one after the other at 2."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.square = nn.Conv2d(8, 8, 3, stride, 1, groups=8)
        self.row = nn.Conv2d(8, 8, (1, 3), (1, stride), (0, 1), groups=8, bias=stride == 1)
        self.column = nn.Conv2d(8, 8, (3, 1), (stride, 1), (1, 0), groups=8, bias=stride == 1)
        self.corners = nn.Conv2d(8, 8, 2, stride, 1, dilation=2, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return self.square(x) + self.column(x) + self.row(x) + self.corners(x)
        return self.square(x) + self.column(self.row(x)) + self.corners(x)


class Refocused(nn.Module):
    """RefConv: the weight is a buffer plus a convolution of that buffer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.register_buffer("weight", torch.randn(8, 8 // groups, 3, 3))
        count = 8 * 8 // groups
        self.focus = nn.Conv2d(count, count, 3, padding=1, groups=8 * 8 // groups**2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        change = self.focus(self.weight.view(1, -1, 3, 3)).view(self.weight.shape)
        return F.conv2d(x, self.weight + change, padding=1, groups=self.groups)


class Quantizable(nn.Module):
    """QA-RepVGG of YOLOv6: one norm behind the sum of branches, an identity scaled by nothing among them."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.point, self.after = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.dense(x)) + self.point(x) + x)


class Implicit(nn.Module):
    """YOLOv7's head: a constant added in front of a 1x1 and one multiplied behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(1, 12, 1, 1))
        self.conv = nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.conv(self.shift + x)


class Mixed(nn.Module):
    """FastViT: x plus a layer scale of the difference of two normalized branches."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.alone, self.norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv, self.skip = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * (self.norm(self.conv(x)) + self.skip(x) - self.alone(x))


ACNET = ((3, 1), (3, 0), (5, 1), (5, 2), (5, 3), (5, 4), (5, 6))  # kernel and padding, the author's own table
BLOCKS = {
    **{f"dbb-{k}-{s}-{g}": (lambda k=k, s=s, g=g: Diverse(k, s, g)) for k in (3, 5) for s in (1, 2) for g in (1, 4)},
    **{f"acnet-{k}-{p}": (lambda k=k, p=p: CroppedBranches(k, p)) for k, p in ACNET},
    "repnext-1": lambda: SmallMixer(1),
    "repnext-2": lambda: SmallMixer(2),
    "refconv-dense": lambda: Refocused(1),
    "refconv-depthwise": lambda: Refocused(8),
    "qarepvgg": Quantizable,
    "implicit": Implicit,
    "repmixer": Mixed,
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("example", [True, False], ids=["inputs", "bare"])
def test_one_convolution(name: str, example: bool) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.uniform_(-0.5, 0.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    channels = 4 if name.startswith("acnet") else 8
    deployed = reptool.deploy(block, torch.randn(2, channels, 13, 16) if example else None)
    for size in ((13, 16), (14, 15)):
        x = torch.randn(2, channels, *size)
        torch.testing.assert_close(deployed(x), block(x), rtol=1e-4, atol=1e-5)
    assert count(deployed, torch.randn(2, channels, 13, 16)) == {"convolution": 1}


def count(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Operations on data that one forward runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: dict[str, int] = {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = func._schema.name.split("::")[1]
            found[name] = found.get(name, 0) + 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Count():
        model(x)
    return {k: v for k, v in found.items() if k not in ("detach", "alias")}


class SharedActivation(nn.Module):
    """The RepConv of detection packages: all blocks hold one activation object."""

    default_act = nn.SiLU()

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.act = self.default_act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + self.point(x))


def test_activation_held_by_all_blocks() -> None:
    model = nn.Sequential(*[SharedActivation() for _ in range(3)]).eval()
    x = torch.randn(2, 8, 9, 10)
    for deployed in (reptool.deploy(model), reptool.deploy(model, x)):
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
        assert count(deployed, x)["convolution"] == 3
