"""Adapters as libraries write them, in our own words: parts by the name of an adapter, active ones, switches, casts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapted(nn.Module):
    """A layer with adapters beside it: what all kinds have in common.

    Args:
        base: a linear layer or a convolution.
        names: of the adapters, all of which are active.
    """

    def __init__(self, base: nn.Module, names: tuple[str, ...] = ("first",), rank: int = 4) -> None:
        super().__init__()
        self.base_layer, self.rank = base, rank
        self.merged_adapters: list[str] = []
        self.disabled, self.casts, self.active = False, True, list(names)
        self.scaling = {n: 2.0 + i for i, n in enumerate(names)}
        self.make(names)

    @property
    def merged(self) -> bool:
        return bool(self.merged_adapters)

    @property
    def width(self) -> tuple[int, int]:
        weight = self.base_layer.weight
        return weight.shape[1], weight.shape[0]

    def make(self, names: tuple[str, ...]) -> None:
        raise NotImplementedError

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        raise NotImplementedError

    def fitted(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if not self.casts or x.dtype == dtype else x.to(dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chosen = kwargs.pop("adapter_names", None)
        result = self.base_layer(x, *args, **kwargs)
        if self.disabled or self.merged or chosen is not None:
            return result
        before = result.dtype
        for name in self.active:
            result = result + self.added(name, x, result)
        return result.to(before)


class LowRank(Adapted):
    """A product of two narrow layers."""

    def make(self, names: tuple[str, ...]) -> None:
        base = self.base_layer
        if isinstance(base, nn.Conv2d):
            shape = {"kernel_size": base.kernel_size, "stride": base.stride, "padding": base.padding}
            down = {n: nn.Conv2d(base.in_channels, self.rank, bias=False, **shape) for n in names}
            up: dict[str, nn.Module] = {n: nn.Conv2d(self.rank, base.out_channels, 1, bias=False) for n in names}
        else:
            width, out = self.width
            down = {n: nn.Linear(width, self.rank, bias=False) for n in names}
            up = {n: nn.Linear(self.rank, out, bias=True) for n in names}
        self.down, self.up = nn.ModuleDict(down), nn.ModuleDict(up)
        self.dropout = nn.ModuleDict({n: nn.Dropout(0.1) for n in names})

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        x = self.fitted(x, self.down[name].weight.dtype)
        return self.up[name](self.down[name](self.dropout[name](x))) * self.scaling[name]


class Direction(LowRank):
    """A magnitude for each row of the weight, and a low-rank change of its direction."""

    def make(self, names: tuple[str, ...]) -> None:
        super().make(names)
        self.magnitude = nn.ParameterDict({n: torch.rand(self.width[1]) + 0.5 for n in names})

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        down, up = self.down[name], self.up[name]
        eye = torch.eye(down.weight.shape[1], device=x.device, dtype=x.dtype)
        change = F.linear(down(eye), up.weight).T.detach().to(x.dtype) * self.scaling[name]
        norm = torch.linalg.norm(self.base_layer.weight.to(x.dtype) + change, dim=1).to(change.dtype).detach()
        scale = (self.magnitude[name] / norm).view(1, -1)
        bias = self.base_layer.bias
        plain = result if bias is None else result - bias
        return (scale - 1) * plain + scale * F.linear(down(x), up.weight) * self.scaling[name]


class Shared(Adapted):
    """Two frozen random matrices, of which a part is used, and a vector on either side."""

    def make(self, names: tuple[str, ...]) -> None:
        width, out = self.width
        self.register_buffer("a", torch.randn(self.rank, 2 * width))
        self.register_buffer("b", torch.randn(2 * out, self.rank))
        self.d = nn.ParameterDict({n: torch.randn(self.rank) for n in names})
        self.e = nn.ParameterDict({n: torch.randn(out) for n in names})

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        width, out = self.width
        x = self.fitted(x, self.d[name].dtype)
        inner = self.d[name] * F.linear(x, self.a[:, :width])
        return self.e[name] * F.linear(inner, self.b[:out])


class Reflected(Adapted):
    """Householder reflections of the inputs: a product of ``I - 2 u u'``."""

    def make(self, names: tuple[str, ...]) -> None:
        self.u = nn.ParameterDict({n: torch.randn(self.width[0], self.rank) for n in names})

    def turn(self, name: str) -> Tensor:
        u = self.u[name] / self.u[name].norm(dim=0)
        weight = torch.eye(u.shape[0], device=u.device, dtype=u.dtype)
        for i in range(self.rank):
            one = u[:, i].view(-1, 1)
            weight = weight - 2 * weight @ one @ one.t()
        return weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before, weight = x.dtype, torch.eye(self.width[0], device=x.device)
        for name in self.active:
            turn = self.turn(name)
            weight = torch.mm(weight.to(turn.dtype), turn)
        whole = torch.mm(self.fitted(self.base_layer.weight.data, weight.dtype), weight)
        x = self.fitted(x, whole.dtype)
        return F.linear(input=x, weight=whole, bias=self.base_layer.bias).to(before)


class Spectrum(Adapted):
    """A few entries of a Fourier spectrum."""

    def make(self, names: tuple[str, ...]) -> None:
        width, out = self.width
        self.values = nn.ParameterDict({n: torch.randn(9) for n in names})
        self.places = {n: torch.stack([torch.randint(out, (9,)), torch.randint(width, (9,))]) for n in names}

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        values, places = self.values[name], self.places[name].to(self.values[name].device)
        dense = torch.zeros(*reversed(self.width), device=x.device)
        dense[places[0, :], places[1, :]] = values.float()
        change = torch.fft.ifft2(dense).real.to(values.dtype) * 30.0
        return F.linear(x.to(change.dtype), change)


class Kronecker(Adapted):
    """The Kronecker product of two small matrices, in a method of its own."""

    def make(self, names: tuple[str, ...]) -> None:
        width, out = self.width
        self.one = nn.ParameterDict({n: torch.randn(2, 2) for n in names})
        self.two = nn.ParameterDict({n: torch.randn(out // 2, width // 2) for n in names})

    def delta(self, name: str, x: Tensor) -> Tensor:
        weight = torch.kron(self.one[name], self.two[name].contiguous()) * self.scaling[name]
        return F.linear(self.fitted(x, weight.dtype), weight)

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        return self.delta(name, x)


class Gathered(LowRank):
    """A sum that begins with zeros like the result."""

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        total = torch.zeros_like(result)
        total += self.up[name](self.down[name](x))
        return total.to(result.dtype)


class Rotation(nn.Module):
    """Blocks of a value, each turned by the Cayley transform of a matrix of its own; a module that asks and casts."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.weight, self.clipped = nn.Parameter(torch.randn(blocks, width // blocks, width // blocks) * 0.1), False
        self.limits = (-1.0, 1.0)

    def matrix(self) -> Tensor:
        skew = self.weight - self.weight.transpose(1, 2)
        eye = torch.eye(skew.shape[-1], device=skew.device).unsqueeze(0).expand_as(skew)
        return torch.linalg.solve(eye + skew, eye - skew, left=False)

    def forward(self, x: Tensor) -> Tensor:
        before = x.dtype
        if before != self.weight.dtype:
            x = x.to(self.weight.dtype)
        if self.clipped:
            with torch.no_grad():
                self.weight.clamp_(*self.limits)
        if x.dim() == 4:
            raise ValueError("no images")
        parts = x.reshape(*x.shape[:-1], *self.weight.shape[:2])
        return torch.einsum("...rk,rkc->...rc", parts, self.matrix()).reshape(*x.shape).to(before)


class Turned(Adapted):
    """A rotation in front of the layer, in a module of its own."""

    def make(self, names: tuple[str, ...]) -> None:
        self.turns = nn.ModuleDict({n: Rotation(self.width[0], 4) for n in names})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before = x.dtype
        if not self.disabled:
            for name in self.active:
                x = self.turns[name](self.fitted(x, self.turns[name].weight.dtype))
        return self.base_layer(x.to(before), *args, **kwargs).to(before)


class Dropped(nn.Module):
    """Some matrices replaced by identities, in training."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(x.shape[-1]).expand_as(x) if self.training and self.p > 0 else x


class Product(Turned):
    """The same with one matrix for all blocks, which a module is given that does nothing in eval mode."""

    def make(self, names: tuple[str, ...]) -> None:
        super().make(names)
        self.drop = nn.ModuleDict({n: Dropped() for n in names})

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before, turn = x.dtype, torch.eye(self.width[0], device=x.device, dtype=x.dtype)
        if self.disabled:
            return self.base_layer(x, *args, **kwargs)
        for name in self.active:
            blocks = self.drop[name](self.turns[name].matrix())
            turn = torch.block_diag(*torch.unbind(blocks)).to(x) @ turn
        result = self.base_layer(x @ turn, *args, **kwargs)
        return (2.0 * (result - self.base_layer.bias) + self.base_layer.bias).to(before)


class Bases(Shared):
    """A method that gives both matrices, as the device that it is given wants them."""

    def bases(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        a, b, d = self.a, self.b, self.d[name].to(device)
        if device.type == "cpu" and a.dtype in (torch.float16, torch.bfloat16):
            a, b, d = a.float(), b.float(), d.float()
        width, out = self.width
        return d[:, None] * a[:, :width], self.e[name][:, None] * b[:out]

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        a, b = self.bases(name, x.device)
        return F.linear(F.linear(self.fitted(x, a.dtype), a), b)


class Modulated(Adapted):
    """The layer's weight times a factor for each input, whose dtype is compared with a value's and with others."""

    def make(self, names: tuple[str, ...]) -> None:
        self.factors = nn.ParameterDict({n: torch.randn(self.width[0]) for n in names})

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        factor = self.factors[name]
        x = self.fitted(x, factor.dtype)
        wide = factor.float() if factor.dtype in (torch.float16, torch.bfloat16) else factor
        return F.linear(x, self.base_layer.weight * wide)


class Turn(nn.Module):
    """A matrix between both layers, which asks where and of what dtype the value is."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rank, rank))

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)
        wide = torch.float32 if narrow else x.dtype
        return (x.to(wide) @ self.weight.to(wide).t()).to(x.dtype)


class Between(LowRank):
    """A turn of the narrow values, over their number."""

    def make(self, names: tuple[str, ...]) -> None:
        super().make(names)
        self.turns = nn.ModuleDict({n: Turn(self.rank) for n in names})

    def added(self, name: str, x: Tensor, result: Tensor) -> Tensor:
        inner = self.down[name](x)
        return self.up[name]((self.turns[name](inner) - inner) * 0.5) * self.scaling[name]


KINDS: tuple[type[Adapted], ...] = (
    LowRank, Direction, Shared, Reflected, Spectrum, Kronecker, Gathered, Turned, Product, Bases, Modulated, Between,
)  # fmt: skip
