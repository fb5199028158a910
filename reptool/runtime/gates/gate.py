"""`Gate`: a layer that stands for a whole region runs only where the code around it runs that region.

A fused layer means more than its name says, and a module that was absorbed means nothing by itself. The gate of such a
layer looks at the calls that it is in: from the layer up to the lowest call that holds the region, they have to be
those that were traced, with every module of the region in its place and nobody listening in between. What is above does
not matter. Modules are known by their places below that lowest call, so that copies and pickles need nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Tuple  # noqa: UP035 - TorchScript reads this annotation

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.jit import is_scripting

from reptool.runtime.gates.calls import kind_of
from reptool.runtime.gates.chain import KIND, Gate
from reptool.runtime.gates.check import check
from reptool.runtime.gates.marker import GATE, Marker, names_read

_GEOMETRY = ("padding", "stride", "dilation", "groups", "padding_mode", "output_padding")
_PLAIN = (bool, int, float, str, tuple, type(None))


def runs_in_its_region(self: nn.Module, input: Tuple[Tensor]) -> None:  # noqa: UP006
    """A forward pre-hook of a layer that stands for a region."""
    if is_scripting() or is_compiling():
        pass
    else:
        check(self, input)


def set_gate(module: nn.Module, gate: Gate) -> None:
    """Put a gate in front of a layer, in the place of an earlier one; an absorbed module asks for it by itself."""
    own = module.__dict__
    read = names_read(type(module))
    geometry = tuple((n, own[n]) for n in _GEOMETRY if n in own and (read is None or n in read))
    own[GATE] = replace(gate, geometry=geometry, kind=kind_of(type(module)))
    if not isinstance(module, Marker) and runs_in_its_region not in module._forward_pre_hooks.values():
        nn.Module.register_forward_pre_hook(module, runs_in_its_region)


def geometry_of(module: nn.Module) -> dict[str, Any]:
    """The class of a module, and what one of torch's says of how it rearranges values, by name."""
    own, read = module.__dict__, names_read(type(module)) or frozenset()
    held = {n: own[n] for n in sorted(read - {"training"} & own.keys()) if isinstance(own[n], _PLAIN)}
    return {KIND: kind_of(type(module)), **held}


def move_gate(module: nn.Module, name: str) -> None:
    """Let a layer run in a graph that calls it by another name."""
    gate = module.__dict__.get(GATE)
    if gate is not None:
        chains = tuple(replace(c, place=None if c.place is None else (name,)) for c in gate.chains)
        module.__dict__[GATE] = replace(gate, chains=chains)


def drop_gate(module: nn.Module) -> None:
    """Take the gate of a layer away."""
    module.__dict__.pop(GATE, None)
    for key in [k for k, h in module._forward_pre_hooks.items() if h is runs_in_its_region]:
        del module._forward_pre_hooks[key]
