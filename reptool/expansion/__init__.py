"""Growing blocks into a model that exists: `expand`, its report, and what a block must say about itself."""

from .adapter import Adapter as Adapter
from .adapters import adapter_for as adapter_for
from .report import Expansion as Expansion
from .report import expansion_report as expansion_report
from .run import expand as expand

__all__ = ["Adapter", "Expansion", "adapter_for", "expand", "expansion_report"]
