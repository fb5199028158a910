"""`flatten=True`: the whole model as one `torch.fx.GraphModule`."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from reptool.capture import Recorder
from reptool.errors import InputError
from reptool.inputs import placeholders, unknown_inputs
from reptool.module_kinds import calls_itself
from reptool.trace import all_events
from reptool.twice import mark_state


def flatten_model(model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any]) -> fx.GraphModule:
    """One graph for a whole model.

    Args:
        model: the deployed model.
        args: example positional inputs or None.
        kwargs: example keyword inputs.

    Raises:
        InputError: the code asks about its inputs, or something in it cannot be put into a graph.
    """
    if calls_itself(type(model)) is not None:
        raise InputError(f"flatten=True would lose the __call__ of {type(model).__name__}; deploy without flatten")
    recorder = Recorder(model)
    inputs = unknown_inputs(model) if args is None else (placeholders(args, "input"), placeholders(kwargs, ""))
    try:
        trace = recorder.run(*inputs)
        mark_state(trace.top, Recorder(model).run(*inputs).top)
    except Exception as error:  # the user's forward may raise anything
        raise InputError(
            f"flatten=True cannot follow the model ({type(error).__name__}: {error}); "
            "give example_inputs, or deploy without flatten"
        ) from error
    asked = [q for e in all_events(trace.top) for q in e.questions]
    if asked:
        raise InputError(
            f"flatten=True would fix the {asked[0].what} of {asked[0].node} ({asked[0].answer!r}); "
            "deploy without flatten"
        )
    if trace.opaque:
        path, why = next(iter(trace.opaque.items()))
        raise InputError(f"flatten=True cannot follow {path!r} ({why}); deploy without flatten")
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.op == "output":
            graph.output(_structure(trace.top.output, known))
        else:
            known[node] = graph.node_copy(node, lambda n: known[n])
            known[node].meta = {}
    holder = nn.Module()
    holder.__dict__.update(
        {
            k: dict(v) if isinstance(v, dict) else v
            for k, v in model.__dict__.items()
            if k in ("_modules", "_parameters", "_buffers", "training")
        }
    )
    for name, tensor in trace.constants.items():
        holder.register_buffer(name, tensor.detach().clone(), persistent=False)
    made = fx.GraphModule(holder, graph, type(model).__name__)
    for node in reversed(list(made.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            made.graph.erase_node(node)
    made.delete_all_unused_submodules()
    made.recompile()
    for module in made.modules():  # modules keep their own mode: a norm in training mode stays in it
        if module is made or type(module) is nn.Module:
            module.training = model.training
    return made


def _structure(value: Any, known: dict[fx.Node, fx.Node]) -> Any:
    if isinstance(value, fx.Node):
        return known[value]
    if isinstance(value, (tuple, list)):
        parts = [_structure(v, known) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {k: _structure(v, known) for k, v in value.items()}
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    raise InputError(f"flatten=True cannot return a {type(value).__name__}; deploy without flatten")
