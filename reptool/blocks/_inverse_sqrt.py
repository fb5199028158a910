"""S^(-1/2) of a symmetric positive definite matrix, with a gradient that stays finite at equal eigenvalues.

With S = U diag(l) U^T and f(l) = l^(-1/2) the differential is U (F o (U^T dS U)) U^T (Daleckii and Krein),
where

    F_ij = (f(l_i) - f(l_j)) / (l_i - l_j) = -1 / (sqrt(l_i l_j) (sqrt(l_i) + sqrt(l_j)))

has no difference left in its denominator; differentiating the eigenvectors would divide by l_i - l_j.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class InverseSqrt(torch.autograd.Function):
    """S^(-1/2) of a batch of symmetric positive definite matrices (..., n, n)."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """Compute it by the eigenvalues, which are kept for the gradient."""
        values, vectors = torch.linalg.eigh(matrix)
        roots = values.sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors / roots.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Apply the adjoint of the differential, which is the differential itself."""
        roots, vectors = ctx.saved_tensors
        row, column = roots.unsqueeze(-1), roots.unsqueeze(-2)
        factors = -1 / (row * column * (row + column))
        symmetric = (gradients[0] + gradients[0].mT) / 2
        return vectors @ (factors * (vectors.mT @ symmetric @ vectors)) @ vectors.mT


def inverse_sqrt(matrix: Tensor) -> Tensor:
    """S^(-1/2) of symmetric positive definite matrices S (..., n, n)."""
    result: Tensor = InverseSqrt.apply(matrix)
    return result
