"""What is accepted: plain modules in eval mode, options and requirements that exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from reptool.errors import InputError, UnsupportedModelError
from reptool.inputs import example_arguments
from reptool.opaque import is_named
from reptool.options import Options, matches
from reptool.rules import RULES

FLOAT = ("NonDynamicallyQuantizableLinear", "FloatFunctional")  # float modules that live among the quantized ones
REQUIREMENTS = ("no_batchnorm", "no_refusals", "all_traced")
Patterns = str | Iterable[str] | None
Affine = str | type | Iterable[str | type] | None


def check_model(model: Any) -> None:
    """Raise for what is not a plain module in eval mode, with what to do instead."""
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise UnsupportedModelError(
            "a ScriptModule cannot be read; deploy the Python module first, then script or trace the result"
        )
    if isinstance(model, torch.export.ExportedProgram):
        raise UnsupportedModelError(
            "an ExportedProgram is fixed already; deploy the nn.Module first, then export the result"
        )
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"deploy takes an nn.Module, got a {type(model).__name__}")
    if isinstance(model, fx.GraphModule) and any(map(_is_exported, model.graph.nodes)):
        raise UnsupportedModelError(
            "this GraphModule is an exported program, made of ATen operators; "
            "deploy the nn.Module first, then export the result"
        )
    for path, module in model.named_modules():
        home = type(module).__module__
        if "quantized" in home and home.startswith(("torch.nn", "torch.ao")) and type(module).__name__ not in FLOAT:
            raise UnsupportedModelError(
                f"{path or type(model).__name__!r} is quantized ({type(module).__name__}); "
                "deploy the float model, then quantize"
            )
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
                raise UnsupportedModelError(
                    f"{path}.{name} is uninitialized (a lazy module); run the model once, then deploy"
                )
            if (
                value is not None
                and type(value) not in (Tensor, nn.Parameter, nn.Buffer)
                and (nn.Parameter not in type(value).__mro__ or _computes_itself(type(value)))
            ):
                raise UnsupportedModelError(
                    f"{path}.{name} is a {type(value).__name__}, a tensor subclass whose arithmetic is not known"
                )
            if isinstance(value, nn.Parameter) and hasattr(value.data, "__tensor_flatten__"):
                raise UnsupportedModelError(
                    f"{path}.{name} holds a {type(value.data).__name__}, "
                    "a tensor subclass whose arithmetic is not known"
                )


def _is_exported(node: fx.Node) -> bool:
    """Whether this is a layer's operator, which nobody writes and `torch.export` makes of a layer."""
    return isinstance(node.target, OpOverload) and str(node.target).startswith(_LAYERS)


_LAYERS = ("aten.conv", "aten.linear", "aten.batch_norm", "aten._native_batch_norm", "aten.native_batch_norm")


def _computes_itself(cls: type) -> bool:
    """Whether a tensor class has arithmetic of its own."""
    return any("__torch_function__" in c.__dict__ for c in cls.__mro__[: cls.__mro__.index(nn.Parameter)])


def unwrap(model: nn.Module) -> nn.Module:
    """The module behind DistributedDataParallel, DataParallel, AveragedModel and torch.compile."""
    for _ in range(8):
        if isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
        ):
            model = model.module
        elif type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            break
    return model


def prepared(
    model: nn.Module,
    example_inputs: Any,
    rules: Any,
    force: bool,
    include: Patterns,
    exclude: Patterns,
    affine: Affine,
    keep_fallback: bool,
) -> tuple[nn.Module, tuple[Any, ...] | None, dict[str, Any], Options]:
    """The module, its example arguments and the options, all of them checked."""
    model = unwrap(model)
    if model.training:
        raise InputError(f"the {type(model).__name__} is in training mode; call model.eval() first")
    args, kwargs = example_arguments(example_inputs, model)
    chosen = None if rules is None else frozenset(_names(rules))
    unknown = (chosen or frozenset()) - set(RULES)
    if unknown:
        raise InputError(f"unknown rules {sorted(unknown)}; the rules are {', '.join(RULES)}")
    wanted = None if include is None else tuple(_names(include))
    paths = [n for n, _ in model.named_modules() if n] + [n for n, _ in model.named_parameters()]
    for pattern in wanted or ():
        if not any(matches(p, [pattern]) for p in paths):
            raise InputError(f"include pattern {pattern!r} matches no module of {type(model).__name__}")
    claimed = (affine,) if isinstance(affine, (str, type)) else tuple(affine or ())
    for name in claimed:
        if not any(is_named(path, module, name) for path, module in model.named_modules()):
            shown = name.__name__ if isinstance(name, type) else repr(name)
            raise InputError(f"affine names {shown}, which no module of {type(model).__name__} is")
    return model, args, kwargs, Options(chosen, force, wanted, tuple(_names(exclude or ())), keep_fallback, claimed)


def required(require: str | Iterable[str] | None) -> list[str]:
    """The requirements, all of them known ones."""
    needed = _names(require or ())
    unknown = set(needed) - set(REQUIREMENTS)
    if unknown:
        raise InputError(f"unknown requirement {sorted(unknown)}; there are {', '.join(REQUIREMENTS)}")
    return needed


def _names(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
