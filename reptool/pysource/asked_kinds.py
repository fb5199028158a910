"""Kind checks: a forward that asks what kind of module one of its layers is, or whether that layer has a bias.

A fused layer has a bias where the convolution had none, and an absorbed norm is no norm any more: code that asks gets
another answer. The text of the method shows it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any

from reptool.pysource.functions import definition_of

_TOLD = {"__class__", "elementwise_affine", "affine", "_parameters", "parameters", "named_parameters", "state_dict"}
"""Attributes that tell what kind of module it is, or which parameters it has."""
_LISTS = {"modules", "children", "named_modules", "named_children"}


@functools.lru_cache(maxsize=4096)
def asked_kinds(function: Callable[..., Any]) -> frozenset[str]:
    """Paths below the module, relative to it, of the modules that a method asks for their kind or their bias.

    Args:
        function: the method, as the class holds it.

    Returns:
        The paths; ``""`` among them where the method asks while it lists all modules.
    """
    tree = definition_of(function)
    if tree is None:
        return frozenset()
    first = [*tree.args.posonlyargs, *tree.args.args]
    own = first[0].arg if first else ""
    asked = [subject for node in ast.walk(tree) if (subject := _subject(node)) is not None]
    found = {path for subject in asked if (path := _path(subject, own))}
    unknown = any(isinstance(s, ast.Name) and s.id != own for s in asked)
    lists = any(isinstance(n, ast.Attribute) and n.attr in _LISTS for n in ast.walk(tree))
    return frozenset(found | ({""} if unknown and lists else set()))


def _subject(node: ast.AST) -> ast.expr | None:
    """What a node asks about: ``isinstance(m, ...)``, ``type(m)``, ``m.bias is None``, ``m.affine``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        told = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else None
        asks = node.func.id in ("isinstance", "type") or (node.func.id in ("getattr", "hasattr") and told in _TOLD)
        return node.args[0] if asks else None
    if isinstance(node, ast.Attribute) and node.attr in _TOLD:
        return node.value
    if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr in ("bias", "weight"):
        return node.left.value if isinstance(node.ops[0], (ast.Is, ast.IsNot)) else None
    return None


def _path(node: ast.expr, own: str) -> str:
    """The path that ``self.a.b[0]`` reads, '' for everything else."""
    parts: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            parts.append(str(node.slice.value))
            node = node.value
        else:
            return ""
    return ".".join(reversed(parts)) if node.id == own else ""
