"""Methods that are a part of a region: a layer does what they did, so only the code of the region may call them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx

from reptool.errors import SpecializedError
from reptool.runtime.gates.calls import Calls
from reptool.runtime.gates.chain import Chain
from reptool.runtime.gates.check import are_open, followed
from reptool.runtime.gates.whole import is_run_again

CALLED = "_reptool_called"
"""Where a module holds, for such methods of its own, the chains of calls that each is right in."""


def set_called(module: Any, method: str, chains: tuple[Chain, ...]) -> None:
    """Say in which calls a method of a module is right."""
    module.__dict__[CALLED] = {**module.__dict__.get(CALLED, {}), method: chains}


def expect_called(module: Any, method: str) -> None:
    """The guard of a method that leaves a part of its work to a layer.

    Args:
        module: whose method it is.
        method: its name.

    Raises:
        SpecializedError: it is called by code that does not run the region.
    """
    if torch.compiler.is_compiling() or isinstance(module, fx.Proxy) or are_open():
        return
    calls = Calls(sys._getframe(1))
    chains = module.__dict__.get(CALLED, {}).get(method, ())
    if any(followed(module, chain, calls) is not None for chain in chains) or is_run_again():
        return
    raise SpecializedError(
        f"{method!r} of this {type(module).__name__} leaves a part of its work to a layer that deploy() fused, and is "
        "called here in another way than the forward that was traced does; call the module itself, exclude it "
        "(deploy(model, exclude=...)), or use the original model"
    )
