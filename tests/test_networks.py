"""Three hundred random whole networks, deployed and compared, a fifth of them in `make test`; and their generator."""

import copy
import inspect
import pickle
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reptool.testing import tensors_in
from reptool.testing._equivalence import _call
from tests.fuzz import Mismatch, Tally, _check_float32, check, conditioning, main, run
from tests.network_blocks import BLOCKS
from tests.network_text import STEPS
from tests.networks import build, network_source, random_network
from tests.sparse import sparse

COUNT, CHUNK = 300, 10


@pytest.mark.fuzz
@pytest.mark.parametrize("first", sparse(range(0, COUNT, CHUNK), 5))
def test_deployed_networks_compute_what_the_originals_compute(first: int) -> None:
    tally, failures = run(range(first, first + CHUNK))
    assert not failures, "\n\n".join(failures)
    assert tally.networks == CHUNK
    assert tally.fused > CHUNK // 2, str(tally)


# --- the generator
def test_every_network_runs_and_gives_finite_outputs() -> None:
    for seed in range(COUNT):
        model, inputs = random_network(seed)
        assert not any(m.training for m in model.modules())
        found = [t for _, t in tensors_in(_call(model, inputs))]
        assert found
        assert all(t.isfinite().all() for t in found), seed


def test_all_steps_blocks_ranks_inputs_and_outputs_occur() -> None:
    sources = [network_source(seed) for seed in range(3 * COUNT)]
    everything = "\n".join(sources)
    for block in BLOCKS:
        assert f"class {''.join(part.capitalize() for part in block.split('_'))}" in everything
    for text in (
        *(
            "BatchNorm1d",
            "BatchNorm2d",
            "BatchNorm3d",
            "ConvTranspose",
            "F.conv2d",
            "F.batch_norm",
            "NormAct(",
        ),
        *(
            "torch.cat",
            "register_forward_hook",
            "weight_norm",
            "spectral_norm",
            ".weight = self.",
            "F.pad",
            "relu_()",
        ),
        *(
            " += ",
            "inplace=True",
            "ModuleList",
            "ModuleDict",
            "chunk(2, 1)",
            "with torch.no_grad",
            "if x.shape[-1]",
        ),
        *(
            "track_running_stats=False",
            "affine=False",
            "padding_mode=",
            "padding='same'",
            "ceil_mode",
            "::2",
            "nn.Linear",
        ),
        *(
            "forward(self, x, y)",
            "y=None",
            "'kept'",
            "divisor_override",
            "Dropout",
            "self.training",
            "value=0.5",
        ),
    ):
        assert text in everything, text


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_step_makes_networks_that_run(name: str) -> None:
    for seed in range(12):
        model, inputs = random_network(seed, ops=[name, "steps"])
        _call(model, inputs)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_each_block_makes_networks_that_run(name: str) -> None:
    for seed in range(12):
        model, inputs = random_network(seed, ops=[name, "conv", "norm"])
        assert any(type(m).__name__.startswith(name.split("_")[0].capitalize()) for m in model.modules())
        _call(model, inputs)


def test_equal_seeds_give_equal_networks() -> None:
    for seed in (1, 2):
        (one, inputs), (other, again) = random_network(seed), random_network(seed)
        assert network_source(seed) == network_source(seed)
        for (_, a), (_, b) in zip(tensors_in(_call(one, inputs)), tensors_in(_call(other, again)), strict=True):
            assert torch.equal(a, b)
    assert network_source(1) != network_source(2)


def test_a_generated_class_shows_its_source_and_pickles() -> None:
    model, inputs = random_network(4)
    assert "def forward" in inspect.getsource(type(model))
    loaded = pickle.loads(pickle.dumps(model))
    for (_, a), (_, b) in zip(tensors_in(_call(model, inputs)), tensors_in(_call(loaded, inputs)), strict=True):
        assert torch.equal(a, b)


# --- the fuzzer sees what is wrong: each of these engines is broken in one way
SOURCE = network_source(3, ops=["rep_vgg"])


def engine(change: Any) -> Any:
    def deploy(model: nn.Module, example_inputs: Any = None, **options: Any) -> nn.Module:
        return change(model) or model

    return deploy


def _first_conv(model: nn.Module) -> Any:
    return next(m for m in model.modules() if hasattr(m, "kernel_size") and isinstance(m.weight, nn.Parameter))


def _shifted(model: nn.Module) -> nn.Module:
    out = copy.deepcopy(model)
    with torch.no_grad():
        _first_conv(out).weight.add_(1e-5)
    return out


def _wrong_padding(model: nn.Module) -> nn.Module:
    out = copy.deepcopy(model)
    conv = _first_conv(out)
    conv.padding_mode, conv._reversed_padding_repeated_twice = "replicate", [1, 1] * len(conv.kernel_size)
    return out


def _writes(model: nn.Module) -> nn.Module:
    out = copy.deepcopy(model)
    with torch.no_grad():
        _first_conv(model).weight.add_(1)
    return out


def _raises(model: nn.Module) -> nn.Module:
    raise RuntimeError("broken engine")


class _Report:
    regions: tuple[str, ...] = ("one",)
    refusals: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (copy.deepcopy, None),
        (_shifted, "MISMATCH seed 3: .*largest error"),
        (_wrong_padding, "MISMATCH seed 3: .*largest error"),
        (_writes, "MISMATCH seed 3: the original"),
        (_raises, "CRASH seed 3"),
    ],
)
def test_the_fuzzer_finds_a_broken_engine(monkeypatch: pytest.MonkeyPatch, change: Any, message: str | None) -> None:
    monkeypatch.setattr("tests.fuzz.reptool.deploy", engine(change), raising=False)
    monkeypatch.setattr("tests.fuzz.reptool.report", lambda model: _Report(), raising=False)
    tally, failures = run([3], ops=["rep_vgg"])
    if message is None:
        assert not failures
        assert (tally.networks, tally.regions, tally.fused) == (1, 1, 1)
        return
    (failure,) = failures
    assert re.search(message, failure)
    assert "class Network" in failure
    assert tally.mismatches + tally.crashes == 1


def test_a_write_into_the_input_is_part_of_what_a_network_does(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch
from torch import nn


class Network(nn.Module):
    def forward(self, x):
        x += 1.0
        return x


class Copying(nn.Module):
    def forward(self, x):
        return x + 1.0


def make():
    return Network().eval(), torch.randn(2, 3, 8, 8)
"""
    build(source, 0)
    monkeypatch.setattr(
        "tests.fuzz.reptool.deploy",
        engine(_copying),
        raising=False,
    )
    with pytest.raises(Mismatch, match="inputs"):
        check(source, 0)


def _copying(model: nn.Module) -> nn.Module:
    made: nn.Module = sys.modules[type(model).__module__].Copying()
    return made


def test_the_command_line_reports_and_exits_with_1_on_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.fuzz.reptool.report", lambda model: _Report(), raising=False)
    monkeypatch.setattr("sys.argv", ["fuzz", "--count", "2", "--seed", "3", "--ops", "rep_vgg"])
    monkeypatch.setattr("tests.fuzz.reptool.deploy", engine(copy.deepcopy), raising=False)
    assert main() == 0
    assert "2 networks: 0 mismatches, 0 crashes" in capsys.readouterr().out
    monkeypatch.setattr("tests.fuzz.reptool.deploy", engine(_shifted), raising=False)
    assert main() == 1
    printed = capsys.readouterr().out
    assert "2 mismatches" in printed
    assert "class Network" in printed
    assert "seeds 3 to 4" in printed


def test_a_tally_says_what_was_refused() -> None:
    tally = Tally(networks=1)
    assert "refused: nothing" in str(tally)
    tally.refusals["dearer"] += 2
    assert "refused: dearer 2" in str(tally)


# --- how exact float32 can be, on every processor
class Cancels(nn.Module):
    """Two large numbers whose difference is the output: a rounding step of the input moves it far."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.large, self.number = nn.Parameter(torch.tensor(large)), large

    def forward(self, x: Tensor) -> Tensor:
        return ((x + self.large).view(-1) - self.number).view(x.shape)


@pytest.mark.parametrize(("large", "least", "most"), [(0.0, 0.0, 1e-6), (1e4, 1e-4, 1e-2)])
def test_conditioning_is_how_far_rounding_moves_the_output(large: float, least: float, most: float) -> None:
    model = Cancels(large).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found = conditioning(model, x, _call(model, x))
    assert least <= found <= most
    assert found == conditioning(model, x, _call(model, x))
    assert model.large.item() == large


def test_what_is_rounded_in_between_moves_the_output_too() -> None:
    """Neither the input nor a weight is large here, and a rounding step of either moves nothing."""

    def cancels(x: Tensor) -> Tensor:
        y = x + 1e4
        y -= 1e4
        return y

    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64) + 0.5
    module = nn.Identity()
    module.forward = cancels  # type: ignore[method-assign]
    assert 1e-4 < conditioning(module, x, cancels(x)) < 1e-2


def test_a_network_whose_error_is_small_by_luck_is_given_what_rounding_moves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The original is right to the last bit here, and the deployed one off by what another processor would be off."""
    double = Cancels(1e4).double().eval()
    x = torch.zeros(1, 1, 4, 4) + 0.25

    def other(value: Tensor) -> Tensor:
        return double(value.double()).float() + 1e-4

    monkeypatch.setattr("tests.fuzz.other_sizes", lambda inputs: [])
    _check_float32(Cancels(1e4), double, x, other)
    with pytest.raises(Mismatch, match="rounding moves it by"):
        _check_float32(Cancels(1.0), Cancels(1.0).double(), x, other)
