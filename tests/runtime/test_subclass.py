"""Classes of modules whose methods were written anew: their source can be read, scripted and pickled."""

from __future__ import annotations

import inspect
import linecache
import pickle
import traceback
from typing import Any, ClassVar, Optional

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.method import Method
from reptool.runtime.subclass import derive, original_class
from reptool.testing import randomize


class Branches(nn.Module):
    """Parallel branches, whose method is written anew."""

    made: ClassVar[list[str]] = []

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, width, 1)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        Branches.made.append(cls.__qualname__)
        super().__init_subclass__(**kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of two branches."""
        return torch.relu(self.a(x) + self.b(x))


class Scaled(Branches):
    """One whose method has arguments that deploying fixes."""

    def forward(self, x: Tensor, scale: float = 2.0, rest: Optional[list[int]] = None) -> Tensor:  # noqa: UP045
        return torch.relu(self.a(x) * scale + self.b(x))


def deployed(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    """A deployed model of which something was written anew."""
    made = reptool.deploy(model.eval(), x)
    assert type(made) is not type(model)
    return made


def test_the_source_is_that_of_the_method_written_anew() -> None:
    made = deployed(Branches())
    source = inspect.getsource(type(made).forward)
    assert source.startswith("def forward(self, x):")
    assert "self.b" not in source
    assert inspect.getdoc(type(made).forward) == "The sum of two branches."
    file = inspect.getfile(type(made).forward)
    linecache.checkcache()
    assert linecache.getlines(file) == source.splitlines(keepends=True)


def test_an_error_inside_is_shown_with_its_line() -> None:
    made = deployed(Branches())
    with pytest.raises(RuntimeError) as caught:
        made(torch.rand(1, 5, 8, 8))
    assert "self.a(x)" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", [Branches, Scaled])
def test_it_can_be_scripted(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.rand(2, 3, 8, 8)
    made = deployed(model, x)
    torch.testing.assert_close(torch.jit.script(made)(x), model(x))


def test_a_layer_with_a_hook_on_ranks_can_be_scripted() -> None:
    model, x = randomize(nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), 0).eval(), torch.rand(2, 3, 8)
    made = reptool.deploy(model, x)
    torch.testing.assert_close(torch.jit.script(made)(x), model(x))


def test_no_registry_of_the_users_hears_of_it() -> None:
    before = list(Branches.made)
    made = deployed(Branches(width=6))
    pickle.loads(pickle.dumps(made))
    assert Branches.made == before
    assert isinstance(made, Branches)
    assert original_class(made) is Branches


def test_the_same_code_is_one_class() -> None:
    method = Method("forward", "def forward(self, x):\n    return x\n")
    assert derive(Branches, (method,)) is derive(Branches, (method,))
    assert derive(derive(Branches, ()), (method,)) is derive(Branches, (method,))


def test_methods_that_a_folded_norm_still_runs_stay_with_it() -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return self.finished(super().forward(x))

        def finished(self, x: Tensor) -> Tensor:
            return x.clamp(max=self.limit)

        @property
        def limit(self) -> float:
            return 0.5

    torch.manual_seed(0)
    model, x = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), Norm(8)), 0).eval(), torch.rand(2, 3, 8, 8)
    made = reptool.deploy(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    torch.testing.assert_close(made(x), model(x))


def test_a_buffer_that_is_still_read_stays() -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(super().forward(x)) + self.running_var.sum()  # type: ignore[union-attr]

    torch.manual_seed(0)
    model, x = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), Norm(8)), 0).eval(), torch.rand(2, 3, 8, 8)
    made = reptool.deploy(model, x)
    torch.testing.assert_close(made(x), model(x))


def test_a_tensor_that_was_folded_says_so_where_it_is_read_or_set() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gamma = nn.Conv2d(3, 3, 1), nn.Parameter(torch.rand(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.gamma

    deployed = reptool.deploy(Scaled().eval())
    assert not hasattr(deployed, "gamma")
    with pytest.raises(SpecializedError, match="'gamma' of this Scaled was folded"):
        deployed.gamma  # noqa: B018 - it is read
    with pytest.raises(SpecializedError, match="'gamma' of this Scaled was folded"):
        deployed.gamma = nn.Parameter(torch.rand(3, 1, 1))
    with pytest.raises(AttributeError, match="no attribute 'delta'"):
        deployed.delta  # noqa: B018 - it is read
    compiled = torch.compile(deployed, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(1, 3, 2, 2)), deployed(torch.ones(1, 3, 2, 2)))


class Weighted(nn.Module):
    """A helper method whose default is taken, and whose work goes into a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(3, 3, 1), 0.5

    def add(self, x: Tensor, y: Tensor, weight: float = 1.0) -> Tensor:
        """A weighted sum."""
        return x * weight + y * self.gain

    def forward(self, x: Tensor) -> Tensor:
        """With the default."""
        return self.add(x, self.conv(x))


def test_defaults_of_a_method_in_front_of_the_users_are_checked() -> None:
    x = torch.randn(1, 3, 4, 4)
    deployed = reptool.deploy(Weighted().eval(), x)
    assert len(reptool.report(deployed).regions) == 1
    deployed(x)
    deployed.add.__func__.__defaults__ = (2.0,)  # type: ignore[attr-defined]
    with pytest.raises(SpecializedError, match="add"):
        deployed(x)
