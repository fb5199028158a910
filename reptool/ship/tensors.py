"""The tensors of a model by name, as a file holds them, and a model that gets those of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import InputError, RecipeError
from reptool.runtime.containers import leaves

LOOSE = "reptool:"
"""In front of the name of a buffer that is not in the model's ``state_dict``."""


@dataclass
class Held:
    """The tensors of a file.

    Args:
        tensors: by name, each once.
        same: another name of a tensor -> the name it is held by.
        strides: of those whose memory is in another order than a file's; on some, kernels round by them.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    strides: dict[str, list[int]] = field(default_factory=dict)


def _slots(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Where each tensor of a model is held: its name in a file, the table, its name there."""
    for path, module in model.named_modules(remove_duplicate=False):
        lead = f"{path}." if path else ""
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    loose = name in module._non_persistent_buffers_set
                    yield f"{LOOSE if loose else ''}{lead}{name}", table, name


def tensors_of(model: nn.Module) -> Held:
    """The tensors of a model, on the CPU.

    Args:
        model: any module.

    Raises:
        InputError: it holds something that no file of tensors can hold.
    """
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise InputError(
                f"{path or '<root>'!r} ({type(module).__name__}) has an extra state of its own, which is no tensor; "
                "pickle the model with torch.save instead"
            )
    found, first = Held(), dict[int, str]()
    memory: set[int] = set()
    for name, table, key in _slots(model):
        tensor: Tensor = table[key]
        kept = first.setdefault(id(tensor), name)
        if kept != name:
            found.same[name] = kept
            continue
        if tensor.is_meta:
            raise InputError(f"{name!r} is on the meta device and has no values; load the weights first")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise InputError(f"{name!r} is no plain tensor ({tensor.layout}); pickle the model with torch.save instead")
        plain = tensor.detach().cpu().contiguous()
        if _is_dense(tensor.shape, list(tensor.stride())) and tensor.stride() != torch.empty(tensor.shape).stride():
            found.strides[name] = list(tensor.stride())
        at = plain.untyped_storage().data_ptr()
        found.tensors[name] = plain.clone() if at in memory else plain
        memory.add(at)
    return found


def assign(model: nn.Module, held: Held) -> None:
    """Give a model the tensors of a file.

    Args:
        model: has parameters and buffers of these names and shapes; their values are not looked at.
        held: what the file holds.

    Raises:
        RecipeError: one is missing, is too many, or is of another shape or kind.
    """
    made: dict[str, Tensor] = {}
    slots = list(_slots(model))
    names = {name for name, _, _ in slots}
    if names != held.tensors.keys() | held.same.keys():
        missing = sorted(names - held.tensors.keys() - held.same.keys())
        extra = sorted((held.tensors.keys() | held.same.keys()) - names)
        what = f"holds no {missing[0]!r}" if missing else f"holds {extra[0]!r}, which the model has not"
        raise RecipeError(f"the file {what} ({len(missing)} tensors are missing, {len(extra)} are too many)")
    for name, table, key in slots:
        kept = held.same.get(name, name)
        tensor, old = held.tensors.get(kept), table[key]
        if tensor is None or kept in held.same:
            raise RecipeError(f"the file says that {name!r} is {kept!r}, which it does not hold")
        if tensor.shape != old.shape or _kind(tensor) != _kind(old):
            theirs, ours = (f"{tuple(t.shape)} of {t.dtype}" for t in (tensor, old))
            raise RecipeError(f"{name!r} is {theirs} in the file, and {ours} in the model")
        if kept not in made:
            tensor = _ordered(tensor, held.strides.get(kept))
            made[kept] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        table[key] = made[kept]


def _is_dense(shape: torch.Size, strides: Any) -> bool:
    """Whether these strides fill exactly the memory that the shape takes."""
    if type(strides) is not list or len(strides) != len(shape) or not all(type(s) is int and s >= 0 for s in strides):
        return False
    size = 1
    for stride, count in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != size:
            return False
        size *= count
    return all(s <= max(size, 1) for s in strides)


def _ordered(tensor: Tensor, strides: Any) -> Tensor:
    """The tensor with its memory in another order."""
    if strides is None or not _is_dense(tensor.shape, strides):
        return tensor.clone()  # a file's memory is aligned as it happens, and may change under it
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _kind(tensor: Tensor) -> str:
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else str(tensor.dtype)


def outputs_of(value: Any) -> list[Tensor]:
    """The tensors that a model returned, whatever they are nested in.

    >>> [len(t) for t in outputs_of({"a": torch.ones(1), "b": [torch.ones(2)]})]
    [1, 2]
    """
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def on_meta(model: nn.Module) -> bool:
    """Whether some tensor of a model has no values, also in a plain attribute."""
    held = (value for module in model.modules() for value in leaves(dict(vars(module))))
    return any(isinstance(value, Tensor) and value.is_meta for value in held)


def state_of(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict into a model, every name of it and no other.

    Raises:
        InputError: it does not fit.
    """
    try:
        model.load_state_dict(dict(state), strict=True)
    except (RuntimeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InputError(f"{where} does not fit {type(model).__name__}: {' '.join(lines)[:400]}") from error
