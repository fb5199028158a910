"""Tensors go into a file by name and come back, each to its place and with its memory as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reptool.errors import InputError, RecipeError
from reptool.ship.tensors import LOOSE, Held, assign, on_meta, tensors_of


class Net(nn.Module):
    """Shared weights, both kinds of buffers, and a tensor that nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("kept", torch.arange(4))
        self.register_buffer("loose", torch.ones(2), persistent=False)
        self.plain = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_every_tensor_is_held_once() -> None:
    held = tensors_of(Net())
    assert set(held.tensors) == {"first.weight", "first.bias", "second.bias", "kept", f"{LOOSE}loose"}
    assert held.same == {"second.weight": "first.weight"}


def test_a_model_gets_them() -> None:
    model, other = Net(), Net()
    model.first.weight.requires_grad = False
    assign(model, tensors_of(other))
    assert torch.equal(model.first.weight, other.first.weight)
    assert model.second.weight is model.first.weight
    assert not model.first.weight.requires_grad
    assert model.second.bias.requires_grad
    assert model.loose.data_ptr() != model.kept.data_ptr()


def test_a_model_on_the_meta_device_gets_them_all_but_the_unregistered() -> None:
    with torch.device("meta"):
        model = Net()
    assign(model, tensors_of(Net()))
    assert on_meta(model)
    model.plain = torch.ones(1)
    assert not on_meta(model)
    assert model(torch.ones(1, 3)).shape == (1, 3)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
        nn.Conv3d(2, 2, 3).to(memory_format=torch.channels_last_3d),
        nn.Linear(3, 4),
    ],
    ids=str,
)
def test_the_order_of_memory_stays(layer: nn.Module) -> None:
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(torch.randn(3, 4).t())
    wanted: Any = layer.weight
    other = type(layer)(
        *((4, 6, 3) if isinstance(layer, nn.Conv2d) else (2, 2, 3) if isinstance(layer, nn.Conv3d) else (3, 4))
    )
    assign(other, tensors_of(layer))
    assert other.weight.stride() == wanted.stride()
    assert torch.equal(other.weight, wanted)


@pytest.mark.parametrize("strides", [[1, 100], [0, 0], [3], "ab", [-1, 3], [1 << 60, 1], None, [1.0, 3.0]])
def test_strides_that_fit_no_memory_are_not_taken(strides: Any) -> None:
    held = tensors_of(Net())
    held.strides["first.weight"] = strides
    model = Net()
    assign(model, held)
    assert model.first.weight.is_contiguous()


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("first.weight", torch.ones(3, 4), r"'first.weight' is \(3, 4\) of torch.float32 in the file, and \(3, 3\)"),
        ("kept", torch.ones(4), r"'kept' is \(4,\) of torch.float32 in the file, and \(4,\) of torch.int64"),
        ("first.__class__", torch.ones(1), "holds 'first.__class__', which the model has not"),
        ("kept", None, "holds no 'kept'"),
    ],
)
def test_what_does_not_fit_is_named(name: str, tensor: Tensor | None, said: str) -> None:
    held = tensors_of(Net())
    if tensor is None:
        del held.tensors[name]
    else:
        held.tensors[name] = tensor
    with pytest.raises(RecipeError, match=said):
        assign(Net(), held)


def test_names_of_others_that_lead_nowhere() -> None:
    held = tensors_of(Net())
    held.same["second.weight"] = "second.weight"
    with pytest.raises(RecipeError, match="which it does not hold"):
        assign(Net(), held)


class Extra(nn.Linear):
    """A state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"a": 1}


def test_what_no_file_can_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"'0' \(Extra\) has an extra state"):
        tensors_of(nn.Sequential(Extra(2, 2)))
    with pytest.raises(InputError, match="is on the meta device"):
        tensors_of(nn.Linear(2, 2, device="meta"))
    sparse = nn.Module()
    sparse.register_buffer("a", torch.eye(3).to_sparse())
    with pytest.raises(InputError, match="'a' is no plain tensor"):
        tensors_of(sparse)


def test_parts_of_one_memory_are_held_apart() -> None:
    model, both = nn.Module(), torch.randn(2, 3)
    model.register_buffer("a", both[0])
    model.register_buffer("b", both[1])
    held = tensors_of(model)
    assert held.tensors["a"].untyped_storage().data_ptr() != held.tensors["b"].untyped_storage().data_ptr()
    assert isinstance(held, Held)
