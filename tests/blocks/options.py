"""All option combinations of the blocks worth testing, and random statistics that let errors show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks import (
    OREPA,
    ACBlock,
    DilatedReparamBlock,
    DiverseBranchBlock,
    EdgeOrientedBlock,
    LargeKernelBlock,
    MobileOneBlock,
    QARepVGGBlock,
    RefConv,
    RepMixer,
    RepNeXtBlock,
    RepNeXtUnit,
    RepVGGBlock,
    parametrizations,
)

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ACB_TABLE = [(3, 1), (3, 0), (5, 1), (5, 2), (5, 3), (5, 4), (5, 6)]
CHANNELS = 8


class Option(NamedTuple):
    """A block under test, and the one convolution it stands for."""

    id: str
    build: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    in_channels: int
    dim: int = 2

    def inputs(self, size: int = 13, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
        """A random input with a different size on every axis."""
        return torch.randn(batch, self.in_channels, *range(size, size + self.dim), dtype=dtype)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms random statistics and constant parameters random values, in place; returns the module.

    Fresh statistics hide border errors, a weight of zero hides everything: running_mean ~ N, running_var in
    [.5, 2], weight in +-[.5, 1.5], bias ~ N. Any other parameter whose entries are all equal gets N(0, 0.3).
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
            norm.running_var.copy_(uniform(norm.running_var, 0.5, 2.0))
            if norm.affine:
                sign = torch.randint(0, 2, norm.weight.shape, generator=generator) * 2 - 1
                norm.weight.copy_(uniform(norm.weight, 0.5, 1.5) * sign)
                norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator))
        of_norms = {id(p) for norm in norms for p in norm.parameters()}
        for parameter in module.parameters():
            if id(parameter) not in of_norms and parameter.numel() and parameter.max() == parameter.min():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def _plain(in_channels: int, out_channels: int, kernel: Any, dim: int = 2, **options: Any) -> Callable[[], nn.Module]:
    return lambda: CONV[dim](in_channels, out_channels, kernel, **options)


def _name(block: str, **options: Any) -> str:
    return block + "-" + "-".join(f"{key}{value}".replace(" ", "") for key, value in options.items())


def rep_vgg_options() -> Iterator[Option]:
    """RepVGGBlock."""
    for kernel, stride, groups, identity, dilation in product((1, 3, 5), (1, 2), (1, 2, 8), (None, False), (1, 2)):
        if kernel == 1 and dilation > 1:
            continue
        geometry = {"stride": stride, "dilation": dilation, "groups": groups}
        yield Option(
            _name("repvgg", k=kernel, s=stride, g=groups, id=identity, d=dilation),
            lambda k=kernel, i=identity, g=geometry: RepVGGBlock(8, 8, k, identity=i, **g),
            _plain(8, 8, kernel, padding=dilation * (kernel // 2), **geometry),
            8,
        )
    for padding, stride in product((0, 1, 3, 4), (1, 2)):
        yield Option(
            _name("repvgg", k=5, p=padding, s=stride, o=12),
            lambda p=padding, s=stride: RepVGGBlock(8, 12, 5, s, p, groups=4, activation=None),
            _plain(8, 12, 5, padding=padding, stride=stride, groups=4),
            8,
        )
    for mode in ("reflect", "replicate", "circular"):
        yield Option(
            _name("repvgg", mode=mode),
            lambda m=mode: RepVGGBlock(8, 8, 3, padding_mode=m),
            _plain(8, 8, 3, padding=1, padding_mode=mode),
            8,
        )
    for dim, stride in product((1, 3), (1, 2)):
        yield Option(
            _name("repvgg", dim=dim, s=stride),
            lambda d=dim, s=stride: RepVGGBlock(8, 8, 3, s, dim=d),
            _plain(8, 8, 3, dim, stride=stride, padding=1),
            8,
            dim,
        )
    yield Option(
        "repvgg-rectangular",
        lambda: RepVGGBlock(8, 8, (1, 7)),
        _plain(8, 8, (1, 7), padding=(0, 3)),
        8,
    )


def ac_options() -> Iterator[Option]:
    """ACBlock."""
    for (kernel, padding), stride, groups in product(ACB_TABLE, (1, 2, 3), (1, 2, 8)):
        geometry = {"padding": padding, "stride": stride, "groups": groups}
        yield Option(
            _name("acb", k=kernel, p=padding, s=stride, g=groups),
            lambda k=kernel, g=geometry: ACBlock(8, 16, k, **g),
            _plain(8, 16, kernel, **geometry),
            8,
        )
    for dilation, padding in product((2, 3), (0, 2, 3, 5)):
        yield Option(
            _name("acb", d=dilation, p=padding),
            lambda d=dilation, p=padding: ACBlock(8, 8, 3, 1, p, d),
            _plain(8, 8, 3, dilation=dilation, padding=padding),
            8,
        )
    for mode, padding in product(("reflect", "replicate", "circular"), (1, 2, 3)):
        yield Option(
            _name("acb", mode=mode, p=padding),
            lambda m=mode, p=padding: ACBlock(8, 8, 5, padding=p, padding_mode=m),
            _plain(8, 8, 5, padding=padding, padding_mode=mode),
            8,
        )
    yield Option(
        "acb-gamma-relu",
        lambda: ACBlock(8, 8, gamma_init=1 / 3, activation=nn.ReLU),
        _plain(8, 8, 3, padding=1),
        8,
    )
    for stride, padding in product((1, 2), (0, 1, 2)):
        yield Option(
            _name("acb", dim=3, s=stride, p=padding),
            lambda s=stride, p=padding: ACBlock(8, 8, 3, s, p, groups=2, dim=3),
            _plain(8, 8, 3, 3, stride=stride, padding=padding, groups=2),
            8,
            3,
        )
    yield Option("acb-no-affine", lambda: ACBlock(8, 8, affine=False), _plain(8, 8, 3, padding=1), 8)


def diverse_branch_options() -> Iterator[Option]:
    """DiverseBranchBlock."""
    for kernel, stride, groups, internal, single in product((1, 3, 5), (1, 2), (1, 2, 8), (None, 16), (False, True)):
        yield Option(
            _name("dbb", k=kernel, s=stride, g=groups, i=internal, single=single),
            lambda k=kernel, s=stride, g=groups, i=internal, one=single: DiverseBranchBlock(
                8, 8, k, s, groups=g, internal_channels=i, single_init=one
            ),
            _plain(8, 8, kernel, stride=stride, groups=groups, padding=kernel // 2),
            8,
        )
    for out_channels, groups, padding in product((12, 16), (1, 4), (0, 1, 2)):
        yield Option(
            _name("dbb", k=5, o=out_channels, g=groups, p=padding),
            lambda o=out_channels, g=groups, p=padding: DiverseBranchBlock(
                8, o, 5, padding=p, groups=g, activation=nn.ReLU
            ),
            _plain(8, out_channels, 5, groups=groups, padding=padding),
            8,
        )
    for kernel, padding in ((3, 0), (5, 1)):
        yield Option(
            _name("dbb", k=kernel, dw=8, p=padding),
            lambda k=kernel, p=padding: DiverseBranchBlock(8, 8, k, padding=p, groups=8),
            _plain(8, 8, kernel, groups=8, padding=padding),
            8,
        )
    for dim, groups, stride in product((1, 3), (1, 2, 8), (1, 2)):
        yield Option(
            _name("dbb", dim=dim, g=groups, s=stride),
            lambda d=dim, g=groups, s=stride: DiverseBranchBlock(8, 8, 3, s, groups=g, dim=d),
            _plain(8, 8, 3, dim, stride=stride, padding=1, groups=groups),
            8,
            dim,
        )
    yield Option(
        "dbb-multiplier",
        lambda: DiverseBranchBlock(4, 8, 3, groups=4),
        _plain(4, 8, 3, groups=4, padding=1),
        4,
    )


class TanhMap(nn.Module):
    """A non-linear transformation of a kernel."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(slices, slices, 3, padding=1)

    def forward(self, kernel: Tensor) -> Tensor:
        return torch.tanh(self.mix(kernel))


def ref_conv_options() -> Iterator[Option]:
    """RefConv."""
    for kernel, groups, stride, identity, init in product(
        (3, 5, (3, 5)), (1, 2, 8), (1, 2), (True, False), ("xavier", "zeros")
    ):
        geometry = {"groups": groups, "stride": stride, "padding": 1}
        yield Option(
            _name("refconv", k=kernel, g=groups, s=stride, id=identity, init=init),
            lambda k=kernel, i=identity, z=init, g=geometry: RefConv(8, 8, k, identity=i, init=z, **g),
            _plain(8, 8, kernel, **geometry),
            8,
        )
    extra: dict[str, Callable[[], dict[str, Any]]] = {
        "tanh": lambda: {"transform": TanhMap(128)},
        "function": lambda: {"transform": torch.sin},
        "map-groups": lambda: {"map_groups": 2},
        "map-1": lambda: {"map_kernel_size": 1},
        "map-5": lambda: {"map_kernel_size": 5},
        "map-rectangular": lambda: {"map_kernel_size": (5, 3)},
        "trained-basis": lambda: {"train_basis": True},
        "basis": lambda: {"basis": torch.randn(16, 8, 5, 5)},
        "no-bias": lambda: {"bias": False},
        "same": lambda: {"padding": "same"},
        "valid": lambda: {"padding": "valid"},
        "dilation": lambda: {"dilation": 2, "padding": 4},
        "reflect": lambda: {"padding_mode": "reflect", "padding": 2},
        "circular-same": lambda: {"padding_mode": "circular", "padding": "same"},
        "replicate-valid": lambda: {"padding_mode": "replicate", "padding": "valid"},
    }
    for name, options in extra.items():
        geometry = {k: v for k, v in options().items() if k in ("padding", "dilation", "padding_mode", "bias")}
        yield Option(f"refconv-{name}", lambda o=options: RefConv(8, 16, 5, **o()), _plain(8, 16, 5, **geometry), 8)
    for size, mode in product(((3, 5), 4), ("zeros", "reflect", "circular")):
        if size == 4 and mode == "zeros":  # torch warns of a copy here
            continue
        yield Option(
            _name("refconv", k=size, same=mode),
            lambda k=size, m=mode: RefConv(8, 8, k, padding="same", padding_mode=m),
            _plain(8, 8, size, padding="same", padding_mode=mode),
            8,
        )
    for dim, groups in product((1, 3), (1, 8)):
        yield Option(
            _name("refconv", dim=dim, g=groups),
            lambda d=dim, g=groups: RefConv(8, 8, 3, 2, 1, groups=g, dim=d),
            _plain(8, 8, 3, dim, stride=2, padding=1, groups=groups),
            8,
            dim,
        )


def mobile_one_options() -> Iterator[Option]:
    """MobileOneBlock."""
    for kernel, stride, groups, count, scale in product((1, 3, 5), (1, 2), (1, 8), (0, 1, 4), (True, False)):
        if count == 0 and (kernel == 1 or not scale):  # no convolution in it
            continue
        yield Option(
            _name("mobileone", k=kernel, s=stride, g=groups, n=count, scale=scale),
            lambda k=kernel, s=stride, g=groups, n=count, scale=scale: MobileOneBlock(
                8, 8, k, s, groups=g, conv_branches=n, scale=scale
            ),
            _plain(8, 8, kernel, stride=stride, groups=groups, padding=kernel // 2),
            8,
        )
    for dim in (1, 3):
        yield Option(
            _name("mobileone", dim=dim),
            lambda d=dim: MobileOneBlock(8, 8, conv_branches=2, activation=None, dim=d),
            _plain(8, 8, 3, dim, padding=1),
            8,
            dim,
        )


def rep_mixer_options() -> Iterator[Option]:
    """RepMixer."""
    for kernel, scale, dim in product((3, 5, 7), (1e-5, None), (1, 2)):
        yield Option(
            _name("repmixer", k=kernel, scale=scale, dim=dim),
            lambda k=kernel, s=scale, d=dim: RepMixer(8, k, s, dim=d),
            _plain(8, 8, kernel, dim, groups=8, padding=kernel // 2),
            8,
            dim,
        )


def dilated_reparam_options() -> Iterator[Option]:
    """DilatedReparamBlock."""
    cases: list[tuple[int, Any]] = [(k, None) for k in (5, 7, 9, 11, 13, 15, 17)]
    for kernel, branches in [*cases, (9, [(3, 4)]), (7, [(1, 1), (3, 3), (5, 1)]), (9, [])]:
        yield Option(
            _name("dilated", k=kernel, b="default" if branches is None else branches),
            lambda k=kernel, b=branches: DilatedReparamBlock(8, k, b),
            _plain(8, 8, kernel, groups=8, padding=kernel // 2),
            8,
        )
    yield Option(
        "dilated-dim1",
        lambda: DilatedReparamBlock(8, 9, dim=1),
        _plain(8, 8, 9, 1, groups=8, padding=4),
        8,
        1,
    )


def large_kernel_options() -> Iterator[Option]:
    """LargeKernelBlock."""
    for (kernel, small), groups, stride in product([(7, 3), (7, 7), (13, 5), (9, None)], (1, 8), (1, 2)):
        yield Option(
            _name("large", k=kernel, small=small, g=groups, s=stride),
            lambda k=kernel, small=small, g=groups, s=stride: LargeKernelBlock(
                8, 8, k, s, groups=g, small_kernel=small
            ),
            _plain(8, 8, kernel, groups=groups, stride=stride, padding=kernel // 2),
            8,
        )
    for padding in (0, 1, 4):
        yield Option(
            _name("large", p=padding),
            lambda p=padding: LargeKernelBlock(8, 8, 7, padding=p, small_kernel=3, activation=nn.ReLU),
            _plain(8, 8, 7, padding=padding),
            8,
        )


def qa_rep_vgg_options() -> Iterator[Option]:
    """QARepVGGBlock."""
    for kernel, stride, groups, identity in product((1, 3, 5), (1, 2), (1, 2, 8), (None, False)):
        yield Option(
            _name("qarepvgg", k=kernel, s=stride, g=groups, id=identity),
            lambda k=kernel, s=stride, g=groups, i=identity: QARepVGGBlock(8, 8, k, s, groups=g, identity=i),
            _plain(8, 8, kernel, stride=stride, groups=groups, padding=kernel // 2),
            8,
        )
    for padding, dim in product((0, 1, 2), (1, 2)):
        yield Option(
            _name("qarepvgg", p=padding, dim=dim),
            lambda p=padding, d=dim: QARepVGGBlock(8, 12, 3, padding=p, activation=None, dim=d),
            _plain(8, 12, 3, dim, padding=padding),
            8,
            dim,
        )


def edge_oriented_options() -> Iterator[Option]:
    """EdgeOrientedBlock."""
    for out_channels, multiplier, identity in product((8, 12), (0.5, 2.0), (False, True)):
        if identity and out_channels != 8:
            continue
        yield Option(
            _name("ecb", o=out_channels, m=multiplier, id=identity),
            lambda o=out_channels, m=multiplier, i=identity: EdgeOrientedBlock(8, o, m, i),
            _plain(8, out_channels, 3, padding=1),
            8,
        )
    yield Option("ecb-prelu", lambda: EdgeOrientedBlock(8, 8, activation=nn.PReLU), _plain(8, 8, 3, padding=1), 8)


def orepa_options() -> Iterator[Option]:
    """OREPA."""
    for kernel, stride, groups, internal, single in product((3, 5), (1, 2), (1, 2, 8), (None, 24), (False, True)):
        yield Option(
            _name("orepa", k=kernel, s=stride, g=groups, i=internal, single=single),
            lambda k=kernel, s=stride, g=groups, i=internal, one=single: OREPA(
                8, 16, k, s, groups=g, internal_channels=i, single_init=one
            ),
            _plain(8, 16, kernel, stride=stride, groups=groups, padding=kernel // 2),
            8,
        )
    for dim, groups in product((1, 3), (1, 2, 8)):
        yield Option(
            _name("orepa", dim=dim, g=groups),
            lambda d=dim, g=groups: OREPA(8, 9 if g == 1 else 16, 3, 2, groups=g, dim=d),
            _plain(8, 9 if groups == 1 else 16, 3, dim, stride=2, padding=1, groups=groups),
            8,
            dim,
        )
    yield Option(
        "orepa-valid-dilated",
        lambda: OREPA(8, 9, 3, padding=0, dilation=2, expansion=3, activation=nn.ReLU),
        _plain(8, 9, 3, dilation=2),
        8,
    )


def rep_next_options() -> Iterator[Option]:
    """RepNeXtUnit."""
    for dim in (1, 3):
        yield Option(
            _name("repnextunit", dim=dim),
            lambda d=dim: RepNeXtUnit(8, (5, 3), dim=d),
            _plain(8, 8, 5, dim, groups=8, padding=2),
            8,
            dim,
        )
    for channels, kernels in product((8, 12), ((7, 5, 3), (3, 5), (5,), (1, 3, 5, 7))):
        largest = max(kernels)
        yield Option(
            _name("repnextunit", c=channels, k=kernels),
            lambda c=channels, k=kernels: RepNeXtUnit(c, k),
            _plain(channels, channels, largest, groups=channels, padding=largest // 2),
            channels,
        )


def rep_next_block_options() -> Iterator[Option]:
    """RepNeXtBlock: a unit, two pointwise layers and a shortcut, so not among `all_options`."""
    for activation, kernels in product((nn.GELU, nn.ReLU, nn.PReLU, None), ((7, 5, 3), (5, 3))):
        name = "none" if activation is None else activation.__name__
        yield Option(
            _name("repnextblock", a=name, k=kernels),
            lambda a=activation, k=kernels: RepNeXtBlock(8, k, activation=a),
            nn.Identity,
            8,
        )


def parametrization_options() -> Iterator[Option]:
    """Parametrized convolutions: each must deploy as the convolution it is."""
    wrappers: dict[str, Callable[..., nn.Module]] = {
        "refconv": parametrizations.refconv,
        "weightnorm": parametrizations.weight_norm,
        "centered": parametrizations.centered_weight_norm,
        "orthogonal": parametrizations.orthogonal_weight_norm,
        "dirac": parametrizations.dirac_net,
        "standardization": parametrizations.weight_standardization,
    }
    for (name, wrapper), groups, dim in product(wrappers.items(), (1, 2, 8), (1, 2, 3)):
        plain = _plain(8, 8, 3, dim, stride=2, padding=1, groups=groups)
        yield Option(
            _name(f"param_{name}", g=groups, dim=dim),
            lambda w=wrapper, p=plain: w(p()),
            plain,
            8,
            dim,
        )


def all_options() -> Iterator[Option]:
    """Every block and parametrized layer that stands for one convolution, over its options."""
    yield from rep_vgg_options()
    yield from ac_options()
    yield from diverse_branch_options()
    yield from ref_conv_options()
    yield from mobile_one_options()
    yield from rep_mixer_options()
    yield from dilated_reparam_options()
    yield from large_kernel_options()
    yield from qa_rep_vgg_options()
    yield from edge_oriented_options()
    yield from orepa_options()
    yield from rep_next_options()
    yield from parametrization_options()
