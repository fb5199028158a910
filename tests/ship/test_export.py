"""Files for other runtimes are run there before they are handed out, and are free where the model is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.errors import FileError, InputError, VerificationError
from reptool.ship import runtimes
from reptool.ship.export import difference, export
from reptool.ship.runtimes import RUNTIMES, onnx_operators
from reptool.testing import randomize

MISSING = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
NO_EXECUTORCH = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed")
SUFFIXES = [".onnx", ".pt2", pytest.param(".xml", marks=MISSING)]


def net() -> nn.Module:
    """Blocks, and a head that takes any size."""
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return randomize(nn.Sequential(RepVGGBlock(3, 8, stride=2), DiverseBranchBlock(8, 8), *tail).eval())


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """An original and what it was deployed to."""
    original = net()
    return original, reptool.deploy(original)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("batch", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_batch_and_size_stay_free(suffix: str, batch: int, models: Any, tmp_path: Path) -> None:
    original, deployed = models
    path = tmp_path / f"m{suffix}"
    made = export(deployed, torch.randn(batch, 3, 24, 20), path, original=original)
    assert made.free == [("batch", 3, "height", "width")]
    assert [s[0] for s in made.sizes] == [(batch, 3, 24, 20), (2 * batch + 1, 3, 24, 20), (batch, 3, 56, 52)]
    assert 0 < max(made.error, made.error_original or 0.0) < 1e-5
    run = RUNTIMES[suffix].open(path)
    for shape in ((1, 3, 17, 33), (5, 3, 64, 40)):
        images = torch.randn(shape)
        torch.testing.assert_close(run([images])[0], original(images).detach(), rtol=1e-4, atol=1e-5)
    names = [path.name, *([f"{path.stem}.bin"] if suffix == ".xml" else [])]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)


@NO_EXECUTORCH
def test_executorch_runs_sizes_that_it_planned_memory_for(models: Any, tmp_path: Path) -> None:
    original, deployed = models
    made = export(deployed, torch.randn(2, 3, 24, 20), tmp_path / "m.pte", original=original)
    assert made.free[0][:2] == ("batch", 3)
    assert 0 < max(made.error, made.error_original or 0.0) < 1e-5
    assert made.operators["XnnpackBackend"] >= 1
    images = torch.randn(1, 3, 17, 15)
    (found,) = RUNTIMES[".pte"].open(tmp_path / "m.pte")([images])
    torch.testing.assert_close(found, original(images).detach(), rtol=1e-4, atol=1e-5)


CONVS = [(".onnx", "Conv"), (".pt2", "conv2d.default"), pytest.param(".xml", "Convolution", marks=MISSING)]


@pytest.mark.parametrize(("suffix", "conv"), CONVS)
def test_operators_are_counted_before_and_after(suffix: str, conv: str, models: Any, tmp_path: Path) -> None:
    original, deployed = models
    made = export(deployed, torch.randn(2, 3, 24, 20), tmp_path / f"m{suffix}", original=original)
    assert made.operators[conv] == 2
    assert made.operators_before is not None
    assert made.operators_before[conv] > 4
    said = str(made)
    assert f"m{suffix} in {made.runtime}" in said
    assert "before" in said
    assert "largest difference to the deployed model in PyTorch" in said
    assert made.to_dict()["operators"][conv] == 2


def test_without_dynamic_everything_is_fixed(models: Any, tmp_path: Path) -> None:
    made = export(models[1], torch.randn(2, 3, 24, 20), tmp_path / "m.onnx", dynamic=False)
    assert made.free == [(2, 3, 24, 20)]
    assert made.operators_before is made.error_original is None


class Fixed(nn.Module):
    """A head of one size, and code that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = RepVGGBlock(3, 4), nn.Linear(4 * 6 * 6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.body(x).flatten(1)), "mean": x.mean()}


def test_what_the_model_fixes_is_fixed_and_said(tmp_path: Path) -> None:
    deployed = reptool.deploy(randomize(Fixed().eval()))
    made = export(deployed, torch.randn(2, 3, 6, 6), tmp_path / "m.onnx")
    assert made.free == [("batch", 3, 6, 6)]
    assert [s[0][0] for s in made.sizes] == [2, 5]


class Two(nn.Module):
    """Two inputs, one of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.embed = RepVGGBlock(3, 4), nn.Embedding(10, 4)

    def forward(self, images: Tensor, *, ids: Tensor) -> Tensor:
        return self.block(images) + self.embed(ids).mean(1)[..., None, None]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_inputs_by_name(suffix: str, tmp_path: Path) -> None:
    deployed = reptool.deploy(randomize(Two().eval()))
    given = {"images": torch.randn(2, 3, 8, 8), "ids": torch.randint(0, 10, (2, 5))}
    made = export(deployed, given, tmp_path / f"m{suffix}")
    assert made.free[0] == ("batch", 3, "height", "width")
    assert made.free[1][0] == "batch"


def test_narrow_dtypes(tmp_path: Path) -> None:
    deployed = reptool.deploy(net()).half()
    made = export(deployed, torch.randn(2, 3, 24, 20).half(), tmp_path / "m.pt2")
    assert made.error < 0.01


# --- what is refused
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m.pt", "torch.jit.trace"), ("m.safetensors", "written by reptool.save"),
        ("m", r"writes \*.pt2, \*.onnx, \*.xml and \*.pte"),
    ],
)  # fmt: skip
def test_other_kinds_of_files_are_told_what_to_do(name: str, said: str, models: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        export(models[1], torch.randn(1, 3, 24, 20), tmp_path / name)


def test_a_missing_package_is_named(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"ONNX Runtime needs onnx, which is not installed; pip install 'reptool\[onnx\]'"
    ):
        export(models[1], torch.randn(1, 3, 24, 20), tmp_path / "m.onnx")


def test_inputs_and_models_that_do_not_fit(models: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with pytest.raises(InputError, match="takes tensors as inputs, got a str"):
        export(models[1], ("a",), path)
    with pytest.raises(InputError, match="missing a required argument"):
        export(models[1], (), path)
    with pytest.raises(InputError, match="in training mode"):
        export(net().train(), torch.randn(1, 3, 24, 20), path)
    with pytest.raises(reptool.ReptoolError, match="export takes a model"):
        export("m.pt", torch.randn(1), path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"torch\.export cannot follow this Sequential: "):
        export(models[1], torch.randn(2, 4, 24, 20), path)
    assert not path.exists()


def test_files_are_not_replaced_unasked_nor_half_written(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export(models[1], torch.randn(2, 3, 24, 20), path)
    with pytest.raises(FileError, match="there is no folder"):
        export(models[1], torch.randn(2, 3, 24, 20), tmp_path / "no" / "m.onnx")

    def half(program: Any, to: Path) -> None:
        to.write_text("half")
        raise KeyboardInterrupt

    broken = runtimes.Runtime("ONNX Runtime", (), half, RUNTIMES[".onnx"].open, onnx_operators)
    monkeypatch.setitem(RUNTIMES, ".onnx", broken)
    with pytest.raises(KeyboardInterrupt):
        export(models[1], torch.randn(2, 3, 24, 20), path, overwrite=True)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_computes_something_else_is_not_handed_out(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = RUNTIMES[".pt2"]
    wrong = runtimes.Runtime(
        plain.name, (), plain.write, lambda p: lambda x: [1.01 * y for y in plain.open(p)(x)], plain.operators
    )
    monkeypatch.setitem(RUNTIMES, ".pt2", wrong)
    with pytest.raises(VerificationError, match=r"in torch.export the Sequential is off by .* nothing was written"):
        export(models[1], torch.randn(2, 3, 24, 20), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    with pytest.raises(VerificationError, match="is off by"):
        export(models[1], torch.randn(2, 3, 24, 20), tmp_path / "m.pt2", original=net())


def test_differences() -> None:
    one = [torch.tensor([1.0, -4.0])]
    assert difference(one, one) == 0
    assert difference([torch.tensor([1.0, -4.4])], one) == pytest.approx(0.1)
    assert difference([torch.ones(3)], one) == difference([], one) == float("inf")
    assert difference([torch.zeros(0)], [torch.zeros(0)]) == 0


@MISSING
def test_neither_file_of_two_is_replaced_unasked(models: Any, tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_text("mine")
    with pytest.raises(InputError, match=r"m\.bin"):
        export(models[1], torch.randn(1, 3, 24, 20), tmp_path / "m.xml")
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"]
    export(models[1], torch.randn(1, 3, 24, 20), tmp_path / "m.xml", overwrite=True)
    assert (tmp_path / "m.bin").read_bytes() != b"mine"
