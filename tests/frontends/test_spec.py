"""A model by name: what is read, what is built, and what is no name."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from reptool.errors import InputError
from reptool.frontends.spec import Spec, input_shape


def test_a_callable_of_any_module_is_called_with_literals() -> None:
    model = Spec.of("torch.nn:Conv2d(3, out_channels=8, kernel_size=(3, 1), bias=False)").build()
    assert isinstance(model, nn.Conv2d)
    assert (model.out_channels, model.kernel_size, model.bias) == (8, (3, 1), None)
    assert not model.training
    assert isinstance(Spec.of("torch.nn:modules.linear.Identity").build(), nn.Identity)


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_zoo_of_nets.py").write_text("from torch import nn\ndef net(width=4): return nn.Linear(width, 2)\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert Spec.of("my_zoo_of_nets:net(width=7)").build().in_features == 7
    assert sys.path == before


def test_names_of_public_collections() -> None:
    spec = Spec.of("timm:hf/some-net_a0.in1k(num_classes=10, features_only=True)")
    assert (spec.source, spec.name) == ("timm", "hf/some-net_a0.in1k")
    assert spec.kwargs == {"num_classes": 10, "features_only": True}


@pytest.mark.parametrize(
    "text",
    [
        "", "repvgg_a0", "timm:", ":net", "timm:$(touch hacked)", "timm:a;touch hacked", "timm:../a", "timm:`id`",
        "torchvision:a b", "hf:../../etc", "hf:/etc/passwd", "a-b:net", "os.path:join or exec", "torch.nn:Linear()()",
        "torch.nn:Linear(2, 3", "torch.nn:Linear(2, 3))", "torch.nn:Linear(__import__('os').system('touch hacked'))",
        "torch.nn:Linear(open('hacked', 'w'), 2)", "torch.nn:Linear(*[1, 2])", "torch.nn:Linear(**{'a': 1})",
        "torch.nn:Linear(2, 3).weight", "torch.nn:Linear(lambda: 1)", "timm:a(" + "(" * 5000, "timm:a\nb", "timm:a\0",
        "torch.nn:Linear(2 ** 3)", "torch.nn:Linear(f'{1}')", "torch.nn:__class__.x()x",
    ],
)  # fmt: skip
def test_what_is_no_name_is_never_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="names no model"):
        Spec.of(text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no_such_package_anywhere:net", "needs the module 'no_such_package_anywhere', which there is not"),
        ("torch.nn:NoSuchLayer", "could not be built: AttributeError: .*NoSuchLayer"),
        ("torch:get_num_threads", "has to build a torch.nn.Module, and built a int"),
        ("torch:pi", "could not be built: TypeError: pi is a float, nothing that can be called"),
        ("torch.nn:Linear", "could not be built: TypeError"),
        ("sys:exit", "could not be built: SystemExit"),
    ],
)
def test_what_builds_no_model_is_told(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Spec.of(text).build()


def _module(name: str, monkeypatch: pytest.MonkeyPatch, **held: Any) -> None:
    made = ModuleType(name)
    vars(made).update(held)
    monkeypatch.setitem(sys.modules, name, made)


def test_code_that_runs_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleeps() -> nn.Module:
        with contextlib.suppress(Exception):  # which does not catch what stops it
            time.sleep(30)
        return nn.Identity()

    _module("sleepy_nets", monkeypatch, sleeps=sleeps)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"'sleepy_nets:sleeps' was still building after 0.2 seconds"):
        Spec.of("sleepy_nets:sleeps").build(0.2)
    assert time.monotonic() - start < 10


def test_code_that_raises_anything_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> nn.Module:
        raise RuntimeError("first line\nsecond line")

    _module("failing_nets", monkeypatch, fails=fails)
    with pytest.raises(InputError, match=r"could not be built: RuntimeError: first line$"):
        Spec.of("failing_nets:fails").build()


class _Config:
    architectures = ("TinyNet",)


def test_models_of_transformers_are_made_of_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class TinyNet(nn.Linear):
        def __init__(self, config: Any) -> None:
            super().__init__(2, 3)

        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> nn.Module:
            seen.append((name, options))
            return cls(None)

    class AutoConfig:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            seen.append((name, options))
            return _Config()

    _module("transformers", monkeypatch, AutoConfig=AutoConfig, TinyNet=TinyNet)
    assert type(Spec.of("hf:org/tiny").build()) is TinyNet
    assert seen.pop()[1] == {"local_files_only": False, "trust_remote_code": False}
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert type(Spec.of(f"hf:{tmp_path}").build()) is TinyNet
    assert seen.pop() == (str(tmp_path), {"local_files_only": True, "trust_remote_code": False})
    (tmp_path / "model.safetensors").write_bytes(b"")
    Spec.of(f"hf:{tmp_path}").build()
    assert seen.pop()[1] == {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}


def test_the_input_shape_is_the_models_own_or_the_usual_one() -> None:
    model = nn.Identity()
    assert input_shape(model) == (3, 224, 224)
    model.pretrained_cfg = {"input_size": (1, 32, 48)}
    assert input_shape(model) == (1, 32, 48)


@pytest.mark.models
@pytest.mark.parametrize("text", ["timm:test_resnet", "torchvision:mobilenet_v3_small(num_classes=7)"])
def test_public_models_are_built_by_name(text: str) -> None:
    model = Spec.of(text).build()
    with torch.no_grad():
        assert model(torch.randn(1, *input_shape(model))).dim() == 2
