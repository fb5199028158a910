"""The loss around a trained model, along filter-normalized directions (figure 5).

A random direction d is scaled filter by filter to the length of the model's filters, d_f |w_f| / |d_f|, so
that landscapes of different models are on one scale; biases and norms do not move. Compare models in the
form in which they are deployed: a block's branches are parameters with filters of their own.

Paper: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reptool.errors import InputError


@dataclass(frozen=True)
class Landscape:
    """Losses on a grid.

    Args:
        steps: (n,) distances along each direction, in units of the filters' lengths; 0 is among them.
        loss: (n, n), or (n,) for one direction, in float64.
    """

    steps: Tensor
    loss: Tensor

    @property
    def centre(self) -> float:
        """The loss of the model itself."""
        middle = int(self.steps.abs().argmin())
        return float(self.loss[(middle,) * self.loss.dim()])

    def share_below(self, rise: float) -> float:
        """The share of the grid where the loss is at most `rise` above the centre: larger is flatter."""
        return float((self.loss <= self.centre + rise).double().mean())


def filter_normalized(parameters: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction with filters as long as the parameters'; zero for vectors and numbers."""
    found: dict[str, Tensor] = {}
    for name, value in parameters.items():
        if value.dim() < 2:
            found[name] = torch.zeros_like(value)
            continue
        random = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        rows = random.flatten(1)
        lengths = value.detach().flatten(1).norm(dim=1, keepdim=True)
        found[name] = (rows * lengths / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)).view_as(value)
    return found


@torch.no_grad()
def loss_landscape(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    criterion: Callable[[Any, Any], Tensor],
    *,
    span: float = 1.0,
    points: int = 11,
    directions: int = 2,
    seed: int = 0,
) -> Landscape:
    """Mean loss over `batches` on a grid around the weights of `model`, which stays as it is.

    Args:
        model: usually in eval mode.
        batches: pairs (input, target), gone through for every point of the grid.
        criterion: (output, target) -> mean loss of the batch.
        span: how far to go, 1 being the length of each filter.
        points: odd number of points along each direction.
        directions: 1 for a line, 2 for a plane.
        seed: of the directions; the same for models to be compared.

    Raises:
        InputError: an even or small number of points, other directions, no batches.

    Example:
        >>> data = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))]
        >>> found = loss_landscape(nn.Linear(3, 2), data, nn.functional.cross_entropy, points=3)
        >>> found.loss.shape, found.steps.tolist()
        (torch.Size([3, 3]), [-1.0, 0.0, 1.0])
    """
    kept = list(batches)
    if not kept:
        raise InputError("loss_landscape was given no batches.")
    if points < 3 or points % 2 == 0:
        raise InputError(f"points={points} was given, expected an odd number from 3 on (its centre is the model).")
    if directions not in (1, 2):
        raise InputError(f"directions={directions} was given, expected 1 or 2.")
    weights = {name: p.detach() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    ways = [filter_normalized(weights, generator) for _ in range(directions)]
    steps = torch.linspace(-span, span, points, dtype=torch.float64)
    grid = torch.cartesian_prod(*[steps] * directions).reshape(-1, directions)
    losses = [_loss(model, _moved(weights, ways, place.tolist()), kept, criterion) for place in grid]
    return Landscape(steps, torch.tensor(losses, dtype=torch.float64).reshape((points,) * directions))


def _moved(weights: dict[str, Tensor], ways: list[dict[str, Tensor]], place: list[float]) -> dict[str, Tensor]:
    moved = dict(weights)
    for distance, way in zip(place, ways, strict=True):
        moved = {name: value + distance * way[name] for name, value in moved.items()}
    return moved


def _loss(
    model: nn.Module, weights: dict[str, Tensor], batches: list[Any], criterion: Callable[[Any, Any], Tensor]
) -> float:
    state = {**weights, **{name: b.clone() for name, b in model.named_buffers()}}
    losses = [float(criterion(functional_call(model, state, (x,)), target)) for x, target in batches]
    return sum(losses) / len(losses)
