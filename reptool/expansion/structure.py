"""The structure around convolutions: the norm behind each, and other users of either.

A batch normalization is taken over by a block only where `reptool.explain` would fuse it into the same
convolution, and where nothing suggests that training mode or another method uses the two differently.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.api.pipeline.modules import make_plan
from reptool.blocks.behind import Behind
from reptool.expansion.where import CONVS, ancestors
from reptool.frontends.inputs import example_arguments
from reptool.models.copies import shallow_copy
from reptool.plan.options import Options
from reptool.safety.ownership import Ownership, ownership
from reptool.surgery.units import Plan

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class Structure:
    """Facts about a model's convolutions, all by path.

    Args:
        norms: convolution -> the batch normalization that reads it and nothing else does.
        kept: convolution -> why the batch normalization behind it stays.
        used: convolutions that cannot be exchanged -> why.
    """

    norms: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)


def structure_of(
    model: nn.Module, example_inputs: Any = None, stand_ins: Mapping[str, nn.Module] | None = None
) -> Structure:
    """Read the code of `model`, which stays as it is.

    Args:
        model: any module; it is looked at in eval mode.
        example_inputs: answers to questions that the code asks about its inputs, as for `reptool.deploy`.
        stand_ins: for convolutions whose class has a forward of its own, what they are: a plain one, or one `Behind` a
            padding. The code of their class is not looked at.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> structure_of(net).norms
        {'0': '1'}
    """
    scratch = shallow_copy(model).eval()
    args, kwargs = example_arguments(example_inputs, scratch)
    owned = ownership(scratch)
    scratch, own_path = _with(scratch, stand_ins or {})
    values = not any(p.is_meta for p in model.parameters())
    plan = make_plan(scratch, args, kwargs, Options(frozenset({"conv_bn"})), values=values)
    found = Structure(used={own_path(path): why for path, why in _used(scratch, plan, owned).items()})
    for conv, norm in _fused_pairs(plan):
        _classify(model, own_path(conv), norm, found)
    return found


def _with(model: nn.Module, stand_ins: Mapping[str, nn.Module]) -> tuple[nn.Module, Callable[[str], str]]:
    """A model with other modules in the places of some, and the path that a convolution in it has in the original."""
    new = {id(model.get_submodule(path)): module for path, module in stand_ins.items()}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in new:
                module._modules[name] = new[id(child)]
    made = new.get(id(model), model)
    inner = {f"{path}.block" if path else "block": path for path, m in made.named_modules() if isinstance(m, Behind)}
    return made.eval(), lambda path: inner.get(path, path)


def _used(model: nn.Module, plan: Plan, owned: Ownership) -> dict[str, str]:
    """Convolutions with hooks, shared weights, or weights that other code reads."""
    used: dict[str, str] = {}
    for unit in plan.units:
        for node in unit.trace.graph.nodes:
            owner, _, name = str(node.target).rpartition(".")
            path = ".".join(p for p in (unit.prefix, owner) if p)
            if node.op == "get_attr" and isinstance(_get(model, path), CONVS) and not _read_by(node, owner):
                used[path] = f"the model's code reads its {name} itself"
    for path in owned.held:
        used[path] = "it is also kept in a plain attribute, where a block would not take its place"
    for path in owned.hooked:
        used[path] = "it has hooks"
    for path, others in owned.tied.items():
        used[path] = f"its parameters are shared with {', '.join(sorted(others))}"
    return used


def _read_by(node: fx.Node, path: str) -> bool:
    """Whether nothing but the forward of the module at `path` reads a tensor."""
    return all(any(event.path == path for event in user.meta["event"].ancestors()) for user in node.users)


def _fused_pairs(plan: Plan) -> list[tuple[str, str]]:
    pairs = []
    for unit in plan.units:
        for site in unit.surgery.sites:
            owners = [owner for op in site.region.form.ops for owner in unit.found.ops[op].owners]
            if site.slot is None:
                continue
            norms = {_module_of(owner) for owner in owners} - {site.slot}
            if len(norms) == 1:
                pairs.append((_join(unit.prefix, site.slot), _join(unit.prefix, norms.pop())))
    return pairs


def _module_of(owner: str) -> str:
    for name in ("running_mean", "running_var", "weight", "bias"):
        if owner.endswith(f".{name}"):
            return owner[: -len(name) - 1]
    return owner


def _classify(model: nn.Module, conv: str, norm: str, found: Structure) -> None:
    layer, module = _get(model, conv), _get(model, norm)
    if not isinstance(layer, CONVS) or module is None:
        return
    if isinstance(module, nn.Identity | nn.Dropout):
        return
    why = _unsure(model, conv, norm)
    if tail_of(module) is None:
        found.kept[conv] = f"{norm} is a {type(module).__name__}, which does more than normalize"
    elif why:
        found.kept[conv] = why
    else:
        found.norms[conv] = norm


def tail_of(norm: nn.Module) -> nn.Module | None:
    """What is left of `norm` without the normalization, None where that is not known."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return None
    if type(norm) in PLAIN_NORMS:
        return nn.Identity()
    drop, act = getattr(norm, "drop", None), getattr(norm, "act", None)
    if not (isinstance(drop, nn.Module) and isinstance(act, nn.Module)):
        return None
    tail = nn.Sequential(OrderedDict(drop=drop, act=act))
    return tail if _acts_as(norm, tail) else None


def _acts_as(norm: _BatchNorm, tail: nn.Module) -> bool:
    """Whether `norm` computes a batch normalization followed by `tail`, seen on random values."""
    if norm.running_mean is not None and norm.running_mean.is_meta:
        return False
    norm, tail = copy.deepcopy(norm).eval(), copy.deepcopy(tail).eval()
    assert isinstance(norm.running_mean, Tensor)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, norm.num_features, 3, 2, generator=generator).to(norm.running_mean)
    with torch.no_grad():
        try:
            found = norm(x.clone())
        except Exception:  # a norm of another rank
            return False
        plain = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        return bool(torch.allclose(found, tail(plain), rtol=1e-4, atol=1e-5))


def _unsure(model: nn.Module, conv: str, norm: str) -> str:
    """Why the two may be used otherwise than traced, or ''."""
    common = _common(conv, norm)
    owner = _calling(model, common)
    for path in (conv, norm):
        enclosing = [m for m in ancestors(model, path) if not isinstance(m, CONTAINERS)]
        start = enclosing.index(owner) if owner in enclosing else 0
        for module in enclosing[start:]:
            if "training" in _names(getattr(type(module), "forward", None)):
                return f"the forward of {type(module).__name__} depends on the training mode"
    depth = len(common)
    first, second = (path[depth:].lstrip(".").split(".")[0] for path in (conv, norm))
    for name, method in inspect.getmembers(type(owner), inspect.isfunction):
        used = _names(method)
        if name.startswith("forward") and first in used and second not in used:
            return f"{type(owner).__name__}.{name} uses {first} without {second}"
    return ""


def _calling(model: nn.Module, path: str) -> nn.Module:
    """The innermost module with code of its own at or above `path`."""
    chain = [*ancestors(model, path), model.get_submodule(path)]
    own = [m for m in chain if not isinstance(m, CONTAINERS)]
    return own[-1] if own else model


def _common(first: str, second: str) -> str:
    shared = []
    for a, b in zip(first.split("."), second.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def _names(function: Any) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return code.co_names if code else ()


def _join(prefix: str, path: str) -> str:
    return ".".join(part for part in (prefix, path) if part)


def _get(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
