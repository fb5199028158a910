"""The inverse square root and its gradient."""

from __future__ import annotations

import pytest
import torch

from reptool.blocks._inverse_sqrt import inverse_sqrt


def spectrum(values: list[float]) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(len(values), len(values)).double())[0]
    return basis @ torch.diag(torch.tensor(values).double()) @ basis.T


@pytest.mark.parametrize("values", [[4.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [1e-6, 1.0, 1.0]])
def test_inverts_the_square_root(values: list[float]) -> None:
    matrix = spectrum(values)
    root = inverse_sqrt(matrix)
    torch.testing.assert_close(root @ matrix @ root, torch.eye(len(values)).double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("values", [[4.0], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [0.5, 0.5, 3.0]])
def test_gradient(values: list[float]) -> None:
    def through_symmetric(matrix: torch.Tensor) -> torch.Tensor:
        return inverse_sqrt((matrix + matrix.mT) / 2)

    assert torch.autograd.gradcheck(through_symmetric, (spectrum(values).requires_grad_(),))


def test_batches() -> None:
    matrices = torch.stack([spectrum([1.0, 2.0]), spectrum([3.0, 5.0])])
    torch.testing.assert_close(inverse_sqrt(matrices)[1], inverse_sqrt(matrices[1]))
