"""Changes of how a model is called: arguments, sizes, dtypes, and everything public beside its forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.walk import named_tensors
from reptool.testing._perturbing.change import Place, module_text, parts_of
from reptool.testing._perturbing.code import Code, own_classes
from reptool.testing._perturbing.places import assigns, within
from reptool.testing._perturbing.sources import Source, one_of, place_source
from reptool.testing._perturbing.values import other_value

MIN_SIZE = 5
"""The smallest image that is tried: of a smaller one a crop may leave nothing."""
_TORCH_NAMES = frozenset(dir(nn.Module))
_SPECIAL = ("__getitem__", "__iter__", "__call__", "__len__", "__contains__")
Runs = Callable[[str], bool]
"""Whether a statement runs on the original without an error."""


def calls(
    model: nn.Module, code: Code, args: list[Any], kwargs: dict[str, Any], recorded: dict[str, Any]
) -> Iterator[Source]:
    """Every change of a call.

    Args:
        model: the original.
        code: what it names.
        args: positional inputs of the call.
        kwargs: those by name.
        recorded: what each module is called with, by path.
    """
    yield from _sizes(args, kwargs)
    for place in (
        *within("argument", "args", args, assigns("args")),
        *within("argument", "kwargs", kwargs, assigns("kwargs")),
    ):
        if place.read not in ("args", "kwargs"):
            yield place_source(place, code, 4)
    yield from _arguments(model, code, args, kwargs)
    for path, _ in parts_of(model):
        if path and path in recorded:
            here = module_text(path)
            yield one_of(
                "submodule", here, f"out.append(settled({here}(*inputs_of({path!r})[0], **inputs_of({path!r})[1])))"
            )


def _sizes(args: list[Any], kwargs: dict[str, Any]) -> Iterator[Source]:
    tensors = [t for _, t in named_tensors([args, kwargs]) if t.is_floating_point()]
    if not tensors:
        return
    batch = "args, kwargs = mapped((args, kwargs), lambda t: {})"
    yield one_of("batch", "len(args[0])", *(batch.format(f"t[[0] * {n}]") for n in (1, 3, 4)))
    yield one_of("rank", "args[0].dim()", batch.format("t[0]"), batch.format("t[0]"), batch.format("t[None]"), weight=3)
    dtypes = ("float64", "float32", "bfloat16", "int64")
    both = "m = m.to(torch.{0}); args, kwargs = mapped((args, kwargs), lambda t: t.to(torch.{0}))"
    only = "args, kwargs = mapped((args, kwargs), lambda t: t.to(torch.{0}))"
    yield one_of("dtype", "args[0].dtype", *(both.format(d) for d in dtypes[:3]), *(only.format(d) for d in dtypes))
    axes = max(t.dim() for t in tensors) - 2
    if axes > 0:

        def draw(random: Random) -> str:
            sizes = [max(MIN_SIZE, n + random.choice((-3, -2, -1, 0, 1, 2, 5))) for n in tensors[0].shape[2:]]
            return f"args, kwargs = mapped((args, kwargs), lambda t: resized(t, {sizes}))"

        yield Source("size", "args[0].shape", draw, 3)


def _arguments(model: nn.Module, code: Code, args: list[Any], kwargs: dict[str, Any]) -> Iterator[Source]:
    """Arguments that are left out, or given though they need not be."""
    for index in range(len(args)):
        yield one_of("argument", f"args[{index}]", f"del args[{index}:]")
    for name in kwargs:
        yield one_of("argument", f"kwargs[{name!r}]", f"kwargs.pop({name!r}, None)")
    taken = set(kwargs)
    for function in {type(model).__call__, type(model).forward}:
        try:
            parameters = list(inspect.signature(function).parameters.values())[1:]
        except (TypeError, ValueError):
            continue
        for index, parameter in enumerate(parameters):
            known = index < len(args) and function is type(model).forward
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or known or parameter.name in taken:
                continue
            default = None if parameter.default is parameter.empty else parameter.default
            target = f"kwargs[{parameter.name!r}]"
            place = Place("argument", target, default, assigns(target))
            yield Source("argument", target, _given(place, code, args), 6)


def _given(place: Place, code: Code, args: list[Any]) -> Callable[[Random], str]:
    def draw(random: Random) -> str:
        tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        if place.value is None and tensors and random.random() < 0.3:
            return place.put(f"args[{random.choice(tensors)}] * 2")
        if random.random() < 0.1:
            return place.put(
                repr(place.value) if isinstance(place.value, (bool, int, float, str, type(None))) else "None"
            )
        return place.put(other_value(place.value, place.read, code, random))

    return draw


def public(model: nn.Module, recorded: dict[str, Any], runs: Runs) -> Iterator[Source]:
    """Methods and properties of the user's classes, with arguments that they run with."""
    for path, module in parts_of(model):
        here = module_text(path)
        for name in _public_names(type(module)):
            texts = _usages(here, path, name, inspect.getattr_static(type(module), name), path in recorded)
            working = [text for text in texts if runs(text)]
            if working:
                yield one_of("method", f"{here}.{name}", *working[:3], weight=4)


def _public_names(kind: type) -> list[str]:
    found = {name for own in own_classes(kind) for name in vars(own)}
    special = {name for name in _SPECIAL if name in found}
    return sorted(special | {n for n in found if not n.startswith("_") and n not in _TORCH_NAMES and n != "forward"})


def _usages(here: str, path: str, name: str, attribute: Any, is_run: bool) -> list[str]:
    """Statements that may use an attribute of a class, the likely ones first."""
    text = "out.append(settled({}, {!r}))"
    if isinstance(attribute, property) or hasattr(attribute, "__set_name__"):
        return [text.format(f"{here}.{name}", path)]
    if not callable(attribute) and not isinstance(attribute, (staticmethod, classmethod)):
        return []
    if isinstance(attribute, type):
        return []
    inputs = f"*inputs_of({path!r})[0], **inputs_of({path!r})[1]"
    first = f"inputs_of({path!r})[0][0]"
    given = ["", "0", "-1"]
    if is_run:
        given = [inputs, first, f"{here}, {inputs}", f"{here}, {first}", f"{first}, 0", *given, f"{inputs}, {inputs}"]
    given.append(here)
    if name == "__iter__":
        return [text.format(f"list({here})", path)]
    if name == "__getitem__":
        return [text.format(f"{here}[{key}]", path) for key in ("0", "-1", ":2")]
    if name == "__len__":
        return [text.format(f"len({here})", path)]
    target = here if name == "__call__" else f"{here}.{name}"
    return [text.format(f"{target}({g})", path) for g in given]


def resized(tensor: Tensor, sizes: list[int]) -> Tensor:
    """An image of other sizes, made of this one."""
    if not tensor.is_floating_point() or tensor.dim() < 3:
        return tensor
    for axis, size in enumerate(sizes[: tensor.dim() - 2], start=2):
        tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor
