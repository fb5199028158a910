"""Hooks of a deployed model: checks of the rank a layer was fused for, and of keys of absorbed layers in its state.

The hooks on ranks are plain functions with annotations, one for each rank, since `torch.jit.script` compiles the hooks
of a module from their source.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Tuple  # noqa: UP035 - TorchScript reads this annotation

import torch
from torch import Tensor, nn

from reptool.errors import AbsorbedStateError, SpecializedError
from reptool.runtime.absorbed import Absorbed
from reptool.runtime.gates.gate import runs_in_its_region


@dataclass
class LoadGuard:
    """A load_state_dict pre-hook: keys of absorbed layers raise, even with ``strict=False``."""

    absorbed: frozenset[str]

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Raise for a checkpoint of the original model."""
        found = sorted(k for k in self.absorbed if prefix + k in state)
        if found:
            raise AbsorbedStateError(
                f"the checkpoint holds {len(found)} entries of layers that deploy() absorbed, "
                f"such as {prefix + found[0]!r}; "
                "load it into the original model and deploy that again"
            )


def guard_state(model: nn.Module, absorbed: Iterable[str]) -> None:
    """Refuse entries of absorbed layers, whichever module of the model they are loaded into.

    Args:
        model: the deployed model.
        absorbed: keys of its original's state that it has no more.
    """
    held: dict[nn.Module, set[str]] = {}
    for key in absorbed:
        held.setdefault(model, set()).add(key)
        module, rest = model, key
        while (inner := module._modules.get(rest.partition(".")[0])) is not None:
            module, rest = inner, rest.partition(".")[2]
        if not isinstance(module, Absorbed):  # which refuses by itself
            held.setdefault(module, set()).add(rest)
    for module, keys in held.items():
        for hook in [k for k, h in module._load_state_dict_pre_hooks.items() if isinstance(_plain(h), LoadGuard)]:
            keys |= _plain(module._load_state_dict_pre_hooks.pop(hook)).absorbed
        module.register_load_state_dict_pre_hook(LoadGuard(frozenset(keys)))


def _plain(hook: Any) -> Any:
    return getattr(hook, "hook", hook)


# --- ranks ----------------------------------------------------------------------------------------------------------
def expects_2_dimensions(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """A forward pre-hook of a layer that was fused for inputs of 2 dimensions."""
    if torch.jit.is_scripting():
        assert input[0].dim() == 2, "this layer was fused by reptool for inputs of 2 dimensions"
    else:
        _check(input, 2)


def expects_3_dimensions(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """A forward pre-hook of a layer that was fused for inputs of 3 dimensions."""
    if torch.jit.is_scripting():
        assert input[0].dim() == 3, "this layer was fused by reptool for inputs of 3 dimensions"
    else:
        _check(input, 3)


def expects_4_dimensions(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """A forward pre-hook of a layer that was fused for inputs of 4 dimensions."""
    if torch.jit.is_scripting():
        assert input[0].dim() == 4, "this layer was fused by reptool for inputs of 4 dimensions"
    else:
        _check(input, 4)


def expects_5_dimensions(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """A forward pre-hook of a layer that was fused for inputs of 5 dimensions."""
    if torch.jit.is_scripting():
        assert input[0].dim() == 5, "this layer was fused by reptool for inputs of 5 dimensions"
    else:
        _check(input, 5)


def _check(given: Any, rank: int) -> None:
    value = given[0] if given else _by_name()
    if not hasattr(value, "dim"):
        raise SpecializedError(f"this layer was fused for inputs of {rank} dimensions; call it with its input in place")
    if value.dim() != rank:
        raise SpecializedError(
            f"this layer was fused for inputs of {rank} dimensions and got {value.dim()}; "
            "deploy with example_inputs of that rank, or exclude it"
        )


def _by_name() -> Any:
    """The first argument of a call that gives all of them by name, which hooks are not told of."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and frame.f_code.co_name not in ("_call_impl", "_slow_forward"):
        frame = frame.f_back
    kwargs = {} if frame is None else frame.f_locals.get("kwargs", {})
    return next(iter(kwargs.values()), None)


_BY_RANK: dict[int, Callable[..., None]] = {
    2: expects_2_dimensions,
    3: expects_3_dimensions,
    4: expects_4_dimensions,
    5: expects_5_dimensions,
}
_RANKS = {hook: rank for rank, hook in _BY_RANK.items()}


@dataclass
class RankGuard:
    """The same as an object, as models hold it that were pickled by reptool 0.1.0."""

    rank: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise for another rank."""
        _check(args, self.rank)


def hook_rank(hook: Any) -> int | None:
    """The rank that a hook asks for, None for a hook of somebody else."""
    return hook.rank if isinstance(hook, RankGuard) else _RANKS.get(hook) if callable(hook) else None


def is_own_hook(hook: Any) -> bool:
    """Whether a hook is one of reptool's."""
    return hook is runs_in_its_region or hook_rank(hook) is not None


def guarded_rank(module: nn.Module) -> int | None:
    """The rank a module is guarded for, None where any is right."""
    ranks = map(hook_rank, module._forward_pre_hooks.values())
    return next((rank for rank in ranks if rank is not None), None)


def set_guard(module: nn.Module, rank: int) -> None:
    """Guard a module for inputs of one rank, once."""
    if guarded_rank(module) is None and rank in _BY_RANK:
        module.register_forward_pre_hook(_BY_RANK[rank])
