"""The numbers of this package as pictures, for those who have matplotlib."""

from __future__ import annotations

import importlib
from typing import Any

from .channels import ChannelSimilarity
from .connections import Connections
from .landscape import Landscape
from .skeleton import Skeletons


def pyplot() -> Any:
    """The module matplotlib.pyplot.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError(
            "reptool.analysis.plots draws with matplotlib, which is not installed: pip install matplotlib. "
            "The numbers themselves need no such package."
        ) from error


def draw(found: ChannelSimilarity | Connections | Landscape | Skeletons, title: str = "") -> Any:
    """Draw one result and return the figure.

    Args:
        found: what a function of `reptool.analysis` returned.
        title: written above.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: something else was given.
    """
    plt = pyplot()
    if isinstance(found, Skeletons):
        return _three(plt, found, title)
    figure, axes = plt.subplots(layout="constrained")
    axes.set_title(title)
    if isinstance(found, Landscape):
        _landscape(axes, found)
        return figure
    if isinstance(found, ChannelSimilarity):
        image = axes.imshow(found.shown.numpy(), cmap="Blues")
        figure.colorbar(image, label="log10(1 + KL)")
    elif isinstance(found, Connections):
        image = axes.imshow(found.degree.numpy(), cmap="Blues")
        axes.set(xlabel="channel of the basis", ylabel="channel of the transformed kernel")
        figure.colorbar(image, label="sum of |W_r|")
    else:
        plt.close(figure)
        raise TypeError(f"a {type(found).__name__} cannot be drawn.")
    return figure


def _landscape(axes: Any, found: Landscape) -> None:
    steps = found.steps.numpy()
    if found.loss.dim() == 1:
        axes.plot(steps, found.loss.numpy())
        axes.set(xlabel="distance", ylabel="loss")
    else:
        contours = axes.contour(steps, steps, found.loss.numpy(), levels=20)
        axes.clabel(contours, fontsize="small")


def _three(plt: Any, found: Skeletons, title: str) -> Any:
    figure, row = plt.subplots(1, 3, layout="constrained")
    figure.suptitle(title)
    for axes, name in zip(row, ("basis", "transformed", "increment"), strict=True):
        matrix = getattr(found, name)
        matrix = matrix[None] if matrix.dim() == 1 else matrix
        axes.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set_title(name)
    return figure
