"""Runtimes that a deployed model is exported to: each writes a file, runs it, and counts what it holds."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from reptool.errors import InputError
from reptool.ship.tensors import outputs_of

Run = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Runtime:
    """One kind of file.

    Args:
        name: what runs it.
        needs: packages that have to be there, with the extra or package to install.
        write: an exported program to a file.
        open: the file, as a function of the inputs in order.
        operators: what the file holds, by type.
        companion: the ending of a second file of the same name, which holds the weights; empty where one file is all.
    """

    name: str
    needs: tuple[tuple[str, str], ...]
    write: Callable[[ExportedProgram, Path], None]
    open: Callable[[Path], Run]
    operators: Callable[[Path], Counter[str]]
    companion: str = ""

    def check(self) -> None:
        """Raise where a package is missing.

        Raises:
            InputError: with what to install.
        """
        for package, install in self.needs:
            if importlib.util.find_spec(package) is None:
                raise InputError(f"{self.name} needs {package}, which is not installed; pip install '{install}'")


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Silence what exporters say about themselves: packages they could do without, their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


# --- torch.export
def _write_program(program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def _open_program(path: Path) -> Run:
    program = torch.export.load(path)
    module, spec = program.module(), program.call_spec.in_spec
    assert spec is not None

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = tree_unflatten(list(inputs), spec)
        with torch.no_grad():
            return outputs_of(module(*args, **kwargs))

    return run


def _operators_of_program(path: Path) -> Counter[str]:
    graph = torch.export.load(path).graph
    return Counter(str(n.target).removeprefix("aten.") for n in graph.nodes if n.op == "call_function")


# --- ONNX
def _write_onnx(program: ExportedProgram, path: Path) -> None:
    with without_chatter():
        torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        held: dict[str, Any] = {n: t.detach().numpy() for n, t in zip(names, inputs, strict=True)}
        return [torch.from_numpy(out) for out in session.run(None, held)]

    return run


def onnx_operators(path: Path) -> Counter[str]:
    """The operators of an ONNX file by type.

    Args:
        path: the file.
    """
    import onnx

    return Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)


# --- OpenVINO
def _write_openvino(program: ExportedProgram, path: Path) -> None:
    import openvino

    with without_chatter():
        openvino.save_model(openvino.convert_model(program), path, compress_to_fp16=False)


def _open_openvino(path: Path) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = compiled([t.detach().numpy() for t in inputs])
        return [torch.from_numpy(found[out].copy()) for out in compiled.outputs]

    return run


def _operators_of_openvino(path: Path) -> Counter[str]:
    import openvino

    kinds = (node.get_type_name() for node in openvino.Core().read_model(path).get_ops())
    return Counter(k for k in kinds if k not in ("Parameter", "Result", "Constant"))


# --- ExecuTorch
def _write_executorch(program: ExportedProgram, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with without_chatter():
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def _open_executorch(path: Path) -> Run:
    from executorch.runtime import Runtime as ExecuTorch

    program = ExecuTorch.get().load_program(path)
    method = program.load_method("forward")

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        assert program  # what it was loaded from lives as long as the method
        return [out.clone() for out in method.execute([t.detach().contiguous() for t in inputs])]

    return run


def _operators_of_executorch(path: Path) -> Counter[str]:
    """Kernels that are called, and parts that a backend computes as a whole."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
    kernels = [plan.operators[c.op_index].name for c in calls if hasattr(c, "op_index")]
    return Counter([*kernels, *(plan.delegates[c.delegate_index].id for c in calls if hasattr(c, "delegate_index"))])


_EXECUTORCH = (("executorch", "reptool[executorch]"),)
_OPENVINO = (("openvino", "reptool[openvino]"),)
_ONNX = (("onnx", "reptool[onnx]"), ("onnxscript", "reptool[onnx]"), ("onnxruntime", "reptool[onnx]"))
RUNTIMES = {
    ".pt2": Runtime("torch.export", (), _write_program, _open_program, _operators_of_program),
    ".onnx": Runtime("ONNX Runtime", _ONNX, _write_onnx, _open_onnx, onnx_operators),
    ".xml": Runtime("OpenVINO", _OPENVINO, _write_openvino, _open_openvino, _operators_of_openvino, ".bin"),
    ".pte": Runtime("ExecuTorch", _EXECUTORCH, _write_executorch, _open_executorch, _operators_of_executorch),
}
INSTEAD = {
    ".pt": "TorchScript is made by torch.jit.trace(deployed, inputs); a whole model is saved with *.safetensors",
    ".safetensors": "weights and recipe are written by reptool.save",
}
"""What to do for other kinds of files."""


def runtime_of(path: Path) -> Runtime:
    """The runtime of a file, by its name.

    Raises:
        InputError: there is none for it, or a package is missing.

    >>> runtime_of(Path("m.pt2")).name
    'torch.export'
    """
    found = RUNTIMES.get(path.suffix)
    if found is None:
        hint = INSTEAD.get(path.suffix, "")
        *first, last = (f"*{s}" for s in RUNTIMES)
        kinds = f"{', '.join(first)} and {last}"
        raise InputError(f"{str(path)!r}: export writes {kinds}{'; ' + hint if hint else ''}")
    found.check()
    return found
