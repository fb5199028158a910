"""Growing blocks into a model that exists: `expand`, its report, and what a block must say about itself."""

from reptool.expansion.blocks.adapter import Adapter as Adapter
from reptool.expansion.blocks.table import adapter_for as adapter_for
from reptool.expansion.report import Expansion as Expansion
from reptool.expansion.report import expansion_report as expansion_report
from reptool.expansion.run import expand as expand

__all__ = ["Adapter", "Expansion", "adapter_for", "expand", "expansion_report"]
