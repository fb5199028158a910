"""`doctor`: what is installed, and what works here."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import reptool
from reptool.ship.export import export
from reptool.ship.runtimes import RUNTIMES
from reptool.ship.saving import load, save

PACKAGES = (
    "reptool", "torch", "numpy", "rich", "safetensors", "typer", "onnx", "onnxscript", "onnxruntime", "timm",
    "torchvision", "transformers", "scikit-learn", "matplotlib", "hypothesis",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Python, the machine, and each package that reptool has to do with; '' for one that there is not."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    return found | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def checks() -> dict[str, str]:
    """What was tried on a small model: by its name, '' where it works, else why not."""
    model = _model()
    images = torch.randn(2, 3, 16, 16)
    with tempfile.TemporaryDirectory() as folder:
        tried: dict[str, Callable[[], object]] = {
            "deploy": lambda: reptool.deploy(model, images, require="no_batchnorm"),
            "save and load": lambda: load(save(reptool.deploy(model), Path(folder, "m.safetensors")), into=_model),
        }
        for suffix, runtime in RUNTIMES.items():
            tried[f"export to *{suffix}"] = lambda s=suffix: export(model, images, Path(folder, f"m{s}"))  # type: ignore[misc]
            assert runtime.name
        return {name: _why(check) for name, check in tried.items()}


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()


def _why(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:  # whatever is wrong here
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
