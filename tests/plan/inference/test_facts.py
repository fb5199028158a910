"""What is inferred of the values of random programs: ranks, channels, constants, against running them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.plan.programs import C, analysed, program, values_of


@pytest.mark.parametrize("seed", range(60))
@torch.no_grad()
def test_a_rank_and_channels_that_are_known_are_right(seed: int) -> None:
    x = torch.randn(2, C, 7, 6, dtype=torch.float64)
    found = analysed(program(seed), x)
    held = values_of(found, x)
    known = 0
    for node, value in held.items():
        if not isinstance(value, Tensor) or node.op == "get_attr":
            continue
        assert found.facts.rank(node) in (None, value.dim())
        stated = found.facts.stated_rank(node)
        assert stated in (None, value.dim())
        assert found.facts.channels(node, value.dim() - 2) in (None, value.shape[1])
        assert found.facts.shape(node) in (None, tuple(value.shape))
        known += stated is not None
    assert known


class Shaped(nn.Module):
    """A layer, and an operation whose rank is asked for."""

    def __init__(self, then: Callable[[Tensor], Tensor], rank: int = 4) -> None:
        super().__init__()
        self.conv = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[rank](C, C, 1)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        return self.then(self.conv(x))


THEN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "flatten": lambda y: y.flatten(1),
    "flatten 2": lambda y: torch.flatten(y, 2),
    "sum": lambda y: y.sum(1),
    "mean keeps": lambda y: y.mean((2, 3), keepdim=True),
    "mean": lambda y: y.mean((2, 3)),
    "permute": lambda y: y.permute(0, 2, 3, 1),
    "unsqueeze": lambda y: y.unsqueeze(1),
    "squeeze": lambda y: y.mean((2, 3), keepdim=True).squeeze(),
    "index": lambda y: y[:, 0],
    "index none": lambda y: y[:, None, ..., 0],
    "view": lambda y: y.view(2, 2, 2, 5, 5),
    "reshape": lambda y: y.reshape(2, -1),
    "expand": lambda y: y.expand(3, 2, C, 5, 5),
    "stack": lambda y: torch.stack([y, y], 1),
    "cat": lambda y: torch.cat([y, y], 1),
    "interpolate": lambda y: F.interpolate(y, scale_factor=2.0),
    "power of more axes": lambda y: torch.pow(y, torch.ones(3, 1, 1, 1, 1)),
    "sum of more axes": lambda y: y + torch.ones(3, 1, 1, 1, 1),
    "matmul": lambda y: y @ torch.ones(3, 1, 1, 5, 2),
    "matmul matrix": lambda y: y @ torch.ones(5, 2),
    "matmul vector": lambda y: y @ torch.ones(5),
    "vector matmul": lambda y: torch.ones(5) @ y,
    "repeat": lambda y: y.repeat(2, 1, 1, 1, 1),
    "select": lambda y: y.select(1, 0),
    "unbind": lambda y: y.unbind(1)[0],
    "where": lambda y: torch.where(y > 0, y, torch.ones(3, 1, 1, 1, 1)),
    "argmax": lambda y: y.argmax(1),
    "norm": lambda y: y.norm(dim=1),
    "std": lambda y: y.std((2, 3)),
    "softmax": lambda y: y.softmax(1),
    "clamp of more axes": lambda y: torch.clamp(y, torch.zeros(3, 1, 1, 1, 1)),
    "minimum": lambda y: torch.minimum(y, torch.ones(3, 1, 1, 1, 1)),
    "lerp": lambda y: torch.lerp(y, y, torch.ones(3, 1, 1, 1, 1)),
    "addcmul": lambda y: torch.addcmul(y, y, torch.ones(3, 1, 1, 1, 1)),
    "pixel shuffle": lambda y: F.pixel_shuffle(y, 2),
    "adaptive": lambda y: F.adaptive_avg_pool2d(y, 1),
    "movedim": lambda y: y.movedim(1, -1),
    "bool index": lambda y: y[torch.ones(2, C, dtype=torch.bool)],
    "list index": lambda y: y[[0, 1]],
    "tensor index": lambda y: y[torch.zeros(2, 2, 3, dtype=torch.long)],
    "cumsum": lambda y: y.cumsum(1),
    "flatten all": lambda y: y.flatten(),
    "embedding": lambda y: F.embedding(y.argmax(1), torch.ones(5, 3)),
    "one hot": lambda y: F.one_hot(y.argmax(1), 7),
    "einsum": lambda y: torch.einsum("bchw->bwh", y),
    "unfold": lambda y: F.unfold(y, 3),
    "split": lambda y: y.split(2, 1)[0],
    "topk": lambda y: y.topk(2, 1)[0],
    "max": lambda y: y.max(1)[0],
}


@pytest.mark.parametrize("name", THEN)
@torch.no_grad()
def test_the_rank_behind_an_operation_is_right_where_it_is_known(name: str) -> None:
    x = torch.randn(2, C, 5, 5)
    model = Shaped(THEN[name]).eval()
    found = analysed(model, x)
    for node, value in values_of(found, x).items():
        if isinstance(value, Tensor):
            assert found.facts.stated_rank(node) in (None, value.dim()), node
            assert found.facts.rank(node) in (None, value.dim()), node


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_a_layer_states_the_rank_of_what_it_reads(rank: int) -> None:
    x = torch.randn(2, C, *[4] * (rank - 2))
    found = analysed(Shaped(torch.relu, rank).eval(), x)
    placeholder = next(iter(found.graph.nodes))
    assert found.facts.stated_rank(placeholder) == rank


def test_constants_are_worked_out_in_float64_from_their_parameters() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(C, C, 1, 1)), nn.Parameter(torch.rand(C))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.scale.view(-1, 1, 1, 1) / 3)

    model = Weighted().eval()
    found = analysed(model, torch.randn(1, C, 5, 5))
    layer = next(n for n in found.graph.nodes if "conv2d" in n.name)
    weight = layer.args[1]
    exact = found.facts.exact(weight)
    wanted = model.weight.double() * model.scale.double().view(-1, 1, 1, 1) / 3
    assert exact.dtype is torch.float64
    assert torch.equal(exact, wanted)
    assert found.facts.constant(weight).dtype is torch.float32
    assert sorted(found.facts.cone(weight)) == ["scale", "weight"]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(3)])
def test_a_pooling_that_is_no_map_keeps_the_channels(pool: nn.Module) -> None:
    net = Shaped(nn.Sequential(nn.ReLU(), pool, nn.ReLU()))
    found = analysed(net.eval(), torch.randn(1, C, 9, 9))
    found.facts.shown = False
    found.facts._channels.clear()
    last = [n for n in found.graph.nodes if n.op == "call_module"][-1]
    assert found.facts.channels(last, 2) == C
    assert found.facts.channels(last, 1) is None
