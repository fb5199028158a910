"""A model by name: ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME`` or ``package.module:callable(argument=value)``.

A name is data. What stands in parentheses are literals of Python, read by `ast.literal_eval`; nothing is evaluated.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from reptool.errors import InputError

EXPECTED = "expected timm:NAME, torchvision:NAME, hf:NAME or package.module:callable(argument=value)"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?")
SECONDS = 600


@dataclass(frozen=True)
class Spec:
    """What a text names.

    Args:
        text: as it was given.
        source: ``timm``, ``torchvision``, ``hf`` or the path of a module.
        name: of the model or callable.
        args: literals in parentheses.
        kwargs: literals with names.
    """

    text: str
    source: str
    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(text: str) -> Spec:
        """Read a text.

        Raises:
            InputError: it is none.

        >>> Spec.of("timm:repvgg_a0(num_classes=10)").kwargs
        {'num_classes': 10}
        """
        source, colon, rest = text.partition(":")
        if not (source and colon and rest):
            raise InputError(f"{text!r} names no model; {EXPECTED}")
        if source == "hf" and Path(rest).is_dir():
            return Spec(text, source, rest)
        name, open_, given = rest.partition("(")
        args, kwargs = _literals(text, open_ + given) if open_ else ((), {})
        if source in ("timm", "torchvision", "hf"):
            fits = _NAME.fullmatch(name) is not None
        else:
            fits = all(part.isidentifier() for part in (*source.split("."), *name.split(".")))
        if not fits:
            raise InputError(f"{text!r} names no model: {name!r} of {source!r} is no name; {EXPECTED}")
        return Spec(text, source, name, args, kwargs)

    def build(self, seconds: float = SECONDS) -> nn.Module:
        """The model that is named, with random weights, in eval mode.

        Args:
            seconds: how long its code may take, where it runs in the main thread.

        Raises:
            InputError: there is no such model or package, its code raises, takes too long, or builds something else.
        """
        try:
            with _at_most(seconds):
                model = self._builder()(*self.args, **self.kwargs)
        except _TookTooLongError:
            raise InputError(f"{self.text!r} was still building after {seconds:g} seconds; give it more") from None
        except ModuleNotFoundError as error:
            extra = "; pip install 'reptool[models]'" if error.name in ("timm", "torchvision") else ""
            extra = "; pip install transformers" if error.name == "transformers" else extra
            raise InputError(f"{self.text!r} needs the module {error.name!r}, which there is not{extra}") from error
        except (Exception, SystemExit) as error:  # whatever its code raises
            said = str(error).strip().splitlines()
            why = f"{type(error).__name__}: {said[0][:300] if said else ''}".rstrip(": ")
            raise InputError(f"{self.text!r} could not be built: {why}") from error
        if not isinstance(model, nn.Module):
            raise InputError(f"{self.text!r} has to build a torch.nn.Module, and built a {type(model).__name__}")
        return model.eval()

    def _builder(self) -> Callable[..., Any]:
        if self.source == "timm":
            timm = importlib.import_module("timm")
            return lambda **kwargs: timm.create_model(self.name, **{"pretrained": False, **kwargs})
        if self.source == "torchvision":
            models = importlib.import_module("torchvision.models")
            return lambda **kwargs: models.get_model(self.name, **{"weights": None, **kwargs})
        if self.source == "hf":
            return lambda **kwargs: _of_transformers(self.name, kwargs)
        with _working_folder_on_path():
            found: Any = importlib.import_module(self.source)
        for part in self.name.split("."):
            found = getattr(found, part)
        if not callable(found):
            raise TypeError(f"{self.name} is a {type(found).__name__}, nothing that can be called")
        builder: Callable[..., Any] = found
        return builder


def _literals(text: str, call: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in parentheses, which are literals."""
    try:
        node = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(call) > 10_000:
            raise ValueError
        if any(k.arg is None for k in node.keywords):
            raise ValueError
        args = tuple(ast.literal_eval(a) for a in node.args)
        return args, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{text!r} names no model: what stands in parentheses has to be literals (numbers, strings, True, None, "
            "lists, tuples, dicts), such as (num_classes=10)"
        ) from error


def _of_transformers(name: str, kwargs: dict[str, Any]) -> Any:
    """A model of transformers: of a folder with its weights, or of a configuration."""
    transformers = importlib.import_module("transformers")
    folder = os.path.isdir(name)
    config = transformers.AutoConfig.from_pretrained(name, local_files_only=folder, trust_remote_code=False, **kwargs)
    named = [getattr(transformers, n, None) for n in getattr(config, "architectures", None) or ()]
    cls = next((c for c in named if c is not None), None)
    if folder and any(Path(name).glob("*.safetensors")):
        cls = cls or transformers.AutoModel
        return cls.from_pretrained(name, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    return transformers.AutoModel.from_config(config) if cls is None else cls(config)


@contextlib.contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Modules of the folder that one works in are found, as `python -m` finds them."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


class _TookTooLongError(BaseException):
    """Code that was given so much time and did not end; no `except Exception` of its own catches it."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, where signals can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TookTooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width that `model` says it was made for, or (3, 224, 224)."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    return int(channels), int(height), int(width)
