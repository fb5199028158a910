"""What people give in the place of a model, a part or a tensor: each has its own sentence with what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool import fusions
from reptool.blocks import RefConv
from reptool.errors import InputError, ReptoolError, UnsupportedModelError, VerificationError
from reptool.expansion import expansion_report
from reptool.testing import randomize


class Blur(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.body, self.blur = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), Blur()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blur(self.body(self.stem(x).relu()))
        return y


def net() -> Net:
    return randomize(Net()).eval()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "deploy": reptool.deploy,
    "explain": reptool.explain,
    "expand": lambda model: reptool.expand(model, RefConv),
}


def path_to(name: str) -> Any:
    return Path(name)


# --- in the place of a model
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Net, r"got the class Net; make one of it: {name}\(Net\(...\).eval\(\)\)"),
        (net().state_dict(), r"got a state dict of 14 tensors; build the model, .*load_state_dict.* and {name}\("),
        ({"epoch": 3, "model": {}}, "got a dict; if it is a checkpoint, build the model"),
        ({"teacher": net()}, "got a dict of modules; give one of them"),
        ("weights.pt", "got the path 'weights.pt'; build the model"),
        (path_to("weights.pt"), "got the path 'weights.pt'; build the model"),
        (torch.ones(1), "got a Tensor; the model comes first, then its example_inputs"),
        (numpy.ones(1), "got a ndarray; the model comes first"),
        ([net(), net()], r"got a list of modules; give nn.Sequential\(\*modules\)"),
        (len, "got the function len; put what it computes into the forward of an nn.Module"),
        (None, "got a NoneType; give an nn.Module"),
    ],
)
def test_what_is_no_model(name: str, given: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{name} takes a model, {message.format(name=name)}"):
        FUNCTIONS[name](given)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("plain", [False, True])
def test_weights_that_are_arrays(name: str, plain: bool) -> None:
    model, array = net(), numpy.ones((4, 3, 3, 3))
    if plain:
        del model.stem[0].weight
        model.stem[0].weight = array
    else:
        model.stem[0]._parameters["weight"] = array  # type: ignore[assignment]
    with pytest.raises(InputError, match=f"^{name}: 'stem.0.weight' is a numpy array; give nn.Parameter"):
        FUNCTIONS[name](model)


# --- in the place of example inputs
@pytest.mark.parametrize("name", ["deploy", "explain"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1, 3, 16, 16), r"example_inputs is a shape; give a tensor of it: torch.randn\(1, 3, 16, 16\)"),
        ([1, 3, 16, 16], r"example_inputs is a shape; give a tensor of it: torch.randn\(1, 3, 16, 16\)"),
        (torch.Size([1, 3, 16, 16]), "example_inputs is a shape"),
        (((1, 3, 16, 16),), r"example_inputs\[0\] is a shape; give a tensor of it"),
        ({"x": (1, 3, 16, 16)}, r"example_inputs\['x'\] is a shape; give a tensor of it"),
        (
            numpy.ones((1, 3, 16, 16)),
            r"example_inputs is a numpy array of shape \(1, 3, .*; give torch.from_numpy",
        ),
        ((numpy.ones((1, 3, 16, 16)),), r"example_inputs\[0\] is a numpy array; give a tensor: torch.from_numpy"),
        ({"x": numpy.ones((1, 3, 16, 16))}, r"example_inputs\['x'\] is a numpy array"),
        (torch.utils.data.DataLoader([1]), r"is a DataLoader; give the inputs in one of its batches: next\(iter"),  # type: ignore[arg-type]
        ("image.png", r"example_inputs is a str \('image.png'\); give tensors"),
        (Net, "example_inputs is the class Net"),
        (3, "example_inputs is a int; give a tensor, a tuple of positional or a dict of keyword arguments"),
        (torch.ones(1, 5, 16, 16), "the model does not run on example_inputs: RuntimeError"),
        ((torch.ones(1), torch.ones(1)), "example_inputs do not fit Net.forward: too many positional"),
    ],
)
def test_what_is_no_example(name: str, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: .*{message}"):
        FUNCTIONS[name](net(), given)


class OfSizes(nn.Module):
    """Numbers are arguments like others where the model takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        y: Tensor = self.bn(self.conv(x))[..., : size[0], : size[1]]
        return y


def test_a_shape_that_the_model_takes_is_none_to_complain_about() -> None:
    model, x = randomize(OfSizes()).eval(), torch.randn(1, 3, 9, 9)
    deployed = reptool.deploy(model, (x, (2, 3)))
    assert torch.allclose(deployed(x, (2, 3)), model(x, (2, 3)), atol=1e-5)
    assert reptool.report(deployed).norms == (1, 0)


# --- include, exclude, affine
@pytest.mark.parametrize("name", ["deploy", "explain"])
@pytest.mark.parametrize("argument", ["include", "exclude", "affine"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("boddy", "pattern 'boddy' matches no module of Net; there are body"),
        (["body", "head.*"], r"pattern 'head\.\*' matches no module of Net"),
        (nn.Conv3d, "Conv3d matches no module of Net; there are Conv2d"),
        ([nn.LSTM], "LSTM matches no module of Net"),
        (int, "was given int; it takes patterns on paths of modules, and classes of modules"),
        (3, r"was given a int \(3\); it takes patterns"),
        ([b"body"], "was given a bytes"),
        (nn.ReLU(), "was given a ReLU itself; give its path in the model or ReLU"),
    ],
)
def test_names_that_mean_no_part(name: str, argument: str, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: {argument} {message}"):
        FUNCTIONS[name](net(), **{argument: given})


@pytest.mark.parametrize("argument", ["include", "exclude", "affine"])
def test_a_module_itself_is_named_by_its_path(argument: str) -> None:
    model = net()
    with pytest.raises(InputError, match=f"{argument} was given a Blur itself; give its path 'blur' or Blur"):
        reptool.deploy(model, **{argument: model.blur})


class Head(nn.Sequential):
    pass


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"exclude": Head}, ["body.1"]),
        ({"exclude": [Head, "stem"]}, ["stem.1", "body.1"]),
        ({"exclude": nn.BatchNorm2d}, ["stem.1", "body.1"]),
        ({"include": Head}, ["stem.1"]),
        ({"include": nn.Sequential}, []),
        ({"include": (nn.Conv2d, nn.BatchNorm2d)}, []),
        ({"include": Net}, []),
        ({"exclude": Net}, ["stem.1", "body.1"]),
        ({"exclude": "body.0.weight"}, []),
    ],
)
def test_classes_include_and_exclude_what_is_in_them(options: Any, left: list[str]) -> None:
    model = net()
    model.body = Head(*model.body)
    deployed = reptool.deploy(model, **options)
    assert [n for n, m in deployed.named_modules() if isinstance(m, nn.BatchNorm2d)] == left
    same = reptool.deploy(deployed, **options)
    assert [n for n, m in same.named_modules() if isinstance(m, nn.BatchNorm2d)] == left


def test_affine_takes_a_class() -> None:
    model, x = net(), torch.randn(1, 3, 16, 16)
    assert torch.allclose(reptool.deploy(model, affine=Blur)(x), model(x), atol=1e-5)


# --- the function's own name
def test_every_message_names_the_function_that_was_called() -> None:
    for name in ("deploy", "explain"):
        for error, options in (
            (InputError, {"rules": "fold"}),
            (InputError, {"exclude": "nothing"}),
        ):
            with pytest.raises(error, match=f"^{name}: "):
                FUNCTIONS[name](net(), **options)
        with pytest.raises(InputError, match=f"^{name}: the Net is in training mode"):
            FUNCTIONS[name](net().train())
    with pytest.raises(InputError, match=r"^deploy: unknown requirement"):
        reptool.deploy(net(), require="nothing")
    with pytest.raises(InputError, match=r"^report: this Net was not returned by reptool.deploy"):
        reptool.report(net())
    with pytest.raises(InputError, match=r"^expansion_report: this Net was not returned by reptool.expand"):
        expansion_report(net())
    with pytest.raises(InputError, match=r"^expand: where='x' selects none"):
        reptool.expand(net(), RefConv, where="x")


def test_one_function_that_calls_another_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise VerificationError("off by 1")

    monkeypatch.setattr("reptool.api.work.make_plan", fails)
    with pytest.raises(ReptoolError, match=r"^deploy: off by 1$"):
        reptool.deploy(net())


# --- weights of the functions on weights
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a, t: fusions.fuse_conv_bn(a, None, t, t),
            "fuse_conv_bn: weight is a numpy array; give torch.from_numpy",
        ),
        (lambda a, t: fusions.fuse_conv_bn(t, None, t, running_var=a), "fuse_conv_bn: running_var is a numpy array"),
        (lambda a, t: fusions.fuse_conv_bn(t, [1.0], t, t), "fuse_conv_bn: bias is a list; give a torch.Tensor"),
        (lambda a, t: fusions.branch_add([t, a], [None, None]), r"branch_add: weights\[1\] is a numpy array"),
        (lambda a, t: fusions.branch_concat([a], [None]), r"branch_concat: weights\[0\] is a numpy array"),
        (lambda a, t: fusions.fuse_sequential(a, None, t, None), "fuse_sequential: .* is a numpy array"),
        (lambda a, t: fusions.linear_to_pointwise(a), "linear_to_pointwise: weight is a numpy array"),
        (lambda a, t: RefConv(4, 4, 3, basis=a), "RefConv with a ndarray as basis"),
    ],
)
def test_arrays_in_the_place_of_weights(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(numpy.ones((2, 2, 1, 1)), torch.ones(2, 2, 1, 1))


def test_the_model_is_as_it_was_whatever_was_wrong() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    for options in ({"exclude": "x"}, {"example_inputs": (1, 3, 8, 8)}, {"affine": nn.ReLU()}):
        with pytest.raises(InputError):
            reptool.deploy(model, inplace=True, **options)  # type: ignore[call-overload]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
