"""Fake evaluation: shapes and dtypes of the values of a trace, and the values of its constants, without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.capture.evaluation.on_meta import runs_stock_code, without_mode
from reptool.ir.kinds.casts import is_cast, is_made_like, unknown
from reptool.ir.trace import Unanswerable
from reptool.ir.walk import nodes_in
from reptool.models.as_given import put_back
from reptool.pysource.places import named


class Evaluation:
    """Values of nodes: real ones of constants, fakes of what depends on the inputs.

    Args:
        root: the module whose submodules the nodes call.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.real: dict[fx.Node, Any] = {}
        self.fakes: dict[fx.Node, Any] = {}
        self.taken: set[fx.Node] = set()  # constants cast to a dtype that is not known: taken for one of it

    def of(self, wanted: fx.Node) -> Any:
        """The value of a node, worked out from the nodes it is made of."""
        todo = [wanted]
        while todo:
            node = todo[-1]
            memo = self.real if node.meta["const"] else self.fakes
            if node in memo:
                todo.pop()
                continue
            if is_made_like(node) and not self._casts(node):
                todo += self._made_alone(node)
                continue
            if is_cast(node) and not self._casts(node):
                self.taken.add(node)
                source = node.all_input_nodes[0]
                if source not in self.real:
                    todo.append(source)
                else:
                    self.real[node] = unknown(self.real[source])
                continue
            if node.target is getattr and not node.meta["const"] and self._is_taken(node.args[0]):
                raise Unanswerable(
                    f"nothing is known of the dtype of {named(node.all_input_nodes[0])}: give example_inputs"
                )
            missing = [n for n in node.all_input_nodes if n not in self.real and n not in self.fakes]
            if missing:
                todo += missing
                continue
            if node.op == "placeholder":
                raise Unanswerable(f"nothing is known of {named(node)}: give example_inputs")
            todo.pop()
            known = {**{n: self._seen(n, node) for n in node.all_input_nodes}}
            args, kwargs = (fx.node.map_arg(a, known.__getitem__) for a in (node.args, node.kwargs))
            with torch.no_grad():
                if node.meta["const"]:
                    memo[node] = self.run(node, args, kwargs)
                else:
                    memo[node] = self._faked(node, args, kwargs)
        return self.real[wanted] if wanted.meta["const"] else self.fakes[wanted]

    def _faked(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """What a node gives for fakes."""
        mode = self.fake_mode()
        found = without_mode(node, args, kwargs, lambda a, k: self.run(node, a, k), mode)
        if found is NotImplemented:
            with mode:
                found = self.run(node, args, kwargs)
        return found

    def _made_alone(self, node: fx.Node) -> list[fx.Node]:
        """Make a constant of the default dtype, since nobody knows what it is made like; what is missing for it."""
        self.taken.add(node)
        alone = {k: v for k, v in node.kwargs.items() if not isinstance(v, fx.Node) or v.meta["const"]}
        missing = [n for n in nodes_in((node.args, alone)) if n not in self.real]
        if not missing:
            self.real[node] = self.run(node, *(fx.node.map_arg(a, self._real) for a in (node.args, alone)))
        return missing

    def _casts(self, node: fx.Node) -> bool:
        """Whether it is known what a cast casts to."""
        if node in self.taken:
            return False
        try:
            for like in node.all_input_nodes:
                if not like.meta["const"]:
                    self.of(like)
        except Exception:  # an input nobody knows, or an operation that no fake can run
            return False
        return True

    def _is_taken(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and bool(node.meta.get("cast")) and bool(self.taken)

    def _seen(self, node: fx.Node, by: fx.Node) -> Any:
        value = self.real[node] if node in self.real else self.fakes[node]
        if isinstance(value, Tensor) and by.meta["const"] and by.op == "call_method" and str(by.target).endswith("_"):
            return value.clone()
        return value

    def _real(self, node: fx.Node) -> Any:
        return self.real[node]

    def run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """What one node computes from these values."""
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return _run(self.root.get_submodule(str(node.target)), args, kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def fake_mode(self) -> Any:
        """The mode in which fakes compute."""
        if not hasattr(self, "_mode"):
            from torch._subclasses.fake_tensor import FakeTensorMode

            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        return self._mode


def _run(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """What a module gives. It keeps nothing of the run: a fake in it would be copied with all that its mode holds."""
    if runs_stock_code(module):
        return module(*args, **kwargs)
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        restore = put_back(module)
    try:
        return module(*args, **kwargs)
    finally:
        if restore is not None:
            with unset_fake_temporarily():
                restore()
