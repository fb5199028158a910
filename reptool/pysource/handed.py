"""Arguments that a method only hands on to modules of its own: it does not see what they are."""

from __future__ import annotations

import ast

from torch import nn

from reptool.pysource.functions import behind, definition_of

_STOCK = (nn.Sequential.forward, nn.Identity.forward)


def only_hands_on(module: nn.Module, method: str, position: int) -> bool:
    """Whether a method does nothing with an argument but to give it to modules of its own.

    Args:
        module: whose method it is.
        method: its name.
        position: of the argument.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(3, 3, 1)
        ...     def forward(self, x):
        ...         return self.conv(x).relu()
        ...     def other(self, x):
        ...         return self.conv(x) if isinstance(x, list) else x
        >>> only_hands_on(Block(), "forward", 0), only_hands_on(Block(), "other", 0)
        (True, False)
    """
    function = getattr(type(module), method, None)
    if function is None or method in vars(module):
        return False
    if function in _STOCK:
        return position == 0
    tree = definition_of(function) if len(behind(function)) == 1 else None
    if tree is None or tree.args.vararg is not None or tree.args.kwarg is not None:
        return False
    own, *names = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)]
    if position >= len(names):
        return False
    handed = {
        id(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and len(call.args) == 1 and not call.keywords and _is_part(call.func, own, module)
    }
    written = {id(n.target) for n in ast.walk(tree) if isinstance(n, ast.AugAssign)}
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == names[position]]
    return all(id(n) in handed for n in uses if not isinstance(n.ctx, ast.Store) or id(n) in written)


def _is_part(called: ast.expr, own: str, module: nn.Module) -> bool:
    """Whether what is called is a module that the module holds."""
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name) or called.value.id != own:
        return False
    return called.attr in module._modules
