"""`flatten=True`: the whole model as one `torch.fx.GraphModule`."""

from __future__ import annotations

import copy
import inspect
import keyword
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.api.flat.rewriting import rewritten
from reptool.api.reporting import report_of
from reptool.api.work import Work, write_units
from reptool.capture.replay_check import mark_state
from reptool.capture.tracer import Recorder
from reptool.errors import InputError
from reptool.frontends.inputs import placeholders, unknown_inputs
from reptool.ir.trace import Event, Trace, all_events
from reptool.ir.walk import nodes_in
from reptool.pysource.module_info import calls_itself, foreign_hooks
from reptool.pysource.places import asked, said
from reptool.recipes.step import RECIPE
from reptool.rewrite.constants import address, is_text
from reptool.runtime.containers import parts
from reptool.runtime.expect import _expect, called
from reptool.runtime.gates.check import open_gates
from reptool.runtime.gates.gate import move_gate
from reptool.runtime.hooks import guard_state
from reptool.runtime.subclass import warn_in_training
from reptool.surgery.units import GivenUp

MAX_FLAT_ROUNDS = 4


def flattened(model: nn.Module, target: nn.Module, work: Work) -> nn.Module:
    """One GraphModule; what only the borders of modules and methods had kept apart is fused in it too."""
    found = work.found
    flat = flatten_model(target, work.args, work.kwargs)
    gone, first = set(model.state_dict()) - set(target.state_dict()), set(flat.state_dict())
    work.given_up = GivenUp()
    for _ in range(MAX_FLAT_ROUNDS):
        if work.options.rewrites:
            flat = rewritten(flat, work.options, work.args, work.kwargs, found)
        plan, checked = work.planned(flat)
        if not any(unit.surgery.sites for unit in plan.units):
            break
        found.regions += report_of(flat, plan, checked).regions
        write_units(flat, plan, checked)
        with open_gates():  # what the first plan absorbed knows the graph as it was before this one wrote into it
            flat = flatten_model(flat, work.args, work.kwargs)
    last = set(flat.state_dict())
    guard_state(flat, gone | (first - last), last - set(model.state_dict()))
    warn_in_training(flat, found.norms[0] - found.norms[1])
    flat.__dict__["_reptool_report"] = copy.deepcopy(found)
    flat.__dict__[RECIPE] = "flatten=True made one GraphModule of it; save a deployed model, or export this one"
    return flat


def flatten_model(model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any]) -> fx.GraphModule:
    """One graph for a whole model.

    Args:
        model: the deployed model.
        args: example positional inputs or None.
        kwargs: example keyword inputs.

    Raises:
        InputError: the code asks about its inputs, or something in it cannot be put into a graph.
    """
    trace = _followed(model, args, kwargs)
    graph, holder = fx.Graph(), nn.Module()
    holder.__dict__.update(
        {
            k: dict(v) if isinstance(v, dict) else v
            for k, v in model.__dict__.items()
            if k in ("_modules", "_parameters", "_buffers", "training")
        }
    )
    for name, tensor in trace.constants.items():
        holder.register_buffer(name, tensor.detach().clone(), persistent=False)
    known, named = _parameters(graph, trace.top), _Named(graph, holder)
    for node in trace.graph.nodes:
        if node.op == "output":
            graph.output(_structure(graph, trace.top.output, known))
        elif node not in known:
            known[node] = named.copied(node, known)
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


def _followed(model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any]) -> Trace:
    """The run of a model, if a graph can stand for it."""
    if calls_itself(type(model)) is not None:
        raise InputError(f"flatten=True would lose the __call__ of {type(model).__name__}; deploy without flatten")
    recorder = Recorder(model)
    inputs = unknown_inputs(model) if args is None else (placeholders(args, "input"), placeholders(kwargs, ""))
    try:
        trace = recorder.run(*inputs)
        mark_state(trace, Recorder(model).run(*inputs))
    except Exception as error:  # the user's forward may raise anything
        raise InputError(
            f"flatten=True cannot follow the model ({said(error)}); give example_inputs, or deploy without flatten"
        ) from error
    _check(model, trace, recorder)
    return trace


def _check(model: nn.Module, trace: Trace, recorder: Recorder) -> None:
    """Raise where a graph would lose something that the code does."""
    questions = [q for e in all_events(trace.top) for q in e.questions]
    if questions:
        raise InputError(
            f"flatten=True would fix {asked(questions[0])} ({questions[0].answer!r}); deploy without flatten"
        )
    hooked = next(
        (e.path for e in all_events(trace.top) if e.hooked or (e is trace.top and foreign_hooks(model))), None
    )
    if hooked is not None:
        raise InputError(
            f"flatten=True would lose the hooks of {hooked or '<root>'}; remove them, or deploy without flatten"
        )
    if recorder.unsettled:
        written = next(iter(recorder.unsettled.values()))
        raise InputError(
            f"flatten=True would lose that the forward sets {written!r} of a layer; deploy without flatten"
        )
    if trace.opaque:
        path, why = next(iter(trace.opaque.items()))
        raise InputError(f"flatten=True cannot follow {path!r} ({why}); deploy without flatten")


class _Named:
    """Nodes whose targets and constants fx prints: what it would print as something else becomes an attribute.

    Args:
        graph: the graph that is written.
        holder: the module whose attributes it reads.
    """

    def __init__(self, graph: fx.Graph, holder: nn.Module) -> None:
        self.graph, self.holder = graph, holder
        self.moved: dict[str, str] = {}
        self.kept: dict[int, str] = {}

    def copied(self, node: fx.Node, known: dict[fx.Node, fx.Node]) -> fx.Node:
        """A node in the new graph."""
        args, kwargs = (fx.node.map_aggregate(a, lambda v: self._value(v, known)) for a in (node.args, node.kwargs))
        if node.op in ("call_module", "get_attr"):
            return self.graph.create_node(node.op, self._target(str(node.target)), args, kwargs)  # type: ignore[arg-type]
        if node.op == "call_function" and not _is_operator(node.target) and address(node.target) is None:
            return self.graph.call_function(called, (self._attribute(node.target), *args), kwargs)  # type: ignore[arg-type]
        return self.graph.create_node(node.op, node.target, args, kwargs)  # type: ignore[arg-type]

    def _value(self, value: Any, known: dict[fx.Node, fx.Node]) -> Any:
        if isinstance(value, fx.Node):
            return known[value]
        plain = is_text(value) or isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format))
        return value if plain or type(value) in (float, torch.Size) else self._attribute(value)

    def _attribute(self, value: Any) -> fx.Node:
        """A constant as an attribute of the module."""
        if id(value) not in self.kept:
            name = self._free("_value")
            setattr(self.holder, name, value)
            self.kept[id(value)] = name
        return self.graph.get_attr(self.kept[id(value)])

    def _target(self, path: str) -> str:
        """A path as fx reads it: what has a name that it cannot print is moved to the top."""
        if all(part.isdigit() or (part.isidentifier() and not keyword.iskeyword(part)) for part in path.split(".")):
            return path
        if path not in self.moved:
            owner, _, name = path.rpartition(".")
            value, free = getattr(self.holder.get_submodule(owner), name), self._free("_moved")
            persistent = name not in self.holder.get_submodule(owner)._non_persistent_buffers_set
            if isinstance(value, nn.Parameter):
                self.holder.register_parameter(free, value)
            elif isinstance(value, Tensor):
                self.holder.register_buffer(free, value, persistent)
            else:
                setattr(self.holder, free, value)
                move_gate(value, free)
            self.moved[path] = free
        return self.moved[path]

    def _free(self, lead: str) -> str:
        count = 0
        while hasattr(self.holder, f"{lead}{count}"):
            count += 1
        return f"{lead}{count}"


def _is_operator(function: Any) -> bool:
    return getattr(operator, getattr(function, "__name__", ""), None) is function


def _parameters(graph: fx.Graph, top: Event) -> dict[fx.Node, fx.Node]:
    """The parameters of the model's forward under their own names; what was not given may not be given later."""
    known: dict[fx.Node, fx.Node] = {}
    single: list[tuple[str, Any, Any]] = []
    try:
        signature = inspect.signature(top.module.forward)
        bound = signature.bind(*top.args, **top.kwargs)
    except TypeError as error:
        raise InputError(f"flatten=True cannot name its inputs ({error}); deploy without flatten") from error
    given = set(bound.arguments)
    bound.apply_defaults()
    for name, parameter in signature.parameters.items():
        value = bound.arguments[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            single += [(f"{name}_{i}", v, inspect.Parameter.empty) for i, v in enumerate(value)]
        elif parameter.kind is parameter.VAR_KEYWORD:
            single += [(key, v, inspect.Parameter.empty) for key, v in value.items()]
        else:
            open_ = name in given and any(True for _ in nodes_in(value))
            single.append((name, value, inspect.Parameter.empty if open_ else parameter.default))
    made = [(name, value, graph.placeholder(name, default_value=default)) for name, value, default in single]
    for name, value, node in made:
        if any(True for _ in nodes_in(value)):
            _unpack(graph, value, node, known)
        elif value is None or isinstance(value, (bool, int, float, str)):
            graph.call_function(_expect, (name, node, value))
        else:
            raise InputError(f"flatten=True cannot write down the argument {name!r}; deploy without flatten")
    return known


def _unpack(graph: fx.Graph, value: Any, made: fx.Node, known: dict[fx.Node, fx.Node]) -> None:
    """What stands for the nodes in an argument."""
    if isinstance(value, fx.Node):
        known[value] = made
        return
    for step, part in parts(value) or ():
        if not any(True for _ in nodes_in(part)):
            continue
        if step.kind == "attribute":
            raise InputError(f"flatten=True cannot take a {type(value).__name__} apart; deploy without flatten")
        _unpack(graph, part, graph.call_function(operator.getitem, (made, step.name)), known)


def _structure(graph: fx.Graph, value: Any, known: dict[fx.Node, fx.Node]) -> Any:
    if isinstance(value, fx.Node):
        return known[value]
    if type(value) in (tuple, list):
        return type(value)(_structure(graph, v, known) for v in value)
    if hasattr(type(value), "_fields"):  # a call: older releases of fx print a named tuple by its bare name
        return graph.call_function(type(value), tuple(_structure(graph, v, known) for v in value))
    if type(value) is dict:
        return {k: _structure(graph, v, known) for k, v in value.items()}
    if is_text(value) or type(value) is float:
        return value
    raise InputError(f"flatten=True cannot return a {type(value).__name__}; deploy without flatten")
