"""The header of a reptool file: the recipe, who made it, and a digest of all that the file holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import FileError, RecipeError
from reptool.ship.tensors import Held

FORMAT = "reptool-1"
MAX_HEADER = 64 << 20
FIELDS = {"format": str, "model": str, "versions": dict, "steps": list, "same": dict, "strides": dict}


@dataclass
class Header:
    """What a file says beside its tensors.

    Args:
        model: the class that the model had.
        versions: of the packages that it was deployed with.
        steps: the recipe.
        same: as `Held.same`.
        strides: as `Held.strides`.
    """

    model: str
    versions: dict[str, str] = field(default_factory=dict)
    steps: list[Any] = field(default_factory=list)
    same: dict[str, str] = field(default_factory=dict)
    strides: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """As it is written."""
        return json.dumps({"format": FORMAT, **vars(self)}, ensure_ascii=True, separators=(",", ":"))

    @staticmethod
    def read(text: str) -> Header:
        """What was written.

        Raises:
            RecipeError: it is nothing that reptool writes.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError("its recipe is no JSON") from error
        if type(data) is not dict or data.keys() != FIELDS.keys():
            raise RecipeError("its recipe has other fields than reptool writes")
        if data["format"] != FORMAT:
            raise RecipeError(
                f"its recipe is of the format {str(data['format'])[:40]!r}, this release reads {FORMAT!r}"
            )
        typed = all(type(data[n]) is kind for n, kind in FIELDS.items())
        if not typed or not all(type(n) is str for n in _names(data)) or not data["steps"]:
            raise RecipeError("its recipe has fields of other types than reptool writes")
        return Header(**{n: v for n, v in data.items() if n != "format"})


def _names(data: dict[str, Any]) -> list[Any]:
    return [*data["same"].values(), *data["versions"].values()]


def versions(model: nn.Module) -> dict[str, str]:
    """The packages that decide what a model's code does."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for module in model.modules():
        home = type(module).__module__.partition(".")[0]
        if home not in found and home not in ("reptool", "builtins", "__main__"):
            try:
                found[home] = importlib.metadata.version(home)
            except importlib.metadata.PackageNotFoundError:
                continue
    return {**found, "reptool": importlib.metadata.version("reptool")}


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """A digest of a header and of every bit of the tensors."""
    out = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        out.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            out.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return out.hexdigest()


def read_file(path: Path) -> tuple[Header, Held]:
    """The header and the tensors of a file that `reptool.save` wrote.

    Raises:
        FileError: there is none, or it is damaged.
        RecipeError: it is a file of somebody else, or its header is nothing that reptool writes.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileError(f"there is no file {str(path)!r}")
    try:
        _check_header(path)
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileError(f"{str(path)!r} is no whole file of safetensors: {error}") from error
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    if "reptool" not in said:
        raise RecipeError(
            f"{str(path)!r} holds tensors and no recipe; build the model, load them with load_state_dict, and deploy it"
        )
    try:
        header = Header.read(said["reptool"])
    except RecipeError as error:
        raise RecipeError(f"{str(path)!r} cannot be loaded: {error}") from error
    if said.get("digest") != digest_of(said["reptool"], tensors):
        raise FileError(f"{str(path)!r} was altered after it was written: its digest is another one; fetch it again")
    return header, Held(tensors, header.same, header.strides)


def _check_header(path: Path) -> None:
    """Refuse a header that is longer than the file, or than any that reptool writes, before it is read."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > size - 8:
        raise FileError(f"{str(path)!r} is no whole file of safetensors: it has {size:,} bytes, its header {length:,}")
    if length > MAX_HEADER:
        raise FileError(f"{str(path)!r} has a header of {length:,} bytes; reptool writes at most {MAX_HEADER:,}")
