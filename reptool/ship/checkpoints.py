"""Checkpoints: the tensors in a file of somebody else's, read without executing what the file holds.

Files of safetensors, an index of several of them in one folder, and files of `torch.save` that hold tensors. What
training scripts put around a state dict is taken off: one of the usual names, and prefixes that all names have.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptool.errors import FileError, InputError

AROUND = (
    "state_dict", "model", "model_state_dict", "model_state", "model_ema", "state_dict_ema", "ema_state_dict", "ema",
    "module", "net", "network", "weights", "params", "params_ema", "teacher", "student",
)  # fmt: skip
"""Names under which training scripts keep a state dict."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")
MAX_INDEX = 64 << 20


def read_checkpoint(path: str | os.PathLike[str], names: Any = None, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file.

    Args:
        path: a file of safetensors, an index of such files (``*.index.json``), or of `torch.save`.
        names: of the tensors that are looked for; prefixes are taken off where that gives more of them.
        key: which of several state dicts in the file is meant.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileError: it cannot be read, or is none of these.
        InputError: it holds no state dict, or several and none is named; it holds pickled code.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "last.pth")
    ...     torch.save({"epoch": 3, "model": {"module.fc.weight": torch.zeros(1)}}, file)
    ...     list(read_checkpoint(file, ["fc.weight"]))
    ['fc.weight']
    """
    file = Path(path)
    if not file.is_file():
        raise FileError(f"there is no file {str(file)!r}")
    try:
        if file.name.endswith(".index.json"):
            return without_prefix(_sharded(file), names)
        held = _safetensors(file) if is_safetensors(file) else _pickled(file)
    except OSError as error:
        raise FileError(f"{str(file)!r} cannot be read: {error.strerror or error}") from error
    return without_prefix(_undressed(held, file, key), names)


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as those of safetensors do, whatever it is called."""
    with open(file, "rb") as opened:
        start = opened.read(9)
    return file.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{" and start[6:8] == b"\0\0")


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise FileError(f"{str(file)!r} is no whole file of safetensors: {error}") from error


def _sharded(file: Path) -> dict[str, Tensor]:
    """Several files of one folder that an index names."""
    try:
        if file.stat().st_size > MAX_INDEX:
            raise FileError(f"{str(file)!r} is too large for an index")
        found = json.loads(file.read_text("utf-8"))["weight_map"]
        shards = sorted(set(found.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{str(file)!r} is no index of safetensors files") from error
    out: dict[str, Tensor] = {}
    for name in shards:
        if type(name) is not str or Path(name).name != name or not name.endswith(".safetensors"):
            raise FileError(f"{str(file)!r} names {name!r}, which is no safetensors file in its own folder")
        shard = file.with_name(name)
        if not shard.is_file() or shard.resolve().parent != file.resolve().parent:
            raise FileError(f"{str(file)!r} names {name!r}, which is not in its folder")
        out |= _safetensors(shard)
    return out


def _pickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error) or "GLOBAL" in str(error):
            name = str(error).partition("GLOBAL ")[2].split(" ")[0].rstrip(".,") or "of a class"
            raise InputError(
                f"{str(file)!r} holds pickled code ({name}), which is not run; save the tensors alone, "
                "torch.save(model.state_dict(), ...), or a deployed model with reptool.save(model, 'm.safetensors')"
            ) from error
        raise FileError(f"{str(file)!r} is no checkpoint: neither safetensors nor a file of torch.save") from error
    except OSError:
        raise
    except Exception as error:  # whatever torch makes of bytes that are none of its own
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise FileError(f"{str(file)!r} is damaged or no checkpoint: {said}") from error


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(
        isinstance(k, str) and (isinstance(v, Tensor) or k.endswith("_extra_state")) for k, v in value.items()
    )  # fmt: skip


def _undressed(held: Any, file: Path, key: str | None) -> dict[str, Tensor]:
    """The state dict in what a file holds."""
    if key is not None:
        if not isinstance(held, Mapping) or not _is_state(held.get(key)):
            kept = sorted(map(str, held)) if isinstance(held, Mapping) else []
            raise InputError(f"{str(file)!r} holds no state dict under {key!r}; it holds {', '.join(kept[:20])}")
        return dict(held[key])
    for _ in range(4):
        if _is_state(held):
            return dict(held)
        if not isinstance(held, Mapping):
            break
        states = [k for k in AROUND if isinstance(held.get(k), Mapping) and held[k]]
        if len(states) > 1:
            which = f"say which one is meant (key={states[0]!r})"
            raise InputError(f"{str(file)!r} holds several state dicts: {', '.join(states)}; {which}")
        if not states:
            break
        held = held[states[0]]
    names = ", ".join(sorted(map(str, held))[:20]) if isinstance(held, Mapping) else f"a {type(held).__name__}"
    raise InputError(f"{str(file)!r} holds no state dict (tensors by name); it holds {names}")


def without_prefix(state: Mapping[str, Tensor], names: Any = None) -> dict[str, Tensor]:
    """A state without what training put in front of every name.

    Args:
        state: tensors by name.
        names: those that are looked for; without them, what wrappers of torch put there is taken off.

    >>> list(without_prefix({"module.a": torch.ones(1), "module.b": torch.ones(1)}))
    ['a', 'b']
    """
    found, wanted = dict(state), set(names or ())
    best = found
    for _ in range(4):
        taken = PREFIXES if wanted else PREFIXES[:2]
        prefix = next((p for p in taken if found and all(n.startswith(p) for n in found)), None)
        if prefix is None:
            break
        found = {n.removeprefix(prefix): t for n, t in found.items()}
        if not wanted or len(wanted & found.keys()) > len(wanted & best.keys()):
            best = found
    return best
