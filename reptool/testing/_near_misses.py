"""Networks that look like one in which a rule fires and are another one: what a careless rule gets wrong.

Each variant is a copy with one change: an activation of another kind, another padding, stride or border, a bias taken
away or given, weights of the other sign, of one sign, permuted or zero, an attribute that counts. A rule may fire on it
or refuse, and has to be right in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reptool.models.copies import full_copy

Change = tuple[str, Callable[[nn.Module], None]]
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.SiLU, nn.ReLU6, nn.Tanh, lambda: nn.LeakyReLU(-0.5), lambda: nn.Softmax(1), lambda: nn.Threshold(0.5, 0.5),
)  # fmt: skip
PER_TENSOR = 4
"""Parameters that are changed at most."""


def variants(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a model with one change each, and what it was."""
    for said, change in (*_of_parts(model), *_of_weights(model), *_of_attributes(model)):
        copied = full_copy(model)
        with torch.no_grad():
            change(copied)
        yield said, copied.eval()


def _put(path: str, part: nn.Module) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        model.get_submodule(owner)._modules[name] = part

    return change


def _of_parts(model: nn.Module) -> Iterator[Change]:
    """Another activation in the place of each; convolutions with another border, stride or bias."""
    dtype = next((p.dtype for p in model.parameters()), torch.float64)
    for path, part in model.named_modules():
        if not path or any(True for _ in part.children()):
            continue
        if type(part).__module__ == "torch.nn.modules.activation":
            for make in ACTIVATIONS:
                made = make().to(dtype)
                if type(made) is not type(part):
                    yield f"{path} is {made}", _put(path, made)
        if isinstance(part, (nn.MaxPool1d, nn.MaxPool2d)):
            yield f"{path} takes the mean", _put(path, _mean_of(part))
        if isinstance(part, nn.modules.conv._ConvNd) and not isinstance(part.padding, str):
            yield from _of_convolution(path, part)


def _mean_of(pool: Any) -> nn.Module:
    kind = nn.AvgPool1d if isinstance(pool, nn.MaxPool1d) else nn.AvgPool2d
    return kind(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


def _of_convolution(path: str, conv: Any) -> Iterator[Change]:
    def setting(name: str, value: Any) -> Change:
        def change(model: nn.Module) -> None:
            part: Any = model.get_submodule(path)
            part.__dict__[name] = value
            if name in ("padding", "padding_mode"):
                part._reversed_padding_repeated_twice = [p for p in reversed(part.padding) for _ in range(2)]

        return f"{path}.{name} = {value!r}", change

    def bias(model: nn.Module) -> None:
        part: Any = model.get_submodule(path)
        new = None if conv.bias is not None else nn.Parameter(torch.linspace(-1, 1, len(conv.weight)).to(conv.weight))
        part.register_parameter("bias", new)

    yield setting("padding", tuple(p + 1 for p in conv.padding))
    if any(conv.padding):
        yield setting("padding", tuple(0 for _ in conv.padding))
        yield setting("padding_mode", "reflect" if conv.padding_mode == "zeros" else "zeros")
        yield setting("padding_mode", "circular" if conv.padding_mode == "zeros" else "replicate")
    yield setting("stride", tuple(s + 1 for s in conv.stride))
    yield setting("dilation", tuple(d + 1 for d in conv.dilation))
    yield f"{path} {'has no bias' if conv.bias is not None else 'has a bias'}", bias


def _of_weights(model: nn.Module) -> Iterator[Change]:
    """Values of the other sign, of one sign, in another order, and zero."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "negative": lambda t: -t,
        "negative in one channel": lambda t: torch.cat([-t[:1], t[1:]]),
        "positive": lambda t: t.abs(),
        "below zero": lambda t: -t.abs(),
        "flipped": lambda t: t.flip(0),
        "zero in one channel": lambda t: torch.cat([0 * t[:1], t[1:]]),
    }
    held = [n for n, p in model.named_parameters() if p.dim() and p.is_floating_point()]
    small = sorted(held, key=lambda n: model.get_parameter(n).numel())[:PER_TENSOR]
    for name in small:
        for said, changed in changes.items():

            def change(model: nn.Module, name: str = name, changed: Callable[[Tensor], Tensor] = changed) -> None:
                parameter = model.get_parameter(name)
                parameter.copy_(changed(parameter.detach().clone()))

            yield f"{name} is {said}", change


def _of_attributes(model: nn.Module) -> Iterator[Change]:
    """Another value of each plain attribute of a user's class."""
    for path, part in model.named_modules():
        if type(part).__module__.startswith("torch."):
            continue
        for name, value in vars(part).items():
            if name.startswith("_") or name == "training" or type(value) not in (bool, int, float):
                continue
            others = [not value] if type(value) is bool else [value + 1, -value]
            for other in others:

                def change(model: nn.Module, path: str = path, name: str = name, other: Any = other) -> None:
                    setattr(model.get_submodule(path), name, other)

                yield f"{'.'.join(p for p in (path, name) if p)} = {other!r}", change
