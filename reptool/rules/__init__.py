"""Rules of one's own: what a module or function computes (`lifts`)."""

from reptool.algebra.kernel import Kernel as Kernel
from reptool.rules.lifting import Lift as Lift
from reptool.rules.lifting import lifts as lifts
from reptool.rules.maps import Conv as Conv
from reptool.rules.maps import Linear as Linear
from reptool.rules.maps import Scale as Scale
from reptool.rules.reading import Value as Value

__all__ = ["Conv", "Kernel", "Lift", "Linear", "Scale", "Value", "lifts"]
