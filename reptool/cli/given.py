"""What the command line is given: a model by name with its weights, and the shapes of its inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import InputError
from reptool.frontends.spec import SECONDS, Spec
from reptool.ship.checkpoints import read_checkpoint
from reptool.ship.tensors import state_of

_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:,\d+)*)(?::(?P<dtype>[a-z]+\d*))?")
MAX_ELEMENTS = 1 << 28


def model_of(
    spec: str, weights: Path | None = None, key: str | None = None, seed: int = 0, seconds: float = SECONDS
) -> nn.Module:
    """The model that is named, with these weights or random ones.

    Args:
        spec: names it.
        weights: a checkpoint.
        key: which state dict in it is meant.
        seed: of random weights.
        seconds: how long its code may take.

    Raises:
        InputError: it cannot be built, or the weights do not fit it.
        FileError: the checkpoint cannot be read.
    """
    torch.manual_seed(seed)
    model = Spec.of(spec).build(seconds)
    if weights is not None:
        state = read_checkpoint(weights, model.state_dict().keys(), key)
        state_of(model, state, f"the checkpoint {str(weights)!r}")
    return model


def inputs_of(texts: Sequence[str], model: nn.Module, seed: int = 0) -> Any:
    """Random inputs of the shapes that are named.

    Args:
        texts: of the form ``[name=]1,3,224,224[:dtype]``, one for each input, all with names or none.
        model: whose own input size is taken where nothing is named.
        seed: of their values.

    Returns:
        A tuple or a dict of tensors; None where nothing is known.

    Raises:
        InputError: one of them is no shape.

    >>> inputs_of(["1,3,8,8", "1,16:int64"], nn.Identity())[1].dtype
    torch.int64
    """
    if not texts:
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        texts = [f"1,{','.join(map(str, size))}"] if size else []
    generator = torch.Generator().manual_seed(seed)
    made = [_made(text, generator) for text in texts]
    names = [name for name, _ in made if name]
    if len(names) not in (0, len(made)):
        raise InputError(f"inputs {', '.join(map(repr, texts))}: give names to all of them or to none")
    if names:
        return dict(made)
    return tuple(tensor for _, tensor in made) or None


def _made(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise InputError(f"inputs {text!r} is no shape; expected [name=]1,3,224,224[:dtype]")
    shape = [int(n) for n in found["sizes"].split(",")]
    dtype = getattr(torch, found["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"inputs {text!r}: there is no dtype {found['dtype']!r}")
    if torch.Size(shape).numel() > MAX_ELEMENTS or not torch.Size(shape).numel():
        raise InputError(f"inputs {text!r} has {torch.Size(shape).numel():,} elements; give a shape that fits")
    if dtype.is_floating_point:
        return found["name"], torch.randn(shape, generator=generator).to(dtype)
    return found["name"], torch.zeros(shape, dtype=dtype)
