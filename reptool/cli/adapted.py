"""An adapter in a folder, put on the model that it was trained for: the files that PEFT's ``save_pretrained`` writes.

The files are read before any of their code could run: a configuration in JSON and tensors in safetensors. Merging is
`deploy`'s; nothing here knows what an adapter computes.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import FileError, InputError
from reptool.ship.checkpoints import read_checkpoint

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


def with_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """A model with an adapter in it, in eval mode.

    Args:
        model: the base; its layers are changed in place.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The base model's own class, whose layers hold the adapter.

    Raises:
        FileError: the folder or its files are not there, or are damaged.
        InputError: the adapter does not fit the model, holds pickled code or NaN, or the base is quantized.
    """
    state = _state_of(folder)
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise InputError(
            f"the base of {str(folder)!r} is quantized: its weights are no numbers that an adapter can be added to; "
            "give the model that was quantized"
        )
    try:
        peft = importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise InputError(f"an adapter in a folder needs the module {error.name!r}; pip install peft") from error
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
        held = peft.get_peft_model_state_dict(adapted)
    except Exception as error:  # whatever it raises for what does not fit
        said = " ".join(line.strip() for line in str(error).splitlines()[:3])[:400]
        raise InputError(f"the adapter {str(folder)!r} does not fit {type(model).__name__}: {said}") from error
    _check_same(folder, state, held)
    base: nn.Module = adapted.get_base_model()
    return base.eval()


def _state_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, whose folder holds what is needed."""
    if not folder.is_dir():
        raise FileError(f"there is no folder {str(folder)!r}")
    if not (folder / CONFIG).is_file():
        raise FileError(f"{str(folder)!r} holds no {CONFIG}: it is no folder of an adapter")
    try:
        config: Any = json.loads((folder / CONFIG).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{str(folder / CONFIG)!r} is no JSON") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise FileError(f"{str(folder / CONFIG)!r} names no 'peft_type': it is no configuration of an adapter")
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLED).is_file():
            raise InputError(
                f"{str(folder / PICKLED)!r} may hold pickled code, which is not run; save the adapter as {WEIGHTS} "
                "(safe_serialization=True)"
            )
        raise FileError(f"{str(folder)!r} holds no {WEIGHTS}")
    state = read_checkpoint(folder / WEIGHTS)
    broken = next((n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)
    if broken is not None:
        raise InputError(f"the adapter {str(folder)!r} holds NaN or infinity in {broken!r}; nothing is merged")
    return state


def _check_same(folder: Path, state: dict[str, Tensor], held: dict[str, Tensor]) -> None:
    """Raise where a tensor of the file went into no layer, or a layer found none in it."""
    lacking, more = sorted(held.keys() - state.keys()), sorted(state.keys() - held.keys())
    if more:
        raise InputError(f"the adapter {str(folder)!r} holds {more[0]!r}, for which the model has no layer")
    if lacking:
        raise InputError(f"the adapter {str(folder)!r} lacks {lacking[0]!r}, which its configuration asks for")
