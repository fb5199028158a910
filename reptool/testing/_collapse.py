"""Does a block become what it is said to become?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from reptool.api.deploy import deploy
from reptool.frontends.examples import example_for as example_for
from reptool.ir.walk import Inputs
from reptool.models.copies import full_copy
from reptool.probing.operations import count_operations as count_operations
from reptool.testing._equivalence import _cast, assert_equivalent
from reptool.testing._randomize import randomize


def assert_collapses(
    module: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    convolutions: int = 1,
    linears: int = 0,
    forbidden: tuple[str, ...] = ("batch norm", "pooling", "addition", "multiplication", "concatenation"),
    rtol: float = 1e-9,
    seed: int = 0,
    extreme: bool = False,
    scales: Sequence[float] = (),
    variances: Sequence[float] = (),
    **options: Any,
) -> nn.Module:
    """Assert that `reptool.deploy` turns `module` into so many convolutions that compute the same.

    A copy with random statistics is deployed, in float64; the executed aten program is counted, and the
    outputs are compared at many sizes. A deployed module that runs what the original ran fails.

    Args:
        module: never modified.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments, which `deploy` is given too.
            When None, inputs that the module runs on are made up, and `deploy` is given none.
        convolutions: how many must run.
        linears: how many matrix products must run.
        forbidden: kinds of operations (see `count_operations`) of which none may run.
        rtol: allowed error as a fraction of an output's size.
        seed: of the statistics.
        extreme: as for `randomize`: some scales of norms zero or tiny, some variances tiny or large.
        scales: as for `randomize`: further scales that channels of norms get, such as ``(0.0, -1.0, 1e6)``.
        variances: as for `randomize`: further variances, such as ``(1e-12, 1e6)``.
        **options: for `reptool.deploy`.

    Returns:
        The deployed copy, in float64.

    Raises:
        AssertionError: what ran, or where the outputs differ.
    """
    original = randomize(full_copy(module), seed, extreme=extreme, scales=scales, variances=variances).double().eval()
    inputs = _cast(example_for(module) if example_inputs is None else example_inputs, torch.float64)
    shown = {} if example_inputs is None else {"example_inputs": inputs}

    before = {key: value.clone() for key, value in original.state_dict().items()}
    deployed: nn.Module = deploy(original, **shown, **options)
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
