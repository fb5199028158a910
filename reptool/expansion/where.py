"""Which convolutions of a model are meant: by path, type, kernel size or a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from reptool.errors import InputError

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Criterion = str | type | int | tuple[int, ...] | Callable[[str, nn.Module], bool]
Where = Criterion | list[Criterion] | None
"""A path pattern, a type, a kernel size, a function (path, convolution) -> bool; a list selects what any of
them selects, None everything."""


def convolutions(model: nn.Module) -> Iterator[tuple[str, Conv]]:
    """Every convolution of `model` once, with the first path it is registered under."""
    for path, module in model.named_modules():
        if isinstance(module, CONVS):
            yield path, module


def select(model: nn.Module, where: Where) -> dict[str, Conv]:
    """The convolutions of `model` that `where` means, by path.

    Raises:
        InputError: no convolution in the model, a criterion of another kind, or one that selects nothing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> list(select(net, 1)), list(select(net, "0")), list(select(net, None))
        (['2'], ['0'], ['0', '2'])
    """
    found = dict(convolutions(model))
    if not found:
        raise InputError(f"this {type(model).__name__} has no nn.Conv1d, nn.Conv2d or nn.Conv3d to replace.")
    if where is None:
        return found
    chosen: set[str] = set()
    for criterion in where if isinstance(where, list) else [where]:
        matched = {path for path, conv in found.items() if _matches(model, path, conv, criterion)}
        if not matched:
            raise InputError(
                f"where={criterion!r} selects none of the {len(found)} convolutions of "
                f"{type(model).__name__} (such as {', '.join(map(repr, list(found)[:3]))}); use a path "
                "pattern like 'layer1.*', a type, a kernel size or a function (path, convolution) -> bool."
            )
        chosen |= matched
    return {path: conv for path, conv in found.items() if path in chosen}


def _matches(model: nn.Module, path: str, conv: Conv, criterion: Criterion) -> bool:
    if isinstance(criterion, str):
        return fnmatchcase(path, criterion) or path.startswith(f"{criterion}.")
    if isinstance(criterion, nn.Module):
        name = type(criterion).__name__
        raise InputError(f"where was given a {name} itself; give its path in the model, or the class {name}")
    if isinstance(criterion, type):
        return isinstance(conv, criterion) or any(isinstance(m, criterion) for m in ancestors(model, path))
    if isinstance(criterion, int) and not isinstance(criterion, bool):
        return set(conv.kernel_size) == {criterion}
    if isinstance(criterion, tuple) and criterion and all(isinstance(size, int) for size in criterion):
        return tuple(conv.kernel_size) == criterion
    if callable(criterion):
        return bool(criterion(path, conv))
    raise InputError(
        f"where={criterion!r} was given, expected a path pattern, a type, a kernel size, a function or a list of these."
    )


def ancestors(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules that enclose `path`, the outermost first."""
    parts = path.split(".") if path else []
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
