"""`export`: a deployed model for another runtime, run there and compared before the file is handed out.

The batch and the size of images stay free where the model's code allows that; the file is run with the inputs that were
given, with another batch, and with images of another size.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from reptool.errors import InputError, VerificationError
from reptool.frontends.given import check_is_module, names_itself
from reptool.frontends.inputs import example_arguments
from reptool.models.running import users_code
from reptool.ship.files import check_free, companion, replacing
from reptool.ship.runtimes import Runtime, runtime_of, without_chatter
from reptool.ship.tensors import outputs_of

ALLOWED = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference to PyTorch, as a fraction of the largest output; 0.05 for narrower dtypes."""
LARGER = 32  # pixels more along every axis of an image


@dataclass(repr=False)
class Exported:
    """What was written, and how it was checked.

    Args:
        path: the file.
        runtime: what ran it.
        error: largest difference to the deployed model in PyTorch, as a fraction of the largest output.
        error_original: the same to the original, None where it was not given.
        sizes: the shapes of the inputs that it was run with.
        free: for each input its axes, a number where one is fixed and a name where it is free.
        operators: what the file holds, by type.
        operators_before: what a file of the original would hold; None where it was not given.
    """

    path: Path
    runtime: str
    error: float = 0.0
    error_original: float | None = None
    sizes: list[list[tuple[int, ...]]] = field(default_factory=list)
    free: list[tuple[int | str, ...]] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    operators_before: Counter[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        before = None if self.operators_before is None else dict(self.operators_before)
        return {**vars(self), "path": str(self.path), "operators": dict(self.operators), "operators_before": before}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title=f"{self.path.name} in {self.runtime}")
        before = self.operators_before
        for column in ("operator", *(() if before is None else ("before",)), "after"):
            table.add_column(column, justify="left" if column == "operator" else "right")
        most = self.operators | (before or Counter())
        for name, _ in most.most_common():
            table.add_row(name, *(() if before is None else (f"{before[name]:,}",)), f"{self.operators[name]:,}")
        yield table
        shapes = "; ".join(" ".join(str(a) for a in axes) for axes in self.free)
        yield f"inputs: {shapes}; run with {len(self.sizes)} sizes"
        other = "" if self.error_original is None else f", to the original {self.error_original:.1e}"
        yield f"largest difference to the deployed model in PyTorch {self.error:.1e}{other} (of the largest output)"

    def __str__(self) -> str:
        console = Console(width=120, file=StringIO(), record=True)
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())


@names_itself
def export(
    deployed: nn.Module, inputs: Any, path: str | os.PathLike[str], *, original: nn.Module | None = None,
    dynamic: bool = True, overwrite: bool = False,
) -> Exported:  # fmt: skip
    """Write a deployed model for another runtime, and run it there before the file is handed out.

    Args:
        deployed: a model in eval mode, deployed or not.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        path: ``*.onnx`` (the dynamo exporter, run in ONNX Runtime; needs ``reptool[onnx]``), ``*.pt2``
            (`torch.export`), ``*.xml`` (OpenVINO, in float32, with a ``*.bin`` beside it; needs
            ``reptool[openvino]``), or ``*.pte`` (ExecuTorch with XNNPACK; needs ``reptool[executorch]``).
        original: the model that was deployed, to compare with and to count the operators before.
        dynamic: whether the batch and the size of images stay free, as far as the model's code allows that.
        overwrite: whether the file may be there already.

    Returns:
        What was written: print it for the operators before and after and the largest difference.

    Raises:
        InputError: another kind of file, a package that is missing, inputs that the model does not take, or a model
            that the exporter cannot follow.
        FileError: the file cannot be written.
        VerificationError: what it computes there is something else; nothing was written.

    >>> import tempfile
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = export(model, torch.randn(1, 3, 8, 8), Path(folder, "m.pt2"))
    >>> made.error < 1e-5, made.free
    (True, [('batch', 3, 'height', 'width')])
    """
    check_is_module(deployed, "export")
    target = Path(path)
    runtime = runtime_of(target)
    for one in (target, *([target.with_suffix(runtime.companion)] if runtime.companion else ())):
        check_free(one, overwrite)
    if deployed.training:
        raise InputError(f"the {type(deployed).__name__} is in training mode; call eval() first")
    args, kwargs = example_arguments(inputs, deployed)
    given = _Given(deployed, args or (), kwargs)
    program = given.program(deployed, dynamic)
    found = Exported(target, runtime.name, free=given.free(program))
    with replacing(target, overwrite) as beside, companion(target, beside, runtime.companion, overwrite):
        runtime.write(program, beside)
        found.operators = runtime.operators(beside)
        _compare(found, runtime, beside, given, deployed, original)
        if original is not None:
            found.operators_before = _operators(runtime, given.program(original, dynamic), beside)
            runtime.write(program, beside)
    return found


class _Given:
    """Example inputs, in order, and others like them."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        odd = next((v for v in (*args, *kwargs.values()) if not isinstance(v, Tensor)), None)
        if odd is not None or not (args or kwargs):
            shown = "none" if odd is None else f"a {type(odd).__name__}"
            raise InputError(f"export takes tensors as inputs, got {shown}; wrap the model in one that fixes the rest")
        self.args, self.kwargs, self.name = args, kwargs, type(model).__name__
        self.tensors: list[Tensor] = [*args, *kwargs.values()]

    def like(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Other tensors as arguments."""
        count = len(self.args)
        return tuple(tensors[:count]), dict(zip(self.kwargs, tensors[count:], strict=True))

    def program(self, model: nn.Module, dynamic: bool) -> ExportedProgram:
        """The model as `torch.export` follows it; a batch of one, which is taken for a constant, is doubled."""
        shared = dynamic and {t.shape[0] for t in self.tensors if t.dim()} == {1}
        shown = [torch.cat([t, t]) if shared and t.dim() else t for t in self.tensors]
        args, kwargs = self.like(shown)
        shapes = [dict.fromkeys(_free(t), Dim.AUTO) for t in shown] if dynamic else [None] * len(shown)
        by_name = dict(zip([*_positional(model, args), *kwargs], shapes, strict=True))
        try:
            with torch.no_grad(), users_code(), without_chatter():
                return torch.export.export(model, args, kwargs, dynamic_shapes=by_name if dynamic else None)
        except Exception as error:  # whatever the exporter or the model's code raises
            said = str(error).strip().splitlines()
            why = f"{type(error).__name__}: {said[0][:300] if said else ''}"
            raise InputError(f"torch.export cannot follow this {type(model).__name__}: {why}") from error

    def free(self, program: ExportedProgram) -> list[tuple[int | str, ...]]:
        """For each input its axes: a number, or what it is called where it may be another one."""
        names = program.graph_signature.user_inputs
        nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        return [_axes(nodes[str(n)].meta["val"]) for n in names if isinstance(nodes[str(n)].meta.get("val"), Tensor)]

    def others(self, free: list[tuple[int | str, ...]]) -> dict[str, list[Tensor]]:
        """Inputs to run, by the axes that are other ones: none, the batch, those of images."""
        pairs = list(zip(self.tensors, free, strict=True))
        made = {
            "": self.tensors,
            "batch": [torch.cat([t, t, t[:1]]) if axes[:1] == ("batch",) else t for t, axes in pairs],
            "image": [_larger(t, axes) for t, axes in pairs],
        }
        same = [t.shape for t in self.tensors]
        return {what: ts for what, ts in made.items() if not what or [t.shape for t in ts] != same}


def _positional(model: nn.Module, args: Sequence[Any]) -> list[str]:
    names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    return names[: len(args)]


def _free(tensor: Tensor) -> list[int]:
    """Axes that may be another size: the batch, and those of images."""
    axes = range(2, tensor.dim()) if tensor.dim() in (4, 5) and tensor.is_floating_point() else ()
    return [i for i in (0, *axes) if i < tensor.dim()]


def _axes(value: Tensor) -> tuple[int | str, ...]:
    image = ("height", "width") if value.dim() == 4 else ("depth", "height", "width")
    names = {0: "batch", **dict(zip(range(2, value.dim()), image, strict=False))}
    return tuple(int(n) if type(n) is int else names.get(i, f"axis {i}") for i, n in enumerate(value.shape))


def _larger(tensor: Tensor, axes: tuple[int | str, ...]) -> Tensor:
    shape = [n + LARGER if isinstance(a, str) and a != "batch" else n for n, a in zip(tensor.shape, axes, strict=True)]
    if list(tensor.shape) == shape:
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(tensor.dtype)


def _compare(
    found: Exported, runtime: Runtime, path: Path, given: _Given, deployed: nn.Module, original: nn.Module | None
) -> None:
    """Run the file with several sizes, and compare it with both models; axes for which it does not run are fixed."""
    run = runtime.open(path)
    for what, tensors in given.others(found.free).items():
        try:
            wanted, got = _outputs(deployed, given, tensors), run(tensors)
        except Exception:  # the model is of one size, or the file is
            if not what:
                raise
            found.free = [_fixed(axes, t, what) for axes, t in zip(found.free, given.tensors, strict=True)]
            continue
        found.sizes.append([tuple(t.shape) for t in tensors])
        found.error = max(found.error, difference(got, wanted))
        if original is not None:
            other = difference(got, _outputs(original, given, tensors))
            found.error_original = max(found.error_original or 0.0, other)
        worst = max(found.error, found.error_original or 0.0)
        if not worst <= max(ALLOWED.get(t.dtype, 0.05) for t in wanted):
            raise VerificationError(
                f"in {runtime.name} the {given.name} is off by {worst:.3g} of its largest output for inputs of "
                f"{found.sizes[-1]}; nothing was written"
            )


def _fixed(axes: tuple[int | str, ...], tensor: Tensor, what: str) -> tuple[int | str, ...]:
    """The axes of an input, those of one kind as numbers."""
    return tuple(
        n if isinstance(a, str) and (a == "batch") == (what == "batch") else a
        for a, n in zip(axes, tensor.shape, strict=True)
    )


def _outputs(model: nn.Module, given: _Given, tensors: Sequence[Tensor]) -> list[Tensor]:
    args, kwargs = given.like([t.clone() for t in tensors])
    with torch.no_grad(), users_code():
        return outputs_of(model(*args, **kwargs))


def difference(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference of two lists of outputs, as a fraction of the largest value; infinity for other shapes.

    Args:
        got: outputs.
        wanted: what they should be.
    """
    if len(got) != len(wanted) or any(a.shape != b.shape for a, b in zip(got, wanted, strict=True)):
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(got, wanted, strict=True) if b.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs), default=0.0)


def _operators(runtime: Runtime, program: ExportedProgram, path: Path) -> Counter[str]:
    runtime.write(program, path)
    return runtime.operators(path)
