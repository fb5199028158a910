"""Old addresses: pickles of reptool 0.1.0 name classes and functions where they were then."""

from __future__ import annotations

import sys
from types import ModuleType

from reptool.runtime import hooks, method, originals, subclass

_WAS = {
    "reptool.delivered": subclass,
    "reptool.kept": originals,
    "reptool.method_text": method,
    "reptool.rank_guard": hooks,
    "reptool.apply": hooks,
}


def keep_old_addresses() -> None:
    """Make `pickle` find what moved; a module that stands at an old address by now stays."""
    for name, home in _WAS.items():
        alias = ModuleType(name, f"Where pickles of reptool 0.1.0 look for what {home.__name__} holds.")
        held = vars(sys.modules.setdefault(name, alias))
        held.update({k: v for k, v in vars(home).items() if k not in held and not k.startswith("__")})
