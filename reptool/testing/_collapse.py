"""Does a block become what it is said to become?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from reptool.counting import count_operations as count_operations
from reptool.running import Inputs
from reptool.testing._equivalence import _cast, assert_equivalent
from reptool.testing._randomize import randomize


def example_for(module: nn.Module) -> Tensor:
    """An input for the first layer of `module` whose kind says what it reads."""
    ranks = {
        nn.Conv1d: 1,
        nn.Conv2d: 2,
        nn.Conv3d: 3,
        nn.BatchNorm1d: 1,
        nn.BatchNorm2d: 2,
        nn.BatchNorm3d: 3,
    }
    channels: int | None = getattr(module, "in_channels", None)
    for part in module.modules():
        for kind, rank in ranks.items():
            if isinstance(part, kind):
                read = channels or getattr(part, "in_channels", None) or getattr(part, "num_features", None)
                assert isinstance(read, int)
                return torch.randn(2, read, *(12, 9, 7)[:rank])
        if isinstance(part, nn.Linear):
            return torch.randn(3, part.in_features)
    raise ValueError("no convolution, linear layer or normalization to make inputs for: give `example_inputs`")


def assert_collapses(
    module: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    convolutions: int = 1,
    linears: int = 0,
    forbidden: tuple[str, ...] = ("batch norm", "pooling", "addition", "multiplication", "concatenation"),
    rtol: float = 1e-9,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Assert that `reptool.deploy` turns `module` into so many convolutions that compute the same.

    A copy with random statistics is deployed, in float64; the executed aten program is counted, and the
    outputs are compared at many sizes. A deployed module that runs what the original ran fails.

    Args:
        module: never modified.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments; made up when None.
        convolutions: how many must run.
        linears: how many matrix products must run.
        forbidden: kinds of operations (see `count_operations`) of which none may run.
        rtol: allowed error as a fraction of an output's size.
        seed: of the statistics.
        **options: for `reptool.deploy`.

    Returns:
        The deployed copy, in float64.

    Raises:
        AssertionError: what ran, or where the outputs differ.
    """
    original = randomize(copy.deepcopy(module), seed).double().eval()
    inputs = _cast(example_for(module) if example_inputs is None else example_inputs, torch.float64)

    from reptool import deploy  # imported late: this module also tests the parts that deploy is made of

    before = {key: value.clone() for key, value in original.state_dict().items()}
    deployed: nn.Module = deploy(original, **options)
    ran, runs = count_operations(original, inputs), count_operations(deployed, inputs)
    assert runs["convolution"] == convolutions, (
        f"{runs['convolution']} convolutions run, not {convolutions}: {dict(runs)}"
    )
    assert runs["linear"] == linears, f"{runs['linear']} matrix products run, not {linears}: {dict(runs)}"
    left = {kind: runs[kind] for kind in forbidden if runs[kind]}
    assert not left, f"still run after deploy: {left}"
    assert runs != ran, f"deploy changed nothing: {dict(runs)} before and after"
    for key, value in original.state_dict().items():
        assert torch.equal(value, before[key]), f"deploy wrote to {key} of the original"
    assert_equivalent(original, deployed, inputs, rtol=rtol, dtype=None)
    return deployed
