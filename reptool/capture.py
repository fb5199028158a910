"""Capture: run a model's own code once on symbolic values and write down what it did.

The result is one flat `torch.fx.Graph` for the whole model plus a tree of `Event`s: every module call and every call
of a module's own methods, with the values that went in and came out. What the code asked about its values (a shape, a
flag, a length) is kept as a `Question` of the event that asked. A module whose code cannot be followed becomes one
opaque node; its children are captured by themselves afterwards.
"""

from __future__ import annotations

import builtins
import copy
import dis
import gc
import inspect
import math
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy
import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn

from reptool._nodes import barrier, metadata_read, tensor_kind
from reptool._value import Attribute, Value
from reptool.errors import ReptoolError
from reptool.reads import mutated_argument, resolve

MAX_NODES = 100_000
MAX_DEPTH = 120

_LOCK = threading.RLock()
_FACTORIES = (
    "zeros", "ones", "empty", "full", "arange", "linspace", "tensor", "as_tensor", "eye", "meshgrid",
)  # fmt: skip
_DRAWS = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson")
_MODES = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled")
_MATH = ("ceil", "floor", "sqrt", "prod", "log", "log2", "trunc")


class CaptureLimitError(ReptoolError):
    """The model's forward does not end within the limits of tracing."""


def _only_rank(node: fx.Node) -> bool:
    """Whether a number depends on nothing but the rank, dtype or device of values."""
    if metadata_read(node) == "rank":
        return True
    inputs = [n for n in node.all_input_nodes if not n.meta["const"]]
    return bool(inputs) and node.meta.get("kind") in ("number", "dtype", "device") and all(map(_only_rank, inputs))


class Unanswerable(Exception):
    """The code asked something about a value that is not known while tracing."""


@dataclass
class Question:
    """Something a forward asked about a value, and what it was told."""

    what: str
    node: str
    answer: object


@dataclass(eq=False)
class Event:
    """One call of a module, or of one of a module's own methods."""

    module: nn.Module
    path: str
    method: str
    parent: Event | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    items: list[fx.Node | Event] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)  # what its code does beside returning a value
    passed: list[Event] = field(default_factory=list)
    hooked: bool = False
    node: fx.Node | None = None  # for a leaf
    where: tuple[Any, int] | None = None  # the code that made the call, and the offset of the call in it

    def ancestors(self) -> Iterator[Event]:
        """This event and all that enclose it, innermost first."""
        event: Event | None = self
        while event is not None:
            yield event
            event = event.parent

    def nodes(self) -> Iterator[fx.Node]:
        """Every node made during this call, in order."""
        for item in self.items:
            if isinstance(item, Event):
                yield from item.nodes()
            else:
                yield item

    def __repr__(self) -> str:
        return f"Event({self.path or '<root>'}.{self.method})"


@dataclass
class Trace:
    """What was seen of one root module."""

    root: nn.Module
    prefix: str
    graph: fx.Graph
    top: Event
    outputs: list[fx.Node]
    escaped: set[fx.Node]
    opaque: dict[str, str]
    constants: dict[str, Tensor]
    shown: bool = False  # whether the caller showed how the root is called


# --- module classification ------------------------------------------------------------------------------------------
def stock_forward(module: nn.Module) -> bool:
    """Whether `module` runs a forward of torch.nn itself (a subclass that adds nothing counts)."""
    bound = module.__dict__.get("forward")
    function = getattr(bound, "__func__", None) if bound is not None else type(module).forward
    home = getattr(function, "__module__", "") or ""
    if not home.startswith(("torch.nn.modules", "torch.ao.nn")):
        return False
    return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


_METHODS: dict[type, tuple[str, ...]] = {}


def own_methods(cls: type) -> tuple[str, ...]:
    """Names of the plain methods that the forward of `cls` reaches through ``self``."""
    if cls in _METHODS:
        return _METHODS[cls]
    found: list[str] = []
    queue = [getattr(cls, "forward", None)]
    while queue:
        code = getattr(queue.pop(), "__code__", None)
        for name in code.co_names if code else ():
            function = inspect.getattr_static(cls, name, None)
            if name in found or name == "forward" or not inspect.isfunction(function):
                continue
            if (function.__module__ or "").startswith("torch.nn.") or name.startswith("__"):
                continue
            found.append(name)
            queue.append(function)
    _METHODS[cls] = tuple(found)
    return _METHODS[cls]


def _reads_attribute(code: Any, name: str) -> bool:
    """Whether a function that writes an attribute also reads it: what it does may hang on what it did before."""
    return any(i.argval == name for i in dis.get_instructions(code) if i.opname in ("LOAD_ATTR", "LOAD_METHOD"))


def _foreign_hooks(module: nn.Module) -> bool:
    from reptool._weights import is_weight_hook

    pre = [h for h in module._forward_pre_hooks.values() if not is_weight_hook(h)]
    return bool(pre or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def _package(thing: Any) -> str:
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def watched_classes(model: nn.Module) -> tuple[type, ...]:
    """Classes whose outputs a model promises to record on demand (the ``_can_record_outputs`` of transformers)."""
    found: list[type] = []
    for module in model.modules():
        promised = getattr(type(module), "_can_record_outputs", None)
        for specs in promised.values() if isinstance(promised, dict) else ():
            for spec in specs if isinstance(specs, (list, tuple)) else [specs]:
                cls = spec if isinstance(spec, type) else getattr(spec, "target_class", None)
                if isinstance(cls, type):
                    found.append(cls)
    return tuple(dict.fromkeys(found))


# --- the recorder ---------------------------------------------------------------------------------------------------
class Recorder:
    """Runs one root module on symbolic values."""

    def __init__(self, root: nn.Module, prefix: str = "", watched: tuple[type, ...] = ()) -> None:
        self.root = root
        self.prefix = prefix
        self.graph = fx.Graph()
        self.active = False
        self.paths: dict[int, str] = {}
        for name, module in root.named_modules():
            self.paths.setdefault(id(module), name)
        self.stack: list[Event] = []
        self.params: dict[int, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.opaque: dict[str, str] = {}
        self.calls = 0
        self.fakes: dict[fx.Node, Any] = {}
        self.real: dict[fx.Node, Any] = {}
        self.watched = watched
        self.guessed = False  # whether the inputs were made up: then every answer is one that may be wrong
        self.knows_inputs = False
        self.escapes: set[fx.Node] = set()
        self.closed: Callable[[str], str] | None = None  # kind of value of a module that need not be opened, or ''
        self.wrapped: list[tuple[nn.Module, str]] = []  # methods that stand behind a recorder for now
        self.unanswered: Exception | None = None
        self.given: list[weakref.ref[Value]] = []  # every value handed to the model's code

    # --- nodes
    def emit(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Write one node and return its value."""
        if self.calls > MAX_NODES:
            raise CaptureLimitError(f"more than {MAX_NODES} operations in one forward; does it end?")
        self.calls += 1
        node = self.graph.create_node(op, target, self.lower(args), self.lower(kwargs))
        node.meta["event"] = self.stack[-1]
        node.meta["const"] = op != "placeholder" and all(n.meta["const"] for n in node.all_input_nodes)
        if op in ("call_function", "call_method") and not node.all_input_nodes:
            node.meta["const"] = getattr(target, "__name__", target) not in _DRAWS
        node.meta["kind"] = tensor_kind(node)
        self.stack[-1].items.append(node)
        return self.hand(node)

    def hand(self, node: fx.Node) -> Value:
        """A value for the model's code; who still holds it when the forward has ended keeps it outside."""
        value = Value(node, self)
        self.given.append(weakref.ref(value))
        return value

    def lower(self, value: Any) -> Any:
        """Values to nodes, tensors to constants; anything that is not data stays as it is."""
        kind = type(value)
        if kind in (int, float, str, bool) or value is None:
            return value
        if kind is Value or kind is Attribute:
            return value.node
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, tuple):
            made = [self.lower(v) for v in value]
            return kind(*made) if hasattr(value, "_fields") else tuple(made)
        if isinstance(value, list):
            return [self.lower(v) for v in value]
        if isinstance(value, dict):
            return {k: self.lower(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(self.lower(value.start), self.lower(value.stop), self.lower(value.step))
        return value

    def tensor(self, tensor: Tensor) -> fx.Node:
        """The get_attr node of a parameter, buffer or constant."""
        node = self.params.get(id(tensor))
        if node is None:
            name = f"_constant{len(self.constants)}"
            self.constants[name] = tensor
            node = self._get_attr(name, tensor)
        return node

    def _get_attr(self, path: str, tensor: Tensor) -> fx.Node:
        node = self.graph.create_node("get_attr", path)
        node.meta.update(event=self.stack[-1], const=True, kind="tensor", tensor=tensor)
        self.params[id(tensor)] = node
        self.real[node] = tensor
        return node

    def parameter(self, module: nn.Module, name: str, tensor: Tensor) -> Value:
        """What code sees when it reads a parameter or buffer."""
        node = self.params.get(id(tensor))
        if node is None:
            owner = self.paths.get(id(module))
            if owner is None:
                node = self.tensor(tensor)
            else:
                node = self._get_attr(f"{owner}.{name}" if owner else name, tensor)
        return Value(node, self)

    # --- questions
    def ask(self, node: fx.Node, what: str, read: Callable[[Any], Any]) -> Any:
        """Answer a question about a value, or raise `Unanswerable`."""
        try:
            if self.guessed and what in ("length", "membership") and node.op == "placeholder":
                raise Unanswerable(f"{node.name} was taken for an image, and is asked for its {what}")
            answer = read(self.evaluate(node))
        except Exception as error:
            self.unanswered = error  # the code may catch it and go another way than it does on data
            raise
        if not node.meta["const"] and (self.guessed or not _only_rank(node)):
            self.stack[-1].questions.append(Question(what, node.name, answer))
        return answer

    def evaluate(self, node: fx.Node) -> Any:
        """The concrete value of a constant, or a fake one of what depends on the inputs."""
        memo = self.real if node.meta["const"] else self.fakes
        if node in memo:
            return memo[node]
        active, self.active = self.active, False
        try:
            return self._evaluate(node)
        except (Unanswerable, CaptureLimitError):
            raise
        except Exception as error:
            raise Unanswerable(f"{node.name}: {type(error).__name__}: {error}") from error
        finally:
            self.active = active

    def _evaluate(self, wanted: fx.Node) -> Any:
        todo = [wanted]
        while todo:
            node = todo[-1]
            memo = self.real if node.meta["const"] else self.fakes
            if node in memo:
                todo.pop()
                continue
            missing = [n for n in node.all_input_nodes if n not in self.real and n not in self.fakes]
            if missing:
                todo += missing
                continue
            if node.op == "placeholder":
                raise Unanswerable(f"nothing is known of the input {node.name!r}: give example_inputs")
            todo.pop()
            known = {**{n: self._seen(n, node) for n in node.all_input_nodes}}
            args, kwargs = (fx.node.map_arg(a, known.__getitem__) for a in (node.args, node.kwargs))
            with torch.no_grad():
                if node.meta["const"]:
                    memo[node] = self._run(node, args, kwargs)
                else:
                    with self._fake_mode():
                        memo[node] = self._run(node, args, kwargs)
        return self.real[wanted] if wanted.meta["const"] else self.fakes[wanted]

    def _seen(self, node: fx.Node, by: fx.Node) -> Any:
        value = self.real[node] if node in self.real else self.fakes[node]
        if isinstance(value, Tensor) and by.meta["const"] and by.op == "call_method" and str(by.target).endswith("_"):
            return value.clone()
        return value

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _fake_mode(self) -> Any:
        if not hasattr(self, "_mode"):
            from torch._subclasses.fake_tensor import FakeTensorMode

            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        return self._mode

    # --- calls
    def call_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record one call of a module: as a leaf, opened up, or (when its code cannot be followed) opaque."""
        path = self.paths.get(id(module))
        if path is None:
            return self._unregistered(module, args, kwargs)
        if len(self.stack) > MAX_DEPTH:
            raise CaptureLimitError(f"module calls nested deeper than {MAX_DEPTH} at {path!r}; does the forward end?")
        self.calls += 1
        caller = sys._getframe(2)
        where = (caller.f_code, caller.f_lasti)
        hooked = _foreign_hooks(module)
        watched = hooked or isinstance(module, self.watched)
        if watched:
            args, kwargs = self._barriers(args), self._barriers(kwargs)
        if path in self.opaque or stock_forward(module):
            out: Any = self._leaf(module, path, args, kwargs, hooked)
        elif self.closed is not None and self.closed(path):
            out = self._leaf(module, path, args, kwargs, hooked)
            out.node.meta["kind"] = self.closed(path)
        else:
            out = self._open(module, path, args, kwargs, hooked)
        last = self.stack[-1].items[-1]
        if isinstance(last, Event):
            last.where = where
        else:
            last.meta["where"] = where
        out = self._barriers(out) if watched else out
        mark, changed = len(self.stack[-1].items), False
        for hook in self._own_hooks(module):
            changed |= hook(module, args, out) is not None
        del self.stack[-1].items[mark:]  # the call itself runs its hooks: their operations are nobody's code
        return self._barriers(out) if changed else out

    def _own_hooks(self, module: nn.Module) -> list[Callable[..., Any]]:
        """Plain forward hooks that the model's own package installed: a part of the model's forward."""
        return [
            h
            for key, h in module._forward_hooks.items()
            if key not in module._forward_hooks_with_kwargs and _package(h) == _package(type(self.root)) != "torch"
        ]

    def _unregistered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module that nobody registered: a slice of a Sequential is its modules in order, others are one node."""
        if type(module).forward is nn.Sequential.forward and not _foreign_hooks(module) and len(args) == 1:
            (value,) = args
            for inner in module._modules.values():
                assert inner is not None
                value = inner(value)
            return value
        if any(id(m) in self.paths for m in module.modules()):
            raise Unanswerable(f"an unregistered {type(module).__name__} holds registered modules")
        return self.emit("call_function", _Unregistered(module), args, kwargs)

    def _barriers(self, value: Any) -> Any:
        return map_values(value, lambda v: self.emit("call_function", barrier, (v,), {}))

    def _leaf(self, module: nn.Module, path: str, args: Any, kwargs: Any, hooked: bool) -> Value:
        out = self.emit("call_module", path, args, kwargs)
        out.node.meta["module"] = module
        out.node.meta["hooked"] = hooked
        if path in self.opaque:
            out.node.meta["kind"] = "unknown"
        return out

    def _open(self, module: nn.Module, path: str, args: Any, kwargs: Any, hooked: bool) -> Any:
        mark = len(self.stack[-1].items)
        before = self.graph._root._prev
        event = Event(module, path, "forward", self.stack[-1], self.lower(args), self.lower(kwargs), hooked=hooked)
        self.stack[-1].items.append(event)
        self.stack.append(event)
        self._watch_methods(module)
        try:
            out = module.forward(*args, **kwargs)
            self._check_answers()
        except CaptureLimitError:
            raise
        except Exception as error:
            self.unanswered = None
            self.stack.pop()
            del self.stack[-1].items[mark:]
            self._erase_after(before)
            self.opaque[path] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return self._leaf(module, path, args, kwargs, hooked)
        self.stack.pop()
        self._close(event, out)
        return out

    def _close(self, event: Event, out: Any) -> None:
        event.output = self.lower(out)
        for node in nodes_in(event.output):
            node.meta.setdefault("through", []).append(event)

    def _erase_after(self, last: fx.Node) -> None:
        node = self.graph._root._prev
        while node is not last:
            earlier = node._prev
            if node.op == "get_attr":
                self.params = {k: n for k, n in self.params.items() if n is not node}
            self.graph.erase_node(node)
            node = earlier

    def _watch_methods(self, module: nn.Module) -> None:
        for name in own_methods(type(module)):
            if name not in module.__dict__:
                self.wrapped.append((module, name))
                module.__dict__[name] = _Watched(self, module, name, getattr(module, name))

    def call_method(self, module: nn.Module, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record one call of a module's own method made while that module runs."""
        path = self.paths.get(id(module))
        if not self.active or path is None or not self.stack:
            return method(*args, **kwargs)
        event = Event(module, path, name, self.stack[-1], self.lower(args), self.lower(kwargs))
        self.stack[-1].items.append(event)
        self.stack.append(event)
        try:
            out = method(*args, **kwargs)
        finally:
            self.stack.pop()
        self._close(event, out)
        return out

    # --- the whole run
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = "", method: str = "forward") -> Trace:
        """Trace the root's forward (or a method of the one at `path`) on `args` and `kwargs`, which hold `Input`s."""
        module = self.root.get_submodule(path)
        top = Event(module, path, method, None)
        self.stack = [top]
        args, kwargs = self._placeholders(args), self._placeholders(kwargs)
        top.args, top.kwargs = self.lower(args), self.lower(kwargs)
        dice = _dice()
        with _LOCK, patched(self):
            self.active = True
            try:
                self._watch_methods(module)
                if method != "forward":
                    out: Any = getattr(type(module), method)(module, *args, **kwargs)
                elif stock_forward(module):
                    out = self._leaf(module, path, args, kwargs, _foreign_hooks(module))
                else:
                    out = module.forward(*args, **kwargs)
            finally:
                self.active = False
                for owner, name in self.wrapped:
                    owner.__dict__.pop(name, None)
                drawn = not _same_dice(dice)
        self._check_answers()
        if drawn:
            raise Unanswerable("the forward draws random numbers that are no operation on tensors")
        self._close(top, out)
        del out, args, kwargs
        self._kept_outside(top)
        self._written_constants()
        outputs = list(nodes_in(top.output))
        end = self.graph.output(tuple(outputs))
        end.meta.update(event=top, const=False, kind="output")
        return Trace(
            self.root,
            self.prefix,
            self.graph,
            top,
            outputs,
            self.escapes,
            dict(self.opaque),
            self.constants,
            self.knows_inputs,
        )

    def _check_answers(self) -> None:
        if self.unanswered is not None:
            raise Unanswerable(f"a question was asked and its error caught: {self.unanswered}")

    def _written_constants(self) -> None:
        """A parameter, buffer or constant that the forward writes is none: it differs from call to call."""
        writes = [n for n in self.graph.nodes if (w := mutated_argument(n)) is not None and w.meta["const"]]
        if not writes:
            return
        reads = resolve(self.graph)
        stack = []
        for node in writes:
            written = reads.mutates[node]
            root = reads.storage.get(written, written)
            if root.op == "get_attr":
                node.meta["event"].effects.append(f"writes {root.target!r} in place")
                stack.append(root)
        while stack:
            node = stack.pop()
            if node.meta["const"]:
                node.meta["const"] = False
                stack += node.users

    def _kept_outside(self, top: Event) -> None:
        """Values that somebody still holds (a list, a global, a closure) are read outside of the graph."""
        if not any(ref() is not None for ref in self.given):
            return
        gc.collect()
        events = list(_all_events(top))
        ours = {id(v) for e in events for part in (e.args, e.kwargs, e.output) for v in leaves_in(part)}
        alive = [v for ref in self.given if (v := ref()) is not None and id(v) not in ours]
        here = set(self.graph.nodes)
        kept = {v.node for v in alive if v._node is not None and v._node in here and not v._node.meta["const"]}
        self.escapes |= kept
        for event in events:
            seen = {n for part in (event.args, event.kwargs) for n in nodes_in(part)}
            for item in event.items:
                seen |= set(nodes_in(item.output)) if isinstance(item, Event) else {item}
            if seen & kept:
                event.effects.append("keeps a value outside of the model's outputs")

    def _placeholders(self, value: Any) -> Any:
        return rebuilt(value, lambda v: self._placeholder(v) if isinstance(v, Input) else v)

    def _placeholder(self, value: Input) -> Value:
        node = self.graph.create_node("placeholder", value.name)
        node.meta.update(event=self.stack[-1], const=False, kind=value.kind)
        if value.fake is not None:
            self.knows_inputs = not self.guessed
            self.fakes[node] = value.fake(self._fake_mode())
        return self.hand(node)


def fake(tensor: Tensor, mode: Any) -> Any:
    """A fake of an example tensor under a fake mode."""
    return mode.from_tensor(tensor)


@dataclass
class Input:
    """A placeholder to be: its name, and how to make a fake of it (None when nothing is known)."""

    name: str
    fake: Callable[[Any], Any] | None = None
    kind: str = "tensor"


class _Unregistered:
    """A module that is called but registered nowhere under the root."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.__name__ = f"unregistered_{type(module).__name__.lower()}"
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class _Watched:
    """Stands for a module's method while its calls are being recorded."""

    def __init__(self, recorder: Recorder, module: nn.Module, name: str, method: Callable[..., Any]) -> None:
        self.recorder, self.module, self.name, self.method = recorder, module, name, method
        self.__func__ = getattr(method, "__func__", method)
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.recorder.call_method(self.module, self.name, self.method, args, kwargs)


def map_values(value: Any, fn: Callable[[Value], Any]) -> Any:
    """Apply `fn` to every tensor-like value inside plain containers."""
    if isinstance(value, Value):
        return fn(value)
    if isinstance(value, tuple):
        made = [map_values(v, fn) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, list):
        return [map_values(v, fn) for v in value]
    if type(value) is dict:
        return {k: map_values(v, fn) for k, v in value.items()}
    return value


def _dice() -> tuple[Any, ...]:
    """The state of the random number generators that a forward may draw from."""
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state()


def _same_dice(before: tuple[Any, ...]) -> bool:
    """Whether nothing was drawn since; if something was, the generators are set back."""
    torch_state, python_state, numpy_state = before
    now = _dice()
    same = bool(
        torch.equal(now[0], torch_state)
        and now[1] == python_state
        and now[2][2] == numpy_state[2]
        and (now[2][1] == numpy_state[1]).all()
    )
    if not same:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
    return same


def _all_events(event: Event) -> Iterator[Event]:
    yield event
    for item in event.items:
        if isinstance(item, Event):
            yield from _all_events(item)


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """Every node held by containers, dataclasses and plain objects."""
    for leaf in leaves_in(value):
        yield leaf if isinstance(leaf, fx.Node) else leaf.node


def leaves_in(value: Any, depth: int = 0) -> Iterator[fx.Node | Value]:
    """Every node and value held by containers, dataclasses and plain objects."""
    if isinstance(value, fx.Node) or type(value) is Value or type(value) is Attribute:
        yield value
    elif isinstance(value, (str, int, float, Tensor, nn.Module, type)) or value is None or depth > 6:
        return
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from leaves_in(v, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for v in value:
            yield from leaves_in(v, depth + 1)
    elif isinstance(value, slice):
        yield from leaves_in((value.start, value.stop, value.step), depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from leaves_in(getattr(value, f.name, None), depth + 1)
    elif hasattr(value, "__dict__") and not callable(value):
        for v in vars(value).values():
            yield from leaves_in(v, depth + 1)


def rebuilt(value: Any, change: Callable[[Any], Any], depth: int = 0) -> Any:
    """A structure of containers, dataclasses and plain objects with its leaves changed; `value` stays as it is."""
    if isinstance(value, tuple):
        made = [rebuilt(v, change, depth + 1) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, list):
        return [rebuilt(v, change, depth + 1) for v in value]
    if type(value) is dict:
        return {k: rebuilt(v, change, depth + 1) for k, v in value.items()}
    plain = not isinstance(value, (Tensor, nn.Module, Input, type)) and not callable(value)
    if not plain or not hasattr(value, "__dict__") or depth > 6:
        return change(value)
    items = {k: rebuilt(v, change, depth + 1) for k, v in value.items()} if isinstance(value, dict) else {}
    fields_ = {k: rebuilt(v, change, depth + 1) for k, v in vars(value).items()}
    if all(v is value[k] for k, v in items.items()) and all(v is vars(value)[k] for k, v in fields_.items()):
        return value
    twin = copy.copy(value)
    for k, v in items.items():
        dict.__setitem__(twin, k, v)
    for k, v in fields_.items():
        object.__setattr__(twin, k, v)
    return twin


# --- patches --------------------------------------------------------------------------------------------------------
def _nothing_to_keep(*_: Any, **__: Any) -> Iterator[None]:
    """In place of checkpointing, which keeps what it needs to run a function again."""
    yield


class _CalledAtOnce:
    """In place of checkpointing by an autograd function."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        return function(*args)


@contextmanager
def patched(recorder: Recorder) -> Iterator[None]:
    """While tracing: module calls, parameter reads, attribute writes and a few functions go through the recorder."""
    call, read, write = nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__
    saved: list[tuple[Any, str, Any]] = []

    def traced_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recorder.call_module(self, args, kwargs) if recorder.active else call(self, *args, **kwargs)

    def traced_read(self: nn.Module, name: str) -> Any:
        found = read(self, name)
        if recorder.active and isinstance(found, Tensor) and (name in self._parameters or name in self._buffers):
            return recorder.parameter(self, name, found)
        return found

    written: list[tuple[nn.Module, str, Any]] = []

    def traced_write(self: nn.Module, name: str, value: Any) -> None:
        if recorder.active:
            event = recorder.stack[-1]
            kept = list(nodes_in(value))
            if _reads_attribute(sys._getframe(1).f_code, name):
                event.questions.append(Question("own state", name, None))
            if kept:
                recorder.escapes.update(kept)
                event.effects.append(f"writes the attribute {name!r}")
                written.append((self, name, vars(self).get(name, written)))
                object.__setattr__(self, name, value)
                return
        write(self, name, value)

    def replace(owner: Any, name: str, new: Any) -> None:
        saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if recorder.active and (any(map(_holds, args)) or any(map(_holds, kwargs.values()))):
                return recorder.emit("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        wrapper.__wrapped__ = function  # type: ignore[attr-defined]
        return wrapper

    def drawn(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return (
                recorder.emit("call_function", function, args, kwargs) if recorder.active else function(*args, **kwargs)
            )

        return wrapper

    def asked(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            answer = function(*args, **kwargs)
            if recorder.active and not str(sys._getframe(1).f_globals.get("__name__")).startswith("torch."):
                recorder.stack[-1].questions.append(Question("mode", function.__name__, answer))
            return answer

        return wrapper

    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        replace(norm, "_check_input_dim", _unchecked(recorder, norm._check_input_dim))
    replace(nn.Module, "__call__", traced_call)
    replace(nn.Module, "__getattr__", traced_read)
    replace(nn.Module, "__setattr__", traced_write)
    replace(torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _nothing_to_keep)
    replace(torch.utils.checkpoint, "CheckpointFunction", _CalledAtOnce)
    for name in _DRAWS:
        replace(torch, name, drawn(getattr(torch, name)))
    for name in _MODES:
        replace(torch, name, asked(getattr(torch, name)))
    for name in _FACTORIES:
        replace(torch, name, lifted(getattr(torch, name)))
    for name in _MATH:
        replace(math, name, lifted(getattr(math, name)))
    for name in ("max", "min"):
        replace(builtins, name, lifted(getattr(builtins, name)))
    try:
        yield
    finally:
        for owner, name, old in reversed(saved):
            setattr(owner, name, old)
        for module, name, old in reversed(written):  # the next run finds the model as it was
            vars(module).pop(name, None) if old is written else vars(module).__setitem__(name, old)


def _unchecked(recorder: Recorder, check: Callable[..., Any]) -> Callable[..., Any]:
    """The rank check of a norm: passed while tracing, made again by the norm at run time."""
    return lambda self, value: None if recorder.active else check(self, value)


def _holds(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(type(v) is Value or type(v) is Attribute for v in value)
    return type(value) is Value or type(value) is Attribute
