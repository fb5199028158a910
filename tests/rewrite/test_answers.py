"""What a written layer says of itself: where that is another answer, code that asks is stopped or keeps the region."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.rewrite.answers import told_otherwise
from reptool.rewrite.lower import Geometry, geometry_of
from reptool.testing import randomize


class Strided(nn.Module):
    """A convolution and a pooling that become one of another stride, and methods that ask for its geometry."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.p = nn.Conv2d(4, 4, 3, 2, 1), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        return self.p(self.c(x))  # type: ignore[no-any-return]

    @property
    def stride(self) -> int:
        """Of both."""
        return int(self.c.stride[0]) * int(self.p.kernel_size)

    def window(self) -> tuple[int, ...]:
        """Of the first."""
        return self.c.kernel_size

    def border(self) -> Any:
        """The same in the layer that took its place."""
        return self.c.padding

    def grid(self, x: Tensor) -> Tensor:
        """The positions that the first one reads."""
        return x[..., :: self.c.stride[0], :: self.c.stride[1]]


class Around(nn.Module):
    """The same inside of a module whose forward asks for it beside the region."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Strided()

    def forward(self, x: Tensor) -> Tensor:
        """Scaled by the stride."""
        return torch.relu(self.inner(x)) * self.scale()

    def scale(self) -> int:
        """What is asked."""
        return int(self.inner.c.stride[0])


X = torch.randn(2, 4, 16, 16)


def deployed_of(model: nn.Module) -> tuple[Any, Any]:
    model = randomize(model, 1).eval()
    return model, reptool.deploy(model, force=True)


@pytest.mark.parametrize("ask", [lambda m: m.stride, lambda m: m.window(), lambda m: m.grid(X)])
def test_a_method_that_asks_for_what_is_another_now_raises(ask: Callable[[Any], Any]) -> None:
    model, deployed = deployed_of(Strided())
    assert deployed.c.stride == (4, 4)
    ask(model)
    with pytest.raises(SpecializedError):
        ask(deployed)
    assert deployed.border() == model.border()
    torch.testing.assert_close(deployed(X), model(X), rtol=1e-4, atol=1e-5)


def test_a_region_whose_geometry_the_forward_asks_for_stays() -> None:
    model, deployed = deployed_of(Around())
    assert deployed.inner.c.stride == (2, 2)
    torch.testing.assert_close(deployed(X), model(X))


@pytest.mark.parametrize("move", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_an_edit_relative_to_what_the_layer_holds_raises(move: Callable[[Any], Any]) -> None:
    deployed = move(deployed_of(Strided())[1])
    with pytest.raises(SpecializedError, match="stride"):
        deployed.c.stride = (4, *deployed.c.stride[1:])
    deployed.c.padding = deployed.c.padding
    released = reptool.release(deployed)
    released.c.stride = (1, 1)
    assert type(released.c) is nn.Conv2d


def test_what_is_told_otherwise() -> None:
    conv = nn.Conv2d(4, 8, 3, 2, 1)
    shape = geometry_of(nn.Conv2d(4, 8, 5, 4, 1, groups=2))
    assert shape is not None
    assert told_otherwise(conv, shape) == {"kernel_size", "stride", "groups"}
    assert not told_otherwise(conv, Geometry("conv", 4, 8, (5, 5), (4, 4), (0, 0), (1, 1), outer=((1, 2), (1, 2))))
