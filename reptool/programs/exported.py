"""`deploy` of an `ExportedProgram` or a graph module of ATen operators: the same kind of object, with fewer layers."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar

from torch import fx
from torch.export import ExportedProgram

from reptool.errors import UnsupportedModelError, VerificationError
from reptool.frontends.exported import read_exported
from reptool.plan.options import Options
from reptool.programs.collapse import Collapsed, collapse
from reptool.programs.holders import ModuleHolder, ProgramHolder
from reptool.programs.operators import is_core, why_not
from reptool.programs.reporting import name_layers, report_on
from reptool.programs.writing import Writer
from reptool.report.data import Report
from reptool.report.progress import phase
from reptool.verify.measure import Verify
from reptool.verify.whole_model import InexactError, compare_whole, reference_of

Program = TypeVar("Program", bound=ExportedProgram | fx.GraphModule)

Copied = TypeVar("Copied")


def planned(program: ExportedProgram | fx.GraphModule, options: Options, verify: Verify) -> tuple[Collapsed, Report]:
    """What would be done with a program, and the report on it."""
    if isinstance(program, ExportedProgram) and program.dialect not in ("ATEN", "TRAINING"):
        raise UnsupportedModelError(
            f"this ExportedProgram is lowered already (dialect {program.dialect}); deploy it before to_edge"
        )
    with phase("plan"):
        core = is_core(program.graph)
        made = collapse(read_exported(program), options, verify, lambda shape: why_not(shape, core))
    return made, report_on(type(program).__name__, made)


def deploy_program(
    program: Program, example_inputs: tuple[tuple[Any, ...], dict[str, Any]] | None, options: Options, verify: Verify
) -> tuple[Program, Report]:
    """The program with fewer layers, and the report.

    Args:
        program: what was exported; it stays as it is.
        example_inputs: positional and keyword inputs on which the whole is compared, None for those of the export.
        options: what the caller asked for.
        verify: how much each layer is measured, and whether the whole is compared.

    Raises:
        VerificationError: the whole of it computes something else on the example inputs.
    """
    made, report = planned(program, options, verify)
    with phase("write"):
        written: Any
        if isinstance(program, ExportedProgram):
            written = _written_program(program, made, report)
        else:
            written = _written_module(program, made, report)
    report.parameters = _parameters(program), _parameters(written)
    inputs = example_inputs or getattr(program, "example_inputs", None)
    if verify and inputs is not None:
        with phase("compare"):
            _compare(program, written, inputs, report)
    return written, report


def _written_program(program: ExportedProgram, made: Collapsed, report: Report) -> ExportedProgram:
    graph = _copied(program.graph)
    holder = ProgramHolder(program, graph)
    name_layers(report, made, Writer(graph, _twins(program.graph, graph), made, holder, is_core(graph)).write())
    module = fx.GraphModule(program.graph_module, graph)
    module.meta.update(program.graph_module.meta)
    written = ExportedProgram(
        root=module, graph=graph, graph_signature=holder.signature(), state_dict=copy.deepcopy(holder.state),
        range_constraints=program.range_constraints, module_call_graph=list(program.module_call_graph),
        example_inputs=program.example_inputs, constants=copy.deepcopy(holder.constants), verifiers=program.verifiers,
    )  # fmt: skip
    graph.lint()
    written.validate()
    return written


def _copied(given: Copied) -> Copied:
    """A copy, of which torch does not say that torch copies a class that it has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(given)


def _twins(graph: fx.Graph, copied: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The nodes of a copy, which get the names that they had: a signature speaks of them."""
    twins = dict(zip(graph.nodes, copied.nodes, strict=True))
    for node, twin in twins.items():
        twin.name = node.name
    return twins


def _written_module(module: fx.GraphModule, made: Collapsed, report: Report) -> fx.GraphModule:
    written = _copied(module)
    graph, holder = written.graph, ModuleHolder(written)
    name_layers(report, made, Writer(graph, _twins(module.graph, graph), made, holder, is_core(graph)).write())
    graph.lint()
    written.recompile()
    return written


def _compare(program: Any, written: Any, inputs: Any, report: Report) -> None:
    """Compare the whole with the original.

    Raises:
        VerificationError: they differ by more than rounding.
    """
    args, kwargs = inputs
    before, after = (p.module() if isinstance(p, ExportedProgram) else p for p in (program, written))
    try:
        compare_whole(after, args, kwargs, reference_of(before, args, kwargs, True), report)
    except InexactError:
        assert report.model_error is not None
        error, own = report.model_error
        raise VerificationError(
            f"the deployed {report.model} is off by {error:.3g} on the example inputs (the original itself by "
            f"{own:.3g}); nothing was changed. Each layer was exact by itself; exclude parts to find it and report this"
        ) from None


def _parameters(program: Any) -> int:
    return sum(p.numel() for p in program.parameters())
