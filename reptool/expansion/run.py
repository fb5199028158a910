"""`expand`: convolutions of a model that exists become blocks that train as several and deploy as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from reptool.api.accept import check_model
from reptool.blocks.behind import Behind
from reptool.errors import InputError
from reptool.expansion.blocks.adapter import Adapter, Branches
from reptool.expansion.blocks.own_forward import OwnForward, inside
from reptool.expansion.blocks.table import EVERYWHERE, adapter_for
from reptool.expansion.calibrate import Batches, calibrate
from reptool.expansion.inherit import difference
from reptool.expansion.report import Expansion, Replaced
from reptool.expansion.structure import Structure, structure_of, tail_of
from reptool.expansion.where import Conv, Where, ancestors, convolutions, select
from reptool.frontends.given import names_itself
from reptool.ir.computed_weights import has_weight_property
from reptool.models.copies import independent_copy

GEOMETRY = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
CLOSE = 1e-4


@names_itself
def expand(
    model: nn.Module,
    block: Any,
    *,
    where: Where = None,
    preserve: bool = True,
    branches: Branches = "silent",
    calibrate_on: Batches | None = None,
    pointwise: bool = False,
    add_bias: bool = False,
    example_inputs: Any = None,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Replace convolutions of a model by blocks that inherit their kernels.

    A block with norms of its own (ACBlock, RepVGGBlock, ...) takes over the batch normalization behind the
    convolution where the model's code leaves no doubt that nothing else reads between the two; elsewhere that
    norm stays, and the block starts with a norm that does nothing.

    Args:
        model: any module, in either mode; it stays as it is unless `inplace`.
        block: RefConv, ACBlock, RepVGGBlock, DiverseBranchBlock, MobileOneBlock, OREPA, LargeKernelBlock,
            DilatedReparamBlock, QARepVGGBlock, EdgeOrientedBlock; a function of
            `reptool.blocks.parametrizations`; a function conv -> module or (conv, norm | None) -> module; or
            an `Adapter`.
        where: which convolutions: a path pattern (``fnmatch``; a path selects what is below it), a type (of
            the convolution or of a module around it), a kernel size, a function (path, convolution) -> bool,
            or a list of these; None tries all.
        preserve: whether the outputs in eval mode are the same before the first step. With False the blocks
            start as in their papers (RefConv: Xavier), on the inherited kernels.
        branches: with `preserve`, whether further branches start as zero ("silent": training mode too is as
            before, where the block took over a norm) or as in their papers, subtracted from the main branch
            ("live": training mode then needs `calibrate_on`).
        calibrate_on: batches (a tensor, or a list of tensors, argument tuples or keyword dicts) to measure
            the statistics of the blocks' norms on.
        pointwise: whether blocks also replace 1x1 convolutions (no paper of a spatial block does).
        add_bias: whether blocks with norms of their own also replace a convolution with neither a bias nor
            a norm behind it (as in DenseNet); the deployed layer then has a bias that the original has not.
        example_inputs: as for `reptool.deploy`, where the model's code asks about its inputs.
        inplace: change `model` itself.
        **options: keyword arguments of the block.

    Returns:
        The expanded copy (or `model`); its report is ``reptool.expansion_report(result)``.

    Raises:
        UnsupportedModelError: not a plain module.
        InputError: nothing to replace, a `where` that selects nothing, options the block does not have, or a
            block that cannot preserve. Nothing has been changed then.

    Example:
        >>> import torch
        >>> from reptool.blocks import RepVGGBlock
        >>> net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> grown = expand(net, RepVGGBlock)
        >>> [type(layer).__name__ for layer in grown]
        ['RepVGGBlock', 'Identity', 'ReLU']
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(grown(x), net(x), atol=1e-6)
        True
    """
    check_model(model, "expand")
    if inplace and any(conv is model for _, conv in convolutions(model)):
        raise InputError("a convolution cannot become another module in place; use the returned one.")
    adapter = OwnForward(adapter_for(block, preserve=preserve, branches=branches, options=options))
    chosen = select(model, where)
    structure = structure_of(model, example_inputs, adapter.stand_ins(chosen))
    report = Expansion(type(model).__name__, adapter.name)
    for path, conv in convolutions(model):
        why = _skipped(model, path, conv, chosen, structure, adapter, pointwise) or (
            None if add_bias else _biased(path, conv, structure, adapter)
        )
        if why:
            report.skipped[path] = why
    sites = {path: conv for path, conv in chosen.items() if path not in report.skipped}
    _require_some(sites, report)
    norms = {path: _norm(model, path, structure, adapter) for path in sites}
    blocks = {path: adapter.build(conv, norms[path]) for path, conv in sites.items()}
    if calibrate_on is not None:
        calibrate(model, blocks, norms, adapter, calibrate_on, fixed=preserve)
    for path, conv in sites.items():
        _finish(blocks[path], conv, norms[path])
        if preserve:
            _check(path, inside(blocks[path]), adapter.plain(conv), norms[path])
    target = model if inplace else independent_copy(model)
    target = _write(target, blocks, [structure.norms[p] for p, n in norms.items() if n is not None])
    _describe(report, model, target, sites, blocks, norms, structure)
    target.__dict__["_reptool_expansion"] = report
    return target


def _skipped(
    model: nn.Module,
    path: str,
    conv: Conv,
    chosen: dict[str, Conv],
    structure: Structure,
    adapter: Adapter,
    pointwise: bool,
) -> str | None:
    """Why the convolution at `path` stays, or None."""
    if path not in chosen:
        return "not selected by where"
    around = [type(module) for module in ancestors(model, path)]
    if any(kind.__module__.startswith("reptool.blocks") for kind in around) or "parametrizations" in path.split("."):
        return "it is part of a block already"
    if parametrize.is_parametrized(conv) or has_weight_property(conv) or conv._forward_pre_hooks:
        return "its weight is computed from other parameters, or it has hooks"
    if path in structure.used:
        return structure.used[path]
    if not pointwise and adapter.name not in EVERYWHERE and set(conv.kernel_size) == {1}:
        return "pointwise: it has no spatial pattern (pointwise=True to replace it)"
    return adapter.can_replace(conv)


def _biased(path: str, conv: Conv, structure: Structure, adapter: Adapter) -> str | None:
    """Why the deployed block would have more parameters than the convolution, or None."""
    if (
        not (adapter.takes_norm or adapter.has_bias)
        or conv.bias is not None
        or path in structure.norms
        or path in structure.kept
    ):
        return None
    return f"it has no bias, and no norm is behind it: {adapter.name} would give it one (add_bias=True to do so)"


def _require_some(sites: dict[str, Conv], report: Expansion) -> None:
    if sites:
        return
    reasons = list(dict.fromkeys(why for why in report.skipped.values() if why != "not selected by where"))
    raise InputError(
        f"none of the convolutions of {report.model} can become {report.block}: {'; '.join(reasons[:4])}. "
        "Nothing was changed; choose others with where, or another block."
    )


def _norm(model: nn.Module, path: str, structure: Structure, adapter: Adapter) -> _BatchNorm | None:
    """The norm that the block at `path` takes over."""
    behind = structure.norms.get(path)
    if behind is None or not adapter.takes_norm:
        return None
    norm: Any = model.get_submodule(behind)
    return norm


def _finish(block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> None:
    """Mode, and the geometry that other code may read from a convolution."""
    block.train(conv.training)
    for module in block.modules():
        if isinstance(module, _BatchNorm) and norm is not None:
            module.training = norm.training
    for name in GEOMETRY:
        if not hasattr(block, name):
            block.__dict__[name] = getattr(conv, name)


def _check(path: str, block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> None:
    if conv.weight.is_meta:
        return
    error = difference(block, conv, norm)
    if not error <= max(CLOSE, 4 * torch.finfo(conv.weight.dtype).eps):
        raise InputError(
            f"the block for {path!r} ({type(block).__name__}) is off by {error:.3g} from the convolution it "
            "replaces; make it start as the convolution or use preserve=False. Nothing was changed."
        )


def _write(target: nn.Module, blocks: dict[str, nn.Module], taken: list[str]) -> nn.Module:
    """Put the blocks in their places, wherever those are registered."""
    new = {id(target.get_submodule(path)): block for path, block in blocks.items()}
    for path in taken:
        norm = target.get_submodule(path)
        tail = tail_of(norm)
        assert tail is not None
        new[id(norm)] = tail.train(norm.training)
    if id(target) in new:
        return new[id(target)]
    for module in list(target.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in new:
                module._modules[name] = new[id(child)]
    return target


def _describe(
    report: Expansion,
    model: nn.Module,
    target: nn.Module,
    sites: dict[str, Conv],
    blocks: dict[str, nn.Module],
    norms: dict[str, _BatchNorm | None],
    structure: Structure,
) -> None:
    report.parameters = (_count(model), _count(target))
    for path, conv in sites.items():
        norm = norms[path]
        before = _count(conv) + (_count(norm) if norm is not None else 0)
        report.replaced.append(
            Replaced(
                path,
                tuple(conv.kernel_size),
                (before, _count(blocks[path])),
                structure.norms[path] if norm is not None else None,
                structure.kept.get(path, "") or _behind(blocks[path]),
            )
        )


def _behind(block: nn.Module) -> str:
    return f"behind {block.pad!r}" if isinstance(block, Behind) else ""


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
