"""Old addresses: pickles of earlier releases name classes and functions where they were then."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_WAS = {
    "reptool.delivered": ("reptool.runtime.subclass",),
    "reptool.kept": ("reptool.runtime.originals",),
    "reptool.method_text": ("reptool.runtime.method",),
    "reptool.rank_guard": ("reptool.runtime.hooks",),
    "reptool.apply": ("reptool.runtime.hooks",),
    "reptool._report": ("reptool.report.data",),
    "reptool.runtime.gate": ("reptool.runtime.gates.chain", "reptool.runtime.gates.gate"),
}
"""Where a module was, and where what pickles need of it is now."""


class _Moved(ModuleType):
    """A module at an old address, which looks a name up where it is now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        homes = map(importlib.import_module, _WAS[self.__name__])
        return next(getattr(home, name) for home in homes if hasattr(home, name))


def keep_old_addresses() -> None:
    """Make `pickle` find what moved."""
    for name, homes in _WAS.items():
        sys.modules.setdefault(name, _Moved(name, f"Where pickles of earlier releases look for what {homes[0]} holds."))
