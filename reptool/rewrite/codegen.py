"""Code generation: the one method in which a fused operation occurs is written anew.

A method is cut out of the trace (its nodes, its calls of children and of its own methods), the fused operations are
left out, and the rest is printed as Python by `torch.fx`. The module's class is replaced by a subclass that keeps its
name, pickles (the source goes along) and still is an instance of the original class.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.capture.optional_arguments import offered
from reptool.capture.tracer import Recorder
from reptool.ir.aliasing import Reads
from reptool.ir.nodes import is_inert, name_of
from reptool.ir.trace import Event, Setting, all_events
from reptool.ir.walk import nodes_in
from reptool.passages.norm_affine import Bare
from reptool.pysource.functions import behind
from reptool.pysource.globals_read import Outside
from reptool.pysource.places import asked, named
from reptool.refusal import Code, Refusal
from reptool.rewrite.constants import CannotCutError, Constants
from reptool.rewrite.method_source import Check, FusedCheck, checks, header_of, signature_of
from reptool.rewrite.own_mode import decides_nothing
from reptool.rewrite.printer import Printer, read_item
from reptool.rewrite.setting_checks import path_text, setting_checks, settings_of
from reptool.runtime.containers import Place, filled, leaves, mapped, parts, read_key, template_of
from reptool.runtime.method import Method


@dataclass
class Edits:
    """What is left out of the code and what stands in for it.

    Args:
        bypass: fused node -> the node whose value takes its place.
        dead: nodes nobody needs any more.
        layers: functional layer node -> arguments of its replacement ``(function, attribute names, constants)``.
        promoted: left-out arithmetic on an input, which made floating-point numbers of integers.
        bare: norms that are called without their scale and shift.
    """

    bypass: dict[fx.Node, fx.Node] = field(default_factory=dict)
    dead: set[fx.Node] = field(default_factory=set)
    layers: dict[fx.Node, tuple[Callable[..., Any], tuple[str, str | None], dict[str, Any]]] = field(
        default_factory=dict
    )
    constants: dict[str, Tensor] = field(default_factory=dict)
    promoted: set[fx.Node] = field(default_factory=set)
    bare: dict[fx.Node, Bare] = field(default_factory=dict)


def is_dead(item: fx.Node | Event, edits: Edits) -> bool:
    """Whether an item of an event computes nothing that is still needed."""
    if isinstance(item, fx.Node):
        return item in edits.dead
    inner = list(item.nodes())
    if inner and all(n.meta["const"] for n in inner):
        return True  # constants are written down where they are needed
    needed = [n for n in inner if n not in edits.dead and not n.meta["const"] and not is_inert(n)]
    return not needed and any(n in edits.dead for n in inner)


class Cutter:
    """Prints the method of one event from the trace.

    Args:
        event: the call whose method is printed.
        edits: what is left out.
        reads: the resolved reads of the trace.
        recorder: what traced it.
        assumed: whether the call was made up (nobody knows which optional arguments it is given).
        fallback: whether what is specialized gets a fallback instead of errors; `specialized` says if anything was.
        prefix: where in the model the traced module is; "" where it is the model itself.
    """

    def __init__(
        self,
        event: Event,
        edits: Edits,
        reads: Reads,
        recorder: Recorder,
        assumed: bool = False,
        fallback: bool = False,
        prefix: str = "",
    ) -> None:
        self.event, self.edits, self.reads, self.assumed, self.prefix = event, edits, reads, assumed, prefix
        self.recorder = recorder
        self.fallback, self.specialized = fallback, False
        self.settings: list[Setting | Outside] = []
        self.fused: tuple[str, ...] = ()  # paths of layers that stand for regions which the method ran
        self.graph = fx.Graph()
        self.map: dict[fx.Node, Any] = {}
        self.now = 0.0  # where in the trace what is written down stands
        self.buffers: list[str] = []
        self.read: set[str] = set()
        self.header: str = ""
        self.parameters: tuple[str, ...] = ()

    def method(self) -> Method | Refusal:
        """The method's new source, or why it cannot be written."""
        try:
            return self._method()
        except CannotCutError as error:
            return Refusal(error.code, f"{self.event.function}: {error}", (self.event.place,))

    def _method(self) -> Method:
        function = getattr(type(self.event.module), self.event.method)
        check_rewritable(function)
        questions = [*self.event.questions, *self.event.minor]
        if questions and not self.fallback:
            raise CannotCutError(f"it asks for {asked(questions[0])}")
        if self.event.effects:
            raise CannotCutError(f"it {self.event.effects[0]}")
        guards = self._parameters(function)
        for item in self.event.items:
            if isinstance(item, Event):
                self._call(item)
            else:
                self._node(item)
        if self.fallback:
            self.settings = self._settings()
            self.specialized, guards = bool(guards or questions or self.settings), []
        else:
            guards += setting_checks(self.event, self._settings())
        guards += [FusedCheck(text) for p in self.fused if (text := path_text(self.event.path, p)) is not None]
        self.now = max((self.reads.position[n] + 1 for n in self.event.nodes()), default=self.now)
        self.graph.output(self._lookup_all(self.event.output))
        return self._print(guards)

    def _settings(self) -> list[Setting | Outside]:
        """The settings that the text no longer reads: what they were was written into it."""
        folded = (self.edits.bypass.keys() | self.edits.dead) - self.edits.layers.keys()
        read = settings_of(self._written_out(self.event))
        if any(map(self._is_mode, read)) and decides_nothing(self.event, folded, self.recorder):
            read = [s for s in read if not self._is_mode(s)]
        return read

    def _is_mode(self, setting: Setting | Outside) -> bool:
        return isinstance(setting, Setting) and (setting.path, setting.name) == (self.event.path, "training")

    def _written_out(self, event: Event) -> Iterator[Event]:
        """A call, and those of the module's own methods that are not made any more."""
        yield event
        for item in event.items:
            if not isinstance(item, Event) or item.module is not self.event.module:
                continue
            if is_dead(item, self.edits) or not any(True for _ in item.nodes()):
                yield from self._written_out(item)

    # --- the signature
    def _parameters(self, function: Callable[..., Any]) -> list[Check]:
        signature = signature_of(function)
        try:
            bound = signature.bind(self.event.module, *self.event.args, **self.event.kwargs)
        except TypeError as error:
            raise CannotCutError(f"its call does not fit its signature ({error})") from error
        given = set(bound.arguments)
        bound.apply_defaults()
        guards: list[Check] = []
        self.header, self.parameters = header_of(signature), tuple(signature.parameters)[1:]
        for name in list(signature.parameters)[1:]:
            parameter, value = signature.parameters[name], bound.arguments[name]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if value:
                    raise CannotCutError(f"it takes *{name}")
                guards.append(Check(name, name, (value,)))
                continue
            if not any(True for _ in nodes_in(value)):
                if self.assumed and (self.event.parent is not None or name not in given):
                    raise CannotCutError(f"whether it is called with {name!r} is not known")
                if not self.fallback and offered(self.event, parameter, value, name in given, self.prefix):
                    raise CannotCutError(f"its callers may switch {name!r}", Code.SPECIALIZED)
                guards.append(Check(name, name, (value,)))
                continue
            made = self.graph.placeholder(name)
            made.meta["kind"] = "tensor" if isinstance(value, fx.Node) else None
            self._unpack(value, made)
        return guards

    def _unpack(self, value: Any, made: fx.Node) -> None:
        """Map the nodes inside a structure to reads of `made`."""
        if isinstance(value, fx.Node):
            made.meta.setdefault("kind", value.meta.get("kind"))
            self.map[value] = made
            return
        for step, part in parts(value) or ():
            if not any(True for _ in nodes_in(part)):
                continue
            if step.kind == "attribute":
                read = self.graph.call_function(getattr, (made, step.name))
            else:
                direct = step.kind == "index" or type(value) is dict
                read = self.graph.call_function(read_item if direct else read_key, (made, step.name))
            self._unpack(part, read)

    # --- the body
    def _call(self, child: Event) -> None:
        if is_dead(child, self.edits):
            return
        handed = any(n in self.map for n in nodes_in(child.output))
        if handed and any(e.questions or e.minor for e in all_events(child)):
            raise CannotCutError(f"{child.place} hands on what it is given, and asks something: it may not always")
        self.now = min((self.reads.position[n] for n in child.nodes()), default=self.now)
        args, kwargs = self._lookup_all(child.args), self._lookup_all(child.kwargs)
        relative = self._relative(child.path) if child.method == "forward" else child.method
        if child.method != "forward" and child.module is not self.event.module:
            relative = f"{self._relative(child.path)}.{child.method}"
        self._unpack(child.output, self.graph.create_node("call_module", relative, args, kwargs))

    def _relative(self, path: str) -> str:
        base = self.event.path
        if not base:
            return path
        if not path.startswith(base + "."):
            known = self._other_name(path)
            if known is not None:
                return known
            raise CannotCutError(f"it uses {'.'.join(p for p in (self.prefix, path) if p)!r}, which lies outside of it")
        return path[len(base) + 1 :]

    def _other_name(self, path: str) -> str | None:
        """The name by which the module itself holds a module the trace knows by another name (a shared layer)."""
        *_, top = self.event.ancestors()
        owner, _, attribute = path.rpartition(".")
        names = {id(m): n for n, m in self.event.module.named_modules(remove_duplicate=False) if n}
        try:
            whole, part = top.module, top.module.get_submodule(owner)
            found = getattr(part, attribute, None)
        except AttributeError:
            return None
        if found is not None and found is not whole and id(found) in names:
            return names[id(found)]
        return f"{names[id(part)]}.{attribute}" if id(part) in names else None

    def _node(self, node: fx.Node) -> None:
        if node in self.edits.dead or node.meta["const"]:
            return
        if node in self.edits.layers:
            self._layer(node)
        elif node in self.edits.bypass:
            self.map[node] = self._lookup(node, self.edits.bypass[node])
            if node in self.edits.promoted:
                dtype = self.graph.call_function(torch.result_type, (self.map[node], 1.0))
                self.map[node] = self.graph.call_method("to", (self.map[node], dtype))
        elif name_of(node) == "barrier":
            self.map[node] = self._lookup(node, node.args[0])  # type: ignore[arg-type]
        else:
            target = self._relative(str(node.target)) if node.op == "call_module" else node.target
            self.map[node] = self._made(node.op, target, *self._arguments(node), node.meta.get("kind"))

    def _made(self, op: str, target: Any, args: Any, kwargs: Any, kind: str | None) -> fx.Node:
        made = self.graph.create_node(op, target, args, kwargs)
        made.meta["kind"] = kind
        return made

    def _arguments(self, node: fx.Node) -> tuple[Any, Any]:
        held = self.edits.bare.get(node, node)
        return (
            fx.node.map_arg(held.args, lambda n: self._lookup(node, n)),
            fx.node.map_arg(held.kwargs, lambda n: self._lookup(node, n)),
        )

    def _layer(self, node: fx.Node) -> None:
        function, (weight, bias), constants = self.edits.layers[node]
        if "beside" in constants:
            self._beside(node, weight, bias, constants["beside"])
            return
        source = self._lookup(node, self.edits.bypass[node])
        read: list[Any] = [self.graph.get_attr(weight), None if bias is None else self.graph.get_attr(bias)]
        for i in range(constants.get("cast", 0)):  # the weight, and the bias where there is one
            read[i] = self.graph.call_method("to", (read[i], source))
        outer = constants.get("outer")
        if outer is not None:
            source = self.graph.call_function(nn.functional.pad, (source, list(outer), constants["outer_mode"]))
        rest = {k: v for k, v in constants.items() if not k.startswith("outer") and k != "cast"}
        self.map[node] = self._made("call_function", function, (source, *read), rest, "tensor")

    def _beside(self, node: fx.Node, weight: str, bias: str | None, at: dict[str, int]) -> None:
        """A layer that reads other values as well: the same call, with other values at these places."""
        held = {at["weight"]: self.graph.get_attr(weight)}
        if bias is not None:
            held[at["bias"]] = self.graph.get_attr(bias)
        args = tuple(
            held[i] if i in held else fx.node.map_arg(a, lambda n: self._lookup(node, n))
            for i, a in enumerate(node.args)
        )
        self.map[node] = self._made(node.op, node.target, args, {}, "tensor")

    def _lookup_all(self, value: Any) -> Any:
        """What an argument or output is now: nodes looked up, containers of other classes built anew at every call."""
        if isinstance(value, fx.Node):
            return self._lookup(None, value)
        held = parts(value)
        if held is None:
            return value
        if type(value) in (tuple, list):
            return type(value)(map(self._lookup_all, value))
        if type(value) is dict:
            return {k: self._lookup_all(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._lookup_all, (value.start, value.stop, value.step)))
        if hasattr(type(value), "_fields"):
            return type(value)(*map(self._lookup_all, value))
        return self._built(value)

    def _built(self, value: Any) -> fx.Node:
        """A structure of the user's own classes, from the values in it."""
        found = list(dict.fromkeys(v for v in leaves(value) if isinstance(v, fx.Node)))
        if not found and not isinstance(value, (tuple, list, dict)):
            raise CannotCutError(f"a {type(value).__name__} cannot be written down")
        check = Constants()
        for leaf in leaves(value):
            if not isinstance(leaf, fx.Node):
                check.text(leaf, f"what a {type(value).__name__} holds")
        places = {node: Place(i) for i, node in enumerate(found)}
        structure = mapped(value, lambda v: places[v] if isinstance(v, fx.Node) else v)
        values: list[Any] = [template_of(structure), *(self._lookup(None, n) for n in found)]
        return self.graph.call_function(filled, tuple(values))

    def _lookup(self, user: fx.Node | None, node: fx.Node) -> Any:
        seen = self.reads.of(user, node) if user is not None else self.reads.at(self.now, node)
        if seen is not None and seen is not node and name_of(seen) != "setitem":
            if seen in self.map:
                return self.map[seen]
            if seen in self.edits.bypass or seen in self.edits.dead:
                raise CannotCutError(f"it reads {named(node)}, which was written in place elsewhere")
        if node in self.map:
            return self.map[node]
        if node in self.edits.bypass and node not in self.edits.layers:
            return self._lookup(user, self.edits.bypass[node])
        if node.meta["const"]:
            return self._constant(node)
        raise CannotCutError(f"it needs {named(node)}, which is computed elsewhere")

    def _constant(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            target = str(node.target)
            if target in self.edits.constants:
                self.buffers.append(target)
                self.map[node] = self.graph.get_attr(target)
            else:
                self.read.add(target.rpartition(".")[0])
                self.map[node] = self.graph.get_attr(self._relative(target))
        else:
            args, kwargs = self._arguments(node)
            target_ = self._relative(str(node.target)) if node.op == "call_module" else node.target
            self.map[node] = self._made(node.op, target_, args, kwargs, node.meta.get("kind"))
        return self.map[node]

    # --- the text
    def _print(self, guards: list[Check]) -> Method:
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op == "call_function" and node.target in (read_item, read_key):
                self.graph.erase_node(node)
        constants = Constants([*self.parameters, "self", *(n.name for n in self.graph.nodes)])
        lines = [*checks(guards, constants), *Printer(self.graph, self.parameters, constants).body()]
        source = "\n".join([f"def {self.event.method}({self.header}):", *lines]) + "\n"
        return Method(
            self.event.method,
            source,
            constants.names,
            tuple(dict.fromkeys(self.buffers)),
            frozenset(self.read),
            constants.values,
        )


def check_rewritable(function: Callable[..., Any]) -> None:
    """Raise where printing a method from its trace would lose something it does."""
    parts = behind(function)
    if not parts:
        raise CannotCutError("it is not a Python function")
    for part in parts:
        _check_part(part)
    optional = [p for p in list(inspect.signature(function).parameters.values())[1:] if not _is_required(p)]
    if len(parts) > 1 and optional:  # a decorator may tell what is left out from what is given
        raise CannotCutError(f"it is decorated, and takes {optional[0].name!r}, which may be left out")


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variadic


def _check_part(function: FunctionType) -> None:
    code = function.__code__
    instructions = list(dis.get_instructions(code))
    names = {i.opname for i in instructions}
    if names & {"SETUP_WITH", "BEFORE_WITH", "LOAD_SPECIAL", "WITH_EXCEPT_START"}:
        raise CannotCutError("it has a `with` block")
    if names & {"PUSH_EXC_INFO", "SETUP_FINALLY"}:
        raise CannotCutError("it has a `try` block")
    if names & {"STORE_ATTR", "STORE_GLOBAL", "DELETE_ATTR"}:
        raise CannotCutError("it writes attributes")
    kept = {n: c for n, c in zip(code.co_freevars, function.__closure__ or (), strict=True) if n != "__class__"}
    written = {i.argval for i in instructions if i.opname in ("STORE_DEREF", "DELETE_DEREF")}
    if code.co_flags & inspect.CO_GENERATOR or written & set(kept) or not all(map(_holds_function, kept.values())):
        raise CannotCutError("it is a generator or closes over variables")


def _holds_function(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType)
    except ValueError:
        return False
