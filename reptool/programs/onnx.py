"""`deploy` of an ONNX model: a file, a `ModelProto` or an `onnx_ir.Model`; the same kind of object comes back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from reptool.errors import InputError, UnsupportedModelError, VerificationError
from reptool.frontends.onnx.valid import bodies, damage
from reptool.plan.options import Options
from reptool.programs.collapse import Collapsed, collapse
from reptool.programs.onnx_compare import compared
from reptool.programs.reporting import name_layers, report_on
from reptool.report.data import Report
from reptool.report.progress import phase
from reptool.verify.measure import Verify

OLDEST, NEWEST = 7, 28
"""The versions of ONNX's operators of which it is known what they mean."""
MESSAGE = 2**31 - 2**24
"""Bytes of weights that one file holds, which is one message; more of them lie in a second file and are streamed."""
ALIKE = {"FLOAT16": 5e-2, "BFLOAT16": 2e-1}
"""Largest difference of two runs, relative to the largest value of an output, by its type; 1e-3 for all others."""


def deploy_onnx(given: Any, options: Options, verify: Verify) -> tuple[Any, Report]:
    """The model with fewer layers, and the report.

    Args:
        given: a path, a `ModelProto` or an `onnx_ir.Model`; it stays as it is.
        options: what the caller asked for.
        verify: whether each layer is measured, and the whole compared where ONNX Runtime is installed.

    Returns:
        For a path an `onnx_ir.Model`, otherwise what was given.

    Raises:
        InputError: no ONNX model, or one that is damaged; onnx-ir is not installed.
        UnsupportedModelError: a model without nodes, an invalid graph, or an opset that is not known.
        VerificationError: the whole of it computes something else.
    """
    ir = _library()
    with phase("plan"):
        model, made = _planned(given, ir, options, verify)
    original, report = _loaded(given, ir), Report("ONNX model")
    streamed = _bytes(original) > MESSAGE
    with phase("write"):
        for graph, one in made:
            _written(graph, one, model, report)
        if not streamed:
            _check(original, model, ir)
    if verify and not streamed:
        with phase("compare"):
            _compare(original, model, report, ir)
    return _as_given(model, given, ir), report


def explain_onnx(given: Any, options: Options) -> Report:
    """The plan without the work."""
    report = Report("ONNX model")
    for _, made in _planned(given, _library(), options, False)[1]:
        _add(report, report_on("", made))
    return report


def _planned(given: Any, ir: Any, options: Options, verify: Verify) -> tuple[Any, list[tuple[Any, Collapsed]]]:
    """A model of its own and what is to be written into its graphs; its functions are inlined where that pays."""
    model = _loaded(given, ir)
    opset = _opset(model)
    why = "it has no nodes" if not len(model.graph) else damage(model.graph)
    if not OLDEST <= opset <= NEWEST:
        why = f"its opset is {opset}; {OLDEST} to {NEWEST} are read"
    if why is not None:
        raise UnsupportedModelError(f"this ONNX model cannot be collapsed: {why}")
    made = _of_parts(model, ir, options, verify)
    if len(model.functions):
        from onnx_ir.passes.common import InlinePass

        inlined = InlinePass()(_loaded(given, ir)).model
        of_inlined = _of_parts(inlined, ir, options, verify)
        if sum(len(m.layers) for _, m in of_inlined) > sum(len(m.layers) for _, m in made):
            return inlined, of_inlined
    return model, made


def _opset(model: Any) -> int:
    """The version of ONNX's own operators; 0 where the file names none."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)))


def _of_parts(model: Any, ir: Any, options: Options, verify: Verify) -> list[tuple[Any, Collapsed]]:
    inferred, opset = _inferred(model, ir), _opset(model)
    return [(g, _collapsed(g, opset, inferred, outer, options, verify)) for g, outer in list(_parts(model.graph))]


def write_onnx(model: Any, path: str | os.PathLike[str], data: str | None = None) -> None:
    """Write an `onnx_ir.Model` or a `ModelProto` to a file.

    Args:
        model: what is written.
        path: of the file.
        data: name of a file in the same folder for the weights, one after the other; None where all go into the first.
    """
    ir = _library()
    ir.save(model if isinstance(model, ir.Model) else ir.from_proto(model), path, external_data=data)


def is_streamed(model: Any) -> bool:
    """Whether the weights of a model are too many for one file."""
    ir = _library()
    return isinstance(model, ir.Model) and _bytes(model) > MESSAGE


def _bytes(model: Any) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _library() -> Any:
    try:
        import onnx_ir
    except ImportError as error:
        raise InputError('ONNX models are read by onnx-ir: pip install "reptool[onnx]"') from error
    return onnx_ir


def _loaded(given: Any, ir: Any) -> Any:
    """A model of its own."""
    if isinstance(given, (str, os.PathLike)):
        if not Path(given).is_file():
            raise InputError(f"there is no file {os.fspath(given)!r}")
        try:
            model = ir.load(given)
            if _bytes(model) <= MESSAGE:
                ir.external_data.load_to_model(model)
            for value in model.graph.initializers.values():
                value.const_value.numpy()  # what lies in another file is there
        except Exception as error:  # whatever a file that is no model makes a parser raise
            raise InputError(f"{os.fspath(given)!r} is no ONNX model that can be read: {error}") from error
        return model
    try:
        return ir.from_proto(ir.to_proto(given) if isinstance(given, ir.Model) else given)
    except Exception as error:  # two values of one name, and whatever else a parser minds
        raise InputError(
            f"this {type(given).__name__} is no ONNX model that can be read: {error.__cause__ or error}"
        ) from error


def _inferred(model: Any, ir: Any) -> dict[str, Any]:
    """The values of a model by name, with the shapes and types that inference adds to those of the file."""
    from onnx_ir.passes.common import ShapeInferencePass

    try:
        copied = ir.from_proto(ir.to_proto(model))
        ShapeInferencePass()(copied)
    except Exception:  # a model too large for a message, or custom operators
        return {}
    return {str(v.name): v for n in copied.graph.all_nodes() for v in n.outputs}


def _parts(graph: Any, outer: dict[str, Any] | None = None) -> Any:
    """A graph and the bodies in it, each with the constants around it."""
    from reptool.frontends.onnx.graph import tensor_of

    held = dict(outer or {})
    yield graph, outer
    constants = [*graph.initializers.values(), *(v for n in graph for v in n.outputs if n.op_type == "Constant")]
    held |= {str(v.name): t for v in constants if (t := tensor_of(v)) is not None}
    for node in graph:
        for body in bodies(node):
            yield from _parts(body, held)


def _collapsed(graph: Any, opset: int, inferred: Any, outer: Any, options: Options, verify: Verify) -> Collapsed:
    from reptool.frontends.onnx.graph import read_onnx
    from reptool.programs.onnx_writing import why_not

    return collapse(read_onnx(graph, opset, inferred, outer), options, verify, lambda shape: why_not(shape, opset))


def _written(graph: Any, made: Collapsed, model: Any, report: Report) -> None:
    from reptool.programs.onnx_writing import OnnxWriter

    part = report_on("", made)
    name_layers(part, made, OnnxWriter(graph, made, _opset(model), model.ir_version < 4).write())
    _add(report, part)


def _add(report: Report, part: Report) -> None:
    report.regions += part.regions
    report.refusals += part.refusals
    report.names |= part.names
    report.layers = report.layers[0] + part.layers[0], report.layers[1] + part.layers[1]
    report.norms = report.norms[0] + part.norms[0], report.norms[1] + part.norms[1]
    report.norms_left += part.norms_left


def _check(original: Any, model: Any, ir: Any) -> None:
    """Let onnx's own checker look at the result, where onnx is installed and the checker takes the original.

    Raises:
        VerificationError: it does not take the result.
    """
    try:
        import onnx
    except ImportError:
        return
    try:
        onnx.checker.check_model(ir.to_proto(original))
    except Exception:  # too large for a message, or not what the checker wants
        return
    try:
        onnx.checker.check_model(ir.to_proto(model))
    except Exception as error:
        raise VerificationError(f"the deployed ONNX model is not valid: {error}; nothing was changed") from error


def _compare(original: Any, model: Any, report: Report, ir: Any) -> None:
    """Compare the whole with the original at several sizes.

    Raises:
        VerificationError: they differ by more than rounding.
    """
    for size, error, dtype in compared(original, model, ir):
        report.model_difference = max(report.model_difference or 0.0, error)
        if not error <= ALIKE.get(dtype, 1e-3):
            raise VerificationError(
                f"the deployed ONNX model is off by {error:.3g} at input sizes {size}; nothing was changed. Each layer "
                "was exact by itself; exclude parts to find it and report this"
            )


def _as_given(model: Any, given: Any, ir: Any) -> Any:
    return model if isinstance(given, (str, os.PathLike, ir.Model)) else ir.to_proto(model)
