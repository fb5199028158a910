"""Real images that need no download: the 1,797 handwritten digits that scikit-learn ships."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Digits", "load_digits"]


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 1, 8, 8) in [0, 1] and their labels, split once and for all."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(test_fraction: float = 0.2, seed: int = 0) -> Digits:
    """Load the digits and split them with equal shares of every class on both sides.

    Args:
        test_fraction: the share of the images that is kept for testing.
        seed: chooses the split.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = load(return_X_y=True)
    images = pixels.reshape(-1, 1, 8, 8) / 16.0
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=test_fraction, random_state=seed, stratify=labels
    )
    return Digits(
        torch.tensor(train_x, dtype=torch.float32),
        torch.tensor(train_y, dtype=torch.long),
        torch.tensor(test_x, dtype=torch.float32),
        torch.tensor(test_y, dtype=torch.long),
    )
