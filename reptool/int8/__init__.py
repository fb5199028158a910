"""What 8 bits keep of collapsed layers: their ranges, and a rewrite that makes them alike."""

from reptool.int8.equalize import equalize as equalize
from reptool.int8.ranges import Range as Range
from reptool.int8.ranges import ranges as ranges
from reptool.int8.ranges import spread as spread

__all__ = ["Range", "equalize", "ranges", "spread"]
