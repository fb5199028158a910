"""reptool: structural re-parameterization for PyTorch. Train with branches, ship plain convolutions, exactly.

What a name stands for is imported when it is first asked for, so that ``import reptool`` takes no time.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from reptool.runtime.legacy import keep_old_addresses

if TYPE_CHECKING:
    from reptool.api.deploy import deploy as deploy
    from reptool.api.deploy import explain as explain
    from reptool.api.reporting import report as report
    from reptool.errors import ReptoolError as ReptoolError
    from reptool.expansion import Expansion as Expansion
    from reptool.expansion import expand as expand
    from reptool.expansion import expansion_report as expansion_report
    from reptool.name_maps import load_deployed as load_deployed
    from reptool.norms import insert_norms as insert_norms
    from reptool.norms import is_deployed as is_deployed
    from reptool.passes import compile_pass as compile_pass
    from reptool.plan.cost import Costs as Costs
    from reptool.plan.rules import RULES as RULES
    from reptool.refocus import Refocusing as Refocusing
    from reptool.refusal import Code as Code
    from reptool.refusal import Refusal as Refusal
    from reptool.report.data import Report as Report
    from reptool.rules.lifting import lifts as lifts
    from reptool.runtime.gates.release import release as release
    from reptool.ship.export import Exported as Exported
    from reptool.ship.export import export as export
    from reptool.ship.saving import load as load
    from reptool.ship.saving import save as save
    from reptool.switch import to_linear as to_linear
    from reptool.switch import to_pointwise as to_pointwise

__version__ = "0.1.0"
__all__ = [
    "RULES",
    "Code",
    "Costs",
    "Expansion",
    "Exported",
    "Refocusing",
    "Refusal",
    "Report",
    "ReptoolError",
    "compile_pass",
    "deploy",
    "expand",
    "expansion_report",
    "explain",
    "export",
    "insert_norms",
    "is_deployed",
    "lifts",
    "load",
    "load_deployed",
    "release",
    "report",
    "save",
    "to_linear",
    "to_pointwise",
]

_HOMES = {
    "Code": "refusal",
    "Expansion": "expansion",
    "Exported": "ship.export",
    "RULES": "plan.rules",
    "Costs": "plan.cost",
    "Refocusing": "refocus",
    "Refusal": "refusal",
    "Report": "report.data",
    "ReptoolError": "errors",
    "compile_pass": "passes",
    "deploy": "api.deploy",
    "expand": "expansion",
    "expansion_report": "expansion",
    "explain": "api.deploy",
    "export": "ship.export",
    "insert_norms": "norms",
    "is_deployed": "norms",
    "lifts": "rules.lifting",
    "load": "ship.saving",
    "load_deployed": "name_maps",
    "release": "runtime.gates.release",
    "save": "ship.saving",
    "to_linear": "switch",
    "to_pointwise": "switch",
}


class _Package(ModuleType):
    @property
    def report(self) -> Any:
        """The function; the import of the subpackage of this name does not hide it."""
        return vars(self).get("_report") or import_module("reptool.api.reporting").report

    @report.setter
    def report(self, value: Any) -> None:
        if not isinstance(value, ModuleType):
            vars(self)["_report"] = value

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            vars(self)[name] = getattr(import_module(f"reptool.{_HOMES[name]}"), name)
            return vars(self)[name]
        if not name.startswith("__") and find_spec(f"reptool.{name}") is not None:
            return import_module(f"reptool.{name}")
        raise AttributeError(f"module 'reptool' has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*__all__, *vars(self)})


sys.modules[__name__].__class__ = _Package
keep_old_addresses()
