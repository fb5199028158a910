"""Places: where an operation stands, in the words of the user's own code.

A graph numbers its nodes (``add_2``, ``getattr_1``); nobody who wrote the model knows these names. What is known is the
path of a module and the line of its code in which an operation was run: ``layer1.0: add (resnet.py:105)``.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Iterable
from types import CodeType
from typing import Any

from torch import fx, nn

from reptool.ir.nodes import is_size_like, name_of
from reptool.ir.trace import VALUE, CaptureLimitError, Event, Question, Unanswerable
from reptool.ir.walk import nodes_in
from reptool.pysource.functions import behind
from reptool.refusal import Refusal

Frame = tuple[CodeType, int]
"""A function's code, and the offset of an instruction in it."""

_CALLS = frozenset({"_open", "call_method", "_walked"})
"""The functions of `capture` that run a piece of the model's code."""
_OF_SAMPLES = tuple(getattr(nn, name) for name in ("LayerNorm", "GroupNorm", "RMSNorm") if hasattr(nn, name))
NORMS = (*_OF_SAMPLES, nn.modules.batchnorm._NormBase)
"""Norms of torch: those of a sample, and those of a batch or with stored statistics."""
_OURS = ("reptool.blocks", "reptool.demo")
_VALUES = re.compile(r"Value\(\w+\)")


def frame_of(event: Event) -> Frame | None:
    """The code that runs an operation right now: the method of `event`, or whatever of the user's that it called.

    None where torch itself does (an `nn.Sequential` calling its modules).
    """
    frame: Any = sys._getframe(2)
    innermost: Any = None
    own = _codes(inspect.getattr_static(type(event.module), event.method, None))
    while frame is not None:
        home = str(frame.f_globals.get("__name__"))
        if home == "reptool.capture.tracer" and frame.f_code.co_name in _CALLS:
            break
        if not _is_machinery(home):
            if frame.f_code in own:
                return frame.f_code, frame.f_lasti
            innermost = innermost or frame
        frame = frame.f_back
    return None if innermost is None else (innermost.f_code, innermost.f_lasti)


@functools.lru_cache(maxsize=4096)
def _codes(method: Any) -> frozenset[CodeType]:
    """The code of a method, and of what it wraps."""
    return frozenset(f.__code__ for f in behind(method))


@functools.lru_cache(maxsize=4096)
def _is_machinery(home: str) -> bool:
    """Whether a module is one of torch or of this library, and none that holds a network."""
    if home.startswith("reptool"):
        return not home.startswith(_OURS)
    return home.partition(".")[0] == "torch"


def line_of(node: fx.Node) -> str:
    """``file:line`` of the code in which an operation stands; '' where torch's own code runs it."""
    frame = node.meta.get("frame")
    return "" if frame is None else file_line(*frame)


@functools.lru_cache(maxsize=4096)
def file_line(code: CodeType, offset: int) -> str:
    """``file:line`` of an instruction; the file as it is imported.

    >>> file_line(file_line.__wrapped__.__code__, -1).partition(":")[0]
    'reptool/pysource/places.py'
    """
    line = next((n for a, b, n in code.co_lines() if a <= offset < b and n), code.co_firstlineno)
    return f"{_shortened(code.co_filename)}:{line}"


def method_of(place: str, cls: type, name: str) -> str:
    """A method of the module at a place, with the line of its definition."""
    function = inspect.getattr_static(cls, name, None)
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return f"{place or '<root>'}.{name}{'' if code is None else f' ({file_line(code, -1)})'}"


@functools.lru_cache(maxsize=1024)
def _shortened(name: str) -> str:
    """A file's name from the folder on from which it is imported, or in which Python runs."""
    folders = [os.path.abspath(p) for p in (*sys.path, os.curdir)]
    found = max((p for p in folders if name.startswith(p + os.sep)), key=len, default="")
    return name[len(found) + 1 :] if found else name if name.startswith("<") else os.path.basename(name)


def called(node: fx.Node) -> str:
    """The path of the module that a node calls, in the whole model."""
    *_, top = node.meta["event"].ancestors()
    return ".".join(p for p in (top.prefix, str(node.target)) if p) or "<root>"


def place_of(node: fx.Node) -> str:
    """The module that a node calls, or the one in whose code it stands with the function that it calls."""
    node = node.meta.get("share_of", node)
    if node.op == "call_module":
        return called(node)
    event = node.meta.get("event")
    if event is None:
        return f"<root>: {function_of(node)}"
    if isinstance(event.module, NORMS) and name_of(node).endswith("_norm"):
        return event.place  # a norm of somebody's own, which does more than its norm
    return f"{event.place}: {function_of(node)}"


def norms_read(node: fx.Node) -> list[str]:
    """The norms that hold what an operation's constants are made of."""
    event = node.meta.get("event")
    if event is None:
        return []
    *_, top = event.ancestors()
    found: dict[str, None] = {}
    stack, seen = [n for n in node.all_input_nodes if n.meta["const"]], set[fx.Node]()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        stack += [i for i in n.all_input_nodes if i.meta["const"]]
        owner = str(n.target).rpartition(".")[0]
        if n.op == "get_attr" and _is_held(n) and isinstance(_module_at(top.module, owner), NORMS):
            found[".".join(p for p in (top.prefix, owner) if p) or "<root>"] = None
    return list(found)


def _module_at(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; None in a graph that came without modules."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def placed(graph: fx.Graph, refusals: Iterable[Refusal]) -> list[Refusal]:
    """Refusals that name nodes of a graph, naming places of the user's code instead.

    Where an operation computes with what a norm holds, that norm is named as well.
    """
    known = {n.name: n.meta.get("share_of", n) for n in graph.nodes}
    out = []
    for refusal in refusals:
        nodes = [known.get(n) for n in refusal.nodes]
        names = [n if node is None else place_of(node) for n, node in zip(refusal.nodes, nodes, strict=True)]
        lines = ["" if n is None else line_of(n) for n in nodes]
        norms = [p for n in nodes if n is not None for p in norms_read(n) if p not in names]
        out.append(refusal.at(*names, *norms, lines=(*lines, *[""] * len(norms))))
    return out


def function_of(node: fx.Node) -> str:
    """What a node does, by the name of the function or operator."""
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "return"
    if node.op == "get_attr":
        return str(node.target)
    return str(node.args[1]) if node.target is getattr else name_of(node)


def named(node: fx.Node) -> str:
    """A value in a sentence: the module it comes from, the argument it is, or what computes it and where."""
    node = node.meta.get("share_of") or node.meta.get("kept") or node
    if node.op == "placeholder":
        return f"the input {_argument(node)!r}"
    if node.op == "output":
        return f"the output of {_prefix(node)!r}" if _prefix(node) else "the model's output"
    if node.op == "call_module":
        return repr(called(node))
    if node.op == "get_attr":
        return repr(".".join(p for p in (_prefix(node), str(node.target)) if p)) if _is_held(node) else "a constant"
    asked = _asked_of(node)
    if asked is not None:
        return f"the {asked[0]} of {named(asked[1])}"
    line = line_of(node)
    return f"{function_of(node)} ({line or node.meta['event'].place})"


def seen_in(node: fx.Node) -> str:
    """The method in which an operation stands, with the line."""
    line = line_of(node)
    return f"{node.meta['event'].function}{f' ({line})' if line else ''}"


def listed(nodes: Iterable[fx.Node], most: int = 3) -> str:
    """Readers of a value in a sentence: ``'a', 'b', 'c' and 2 more``; code outside of the graph if there are none."""
    names = list(dict.fromkeys(map(_who, nodes)))
    if not names:
        return "code that is handed the value"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _who(node: fx.Node) -> str:
    """Whoever reads a value: the module, what it does there, and the line."""
    if node.op == "output":
        return named(node)
    line = line_of(node)
    who = repr(called(node)) if node.op == "call_module" else place_of(node)
    return f"{who} ({line})" if line else who


def _is_held(node: fx.Node) -> bool:
    return not str(node.target).startswith("_constant")


def _prefix(node: fx.Node) -> str:
    event = node.meta.get("event")
    *_, top = event.ancestors() if event is not None else (None,)
    return "" if top is None else top.prefix


def _asked_of(node: fx.Node) -> tuple[str, fx.Node] | None:
    """The property of a value that a node holds, and the value."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target is getattr:
        return str(node.args[1]), source
    if node.op == "call_method" and is_size_like(node) and not is_size_like(source):
        return str(node.target), source
    if name_of(node) == "getitem" and is_size_like(source):
        return _asked_of(source)
    return None


def _argument(node: fx.Node) -> str:
    """The name under which the code takes an input."""
    event: Event | None = node.meta.get("event")
    try:
        assert event is not None
        signature = inspect.signature(getattr(type(event.module), event.method))
        bound = signature.bind(event.module, *event.args, **event.kwargs)
    except Exception:  # a forward without a signature
        return str(node.target)
    return next((k for k, v in bound.arguments.items() if any(n is node for n in nodes_in(v))), str(node.target))


def asked(question: Question) -> str:
    """What a question asks for, in a sentence: ``the length of the input 'x'``."""
    if question.what == "errors":
        return "whether something raises"
    if question.what == "own state":
        return "its own state" if question.node == "<root>" else f"its own state ({question.node})"
    if question.what == "mode":
        return f"the mode that torch.{question.node}() tells"
    of = repr(question.node) if question.at is None else named(question.at)
    if question.what == VALUE:
        return f"the value of {of}"
    return f"the {question.what} of {of}"


def said(error: BaseException) -> str:
    """The first line of an error of the user's code, without names of symbolic values."""
    own = isinstance(error, (Unanswerable, CaptureLimitError))
    text = _VALUES.sub("a tensor", str(error) if own else f"{type(error).__name__}: {error}")
    return text.splitlines()[0][:200]
