"""A graph that came without Python code as a `Trace`: whoever reads it gives its operations one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from reptool.capture.graph_builder import Writing
from reptool.ir.spec import check_trace
from reptool.ir.trace import Event, Trace

Stated: TypeAlias = "tuple[int, dict[str, int]]"
"""A size as a number times powers of sizes that are not known, by their names."""


class Untouched:
    """An operation that nothing is known of but the values that it reads.

    Args:
        name: what messages call it.
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: Any) -> Any:
        """Say that this operation is not run."""
        raise NotImplementedError(f"{self.__name__} is not run")


class GraphTrace(Writing):
    """Builds the trace of a graph; every call of it is one operation, in the order in which they run."""

    def __init__(self) -> None:
        super().__init__(nn.Module())
        self.top = Event(self.root, "", "forward", None)
        self.stack = [self.top]
        self.knows_inputs, self.guarded = True, False

    def input(self, name: str, value: Any, kind: str = "tensor", sizes: Sequence[Stated] | None = None) -> fx.Node:
        """A value that is given at every call; `value` is a fake of it, None where nothing is known."""
        node = self.graph.create_node("placeholder", name)
        node.meta.update(event=self.top, const=False, kind=kind)
        if sizes is not None:
            node.meta["sizes"] = tuple(sizes)
        return self._known(node, value)

    def constant(self, path: str, tensor: Tensor) -> fx.Node:
        """A parameter, buffer or constant."""
        return self.params.get(id(tensor)) or self._get_attr(path, tensor)

    def call(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, kind: str = "tensor",
        value: Any = None, path: str = "", sizes: Sequence[Stated] | None = None,
    ) -> fx.Node:  # fmt: skip
        """One operation.

        Args:
            function: what is called, of which `lift` knows the name.
            args: its arguments, values as nodes.
            kwargs: its keyword arguments.
            kind: ``"tensor"``, ``"number"``, ``"sequence"`` or ``"unknown"``: what it gives.
            value: a fake of what it gives, None where nothing is known.
            path: the module in whose code it stood.
            sizes: those of its axes (of a number: the number), as they are at every call.
        """
        self.stack = [self.top, self._event(path)]
        node = self.emit("call_function", function, tuple(args), kwargs, kind).node
        self.stack = [self.top]
        node.meta["frame"] = None
        if sizes is not None:
            node.meta["sizes"] = tuple(sizes)
        return node if node.meta["const"] else self._known(node, value)

    def _event(self, path: str) -> Event:
        """The call of a module in which an operation stands; it ends where another module's begins."""
        last = self.top.items[-1] if self.top.items else None
        if not path or (isinstance(last, Event) and last.path == path):
            return last if path and isinstance(last, Event) else self.top
        self.top.items.append(Event(self.root, path, "forward", self.top))
        return self._event(path)

    def size(self, value: fx.Node, axis: int, known: Any = None) -> fx.Node:
        """The size of a value along an axis; `known` is what it is, None where that is not known."""
        return self._known(self.emit("call_method", "size", (value, axis), {}, "number").node, known)

    def untouched(
        self, name: str, values: Iterable[fx.Node], *, kind: str = "unknown", value: Any = None,
        sizes: Sequence[Stated] | None = None,
    ) -> fx.Node:  # fmt: skip
        """An operation that stays as it is."""
        node = self.call(Untouched(name), tuple(dict.fromkeys(values)), {}, kind=kind, sizes=sizes)
        node.meta["const"] = False
        return self._known(node, value)

    def done(self, outputs: Iterable[fx.Node]) -> Trace:
        """The trace, all of whose values in `outputs` somebody reads."""
        wanted = list(dict.fromkeys(outputs))
        end = self.graph.output(tuple(wanted))
        end.meta.update(event=self.top, const=False, kind="output")
        self.over = True
        return check_trace(Trace(self.root, "", self.graph, self.top, wanted, set(), {}, {}, True))

    def fake(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """A tensor without data."""
        with self.known.fake_mode():
            return torch.empty(tuple(shape), dtype=dtype, device=device)

    def _known(self, node: fx.Node, value: Any) -> fx.Node:
        if value is not None:
            self.known.fakes[node] = value
        return node
