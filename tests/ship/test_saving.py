"""A deployed model that was saved and loaded gives the same outputs, whatever the weights of what it was made from."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.errors import FileError, InputError, RecipeError
from reptool.ir.walk import call
from reptool.ship.header import digest_of
from reptool.testing import randomize
from tests.ir.test_decisions import BY_VALUES
from tests.networks import build as built_from
from tests.networks import network_source, random_network
from tests.sparse import sparse

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Asks(nn.Module):
    """Its method is written anew, and guarded."""

    def __init__(self, width: int = 4, flip: bool = False) -> None:
        super().__init__()
        self.flip = flip
        self.first, self.second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, width, 1)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 5)
        self.register_buffer("scale", torch.full((1, width, 1, 1), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(-1) if self.flip else x
        y = self.norm(self.first(x) + self.second(x)) * self.scale
        return self.head(torch.relu(y).mean((2, 3)))


def branches() -> nn.Module:
    """Blocks of two kinds."""
    return nn.Sequential(RepVGGBlock(3, 8), DiverseBranchBlock(8, 8, activation=nn.ReLU))


BUILDS: dict[str, Callable[[], nn.Module]] = {
    **BY_VALUES,
    "methods written anew": Asks,
    "blocks": branches,
    "parametrized": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
}


def deployed_and_saved(build: Callable[[], nn.Module], path: Path, **options: Any) -> nn.Module:
    """A deployed model with weights that its architecture does not begin with, and its file."""
    model = build().eval()
    if build not in BY_VALUES.values():
        randomize(model)
    deployed = reptool.deploy(model, **options)
    reptool.save(deployed, path)
    return deployed


def same(a: nn.Module, b: nn.Module, images: Tensor = IMAGES) -> bool:
    """Whether two models give the same, to the last bit."""
    with torch.no_grad():
        return torch.equal(a(images), b(images))


@pytest.mark.parametrize("shown", [False, True], ids=["unseen", "with example inputs"])
@pytest.mark.parametrize("name", BUILDS)
def test_what_is_loaded_gives_the_same(name: str, shown: bool, tmp_path: Path) -> None:
    options = {"example_inputs": IMAGES} if shown else {}
    deployed = deployed_and_saved(BUILDS[name], tmp_path / "m.safetensors", **options)
    loaded = reptool.load(tmp_path / "m.safetensors", into=lambda: randomize(BUILDS[name]()))
    assert same(loaded, deployed)
    assert loaded.state_dict().keys() == deployed.state_dict().keys()
    assert type(loaded).__qualname__ == type(deployed).__qualname__
    assert [r.layer for r in reptool.report(loaded).regions] == [r.layer for r in reptool.report(deployed).regions]
    assert not loaded.training


@pytest.mark.fuzz
@pytest.mark.parametrize("first", sparse(range(0, 60, 10)))
def test_random_networks_are_loaded_as_they_were_or_refused(first: int, tmp_path: Path) -> None:
    loads = 0
    for seed in range(first, first + 10):
        model, inputs = random_network(seed)
        deployed = reptool.deploy(model, inputs)
        path = tmp_path / f"{seed}.safetensors"
        try:
            reptool.save(deployed, path)
        except InputError:
            continue
        other, _ = built_from(network_source(seed), seed)
        loaded = reptool.load(path, into=randomize(other, seed + 1000))
        wanted, found = (call(m, inputs) for m in (deployed, loaded))
        for a, b in zip(_flat(wanted), _flat(found), strict=True):
            assert torch.equal(a, b), seed
        loads += 1
    assert loads >= 8


def _flat(value: Any) -> list[Tensor]:
    return [t for _, t in reptool.testing.tensors_in(value)]


def test_weights_that_were_trained_after_deploying_are_those_that_are_saved(tmp_path: Path) -> None:
    deployed = reptool.deploy(randomize(branches().eval()))
    with torch.no_grad():
        for parameter in deployed.parameters():
            parameter.mul_(1.5)
    reptool.save(deployed, tmp_path / "m.safetensors")
    assert same(reptool.load(tmp_path / "m.safetensors", into=branches), deployed)


def test_dtypes_shared_weights_and_memory_formats_stay(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        model[3].weight = model[2].weight
        return model

    deployed = reptool.deploy(randomize(build().eval())).half().to(memory_format=torch.channels_last)
    reptool.save(deployed, tmp_path / "m.safetensors")
    loaded = reptool.load(tmp_path / "m.safetensors", into=build)
    assert loaded[2].weight is loaded[3].weight
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    assert loaded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), deployed.parameters(), strict=True))


def test_a_loaded_model_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    deployed = deployed_and_saved(branches, tmp_path / "a.safetensors")
    reptool.save(reptool.load(tmp_path / "a.safetensors", into=branches), tmp_path / "b.safetensors")
    assert same(reptool.load(tmp_path / "b.safetensors", into=branches), deployed)


def test_a_model_that_was_deployed_twice_has_two_steps(tmp_path: Path) -> None:
    first = reptool.deploy(randomize(branches().eval()), include="0")
    deployed = reptool.deploy(first)
    assert len(reptool.report(deployed).regions) == 1
    reptool.save(deployed, tmp_path / "m.safetensors")
    assert same(reptool.load(tmp_path / "m.safetensors", into=branches), deployed)


def test_options_travel(tmp_path: Path) -> None:
    options = {"rules": ["conv_bn"], "exclude": nn.Linear, "force": True}
    deployed = deployed_and_saved(Asks, tmp_path / "m.safetensors", **options)
    assert same(reptool.load(tmp_path / "m.safetensors", into=Asks), deployed)


def test_pickles_and_copies_keep_the_recipe(tmp_path: Path) -> None:
    deployed = reptool.deploy(randomize(Asks().eval()), IMAGES)
    reptool.save(pickle.loads(pickle.dumps(deployed)), tmp_path / "m.safetensors")
    assert same(reptool.load(tmp_path / "m.safetensors", into=Asks), deployed)


def test_another_process_loads_it(tmp_path: Path) -> None:
    deployed = deployed_and_saved(branches, tmp_path / "m.safetensors", example_inputs=IMAGES)
    torch.save({"x": IMAGES, "y": deployed(IMAGES).detach()}, tmp_path / "io.pt")
    code = (
        "import torch, reptool; from tests.ship.test_saving import branches\n"
        "io = torch.load('io.pt', weights_only=True); torch.manual_seed(99)\n"
        "assert torch.equal(reptool.load('m.safetensors', into=branches)(io['x']), io['y'])\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- a recipe for another checkpoint
def test_a_recipe_folds_another_checkpoint(tmp_path: Path) -> None:
    deployed_and_saved(branches, tmp_path / "m.safetensors", example_inputs=IMAGES)
    other = randomize(branches().eval(), seed=5)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "c.pt")
    loaded = reptool.load(tmp_path / "m.safetensors", into=branches, weights=tmp_path / "c.pt")
    torch.testing.assert_close(loaded(IMAGES), other(IMAGES), rtol=1e-4, atol=1e-5)
    assert loaded.state_dict().keys() == reptool.deploy(other).state_dict().keys()


def test_a_recipe_that_does_not_hold_for_the_weights_is_refused(tmp_path: Path) -> None:
    build = BY_VALUES["norm before a padding"]
    deployed_and_saved(build, tmp_path / "m.safetensors")
    shifted = build().eval()
    nn.init.ones_(shifted[0].bias)
    save_file(shifted.state_dict(), tmp_path / "c.safetensors")
    with pytest.raises(RecipeError, match=r"does not hold for these weights.*deploy the model anew"):
        reptool.load(tmp_path / "m.safetensors", into=build, weights=tmp_path / "c.safetensors")


def test_a_recipe_leaves_what_it_left_although_these_weights_would_allow_more(tmp_path: Path) -> None:
    build = BY_VALUES["norm before a padding"]
    shifted = build().eval()
    nn.init.ones_(shifted[0].bias)
    reptool.save(reptool.deploy(shifted), tmp_path / "m.safetensors")
    save_file(build().state_dict(), tmp_path / "c.safetensors")
    loaded = reptool.load(tmp_path / "m.safetensors", into=build, weights=tmp_path / "c.safetensors")
    assert isinstance(loaded[0], nn.BatchNorm2d)


# --- what is refused
def test_another_architecture_is_refused_with_the_first_difference(tmp_path: Path) -> None:
    deployed_and_saved(Asks, tmp_path / "m.safetensors")
    for build, said in (
        (lambda: Asks(6), "'<root>' .*Asks. has other shapes"),
        (lambda: Asks(flip=True), "'flip' of '<root>' is True here, and was False"),
        (branches, "'<root>' is a torch.nn.modules.container.Sequential here, and was a .*Asks"),
        (lambda: nn.Sequential(Asks()), "another architecture"),
    ):
        with pytest.raises(RecipeError, match=said):
            reptool.load(tmp_path / "m.safetensors", into=build)


def test_other_code_of_the_same_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed_and_saved(Asks, tmp_path / "m.safetensors")

    def forward(self: Asks, x: Tensor) -> Tensor:
        y = self.norm(self.first(x) + self.second(x)) * self.scale
        return self.head(torch.tanh(y).mean((2, 3)))

    monkeypatch.setattr(Asks, "forward", forward)
    with pytest.raises(RecipeError, match="the code of '<root>' does something else"):
        reptool.load(tmp_path / "m.safetensors", into=Asks)


@pytest.mark.parametrize(
    ("into", "said"),
    [
        (lambda: {"weight": torch.ones(1)}, "has to build an nn.Module, and built a dict"),
        (lambda: 1 / 0, "could not build the model: ZeroDivisionError"),
        ("package.module:callable", "takes a model or a function that builds one"),
    ],
)
def test_what_builds_no_model_is_told(into: Any, said: str, tmp_path: Path) -> None:
    deployed_and_saved(branches, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=said):
        reptool.load(tmp_path / "m.safetensors", into=into)


def test_models_that_have_no_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="was not returned by"):
        reptool.save(branches(), path)
    with pytest.raises(InputError, match=r"made again from a recipe: .*flatten=True"):
        reptool.save(reptool.deploy(branches().eval(), flatten=True), path)
    changed = reptool.deploy(branches().eval())
    changed[1].activation = nn.SiLU()
    with pytest.raises(InputError, match=r"changed after deploying: '1.activation' is a .*SiLU"):
        reptool.save(changed, path)
    with pytest.raises(InputError, match="changed after deploying"):
        reptool.save(reptool.release(reptool.deploy(branches().eval())), path)
    with pytest.raises(InputError, match=r"writes \*.safetensors and \*.pt"):
        reptool.save(reptool.deploy(branches().eval()), tmp_path / "m.bin")
    with pytest.raises(reptool.ReptoolError, match="save takes a model, got"):
        reptool.save({"a": torch.ones(1)}, path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_example_inputs_that_are_no_data_leave_no_recipe(tmp_path: Path) -> None:
    class Config:
        stride = 2

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = branches()

        def forward(self, x: Tensor, config: Any) -> Tensor:
            return self.body(x)[..., :: config.stride]

    deployed = reptool.deploy(Takes().eval(), (IMAGES, Config()))
    with pytest.raises(InputError, match="example_inputs hold a Config"):
        reptool.save(deployed, tmp_path / "m.safetensors")


# --- hostile files
def damaged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The file with other bytes."""
    path.write_bytes(change(path.read_bytes()))
    return path


def with_recipe(path: Path, change: Callable[[Any], Any]) -> Path:
    """The file with another recipe, and a digest that fits it."""
    with safe_open(path, "pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    data = json.loads(said["reptool"])
    made = change(data)
    text = json.dumps(data if made is None else made)
    save_file(tensors, path, {"reptool": text, "digest": digest_of(text, tensors)})
    return path


@pytest.mark.parametrize("kept", [0, 4, 9, 100, 2000, -200, -1])
def test_truncated_files_are_refused(kept: int, tmp_path: Path) -> None:
    deployed_and_saved(branches, tmp_path / "m.safetensors")
    with pytest.raises(FileError, match="no whole file of safetensors"):
        reptool.load(damaged(tmp_path / "m.safetensors", lambda b: b[:kept]), into=branches)


def test_every_altered_byte_is_seen(tmp_path: Path) -> None:
    deployed_and_saved(Asks, tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(0, len(whole), (60,), generator=generator).tolist():
        (tmp_path / "m.safetensors").write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        with pytest.raises((FileError, RecipeError)):
            reptool.load(tmp_path / "m.safetensors", into=Asks)


def test_oversized_headers_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 1 << 30))
        file.truncate((1 << 30) + 64)  # sparse
    with pytest.raises(FileError, match="header of 1,073,741,824 bytes"):
        reptool.load(path, into=branches)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(FileError, match="no whole file"):
        reptool.load(path, into=branches)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileError, match="there is no file"):
        reptool.load(path, into=branches)
    with pytest.raises(FileError, match="there is no file"):
        reptool.load(tmp_path, into=branches)
    save_file(branches().state_dict(), path)
    with pytest.raises(RecipeError, match="holds tensors and no recipe"):
        reptool.load(path, into=branches)
    torch.save(branches(), path)
    with pytest.raises(FileError, match="no whole file of safetensors"):
        reptool.load(path, into=branches)


CODE = "__import__('os').system('touch hacked')"
HOSTILE: dict[str, Callable[[Any], Any]] = {
    "no recipe at all": lambda d: [],
    "another format": lambda d: {**d, "format": "reptool-99"},
    "an option that is code": lambda d: d["steps"][0]["options"].update(rules=[CODE]),
    "an unknown option": lambda d: d["steps"][0]["options"].update(inplace=True),
    "a pattern that is code": lambda d: d["steps"][0]["options"].update(include=[CODE]),
    "an input that is code": lambda d: d["steps"][0].update(inputs={"call": [CODE]}),
    "an input of all memory": lambda d: d["steps"][0].update(
        inputs={"tuple": [{"tuple": [{"tensor": [[1 << 40], "float32"]}]}, {"dict": []}]}
    ),
    "a dtype that is no dtype": lambda d: d["steps"][0].update(
        inputs={"tuple": [{"tuple": [{"tensor": [[1], "load"]}]}, {"dict": []}]}
    ),
    "a step of other fields": lambda d: d["steps"][0].update(source=CODE),
    "a method with other code": lambda d: d["steps"][0]["after"][""].update(digest=CODE),
    "no layers": lambda d: d["steps"][0].update(layers={}),
    "a layer without its bias": lambda d: d["steps"][0]["layers"].update(dict.fromkeys(d["steps"][0]["layers"], False)),
    "no decisions and no code": lambda d: d["steps"][0].update(code={}),
    "steps that are none": lambda d: d.update(steps=[CODE]),
    "a step too many": lambda d: d["steps"].append(d["steps"][0]),
    "a tensor that is another": lambda d: d.update(same={"head.bias": "../../etc/passwd"}),
    "a module that there is not": lambda d: d["steps"][0]["after"].update({"__class__": {"class": CODE}}),
    "an endless nest": lambda d: d["steps"][0].update(inputs=json.loads('{"tuple":[' * 40 + "1" + "]}" * 40)),
    "given up what is no region": lambda d: d["steps"][0].update(given_up=[{"tuple": ["region", "", 3]}]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_recipes_with_anything_else_in_them_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deployed_and_saved(Asks, tmp_path / "m.safetensors", example_inputs=IMAGES)
    path = with_recipe(tmp_path / "m.safetensors", HOSTILE[name])
    with pytest.raises(RecipeError):
        reptool.load(path, into=Asks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


# --- where files are written
def test_an_existing_file_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("mine")
    deployed = reptool.deploy(branches().eval())
    with pytest.raises(InputError, match="is there already; name another file, or give overwrite=True"):
        reptool.save(deployed, path)
    assert path.read_text() == "mine"
    reptool.save(deployed, path, overwrite=True)
    assert same(reptool.load(path, into=branches), deployed)


def test_names_of_any_alphabet(tmp_path: Path) -> None:
    path = tmp_path / "модель 模型 $(touch hacked);é.safetensors"
    deployed = deployed_and_saved(branches, path)
    assert same(reptool.load(path, into=branches), deployed)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_what_fails_in_the_middle_leaves_the_old_file(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    deployed = deployed_and_saved(branches, path)
    before = path.read_bytes()

    def half(tensors: Any, file: Path, metadata: Any) -> None:
        Path(file).write_bytes(before[:500])
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", half)
    wanted = FileError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        reptool.save(deployed, path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
