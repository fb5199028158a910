"""Printing: a small graph as the Python source of one function, in the forms that `torch.jit.script` reads as well."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Iterable
from typing import Any

from torch import fx
from torch.fx.graph import inplace_methods, magic_methods

from reptool.rewrite.constants import CannotCutError, Constants
from reptool.runtime.containers import Template, filled, read_key


def read_item(value: Any, key: Any) -> Any:
    """Read one element of a call's result, or of an argument: printed as a subscript."""
    return value[key]


class Printer:
    """Prints the body of a function from a graph.

    Args:
        graph: its placeholders are the parameters; modules and attributes are read from ``self``.
        header: names of all parameters.
        constants: the table of the function.
    """

    def __init__(self, graph: fx.Graph, header: Iterable[str], constants: Constants) -> None:
        self.graph, self.constants = graph, constants
        self.taken = {"self", *header}
        self.names: dict[fx.Node, str] = {}
        self.last = {n: user for user in graph.nodes for n in user.all_input_nodes}

    def body(self) -> list[str]:
        """The statements."""
        lines: list[str] = []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = str(node.target)
            elif node.op == "output":
                lines.append(f"    return {self.text(node.args[0])}")
            else:
                lines += [f"    {line}" for line in self._statement(node)]
        return lines

    # --- statements
    def _statement(self, node: fx.Node) -> list[str]:
        name = str(getattr(node.target, "__name__", ""))
        if node.op == "call_function" and node.target is operator.setitem:
            target, key, value = node.args
            self.names[node] = self.text(target)
            return [f"{self.text(target)}[{self._key(key)}] = {self.text(value)}"]
        if node.op == "call_function" and node.target is getattr(operator, name, None) and name in inplace_methods:
            target, value = node.args
            self.names[node] = self.text(target)
            return [inplace_methods[name].format(self.text(target), self.text(value))]
        text = self._expression(node)
        if not node.users:
            return [text]
        self.names[node] = self._name(node)
        return [f"{self.names[node]} = {text}"]

    def _name(self, node: fx.Node) -> str:
        """The name of a tensor that is read here for the last time, so that it is freed; otherwise a new one."""
        if node.meta.get("kind") == "tensor":
            for read in node.all_input_nodes:
                free = self.last[read] is node and read.op != "placeholder" and read.meta.get("kind") == "tensor"
                if free and sum(name == self.names[read] for name in self.names.values()) == 1:
                    return self.names.pop(read)
        name, count = node.name, 0
        while name in self.taken:
            count += 1
            name = f"{node.name}_{count}"
        self.taken.add(name)
        return name

    # --- expressions
    def _expression(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return path_text(str(node.target))
        if node.op == "call_module":
            return f"{path_text(str(node.target))}({self._arguments(node.args, node.kwargs)})"
        if node.op == "call_method":
            owner, *rest = node.args
            read = f"{self.text(owner)}.{node.target}" if str(node.target).isidentifier() else None
            if read is None:
                raise CannotCutError(f"it calls a method {node.target!r}")
            return f"{read}({self._arguments(rest, node.kwargs)})"
        return self._call(node)

    def _call(self, node: fx.Node) -> str:
        target, args = node.target, node.args
        name = getattr(target, "__name__", "")
        if target in (operator.getitem, read_item):
            return f"{self.text(args[0])}[{self._key(args[1])}]"
        if target is getattr and len(args) == 2 and _is_name(args[1]):
            return f"{self.text(args[0])}.{args[1]}"
        if target is getattr(operator, name, None) and name in magic_methods and not node.kwargs:
            return magic_methods[name].format(*(self._operand(a) for a in args))
        if target in (filled, read_key):
            return f"_{target.__name__}({self._arguments(args, node.kwargs)})"
        assert callable(target)
        return f"{self.constants.function(target)}({self._arguments(args, node.kwargs)})"

    def _arguments(self, args: Iterable[Any], kwargs: dict[str, Any]) -> str:
        if not all(map(_is_name, kwargs)):
            raise CannotCutError("it passes an argument whose name is no identifier")
        return ", ".join([*map(self.text, args), *(f"{k}={self.text(v)}" for k, v in kwargs.items())])

    def _operand(self, value: Any) -> str:
        """An argument beside an operator."""
        text = self.text(value)
        return f"({text})" if text.startswith(("-", "[", "{")) else text

    def _key(self, key: Any) -> str:
        """What stands between the brackets of a subscript."""
        if isinstance(key, slice):
            parts = ["" if v is None else self.text(v) for v in (key.start, key.stop, key.step)]
            return ":".join(parts if parts[2] else parts[:2])
        if type(key) is tuple and key:
            return ", ".join(map(self._key, key)) + "," * (len(key) == 1)
        return self.text(key)

    def text(self, value: Any) -> str:
        """A node by its name, a container by its parts, a constant as the table has it."""
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, Template):
            return self.constants.keep(value)
        if isinstance(value, slice) and any(isinstance(v, fx.Node) for v in (value.start, value.stop, value.step)):
            return f"slice({', '.join(map(self.text, (value.start, value.stop, value.step)))})"
        if isinstance(value, tuple) and hasattr(type(value), "_fields"):
            return f"{self.constants.keep(type(value), '_t')}({', '.join(map(self.text, value))})"
        if type(value).__name__ == "immutable_list" or type(value) is list:
            return f"[{', '.join(map(self.text, value))}]"
        if type(value).__name__ == "immutable_dict" or type(value) is dict:
            return "{" + ", ".join(f"{self.constants.text(k)}: {self.text(v)}" for k, v in value.items()) + "}"
        if type(value) is tuple:
            return f"({', '.join(map(self.text, value))}{',' * (len(value) == 1)})"
        return self.constants.text(value)


def path_text(path: str) -> str:
    """The expression that reads a dotted path from ``self``.

    >>> path_text("blocks.0.conv")
    "getattr(self.blocks, '0').conv"
    """
    text = "self"
    for part in path.split(".") if path else ():
        text = f"{text}.{part}" if _is_name(part) else f"getattr({text}, {part!r})"
    return text


def _is_name(name: Any) -> bool:
    return type(name) is str and name.isidentifier() and not keyword.iskeyword(name)
