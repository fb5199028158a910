"""Adapters of every kind become the layer they sit on, and what switches them afterwards raises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reptool
from reptool.errors import SpecializedError
from tests.adapters import KINDS, Adapted, Bases, Direction, LowRank, Product, Rotation, Turned


def built(kind: type[Adapted], base: Callable[[], nn.Module] = lambda: nn.Linear(12, 8)) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = base()
    x = torch.randn(2, 8, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(5, 12)
    return nn.Sequential(kind(layer, ("first", "second")), nn.ReLU()).eval(), x


class Products(TorchDispatchMode):
    """Counts products of matrices, and what else computes weights."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("addmm", "mm", "bmm", "linear", "linalg_norm", "_fft_c2c", "convolution", "eye", "mul"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def products(model: nn.Module, x: Tensor) -> list[str]:
    """What one call multiplies."""
    with torch.no_grad(), Products() as counted:
        model(x)
    return counted.names


def float64(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_layer_with_two_adapters_is_one_layer(kind: type[Adapted]) -> None:
    model, x = built(kind)
    deployed = reptool.deploy(model, x)
    assert products(deployed, x) == ["addmm"], reptool.report(deployed).refusals
    wanted = model(x).detach()
    torch.testing.assert_close(deployed(x).detach(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "base",
    [
        lambda: nn.Conv2d(8, 8, 3, padding=1),
        lambda: nn.Conv2d(8, 16, 3, stride=2, bias=False),
    ],
)
def test_a_convolution_with_two_adapters_is_one_layer(base: Callable[[], nn.Module]) -> None:
    model, x = built(LowRank, base)
    deployed = reptool.deploy(model, x)
    assert products(deployed, x) == ["convolution"]
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [LowRank, Direction])
def test_a_narrow_base_with_wide_adapters_is_one_narrow_layer(kind: type[Adapted], dtype: torch.dtype) -> None:
    model, x = built(kind)
    model[0].base_layer.to(dtype)
    x = x.to(dtype)
    if kind is Direction:
        model.to(dtype)
    deployed = reptool.deploy(model, x)
    assert products(deployed, x) == ["addmm"], reptool.report(deployed).refusals
    exact = float64(model, x)
    error = float((deployed(x).double() - exact).detach().abs().max())
    assert error <= 8 * torch.finfo(dtype).eps * float(exact.abs().max())


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "disabled": lambda m: setattr(m[0], "disabled", True),
    "one active": lambda m: m[0].active.pop(),
    "others active": lambda m: setattr(m[0], "active", ["second", "first"]),
    "merged": lambda m: m[0].merged_adapters.append("first"),
    "scaling": lambda m: m[0].scaling.update(first=7.0),
    "no casts": lambda m: setattr(m[0], "casts", False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("kind", [LowRank, Direction])
def test_a_switch_afterwards_raises_or_runs_the_original(kind: type[Adapted], change: str, fallback: bool) -> None:
    if kind is Direction and change == "no casts":
        pytest.skip("it casts nothing")
    model, x = built(kind)
    deployed = reptool.deploy(model, x, keep_fallback=fallback, force=fallback)
    if not fallback:
        assert products(deployed, x) == ["addmm"]
    for m in (model, deployed):
        CHANGES[change](m)
    if fallback:
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(SpecializedError):
            deployed(x)


def test_another_adapter_for_one_call_raises() -> None:
    model, x = built(LowRank)
    deployed = reptool.deploy(model, x)
    with pytest.raises(SpecializedError, match="adapter_names"):
        deployed[0](x, adapter_names=["first"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_brought_to_another_dtype_is_right_or_raises(kind: type[Adapted]) -> None:
    model, x = built(kind)
    deployed = reptool.deploy(model, x)
    try:
        wanted = float64(model, x)
        found = deployed.double()(x.double())
    except (SpecializedError, RuntimeError):
        return
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_part_that_a_layer_does_the_work_of_is_loud() -> None:
    model, x = built(Turned)
    deployed = reptool.deploy(model, x)
    part = deployed[0].turns["first"]
    for change in (
        lambda: setattr(part, "clipped", True),
        lambda: part(x),
        lambda: part.register_forward_hook(print),
        lambda: part.weight,
        lambda: setattr(part, "limits", (0.0, 1.0)),
    ):
        with pytest.raises(SpecializedError):
            change()
    deployed[0].turns["first"] = Rotation(12, 4)
    with pytest.raises(SpecializedError):
        deployed(x)


class Casting(nn.Sequential):
    """What brings its input to a dtype first, as somebody else's code does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.float32))


def test_a_cast_in_the_code_around_is_no_part_of_a_rotation() -> None:
    model, x = built(Turned)
    deployed = reptool.deploy(Casting(*model).eval(), x)
    assert products(deployed, x) == ["addmm"], reptool.report(deployed).refusals
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Turned, Product, Bases])
def test_changed_alike_it_gives_the_same_or_raises(kind: type[Adapted]) -> None:
    model, x = built(kind)
    if kind is Turned:
        model[0].turns["first"].limits = [-1.0, 1.0]  # a list, which somebody else may hold and change
    deployed = reptool.deploy(model, x)
    assert reptool.testing.perturb(model, deployed, x, tries=60, allow=("lenient",)).tried == 60


KINDS_OF_A_LIBRARY: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 4}),
    "dora": ("LoraConfig", {"r": 4, "use_dora": True}),
    "loha": ("LoHaConfig", {"r": 4}),
    "lokr": ("LoKrConfig", {"r": 4}),
    "ia3": ("IA3Config", {"feedforward_modules": []}),
    "vera": ("VeraConfig", {"r": 4}),
    "hra": ("HRAConfig", {"r": 4}),
    "boft": ("BOFTConfig", {"boft_block_size": 4}),
    "fourier": ("FourierFTConfig", {"n_frequency": 9}),
}


@pytest.mark.models
@pytest.mark.parametrize("kind", KINDS_OF_A_LIBRARY)
def test_the_adapters_of_a_library_that_many_use(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(3, 16)
    config, options = KINDS_OF_A_LIBRARY[kind]
    adapted = peft.get_peft_model(model, getattr(peft, config)(target_modules=["0"], **options)).eval()
    for p in adapted.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    deployed = reptool.deploy(adapted, x)
    torch.testing.assert_close(deployed(x), adapted(x), rtol=1e-4, atol=1e-4)
    assert products(deployed, x) == ["addmm", "addmm"]
    with adapted.disable_adapter(), deployed.disable_adapter(), pytest.raises(SpecializedError):
        deployed(x)
