"""What users' lifts say of the calls of one model, each asked and tested once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.algebra.kernel import Kernel
from reptool.errors import RegionWarning, ReptoolError, RuleError, warn
from reptool.ir.ops import Affine
from reptool.lift.reading import Lifted
from reptool.models.copies import full_copy
from reptool.probing.stated import check_stated
from reptool.pysource.places import place_of
from reptool.refusal import Code, Refusal
from reptool.rules.lifting import Lift
from reptool.rules.maps import Scale, as_kernel


class Unknown(Exception):
    """A rule asked for something that is not known of a value."""


class Value:
    """The data that an operation reads, as a rule sees it.

    Args:
        rank: number of dimensions, None when unknown.
        channels: gives the size of the axis with so many axes behind it, None when unknown.
    """

    def __init__(self, rank: int | None, channels: Callable[[int], int | None]) -> None:
        self._rank, self._channels = rank, channels

    @property
    def axes(self) -> int:
        """Axes behind the channels, for a value with a batch: 2 for images."""
        if self._rank is None:
            raise Unknown("how many axes its input has is not known; give example_inputs")
        return self._rank - 2

    @property
    def channels(self) -> int:
        """Size of the second axis."""
        count = self._channels(self.axes)
        if count is None:
            raise Unknown("how many channels its input has is not known; give example_inputs")
        return count


class Call(nn.Module):
    """A function with the constants of one call, as a module of one tensor."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any, data: object) -> None:
        super().__init__()
        self.function, self.args, self.kwargs, self.data = function, args, kwargs, data

    def forward(self, x: Tensor) -> Any:
        """Call the function on `x` in the place of the data."""

        def filled(value: Any) -> Any:
            return x if value is self.data else value.clone() if isinstance(value, Tensor) else value

        args, kwargs = (fx.node.map_aggregate(v, filled) for v in (self.args, self.kwargs))
        return self.function(*args, **kwargs)


class Stated:
    """What users' lifts say of one traced module.

    Args:
        active: names of the rules that are on.
        values: whether values may be looked at (not on the meta device).
    """

    def __init__(self, active: frozenset[str], values: bool) -> None:
        self.active, self.values = active, values
        self.found: dict[str, tuple[Kernel | Refusal | None, bool]] = {}
        self.why: dict[str, str] = {}

    def of(self, node: fx.Node, lift: Lift, prefix: str, facts: Any) -> Lifted:
        """What a lift says of a node.

        Args:
            node: the call.
            lift: the rule.
            prefix: path of the module that was traced.
            facts: answers about its values (`plan.inference.facts.Facts`).

        Raises:
            RuleError: the rule raised, or returned what no lift may return.
        """
        data = [n for n in node.all_input_nodes if not n.meta["const"]]
        if node.op == "call_module" and (len(node.args) != 1 or node.kwargs):
            return Refusal(Code.RULE, f"rule {lift.name!r}: the module is called with other arguments than one value")
        if len(data) != 1:
            return Refusal(Code.DATA_WEIGHT, f"rule {lift.name!r}: it reads {len(data)} values that depend on data")
        source = facts.reads.of(node, data[0])
        if source is None:
            return None
        where = ".".join(p for p in (prefix, place_of(node)) if p)
        key = f"{prefix}|{node.name}" if node.op != "call_module" else where
        if key not in self.found:
            self.found[key] = self._asked(node, lift, data[0], source, where, facts)
        kernel, layer = self.found[key]
        if not isinstance(kernel, Kernel):
            return kernel if kernel is None else kernel.at(node.name)
        return Affine(
            source, kernel.shape_only(), lambda: kernel, self._owners(node, facts), layer=layer,
            paradigm="own" if layer else "scale", cost=0 if layer else 1 + kernel.biased,
            rank_guard=len(kernel.axes) + 2 if kernel.axes else None, computed=layer, rule=lift.name,
        )  # fmt: skip

    @staticmethod
    def _owners(node: fx.Node, facts: Any) -> tuple[str, ...]:
        if node.op == "call_module":
            path = str(node.target)
            return tuple(f"{path}.{n}" if n else path for n, _ in node.meta["module"].named_modules())
        return tuple(dict.fromkeys(p for n in node.all_input_nodes if n.meta["const"] for p in facts.cone(n)))

    def _asked(
        self, node: fx.Node, lift: Lift, data: fx.Node, source: fx.Node, where: str, facts: Any
    ) -> tuple[Kernel | Refusal | None, bool]:
        """What the rule says, tested; and whether it is a layer rather than a scale."""
        value = Value(facts.rank(source), lambda axes: facts.channels(source, axes))
        said = f"rule {lift.name!r} for {where}"
        try:
            if node.op == "call_module":
                run: nn.Module = full_copy(node.meta["module"]).double()
                found = lift.says(run, value) if lift.takes_value else lift.says(run)
            else:
                args, kwargs = _constants(node, data, value, facts)
                run = Call(node.target, args, kwargs, value)  # type: ignore[arg-type]
                found = lift.says(*args, **kwargs)
            if found is None or isinstance(found, Refusal):
                return (found if found is None else Refusal(found.code, f"{said}: {found.sentence}")), False
            kernel = as_kernel(found)
        except Unknown as unknown:
            return Refusal(Code.CHANNELS, f"{said}: {unknown}"), False
        except Exception as error:
            what = str(error) if isinstance(error, ReptoolError) else f"it raised {type(error).__name__}: {error}"
            raise RuleError(f"{said}: {what}") from error
        if self.values:
            tested = self._tested(node, kernel, run, facts.shape(source))
            if isinstance(tested, Refusal):
                sentence = f"{said} does not say what its code computes: {tested.sentence}"
                warn(f"{sentence}; it was left as it is, and the rest is deployed", RegionWarning)
                return Refusal(tested.code, sentence), False
            self.why[where] = f"read by the rule {lift.name!r}; {tested}"
        return kernel, not isinstance(found, Scale)

    @staticmethod
    def _tested(node: fx.Node, kernel: Kernel, run: nn.Module, shape: tuple[int, ...] | None) -> str | Refusal:
        assert kernel.in_channels is not None
        sizes = [tuple(shape[2:])] if shape is not None and kernel.axes and len(shape) == len(kernel.axes) + 2 else []
        if kernel.axes and shape is not None and len(shape) != len(kernel.axes) + 2:
            return Refusal(
                Code.UNVERIFIED, f"its input has {len(shape)} dimensions, and it says {len(kernel.axes)} axes"
            )
        original = node.meta["module"] if node.op == "call_module" else run
        return check_stated(
            original.eval() if node.op != "call_module" else original, kernel, kernel.in_channels, sizes
        )


def _constants(node: fx.Node, data: fx.Node, value: Value, facts: Any) -> tuple[Any, Any]:
    """The arguments of a call, constants in float64, and `value` in the place of the data."""

    def of(n: fx.Node) -> Any:
        found = value if n is data else facts.exact(n)
        return found.detach() if isinstance(found, Tensor) else found

    with torch.no_grad():
        return fx.node.map_arg(node.args, of), fx.node.map_arg(node.kwargs, of)
