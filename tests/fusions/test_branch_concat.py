"""The concatenation of parallel convolutions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import branch_concat


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("biased", [[True, True], [False, True], [False, False]])
@pytest.mark.parametrize("size", [(3,), (2, 3), (1, 1), (2, 1, 2)])
def test_one_convolution_is_the_concatenation_of_several(
    size: tuple[int, ...], biased: list[bool], dtype: torch.dtype
) -> None:
    weights = [torch.randn(o, 3, *size).to(dtype) for o in (2, 5)]
    biases = [torch.randn(o).to(dtype) if b else None for o, b in zip((2, 5), biased, strict=True)]
    kept = [None if t is None else t.clone() for t in [*weights, *biases]]
    weight, bias = branch_concat(weights, biases)
    assert weight.dtype == dtype
    assert (bias is None) == (not any(biased))
    for now, before in zip([*weights, *biases], kept, strict=True):
        assert (now is None and before is None) or torch.equal(now, before)  # type: ignore[arg-type]
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    x = torch.randn(2, 3, *(6, 5, 4)[: len(size)], dtype=torch.float64)

    def layer(w: Tensor, b: Tensor | None) -> Tensor:
        return conv(x, w.double(), None if b is None else b.double())

    wanted = torch.cat([layer(w, b) for w, b in zip(weights, biases, strict=True)], 1)
    torch.testing.assert_close(layer(weight, bias), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("size", [(3,), (2, 3), (2, 1, 2)])
def test_parts_with_groups(size: tuple[int, ...], groups: int) -> None:
    weights = [torch.randn(o * groups, 6 // groups, *size, dtype=torch.float64) for o in (2, 1, 3)]
    biases = [torch.randn(2 * groups, dtype=torch.float64), None, torch.randn(3 * groups, dtype=torch.float64)]
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    x = torch.randn(2, 6, *(6, 5, 4)[: len(size)], dtype=torch.float64)
    parts = [conv(x, w, b, groups=groups) for w, b in zip(weights, biases, strict=True)]
    torch.testing.assert_close(conv(x, *branch_concat(weights, biases, groups)), torch.cat(parts, 1))
    weight, bias = branch_concat(weights, biases, groups, interleaved=True)
    ordered = torch.cat([p.unflatten(1, (groups, -1)) for p in parts], 2).flatten(1, 2)
    assert weight.shape[1] == 6 // groups
    torch.testing.assert_close(conv(x, weight, bias, groups=groups), ordered)


def test_a_single_part_is_copied() -> None:
    weight = torch.ones(1, 1)
    branch_concat([weight], [None])[0].zero_()
    assert weight.item() == 1


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ([], [], "0 weights"),
        ([torch.ones(1, 1)], [None, None], "1 weights and 2 biases"),
        ([torch.ones(1, 1, 3), torch.ones(1, 2, 3)], [None, None], "align them first"),
    ],
)
def test_bad_input_is_an_error(weights: list[Tensor], biases: list[Tensor | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        branch_concat(weights, biases)


def test_groups_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(InputError, match=r"\[4, 3\] output channels are not all divisible by 2 groups"):
        branch_concat([torch.ones(4, 1), torch.ones(3, 1)], [None, None], 2)
