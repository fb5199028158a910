"""The sum of parallel convolutions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import branch_add


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("biased", [[True, True, True], [False, True, False], [False, False, False]])
@pytest.mark.parametrize(("size", "groups"), [((3, 3), 1), ((1, 7), 2), ((2, 4), 6)])
def test_one_convolution_is_the_sum_of_several(
    size: tuple[int, int], groups: int, biased: list[bool], dtype: torch.dtype
) -> None:
    weights = [torch.randn(6, 6 // groups, *size).to(dtype) for _ in biased]
    biases = [torch.randn(6).to(dtype) if b else None for b in biased]
    kept = [None if t is None else t.clone() for t in [*weights, *biases]]
    weight, bias = branch_add(weights, biases)
    assert weight.dtype == dtype
    assert (bias is None) == (not any(biased))
    for now, before in zip([*weights, *biases], kept, strict=True):
        assert (now is None and before is None) or torch.equal(now, before)  # type: ignore[arg-type]
    weight64, bias64 = branch_add([w.double() for w in weights], [None if b is None else b.double() for b in biases])
    torch.testing.assert_close(weight.double(), weight64, rtol=3 * torch.finfo(dtype).eps, atol=0.1)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)

    def layer(w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w.double(), None if b is None else b.double(), padding=1, groups=groups)

    wanted = torch.stack([layer(w, b) for w, b in zip(weights, biases, strict=True)]).sum(0)
    torch.testing.assert_close(layer(weight64, bias64), wanted, rtol=1e-10, atol=1e-10)


def test_a_single_branch_is_copied() -> None:
    weight, bias = torch.ones(1, 1), torch.ones(1)
    summed, shift = branch_add([weight], [bias])
    assert shift is not None
    summed.zero_()
    shift.zero_()
    assert weight.item() == bias.item() == 1


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ([], [], "0 weights"),
        ([torch.ones(1, 1)], [], "1 weights and 0 biases"),
        ([torch.ones(1, 1, 3), torch.ones(1, 1, 1)], [None, None], "align them first"),
    ],
)
def test_bad_input_is_an_error(weights: list[Tensor], biases: list[Tensor | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        branch_add(weights, biases)
