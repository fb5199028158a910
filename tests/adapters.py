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


KINDS: tuple[type[Adapted], ...] = (LowRank, Direction, Shared, Reflected, Spectrum, Kronecker, Gathered)
