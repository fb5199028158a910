"""Hooks of a deployed model: checks of the rank a layer was fused for, and of keys of absorbed layers in its state.

The hooks on ranks are plain functions with annotations, one for each rank, since `torch.jit.script` compiles the hooks
of a module from their source.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Tuple  # noqa: UP035 - TorchScript reads this annotation

import torch
from torch import Tensor, nn

from reptool.errors import AbsorbedStateError, SpecializedError
from reptool.runtime.absorbed import Absorbed
from reptool.runtime.gates.gate import runs_in_its_region
from reptool.runtime.state import FOLDED


@dataclass
class LoadGuard:
    """A load_state_dict pre-hook: keys of absorbed layers raise, even with ``strict=False``.

    A plain dictionary does not say whether its tensors are of the deployed model or of the original. Where names mean
    more than they did, one that holds nothing which only the deployed model has raises as well.

    Args:
        absorbed: keys that the original had.
        grown: keys that only the deployed model has.
        folded: keys whose tensors mean more than they did.
    """

    absorbed: frozenset[str]
    grown: frozenset[str] = frozenset()
    folded: frozenset[str] = frozenset()

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any = (), *_: Any) -> None:
        """Raise for a checkpoint of the original model, and for one that may be of it."""
        found = sorted(k for k in self.absorbed if prefix + k in state)
        if found:
            raise AbsorbedStateError(
                f"the checkpoint holds {len(found)} entries of layers that deploy() absorbed, "
                f"such as {prefix + found[0]!r}; "
                "load it into the original model and deploy that again"
            )
        unclear = () if "version" in metadata else sorted(k for k in self.folded if prefix + k in state)
        if unclear and not any(prefix + k in state for k in self.grown):
            raise AbsorbedStateError(
                f"the plain dict does not say whether {prefix + unclear[0]!r} is of the deployed model or of its "
                "original, which mean other tensors by it; load what state_dict() of a model deployed in the same way "
                "gives, or the original's into the original model and deploy that again"
            )


def guard_state(model: nn.Module, absorbed: Iterable[str], grown: Iterable[str] = ()) -> None:
    """Refuse entries of absorbed layers, whichever module of the model they are loaded into.

    Args:
        model: the deployed model.
        absorbed: keys of its original's state that it has no more.
        grown: keys of its state that its original has not.
    """
    grown = frozenset(grown)
    held: dict[nn.Module, set[str]] = {}
    for key in absorbed:
        held.setdefault(model, set()).add(key)
        module, rest = model, key
        while (inner := module._modules.get(rest.partition(".")[0])) is not None:
            module, rest = inner, rest.partition(".")[2]
        if not isinstance(module, Absorbed):  # which refuses by itself
            held.setdefault(module, set()).add(rest)
    folded = frozenset(_folded(model))
    if folded:
        held.setdefault(model, set())
    for module, keys in held.items():
        for hook in [k for k, h in module._load_state_dict_pre_hooks.items() if isinstance(_plain(h), LoadGuard)]:
            earlier = _plain(module._load_state_dict_pre_hooks.pop(hook))
            keys |= earlier.absorbed
            grown = grown or earlier.grown
        whole = (grown, folded) if module is model else ()
        module.register_load_state_dict_pre_hook(LoadGuard(frozenset(keys), *whole))


def load_guard(module: nn.Module) -> LoadGuard | None:
    """The guard of a module's state, if it has one."""
    hooks = (_plain(h) for h in module._load_state_dict_pre_hooks.values())
    return next((h for h in hooks if isinstance(h, LoadGuard)), None)


def forget_folded(module: nn.Module) -> None:
    """Take plain dictionaries again, whatever their tensors mean."""
    for hook in module._load_state_dict_pre_hooks.values():
        if isinstance(_plain(hook), LoadGuard):
            _plain(hook).folded = frozenset()


def _folded(model: nn.Module) -> Iterator[str]:
    """Keys of the state whose tensors mean more than they did."""
    for path, module in model.named_modules():
        for folded in module.__dict__.get(FOLDED, ()):
            yield from (f"{path}.{name}" if path else name for name in folded.names)


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
    return hook is runs_in_its_region or hook in _BY_DTYPE.values() or hook_rank(hook) is not None


def guarded_rank(module: nn.Module) -> int | None:
    """The rank a module is guarded for, None where any is right."""
    ranks = map(hook_rank, module._forward_pre_hooks.values())
    return next((rank for rank in ranks if rank is not None), None)


def set_guard(module: nn.Module, rank: int) -> None:
    """Guard a module for inputs of one rank, once."""
    if guarded_rank(module) is None and rank in _BY_RANK:
        module.register_forward_pre_hook(_BY_RANK[rank])


# --- dtypes ---------------------------------------------------------------------------------------------------------
def expects_its_own_dtype(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """A forward pre-hook of a layer whose code was decided by the dtype of its input, under autocast as well."""
    if torch.jit.is_scripting():
        assert input[0].dtype == self.weight.dtype, "this layer was fused by reptool for inputs of its own dtype"
    else:
        _check_dtype(input, self.weight.dtype)


def expects_bfloat16(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """The same for code that was decided by bfloat16 alone, whatever the layer is brought to."""
    if torch.jit.is_scripting():
        assert input[0].dtype == torch.bfloat16, "this layer was fused by reptool for inputs in bfloat16"
    else:
        _check_dtype(input, torch.bfloat16)


def expects_float16(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """The same for float16."""
    if torch.jit.is_scripting():
        assert input[0].dtype == torch.float16, "this layer was fused by reptool for inputs in float16"
    else:
        _check_dtype(input, torch.float16)


def expects_float32(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """The same for float32."""
    if torch.jit.is_scripting():
        assert input[0].dtype == torch.float32, "this layer was fused by reptool for inputs in float32"
    else:
        _check_dtype(input, torch.float32)


def _check_dtype(given: Any, wanted: Any) -> None:
    found = getattr(given[0] if given else _by_name(), "dtype", None)
    if found != wanted:
        raise SpecializedError(
            f"this layer was fused for inputs in {wanted} and got one in {found}, for which the original may run "
            "other code; deploy with example_inputs of that dtype, or exclude it"
        )


_BY_DTYPE: dict[torch.dtype | None, Callable[..., None]] = {
    None: expects_its_own_dtype,
    torch.bfloat16: expects_bfloat16,
    torch.float16: expects_float16,
    torch.float32: expects_float32,
}
DTYPES = frozenset(_BY_DTYPE)
"""The dtypes that a layer can be guarded for; None is its own, also once it was brought to another one."""


def set_dtype_guard(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Guard a layer for inputs of one dtype, None for its own."""
    module.register_forward_pre_hook(_BY_DTYPE[dtype])


def is_dtype_guarded(module: nn.Module) -> bool:
    """Whether a layer checks the dtype of its input."""
    return any(h in _BY_DTYPE.values() for h in module._forward_pre_hooks.values())
