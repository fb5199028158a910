"""Reach: which modules that a surgery changes the code of a method may use, by the names it reads."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from reptool.safety.changed import Changed, may_use
from reptool.safety.names_read import Loads, loads
from reptool.surgery.site import Site


class Reach:
    """What methods read, remembered by class and name."""

    def __init__(self) -> None:
        self._loads: dict[Any, Loads] = {}

    def loads_of(self, cls: type, name: str, judged: frozenset[str] = frozenset()) -> Loads:
        """Names read by a method and the methods of its class that it calls, apart from those `judged` elsewhere."""
        key = (cls, name, judged)
        if key not in self._loads:
            whole = Loads()
            queue, seen = [name], {name}
            while queue:
                function = inspect.getattr_static(cls, queue.pop(), None)
                if isinstance(function, property):
                    function = function.fget
                if not inspect.isfunction(function):
                    continue
                one = loads(function)
                whole.join(one)
                for called in one.own - seen - judged:
                    if inspect.getattr_static(cls, called, None) is not None and not hasattr(nn.Module, called):
                        seen.add(called)
                        queue.append(called)
            self._loads[key] = whole
        return self._loads[key]

    def reached(self, state: Changed, at: str, read: Loads) -> list[Site]:
        """Sites whose modules the code of the module at `at` may use one by one (`at` relative, "" the root)."""
        lead = f"{at}." if at else ""
        sites = state.inside.get(at, ())
        return [s for s in sites if any(may_use(p, lead, state, read) for p in state.paths[s])]
