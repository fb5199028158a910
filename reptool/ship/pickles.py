"""A deployed model as a pickle that loads without reptool, where nothing of reptool has to run in it.

What `deploy` leaves in a model are layers of torch, and beside them checks, markers and methods that were written anew.
A model in which no method was written anew computes the same without the rest: markers become `nn.Identity`, checks go.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reptool.errors import InputError
from reptool.models.copies import independent_copy
from reptool.runtime.gates.release import release
from reptool.runtime.hooks import LoadGuard, guarded_rank, is_dtype_guarded

INSTEAD = "save it as *.safetensors, or pickle it with torch.save where reptool is installed"


def plain_copy(deployed: nn.Module) -> nn.Module:
    """A copy of a deployed model that computes the same and holds nothing of reptool.

    Args:
        deployed: a model that `reptool.deploy` returned.

    Raises:
        InputError: something of reptool has to run in it: which, and where.

    >>> import reptool
    >>> model = reptool.deploy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    >>> [type(m).__name__ for m in plain_copy(model)]
    ['Conv2d', 'Identity']
    """
    model = release(independent_copy(deployed))
    for path, module in model.named_modules():
        place = path or "<root>"
        cls, methods, plain = type(module).__dict__.get("_reptool_derived", (None, (), False))
        if methods or plain:
            names = ", ".join(m.name for m in methods) or "its class"
            raise InputError(f"{place!r} needs reptool to run: {names} was written anew by deploy(); {INSTEAD}")
        if guarded_rank(module) is not None or is_dtype_guarded(module):
            raise InputError(f"{place!r} needs reptool to run: it checks the rank or dtype of its input; {INSTEAD}")
        if type(module).__module__.partition(".")[0] == "reptool":
            raise InputError(f"{place!r} is a {type(module).__name__} of reptool, which it needs to run; {INSTEAD}")
        if cls is not None:
            object.__setattr__(module, "__class__", cls)
        for name in [n for n in module.__dict__ if n.startswith("_reptool_")]:
            del module.__dict__[name]
        for key, hook in list(module._load_state_dict_pre_hooks.items()):
            if isinstance(getattr(hook, "hook", hook), LoadGuard):
                del module._load_state_dict_pre_hooks[key]
    return model


def write_plain(deployed: nn.Module, path: Path) -> None:
    """Write a pickle that names nothing of reptool.

    Raises:
        InputError: something of reptool has to run in it.
    """
    torch.save(plain_copy(deployed), path)
    found = next((name for name in globals_of(path) if name.partition(".")[0] == "reptool"), None)
    if found is not None:
        raise InputError(f"a pickle of this {type(deployed).__name__} would name {found}; {INSTEAD}")


def globals_of(path: Path) -> Iterator[str]:
    """What a file of `torch.save` imports when it is unpickled; nothing of it is executed.

    Args:
        path: the file.
    """
    with zipfile.ZipFile(path) as held:
        data = held.read(next(n for n in held.namelist() if n.endswith("/data.pkl")))
    words: list[Any] = []
    for code, given, _ in pickletools.genops(data):
        if code.name == "GLOBAL":
            yield str(given).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(map(str, words[-2:]))
        elif isinstance(given, str):
            words.append(given)
