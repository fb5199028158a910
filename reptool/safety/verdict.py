"""The verdict of the safety check: methods to add, and regions to give up."""

from __future__ import annotations

from dataclasses import dataclass, field

from reptool.plan.select import Region
from reptool.refusal import Code, Refusal
from reptool.runtime.method import Method
from reptool.surgery.site import Site


@dataclass
class Found:
    """What the safety check asks of a surgery.

    Args:
        problems: regions that must be given up.
        methods: module path -> methods that now check their flags or raise.
    """

    problems: dict[Region, Refusal] = field(default_factory=dict)
    methods: dict[str, dict[str, Method]] = field(default_factory=dict)


def between(site: Site, method: str) -> Refusal:
    """The refusal of a region of which other code gives a value from inside."""
    sentence = f"{method} gives a value between layers that would become one"
    return Refusal(Code.READ_ELSEWHERE, sentence, (site.region.value.name,))
