"""Training in one page: AdamW, one learning-rate cycle, shifted images, a progress bar."""

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional as F

from reptool.demo.data import Digits

__all__ = ["accuracy", "train"]


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move the whole batch by up to one pixel in each direction, filling with black."""
    down, right = (int(v) for v in torch.randint(0, 3, (2,), generator=generator))
    height, width = images.shape[-2:]
    return F.pad(images, (1, 1, 1, 1))[..., down : down + height, right : right + width]


def progress_bar(console: Console) -> Progress:
    """A bar that counts steps and shows the time and what the task says of itself."""
    loss = TextColumn("{task.description}")
    return Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), loss, console=console
    )


def train(model: nn.Module, digits: Digits, console: Console, *, epochs: int, seed: int = 0, batch: int = 64) -> float:
    """Train `model` in place, leave it in eval mode and return its accuracy on the test images.

    Args:
        model: maps (N, 1, 8, 8) to logits (N, 10).
        digits: the data.
        console: where the progress bar is drawn.
        epochs: passes over the training images.
        seed: chooses the order of the images and their shifts.
        batch: images a step.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(digits.train_images)
    steps = epochs * (count // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    model.train()
    with progress_bar(console) as progress:
        task = progress.add_task("", total=steps)
        for _ in range(epochs):
            order = torch.randperm(count, generator=generator)
            for chosen in order[: count - count % batch].split(batch):
                logits = model(shifted(digits.train_images[chosen], generator))
                loss = F.cross_entropy(logits, digits.train_labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, description=f"loss {loss.item():.3f}")
    model.eval()
    return accuracy(model, digits.test_images, digits.test_labels)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of `images` (N, C, H, W) that `model` gives their label (N)."""
    return (model(images).argmax(1) == labels).double().mean().item()
