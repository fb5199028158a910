"""`save` and `load`: a deployed model as tensors and a recipe, and the model again from its architecture's own code.

A file of safetensors holds the weights. Its header holds the recipe as data: which decisions made which layers, and a
digest of every method that was written anew; never code. `load` builds the architecture by the caller's own code, makes
the same plan, checks that the result is what the recipe says, module for module, and gives it the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from reptool.api.accept import behind_wrappers, is_onnx
from reptool.api.replay import replay
from reptool.errors import InputError, RecipeError
from reptool.frontends.given import check_is_module, names_itself
from reptool.models.copies import independent_copy
from reptool.programs.onnx import is_streamed, write_onnx
from reptool.recipes.outcome import difference, outcome
from reptool.recipes.step import RECIPE, Step
from reptool.ship.checkpoints import read_checkpoint
from reptool.ship.files import check_free, replacing
from reptool.ship.header import Header, digest_of, read_file, versions
from reptool.ship.pickles import write_plain
from reptool.ship.tensors import Held, assign, on_meta, state_of, tensors_of

Build = Callable[[], nn.Module] | nn.Module


@names_itself
def save(deployed: Any, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a deployed model to a file of safetensors: its weights, and the recipe that makes it again.

    Args:
        deployed: a model that `reptool.deploy` returned, with whatever weights it has by now.
        path: the file, ``*.safetensors``. It is there whole or not at all, and an earlier one stays until then.
            ``*.pt`` is a pickle that loads without reptool, where no method was written anew; ``*.onnx`` is for a
            deployed ONNX model, ``*.pt2`` for a deployed exported program.
        overwrite: whether the file may be there already.

    Returns:
        The path.

    Raises:
        InputError: it was not deployed, was changed since in more than its weights, holds what no tensor can hold, or
            the file is there already; for ``*.pt``, something of reptool has to run in it.
        FileError: the file cannot be written.

    >>> import reptool, tempfile
    >>> def build():
    ...     return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> deployed = reptool.deploy(build())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loaded = load(save(deployed, Path(folder, "m.safetensors")), into=build)
    >>> x = torch.randn(1, 3, 8, 8)
    >>> torch.equal(loaded(x), deployed(x))
    True
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if is_onnx(deployed) or isinstance(deployed, ExportedProgram):
        return _save_program(deployed, Path(path), overwrite)
    check_is_module(deployed, "save")
    model = behind_wrappers(deployed)
    if Path(path).suffix == ".pt":
        with replacing(path, overwrite) as beside:
            write_plain(model, beside)
        return Path(path)
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{str(path)!r} is no name of a file that save writes; it writes *.safetensors and *.pt")
    held = tensors_of(model)
    header = Header(type(model).__qualname__, versions(model), recipe_of(model), held.same, held.strides)
    text = header.text()
    with replacing(path, overwrite) as beside:
        said = {"reptool": text, "digest": digest_of(text, held.tensors), "format": "pt"}
        try:
            save_file(held.tensors, beside, said)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return Path(path)


def _save_program(program: Any, path: Path, overwrite: bool) -> Path:
    """Write what has no Python code as what it is."""
    exported = isinstance(program, ExportedProgram)
    ending = ".pt2" if exported else ".onnx"
    if path.suffix != ending or isinstance(program, (str, os.PathLike)):
        what = "an exported program" if exported else "an ONNX model"
        raise InputError(f"{what} is written as *{ending}, got {str(path)!r}")
    data = path.with_suffix(".data") if not exported and is_streamed(program) else None
    if data is not None:
        check_free(data, overwrite)
    with replacing(path, overwrite) as beside:
        if exported:
            torch.export.save(program, beside)
        else:
            write_onnx(program, beside, None if data is None else data.name)
    return path


def recipe_of(model: nn.Module) -> list[Any]:
    """The recipe of a deployed model.

    Raises:
        InputError: it has none, or is another model by now.
    """
    recipe = model.__dict__.get(RECIPE)
    if isinstance(recipe, str):
        raise InputError(f"this {type(model).__name__} cannot be made again from a recipe: {recipe}")
    if not recipe:
        raise InputError(
            f"this {type(model).__name__} was not returned by reptool.deploy for a module of your own; deploy that "
            "first (an exported program is saved by torch.export.save)"
        )
    told = difference(outcome(model), Step.from_data(recipe[-1]).after)
    if told:
        raise InputError(
            f"this {type(model).__name__} was changed after deploying: {told}; change the original and deploy that, "
            "or save the state_dict alone"
        )
    found: list[Any] = recipe
    return found


@names_itself
def load(
    path: str | os.PathLike[str], into: Build, *, weights: str | os.PathLike[str] | None = None, key: str | None = None
) -> nn.Module:
    """Make a deployed model again from a file that `reptool.save` wrote. Nothing in the file is executed.

    Args:
        path: the file.
        into: builds the architecture that was deployed, as it was before, with any weights: a function without
            arguments (called on the meta device where that works), or a model, which stays as it is.
        weights: a checkpoint of the original architecture whose weights are folded by the recipe, in the place of
            those in the file. A recipe that does not hold for them (a bias that has to be zero) is an error.
        key: which state dict in `weights` is meant, where it holds several.

    Returns:
        The deployed model, in eval mode, on the CPU.

    Raises:
        FileError: the file cannot be read, is damaged or altered.
        RecipeError: it holds no recipe of reptool's, or that of another architecture.
        InputError: `into` does not build a model, or `weights` do not fit it.

    The example of `save` loads what it saved.
    """
    header, held = read_file(Path(path))
    try:
        return _folded(header, into, weights, key) if weights is not None else _loaded(header, held, into)
    except RecipeError as error:
        made = ", ".join(f"{name} {version}" for name, version in sorted(header.versions.items()))
        said = f"{str(path)!r} does not fit what `into` builds: {error} (it was made of a {header.model} with {made})"
        raise RecipeError(said) from error


def _loaded(header: Header, held: Held, into: Build) -> nn.Module:
    if not isinstance(into, nn.Module):
        try:  # without memory for weights that are not used, where the code allows it
            model = replay(built(into, torch.device("meta")), header.steps, fold=False)
            assign(model, held)
            if not on_meta(model):
                return model
        except Exception:  # code that wants values: whatever it raises
            pass
    model = replay(built(into), header.steps, fold=False)
    assign(model, held)
    return model


def _folded(header: Header, into: Build, weights: str | os.PathLike[str], key: str | None) -> nn.Module:
    model = built(into)
    state = read_checkpoint(weights, model.state_dict().keys(), key)
    state_of(model, state, f"the checkpoint {str(weights)!r}")
    return replay(model, header.steps, fold=True)


def built(into: Build, device: torch.device | None = None) -> nn.Module:
    """The model that the caller's code builds, in eval mode.

    Args:
        into: a function without arguments, or a model, of which a copy is made.
        device: where it is built.

    Raises:
        InputError: it builds none.
    """
    if isinstance(into, nn.Module):
        return independent_copy(into).eval()
    if not callable(into):
        raise InputError(f"into= takes a model or a function that builds one, not {into!r}")
    try:
        with device or torch.device("cpu"):
            model: Any = into()
    except Exception as error:
        if device is not None:
            raise
        raise InputError(f"into= could not build the model: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"into= has to build an nn.Module, and built a {type(model).__name__}")
    return behind_wrappers(model).eval()
