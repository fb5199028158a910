"""The helpers that everything else is tested with: checked against torch, and broken on purpose."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.blocks import RepVGGBlock
from reptool.errors import InputError
from reptool.frontends.examples import example_for
from reptool.testing import (
    apply_kernel,
    assert_collapses,
    assert_equivalent,
    bn_statistics,
    conv_modules,
    count_operations,
    dense_weight,
    norm_modules,
    other_sizes,
    randomize,
    tensors_in,
)


# --- apply_kernel, against torch's own layers
@given(conv_modules(), st.integers(3, 9), st.integers(3, 9), st.integers(3, 5))
def test_apply_kernel_is_what_torch_computes(conv: Any, height: int, width: int, depth: int) -> None:
    border = Border(conv.padding_mode)
    along = tuple(
        Axis(k, s, d, p, p, border)
        for k, s, d, p in zip(conv.kernel_size, conv.stride, conv.dilation, conv.padding, strict=True)
    )
    sizes = (height, width, depth)[: len(along)]
    if any(a.out_size(n) < 1 for a, n in zip(along, sizes, strict=True)):
        return
    channels = Channels.grouped(conv.in_channels, conv.out_channels, conv.groups)
    kernel = Kernel(channels, along, conv.weight.detach(), conv.bias, conv.bias is not None)
    x = torch.randn(2, conv.in_channels, *sizes, dtype=torch.float64)
    torch.testing.assert_close(apply_kernel(kernel, x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (0, 3), (-1, -2)])
def test_apply_kernel_pads_like_torch_pads(mode: str, before: int, after: int) -> None:
    border = Border(mode)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    value = torch.full((3,), 0.7, dtype=torch.float64)
    along = (Axis(), Axis(before=before, after=after, border=border))
    weight = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    kernel = Kernel(Channels.grouped(3, 3, 3), along, weight, border_value=value)
    extra = {"value": 0.7} if mode == "constant" else {}
    assert torch.equal(apply_kernel(kernel, x), F.pad(x, (before, after, 0, 0), mode, **extra))


def test_apply_kernel_pads_each_channel_with_its_own_constant() -> None:
    x = torch.zeros(1, 2, 1, dtype=torch.float64)
    value = torch.tensor([3.0, 4.0], dtype=torch.float64)
    along = (Axis(before=1, after=-1, border=Border.CONSTANT),)
    kernel = Kernel(Channels.select(2, [0, 1]), along, torch.ones(2, 1, 1, dtype=torch.float64), border_value=value)
    assert apply_kernel(kernel, x).flatten().tolist() == [3.0, 4.0]


def test_zeros_win_in_the_corner_of_zeros_and_a_constant() -> None:
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    value = torch.full((1,), 5.0, dtype=torch.float64)
    constant = Axis(before=1, after=0, border=Border.CONSTANT)
    for along in ((Axis(before=1), constant), (constant, Axis(before=1))):
        kernel = Kernel(Channels.grouped(1, 1), along, torch.ones(1, 1, 1, 1).double(), border_value=value)
        assert sorted(apply_kernel(kernel, x).flatten().tolist()) == [0.0, 0.0, 1.0, 5.0]


def test_apply_kernel_refuses_what_has_no_meaning() -> None:
    one, x = torch.ones(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.float64)
    channels = Channels.grouped(1, 1)
    reflect = (Axis(before=2, border=Border.REFLECT),)
    for kernel, message in (
        (Kernel(channels, (Axis(),)), "shape"),
        (Kernel(channels, (Axis(before=1, border=Border.UNKNOWN),), one), "unknown"),
        (Kernel(channels, (Axis(before=1, border=Border.CONSTANT),), one), "not given"),
        (Kernel(channels, (Axis(),), one, transposed=(1,)), "transposed"),
        (Kernel(channels, reflect, one), "reflected"),
    ):
        with pytest.raises(InputError, match=message):
            apply_kernel(kernel, x)


def test_dense_weight_puts_each_row_where_it_reads() -> None:
    rows = Kernel(Channels.select(3, [2, 0]), (), torch.tensor([[5.0], [7.0]]))
    assert dense_weight(rows).tolist() == [[0.0, 0.0, 5.0], [7.0, 0.0, 0.0]]


# --- strategies
@given(bn_statistics(3))
def test_statistics_are_valid(statistics: tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]) -> None:
    mean, variance, gamma, beta, eps = statistics
    assert mean.shape == variance.shape == (3,)
    assert (variance >= 0).all()
    assert eps > 0
    assert (gamma is None) == (beta is None)


@given(st.data(), st.integers(0, 3))
def test_norm_modules_are_norms_in_eval_mode(data: st.DataObject, spatial: int) -> None:
    norm: Any = data.draw(norm_modules(2, spatial))
    assert not norm.training
    x = torch.randn(2, 2, *(3, 4, 2)[:spatial], dtype=torch.float64)
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    assert torch.equal(norm(x), expected)


# --- assert_equivalent
class Nested(nn.Module):
    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Any]:
        edge = torch.zeros_like(x)
        edge[..., -1:] = self.wrong
        return {"a": [x * 2, (x + edge,)], "flag": x > 0, "y": y}


def test_assert_equivalent_accepts_what_is_equal() -> None:
    x = torch.randn(1, 2, 8, 8)
    assert assert_equivalent(Nested(), Nested(), x, (x, x), {"x": x, "y": x}) == 0.0


def test_assert_equivalent_names_output_error_and_size() -> None:
    with pytest.raises(AssertionError, match=r"output\['a'\]\[1\]\[0\] at \(1, 2, 8, 8\): largest error 0.1"):
        assert_equivalent(Nested(), Nested(0.1), torch.randn(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x[..., :-1], "became"),
        (lambda x: (x,), "structure"),
        (lambda x: x.float(), "became"),
        (lambda x: x * torch.inf, "finite"),
        (lambda x: x if x.shape[-1] == 8 else x + 1, "largest error"),
        (lambda x: x if len(x) == 1 else x + 1, "largest error"),
        (lambda x: x if x.shape[-1] == x.shape[-2] else x + 1, "largest error"),
    ],
)
def test_assert_equivalent_sees_every_difference(wrong: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_equivalent(lambda x: x + 0, wrong, torch.randn(1, 2, 8, 8))


def test_assert_equivalent_sees_what_is_wrong_at_one_batch_size_of_a_linear_layer() -> None:
    with pytest.raises(AssertionError, match="largest error"):
        assert_equivalent(lambda x: x + 0, lambda x: x if len(x) == 1 else x + 1, torch.randn(1, 2))


def test_assert_equivalent_compares_integers_exactly() -> None:
    with pytest.raises(AssertionError, match="values differ"):
        assert_equivalent(lambda x: x > 0, lambda x: x >= -1, torch.tensor([[-0.5]]))


def test_a_size_that_the_original_does_not_take_is_left_out_and_one_it_takes_is_not() -> None:
    def only_large(x: Tensor) -> Tensor:
        if x.shape[-1] < 8:
            raise ValueError("too small")
        return x + 0

    x = torch.randn(1, 2, 8, 8)
    assert_equivalent(only_large, lambda x: x + 0, x)
    with pytest.raises(AssertionError, match="raised at"):
        assert_equivalent(lambda x: x + 0, only_large, x)
    with pytest.raises(ValueError, match="too small"):
        assert_equivalent(only_large, only_large, torch.randn(1, 2, 4, 4))
    with pytest.raises(ValueError, match="no inputs"):
        assert_equivalent(only_large, only_large)


def test_what_one_call_writes_into_its_input_does_not_reach_the_other() -> None:
    with pytest.raises(AssertionError, match="largest error"):
        assert_equivalent(lambda x: x.add_(1), lambda x: x + 0, torch.zeros(1, 1, 4, 4))


def test_nan_in_the_same_place_is_equal() -> None:
    assert assert_equivalent(lambda x: x * torch.nan, lambda x: x * torch.nan, torch.ones(1, 1, 2, 2)) == 0.0


def test_other_sizes_keep_ratios_channels_and_keys() -> None:
    cases: Any = other_sizes({"x": torch.zeros(1, 3, 8, 8), "half": torch.zeros(1, 5, 4, 4), "flag": True})
    assert len(cases) >= 5
    for case in cases:
        assert case["flag"] is True
        assert case["x"].shape[:2] == (len(case["half"]), 3)
        assert case["half"].shape[2:] == tuple(-(-n // 2) for n in case["x"].shape[2:])
    assert any(len({*case["x"].shape[2:]}) == 2 and len(case["x"]) > 1 for case in cases)
    assert other_sizes(torch.zeros(3)) == []


def test_tensors_are_found_in_nested_values() -> None:
    found = tensors_in((torch.ones(1), {"k": [torch.ones(2)]}, None, 3))
    assert [path for path, _ in found] == ["output[0]", "output[1]['k'][0]"]


# --- randomize
def test_randomize_leaves_nothing_as_it_was_made() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    module.register_parameter("scale", nn.Parameter(torch.zeros(4)))
    same = randomize(module, 3)
    assert same is module
    first, second = module[1], module[2]
    assert isinstance(first, nn.BatchNorm2d)
    assert isinstance(second, nn.BatchNorm2d)
    for t in (first.running_mean, first.weight, first.bias, second.running_mean, module.scale):
        assert isinstance(t, Tensor)
        assert (t != 0).all()
    again = randomize(nn.BatchNorm2d(4), 3)
    assert torch.equal(again.running_var, randomize(nn.BatchNorm2d(4), 3).running_var)  # type: ignore[arg-type]
    assert not torch.equal(again.weight, randomize(nn.BatchNorm2d(4), 4).weight)
    assert (randomize(nn.BatchNorm2d(50)).weight < 0).any()


def test_randomize_extreme_has_zero_and_tiny_values() -> None:
    norm = randomize(nn.BatchNorm2d(30), extreme=True)
    assert isinstance(norm.running_var, Tensor)
    assert norm.weight.abs().min() < 1e-10
    assert norm.running_var.min() < 1e-9
    assert norm.running_var.max() > 1e3


# --- counting and assert_collapses
def test_operations_are_counted_by_kind() -> None:
    block = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.MaxPool2d(1)).eval()
    counts = count_operations(lambda x: torch.cat([block(x) + 1, block(x) * 2]), torch.ones(1, 2, 4, 4))
    assert counts["convolution"] == counts["batch norm"] == 2
    assert counts["pooling"] == 4
    assert counts["addition"] == counts["multiplication"] == counts["concatenation"] == 1
    assert count_operations(nn.Linear(2, 3), torch.ones(1, 2))["linear"] == 1


class ConvNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def folded(block: ConvNorm, shift: float = 0.0, padding: int = 1) -> nn.Module:
    norm, conv = block.norm, nn.Conv2d(2, 3, 3, padding=padding).to(block.conv.weight.dtype)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert conv.bias is not None
    assert block.conv.bias is not None
    with torch.no_grad():
        conv.weight.copy_(block.conv.weight * scale.reshape(-1, 1, 1, 1))
        conv.bias.copy_((block.conv.bias - norm.running_mean) * scale + norm.bias + shift)
    return conv.eval()


class WritesToIt:
    def __call__(self, block: ConvNorm) -> nn.Module:
        out = folded(block)
        with torch.no_grad():
            block.norm.weight.add_(1)
        return out


@pytest.mark.parametrize(
    ("deploy", "message"),
    [
        (folded, None),
        (lambda block: block, "still run|changed nothing"),
        (lambda block: nn.Sequential(folded(block), nn.Conv2d(3, 3, 1).double()), "2 convolutions run"),
        (lambda block: folded(block, shift=1e-6), "largest error"),
        (lambda block: folded(block, padding=0), "became"),
        (lambda block: nn.Sequential(folded(block), nn.AvgPool2d(1)), "still run.*pooling"),
        (WritesToIt(), "wrote to norm.weight"),
    ],
)
def test_assert_collapses_accepts_the_right_module_only(
    monkeypatch: pytest.MonkeyPatch, deploy: Any, message: str | None
) -> None:
    monkeypatch.setattr("reptool.testing._collapse.deploy", lambda block, example_inputs=None: deploy(block))
    block = ConvNorm()
    if message is None:
        assert isinstance(assert_collapses(block), nn.Conv2d)
        assert_collapses(block, torch.randn(1, 2, 6, 6))
        return
    with pytest.raises(AssertionError, match=message):
        assert_collapses(block)


def test_a_module_that_is_one_convolution_already_has_nothing_to_collapse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reptool.testing._collapse.deploy", lambda block: block)
    with pytest.raises(AssertionError, match="changed nothing"):
        assert_collapses(nn.Conv2d(2, 2, 1))


def test_assert_collapses_asks_for_inputs_where_it_cannot_know_them() -> None:
    with pytest.raises(ValueError, match="example_inputs"):
        assert_collapses(nn.ReLU())


class CallsLastFirst(nn.Module):
    """Its first layer is not what it calls first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second = nn.BatchNorm2d(5), nn.Conv2d(4, 5, 1)
        self.first = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x)))


class Joins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm3d(3), nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(self.conv(x + y))


class Even(nn.Module):
    """It runs at even sizes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.pixel_unshuffle(x, 2)))


@pytest.mark.parametrize(
    ("block", "shapes"),
    [
        (CallsLastFirst(), [(2, 2, 12, 9)]),
        (Joins(), [(2, 2, 12, 9, 7)] * 2),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), [(3, 4)]),
        (nn.Sequential(nn.ConvTranspose1d(3, 2, 3), nn.BatchNorm1d(2)), [(2, 3, 12)]),
        (nn.Sequential(nn.Conv2d(2, 2, 31), nn.BatchNorm2d(2)), [(2, 2, 32, 36)]),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)).half(), [(2, 2, 12, 9)]),
    ],
)
def test_inputs_are_those_of_what_is_called_first(block: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    found = example_for(block)
    assert [tuple(t.shape) for _, t in tensors_in(found)] == shapes
    assert {t.dtype for _, t in tensors_in(found)} == {next(block.parameters()).dtype}


def test_a_block_that_takes_what_none_of_its_layers_reads_asks_for_inputs() -> None:
    with pytest.raises(ValueError, match=r"runs on none of \(2, 8, 12, 9\).*give `example_inputs`"):
        example_for(Even())
    assert_collapses(Even(), torch.randn(2, 2, 8, 6), forbidden=("batch norm",))


def test_blocks_whose_first_layer_is_called_last_collapse() -> None:
    assert_collapses(CallsLastFirst())
    assert_collapses(Joins(), forbidden=("batch norm",))


def test_example_inputs_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def deploy(block: Any, example_inputs: Any = None, **options: Any) -> nn.Module:
        seen.append((example_inputs, options))
        return folded(block)

    monkeypatch.setattr("reptool.testing._collapse.deploy", deploy)
    block, x = ConvNorm(), torch.randn(1, 2, 6, 6)
    assert_collapses(block, x, force=True)
    assert_collapses(block)
    assert torch.equal(seen[0][0], x.double())
    assert seen == [(seen[0][0], {"force": True}), (None, {})]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {"extreme": True},
        {"scales": (0.0, -1.0, 1e6, 1e-12, -1e-8)},
        {"variances": (1e-12, 1e8, 0.0)},
        {"scales": (0.0,) * 8},
    ],
)
def test_blocks_collapse_with_extreme_statistics(options: dict[str, Any], seed: int) -> None:
    block = nn.Sequential(RepVGGBlock(4, 4, activation=None), nn.BatchNorm2d(4))
    assert_collapses(block, seed=seed, **options)


def test_randomize_gives_channels_the_scales_and_variances_asked_for() -> None:
    norm = randomize(nn.BatchNorm2d(40), scales=(0.0, 1e6), variances=(1e-12,))
    assert {0.0, 1e6} <= set(norm.weight.tolist())
    assert isinstance(norm.running_var, Tensor)
    assert norm.running_var.min() < 1e-11
    same = randomize(nn.BatchNorm2d(40), extreme=True), randomize(nn.BatchNorm2d(40), extreme=True, scales=())
    assert torch.equal(same[0].weight, same[1].weight)


def test_extreme_statistics_show_a_fold_that_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that divides by the scale is right for the usual ones alone."""

    def deploy(block: Any, **options: Any) -> nn.Module:
        with torch.no_grad():
            made: Any = folded(block)
            made.bias.copy_(made.bias / block.norm.weight * block.norm.weight)
        return made

    monkeypatch.setattr("reptool.testing._collapse.deploy", deploy)
    assert_collapses(ConvNorm())
    with pytest.raises(AssertionError):
        assert_collapses(ConvNorm(), scales=(0.0, 0.0, 0.0, 0.0))
