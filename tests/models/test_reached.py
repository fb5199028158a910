"""What a module holds."""

import weakref
from collections import OrderedDict, deque

import torch
from torch import nn

from reptool.models.reached import MAX_NESTED, reached, tensors_in


def test_registered_parts_and_those_in_plain_attributes_are_reached_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].friends = {"a": [model[1], (nn.Tanh(), None)]}
    object.__setattr__(model, "aside", model[0])
    found = [(path, type(module).__name__) for path, module, _ in reached(model)]
    assert found == [("", "Sequential"), ("0", "Linear"), ("1", "ReLU"), ("0.friends", "Tanh")]


def test_what_is_kept_tells_names_and_holds_weak_references() -> None:
    model = nn.ReLU()
    model.up = deque([weakref.ref(model)])
    model.none, model.number, model.text, model.empty = None, 3, "x", OrderedDict()
    ((_, module, kept),) = reached(model)
    assert module is model
    assert [type(v) for v in kept] == [weakref.ref]


def test_tensors_are_those_registered_and_those_kept() -> None:
    model = nn.BatchNorm1d(3)
    model.extra = [torch.ones(1), {"deep": torch.ones(2)}]
    wanted = [model.weight, model.bias, model.running_mean, model.running_var, model.num_batches_tracked]
    found = list(tensors_in(model))
    assert [id(t) for t in found] == [id(t) for t in [*wanted, model.extra[0], model.extra[1]["deep"]]]


def test_containers_are_looked_into_so_deep_and_no_deeper() -> None:
    def nested(depth: int) -> object:
        value: object = torch.ones(1)
        for _ in range(depth):
            value = [value]
        return value

    model = nn.ReLU()
    model.held = nested(MAX_NESTED)
    assert len(list(tensors_in(model))) == 1
    model.held = nested(MAX_NESTED + 1)
    assert not list(tensors_in(model))
