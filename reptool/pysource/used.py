"""Used modules: those that code runs, hands on or reads tensors of by themselves, and not as parts of others.

The text is run on sets of the model's own modules: an attribute of a module is the part of that name, an item of a
container any of its parts, a name whatever is bound to it anywhere. ``for layer in self.layers: x = layer(x)`` uses the
layers and nothing inside of them. What is found is not all that code may do; the gates see to the rest.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Iterable, Iterator
from types import FunctionType
from typing import TypeGuard

from torch import nn

from reptool.pysource.functions import run_by, tree_of

_SAME = frozenset({"list", "tuple", "set", "dict", "sorted", "reversed", "iter", "enumerate", "zip", "next"})
_LOOKS = frozenset({"isinstance", "hasattr", "getattr", "id", "type", "len", "str", "repr", "print", "bool"})
_LISTS = frozenset({"children", "named_children", "values", "items"})
_TENSORS = frozenset({"parameters", "named_parameters", "buffers", "named_buffers", "state_dict"})
_FACTS = frozenset({"shape", "dtype", "device", "ndim", "size", "dim", "numel", "is_cuda", "requires_grad"})
"""What may be asked of a tensor."""


def used(method: str, module: nn.Module, judged: Collection[str] = (), calls: bool = True) -> set[nn.Module]:
    """Modules that a method uses by themselves, with the methods of the module that it names.

    Args:
        method: its name.
        module: whose method it is.
        judged: names of methods that are not followed.
        calls: whether to call a module is a use of it.

    Example:
        >>> class Net(nn.Sequential):
        ...     def every(self, x):
        ...         for layer in self:
        ...             x = layer(x)
        ...         return x
        >>> net = Net(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
        >>> used("every", net) == {net[0], net[1]}
        True
    """
    found: set[nn.Module] = set()
    queue, seen = [method], {method, *judged}
    while queue:
        name = queue.pop()
        members = [vars(c)[name] for c in type(module).__mro__ if name in vars(c) and c is not nn.Module]
        for function in (f for m in members for f in run_by(m)):
            text = _Text(function, module)
            found |= text.uses(calls)
            named = {n for n in text.attributes() if not hasattr(nn.Module, n)} - seen
            queue += named
            seen |= named
    return found


def lists_tensors(method: str, module: nn.Module) -> bool:
    """Whether a method gets at all tensors below the module at once; one that asks the first for its dtype does not."""
    return any(_Text(f, module).lists() for f in run_by(getattr(type(module), method)))


class _Text:
    """The text of one function, run on the parts of a module."""

    def __init__(self, function: FunctionType, module: nn.Module) -> None:
        tree = tree_of(function)
        self.module, self.known = module, tree is not None
        self.nodes = list(ast.walk(tree)) if tree is not None else []
        self.parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}
        first = [*inspect.signature(function, follow_wrapped=False).parameters][:1]
        self.names: dict[str, set[nn.Module]] = {n: {module} for n in first}
        count = -1
        while count != (count := sum(map(len, self.names.values()))):
            for node in self.nodes:
                self._bind(node)

    def attributes(self) -> Iterator[str]:
        """Names of all attributes."""
        return (n.attr for n in self.nodes if isinstance(n, ast.Attribute))

    def uses(self, calls: bool) -> set[nn.Module]:
        """Modules that are called, handed on, kept or given back, or whose tensors are read."""
        if not self.known:
            return set(self.module.modules())
        found = {m for n in self.nodes if isinstance(n, ast.expr) and self._is_used(n, calls) for m in self._value(n)}
        found -= {self.module}
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and getattr(self.parents[node], "attr", "") not in _FACTS:
                found |= {m for m in self._value(node.value) if node.attr in {**m._parameters, **m._buffers}}
        return found

    def lists(self) -> bool:
        """Whether tensors are listed, but for the first of them."""
        listed = [n for n in self.nodes if isinstance(n, ast.Attribute) and n.attr in _TENSORS]
        return not self.known or any(not self._is_first(n) for n in listed)

    def _is_first(self, node: ast.AST) -> bool:
        """Whether code takes the first of what is listed, or of what it asks each for its device or dtype."""
        call = self.parents[node]
        above = self.parents[call]
        if isinstance(above, ast.comprehension):
            call = self.parents[above]
            if not (isinstance(call, ast.GeneratorExp) and getattr(call.elt, "attr", "") in _FACTS):
                return False
            above = self.parents[call]
        return isinstance(above, ast.Call) and getattr(above.func, "id", "") == "next"

    # --- values
    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign | ast.NamedExpr | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = self._value(node.value) if node.value is not None else set()
            for target in targets:
                self._name(target, _items(value) if isinstance(target, ast.Tuple) else value)
        elif isinstance(node, ast.For | ast.comprehension):
            listed = node.iter.value if _is_slice(node.iter) else node.iter
            self._name(node.target, _items(self._value(listed)))

    def _name(self, target: ast.expr, value: set[nn.Module]) -> None:
        for name in ast.walk(target):
            if value and isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                self.names.setdefault(name.id, set()).update(value)

    def _value(self, node: ast.AST) -> set[nn.Module]:
        """The modules that an expression may hold."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, set())
        if isinstance(node, ast.Attribute):
            own = {"forward", "_modules"}
            return {p for m in self._value(node.value) for n, p in [*m._modules.items(), *((o, m) for o in own)]
                    if p is not None and n == node.attr}  # fmt: skip
        if isinstance(node, ast.Subscript):
            found = self._value(node.value)
            return found | _items(found) if _is_slice(node) else _items(found)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                return self._value(node.func.value) if node.func.attr in _LISTS else set()
            found = {m for a in node.args for m in self._value(a)}
            name = getattr(node.func, "id", "")
            return _items(found) if name == "next" else found if name in _SAME else set()
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            return self._value(node.elt)
        if isinstance(node, ast.IfExp | ast.BoolOp | ast.Tuple | ast.List | ast.Starred):
            return {m for part in ast.iter_child_nodes(node) for m in self._value(part)}
        return set()

    def _is_used(self, node: ast.expr, calls: bool) -> bool:
        above = self.parents[node]
        if isinstance(above, ast.Call):
            known = getattr(above.func, "id", "") in _SAME | _LOOKS
            return calls if above.func is node else not known
        return isinstance(above, ast.keyword | ast.Return | ast.Yield | ast.Dict | ast.BinOp)


def _is_slice(node: ast.AST) -> TypeGuard[ast.Subscript]:
    """Whether a part of a container is taken, which runs its modules one by one."""
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice)


def _items(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """The parts of containers; what is no container stays, since a list of modules holds it."""
    kinds = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return {p for m in modules for p in (m.children() if isinstance(m, kinds) or hasattr(m, "__iter__") else [m])}
