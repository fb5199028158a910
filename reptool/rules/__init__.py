"""Rules of one's own: what a module or function computes (`lifts`), and rewrites of a network (`Rule`)."""

from reptool.algebra.kernel import Kernel as Kernel
from reptool.rules.carry_shortcut import CarryShortcut as CarryShortcut
from reptool.rules.drop_dead import DropDeadChannels as DropDeadChannels
from reptool.rules.lifting import Lift as Lift
from reptool.rules.lifting import lifts as lifts
from reptool.rules.maps import Conv as Conv
from reptool.rules.maps import Linear as Linear
from reptool.rules.maps import Scale as Scale
from reptool.rules.merge_siblings import MergeSiblings as MergeSiblings
from reptool.rules.positive_scale import PositiveScale as PositiveScale
from reptool.rules.reading import Value as Value
from reptool.rules.resampling.upsampling import SplitConcat as SplitConcat
from reptool.rules.resampling.upsampling import UpsampleLater as UpsampleLater
from reptool.rules.rule import Rule as Rule
from reptool.rules.rule import Site as Site
from reptool.rules.rule import chain as chain
from reptool.rules.rule import is_kind as is_kind

__all__ = [
    "CarryShortcut",
    "Conv",
    "DropDeadChannels",
    "Kernel",
    "Lift",
    "Linear",
    "MergeSiblings",
    "PositiveScale",
    "Rule",
    "Scale",
    "Site",
    "SplitConcat",
    "UpsampleLater",
    "Value",
    "chain",
    "is_kind",
    "lifts",
]
