"""An adapter in a folder is put on its base, or refused in a sentence before anything is merged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reptool.cli.adapted import with_adapter
from reptool.errors import FileError, InputError
from tests.adapters import LowRank


def folder_of(path: Path, **tensors: Tensor) -> Path:
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file(tensors or {"up": torch.zeros(2)}, path / "adapter_model.safetensors")
    return path


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What stands for the library: it puts an adapter on the first layer, and says which tensors it took."""
    held = SimpleNamespace(state={"up": torch.zeros(2)}, error=None)

    def from_pretrained(model: nn.Sequential, folder: str, **options: Any) -> Any:
        assert options == {"local_files_only": True}
        if held.error:
            raise held.error
        model[0] = LowRank(model[0])
        return SimpleNamespace(get_base_model=lambda: model)

    made: Any = ModuleType("peft")
    made.PeftModel, made.get_peft_model_state_dict = (
        SimpleNamespace(from_pretrained=from_pretrained),
        lambda _: held.state,
    )
    monkeypatch.setitem(sys.modules, "peft", made)
    return held


def test_the_adapter_is_in_the_model(tmp_path: Path, library: SimpleNamespace) -> None:
    model = with_adapter(nn.Sequential(nn.Linear(4, 4)), folder_of(tmp_path))
    assert isinstance(model[0], LowRank)
    assert not model.training


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(FileError, match="there is no folder"):
        with_adapter(model, tmp_path / "none")
    with pytest.raises(FileError, match=r"holds no adapter_config\.json"):
        with_adapter(model, tmp_path)
    config = tmp_path / "adapter_config.json"
    for text, why in (("{", "is no JSON"), ("[]", "names no 'peft_type'"), ('{"r": 4}', "names no 'peft_type'")):
        config.write_text(text)
        with pytest.raises(FileError, match=why):
            with_adapter(model, tmp_path)
    config.write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileError, match=r"holds no adapter_model\.safetensors"):
        with_adapter(model, tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled code, which is not run"):
        with_adapter(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FileError, match="no whole file of safetensors"):
        with_adapter(model, tmp_path)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN or infinity in 'up'"):
        with_adapter(nn.Sequential(nn.Linear(4, 4)), folder_of(tmp_path, up=torch.tensor([1.0, torch.nan])))


def test_a_quantized_base(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4))
    model.config = SimpleNamespace(quantization_config={"bits": 4})
    with pytest.raises(InputError, match="is quantized"):
        with_adapter(model, folder_of(tmp_path))


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pip install peft"):
        with_adapter(nn.Sequential(nn.Linear(4, 4)), folder_of(tmp_path))


def test_an_adapter_of_another_model(tmp_path: Path, library: SimpleNamespace) -> None:
    folder, model = folder_of(tmp_path), nn.Sequential(nn.Linear(4, 4))
    library.error = RuntimeError("size mismatch for q:\n copying a param of shape [4]")
    with pytest.raises(InputError, match=r"does not fit Sequential: size mismatch for q: copying a param"):
        with_adapter(model, folder)
    library.error, library.state = None, {}
    with pytest.raises(InputError, match="holds 'up', for which the model has no layer"):
        with_adapter(model, folder)
    library.state = {"up": torch.zeros(2), "down": torch.zeros(2)}
    with pytest.raises(InputError, match="lacks 'down'"):
        with_adapter(nn.Sequential(nn.Linear(4, 4)), folder)
