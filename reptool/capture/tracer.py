"""Capture: run a model's own code once on symbolic values and write down what it did.

The result is one flat `torch.fx.Graph` for the whole model plus a tree of `Event`s: every module call and every call
of a module's own methods, with the values that went in and came out. What the code asked about its values (a shape, a
flag, a length) is kept as a `Question` of the event that asked. A module whose code cannot be followed becomes one
opaque node; its children are captured by themselves afterwards.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from reptool.capture.graph_builder import Writing
from reptool.capture.own_functions import intercepted
from reptool.capture.patching import LOCK, WATCHED, patched
from reptool.capture.side_effects import kept_outside, written_constants, written_contents
from reptool.capture.symbolic import Symbolic
from reptool.ir.nodes import barrier
from reptool.ir.spec import check_trace
from reptool.ir.trace import CaptureLimitError, Event, Input, Question, Trace, Unanswerable
from reptool.ir.walk import map_values, nodes_in, only_tensors
from reptool.models.rng import drew_since
from reptool.models.running import Generators, users_device
from reptool.pysource.functions import behind, function_of
from reptool.pysource.module_info import (
    calls_itself,
    catches,
    foreign_hooks,
    given_by,
    own_methods,
    package_of,
    stock_forward,
)
from reptool.pysource.places import said
from reptool.runtime.containers import mapped
from reptool.runtime.gates.calls import MACHINERY, first_argument, kind_of, method_of

MAX_DEPTH = 120


class Recorder(Writing):
    """Runs one root module on symbolic values; see `Writing` for its arguments."""

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
        self._go_through(caller)
        hooked = foreign_hooks(module)
        watched = hooked or isinstance(module, self.watched)
        if watched:
            args, kwargs = self._barriers(args), self._barriers(kwargs)
        if calls_itself(type(module)) is not None:
            self.opaque.setdefault(path, f"{type(module).__name__} has a __call__ of its own")
        if path in self.opaque or path in self.named or stock_forward(module):
            out: Any = self._leaf(module, path, args, kwargs, hooked)
        elif self.closed is not None and self.closed(path):
            out = self._leaf(module, path, args, kwargs, hooked, self.closed(path))
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

    def _go_through(self, frame: FrameType | None) -> None:
        """Remember the methods of modules that code goes through to a call and that are not followed as calls."""
        event = self.stack[-1]
        while frame is not None and frame.f_globals.get("__name__") != __name__:
            code = frame.f_code
            module: Any = first_argument(frame) if code.co_argcount and id(code) not in MACHINERY else None
            name = method_of(module, code) if issubclass(type(module), nn.Module) else None
            if name is not None and (module, name) != (event.module, event.method):
                event.between.add((kind_of(type(module)), name))
            frame = frame.f_back

    def _own_hooks(self, module: nn.Module) -> list[Callable[..., Any]]:
        """Plain forward hooks that the model's own package installed: a part of the model's forward."""
        return [
            h
            for key, h in module._forward_hooks.items()
            if key not in module._forward_hooks_with_kwargs and package_of(h) == package_of(type(self.root)) != "torch"
        ]

    def _unregistered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module that nobody registered: a slice of a Sequential is its modules in order, others are one node."""
        if type(module).forward is nn.Sequential.forward and not foreign_hooks(module) and len(args) == 1:
            (value,) = args
            self.stack[-1].between.add((kind_of(type(module)), "forward"))
            for inner in module._modules.values():
                assert inner is not None
                value = inner(value)
            return value
        if any(id(m) in self.paths for m in module.modules()):
            raise Unanswerable(f"an unregistered {type(module).__name__} holds registered modules")
        return self.emit("call_function", _Unregistered(module), args, kwargs)

    def _barriers(self, value: Any) -> Any:
        return map_values(value, lambda v: self.emit("call_function", barrier, (v,), {}))

    def _leaf(self, module: nn.Module, path: str, args: Any, kwargs: Any, hooked: bool, kind: str = "") -> Symbolic:
        if not args and kwargs.keys() == {"input"} and not hooked and stock_forward(module):
            args, kwargs = (kwargs["input"],), {}
        opened = path in self.opaque or (path in self.named and not stock_forward(module))
        if opened or isinstance(module, torch.jit.ScriptModule):
            kind = "unknown"
        out = self.emit("call_module", path, args, kwargs, kind or given_by(module))
        out.node.meta["module"] = module
        out.node.meta["hooked"] = hooked
        if opened:
            out.node.meta["opaque"] = self.opaque.get(path, "")
        return out

    def call_opaque(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call of code that is not followed (compiled, an autograd function) as one node of unknown kind."""
        self.functions.add(function)
        return self.emit("call_function", function, args, kwargs, "unknown")

    def _open(self, module: nn.Module, path: str, args: Any, kwargs: Any, hooked: bool) -> Any:
        mark = len(self.stack[-1].items)
        before = self.graph._root._prev
        event = Event(module, path, "forward", self.stack[-1], self.lower(args), self.lower(kwargs), hooked=hooked)
        self.stack[-1].items.append(event)
        self.stack.append(event)
        self._ask_for_errors(event)
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
            self.opaque[path] = said(error)
            return self._leaf(module, path, args, kwargs, hooked)
        self.stack.pop()
        self._close(event, out)
        if self._is_one_opaque_call(event):
            del self.stack[-1].items[mark:]
            self._erase_after(before)
            self.opaque[path] = "it runs nothing but code that cannot be followed"
            return self._leaf(module, path, args, kwargs, hooked)
        self._hand_up(event)
        return out

    def _is_one_opaque_call(self, event: Event) -> bool:
        """Whether a call gives what one opaque function makes: then the module as a whole is opaque."""
        made = [n for n in event.nodes() if not n.meta["const"]]
        return len(made) == 1 and event.output is made[0] and made[0].target in self.functions

    def _ask_for_errors(self, event: Event) -> None:
        """A method that catches errors does something else where an operation fails."""
        function = inspect.getattr_static(type(event.module), event.method, None)
        if any(catches(f.__code__) for f in behind(function)):
            event.questions.append(Question("errors", event.path or "<root>", None))

    def _hand_up(self, event: Event) -> None:
        """What a helper asked before it gave something else than tensors is the caller's question as well."""
        if event.questions and event.parent is not None and not only_tensors(event.output):
            event.parent.questions += event.questions

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
        self._go_through(sys._getframe(2))
        event = Event(module, path, name, self.stack[-1], self.lower(args), self.lower(kwargs))
        self.stack[-1].items.append(event)
        self.stack.append(event)
        self._ask_for_errors(event)
        try:
            out = method(*args, **kwargs)
        finally:
            self.stack.pop()
        self._close(event, out)
        self._hand_up(event)
        return out

    # --- the whole run
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = "", method: str = "forward") -> Trace:
        """Trace the root's forward (or a method of the one at `path`) on `args` and `kwargs`, which hold `Input`s."""
        module = self.root.get_submodule(path)
        top, given = Event(module, path, method, None, prefix=self.prefix), (args, kwargs)
        self.stack = [top]
        args, kwargs = self._placeholders(args), self._placeholders(kwargs)
        top.args, top.kwargs = self.lower(args), self.lower(kwargs)
        generators, drawn = Generators(), False
        try:
            self._walked(top, args, kwargs)
        finally:
            drawn = drew_since(generators, lambda: self._repeated(given, path, method))
        self._check_answers()
        self._check_constants()
        if drawn:
            raise Unanswerable("the forward draws random numbers that are no operation on tensors")
        del args, kwargs
        kept_outside(self, top)
        written_contents(self.contents, top)
        written_constants(self.graph)
        outputs = list(nodes_in(top.output))
        end = self.graph.output(tuple(outputs))
        end.meta.update(event=top, const=False, kind="output")
        return check_trace(
            Trace(
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
        )

    def _walked(self, top: Event, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the code."""
        module = top.module
        with LOCK, patched(self), intercepted(self), users_device():
            self.active = True
            try:
                self._ask_for_errors(top)
                self._watch_methods(module)
                if top.method != "forward":
                    out: Any = function_of(type(module), top.method)(module, *args, **kwargs)
                elif stock_forward(module):
                    out = self._leaf(module, top.path, args, kwargs, foreign_hooks(module))
                else:
                    out = module.forward(*args, **kwargs)
                self._close(top, out)
            finally:
                self.active, self.over = False, True
                for owner, name in self.wrapped:
                    owner.__dict__.pop(name, None)

    def _repeated(self, inputs: tuple[tuple[Any, ...], dict[str, Any]], path: str, method: str) -> None:
        """The same run once more, of which only what else it does is of interest."""
        other = Recorder(self.root, self.prefix, self.watched)
        other.guessed, other.named, other.closed = self.guessed, self.named, self.closed
        other.own_functions = self.own_functions
        other.opaque = {p: why for p, why in self.opaque.items() if why}
        top = Event(self.root.get_submodule(path), path, method, None)
        other.stack = [top]
        other._walked(top, *(other._placeholders(v) for v in inputs))

    def _check_answers(self) -> None:
        if self.unanswered is not None:
            raise Unanswerable(f"a question was asked and its error caught: {self.unanswered}")

    def _check_constants(self) -> None:
        """A constant that cannot be computed shows that the forward was run in a way in which it never runs."""
        for node in list(self.graph.nodes):
            if node.op != "call_function" or not node.meta["const"] or all(u.meta["const"] for u in node.users):
                continue
            if not any(n.meta["tensor"].is_meta for n in node.all_input_nodes if n.op == "get_attr"):
                self.evaluate(node)

    def _placeholders(self, value: Any) -> Any:
        return mapped(value, lambda v: self._placeholder(v) if isinstance(v, Input) else v)

    def _placeholder(self, value: Input) -> Symbolic:
        node = self.graph.create_node("placeholder", value.name)
        node.meta.update(event=self.stack[-1], const=False, kind=value.kind)
        if value.fake is not None:
            self.knows_inputs = not self.guessed
            self.known.fakes[node] = value.fake(self.known.fake_mode())
        return self.hand(node)


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


WATCHED.add(_Watched)
