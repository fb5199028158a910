"""reptool: structural re-parameterization for PyTorch. Train with branches, ship plain convolutions, exactly."""

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
from reptool.plan.rules import RULES as RULES
from reptool.programs.onnx import save_onnx as save_onnx
from reptool.refocus import Refocusing as Refocusing
from reptool.refusal import Code as Code
from reptool.refusal import Refusal as Refusal
from reptool.report.data import Report as Report
from reptool.rules.lifting import lifts as lifts
from reptool.runtime.gates.release import release as release
from reptool.runtime.legacy import keep_old_addresses
from reptool.ship.export import Exported as Exported
from reptool.ship.export import export as export
from reptool.ship.saving import load as load
from reptool.ship.saving import save as save

keep_old_addresses()

__version__ = "0.1.0"
__all__ = [
    "RULES",
    "Code",
    "Expansion",
    "Exported",
    "Refocusing",
    "Refusal",
    "Report",
    "ReptoolError",
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
    "save_onnx",
]
