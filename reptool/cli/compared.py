"""`compare`: the outputs of two models, or of a model and a file, for the same random inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reptool.cli.given import inputs_of, model_of
from reptool.errors import InputError
from reptool.frontends.spec import Spec
from reptool.ship.export import difference
from reptool.ship.files import replacing
from reptool.ship.runtimes import RUNTIMES, runtime_of
from reptool.ship.saving import load
from reptool.ship.tensors import outputs_of, tensors_of


@dataclass
class Compared:
    """What two models gave.

    Args:
        one: the first.
        other: the second.
        difference: the largest, as a fraction of the largest output of the first.
        tolerance: the largest that is allowed.
        inputs: shapes of the inputs.
    """

    one: str
    other: str
    difference: float
    tolerance: float
    inputs: list[tuple[int, ...]]

    @property
    def same(self) -> bool:
        """Whether they are the same within the tolerance."""
        return self.difference <= self.tolerance

    def sentence(self) -> str:
        """In words."""
        word = "the same" if self.same else "not the same"
        shapes = ", ".join(map(str, self.inputs))
        return (
            f"{self.one} and {self.other} are {word} for inputs of {shapes}: largest difference {self.difference:.2e} "
            f"of the largest output, {self.tolerance:.0e} is allowed"
        )


def compare(
    spec: str, other: str, weights: Path | None, key: str | None, inputs: Sequence[str], tolerance: float, seed: int,
    seconds: float,
) -> Compared:  # fmt: skip
    """Compare two models; the second is a SPEC with the same weights, or a file.

    Raises:
        InputError: one of them cannot be built, or nobody says what goes into them.
        FileError: a file cannot be read.
    """
    model = model_of(spec, weights, key, seed, seconds)
    given = inputs_of(inputs, model, seed)
    if given is None:
        raise InputError("to compare models, say what goes into them: --inputs 1,3,224,224")
    tensors = list(given.values()) if isinstance(given, dict) else list(given)
    run = _runner(other, spec, weights, key, seed, seconds)
    found = difference(run(tensors, given), _run(model)(tensors, given))
    return Compared(spec, other, found, tolerance, [tuple(t.shape) for t in tensors])


def _runner(
    other: str, spec: str, weights: Path | None, key: str | None, seed: int, seconds: float
) -> Callable[[list[Tensor], Any], list[Tensor]]:
    path = Path(other)
    if path.suffix in RUNTIMES and path.is_file():
        run = runtime_of(path).open(path)
        return lambda tensors, given: run(tensors)
    if path.suffix == ".safetensors":
        return _run(load(path, into=lambda: Spec.of(spec).build(seconds)))
    return _run(model_of(other, weights, key, seed, seconds))


def _run(model: nn.Module) -> Callable[[list[Tensor], Any], list[Tensor]]:
    def run(tensors: list[Tensor], given: Any) -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(model(**given) if isinstance(given, dict) else model(*given))

    return run


def write_state(model: nn.Module, path: Path, overwrite: bool) -> None:
    """Write a state dict as safetensors."""
    from safetensors.torch import save_file

    with replacing(path, overwrite) as beside:
        save_file(tensors_of(model).tensors, beside, {"format": "pt"})
