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
