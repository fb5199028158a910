"""Argument checks: plain modules in eval mode, options and requirements that exist."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from typing_extensions import TypeIs

from reptool.api.rules_given import Forced, as_list, chosen_rules, forced_rules
from reptool.errors import InputError, UnsupportedModelError
from reptool.frontends.exported import is_exported
from reptool.frontends.given import check_is_module, check_parts, check_weights, nothing_matches
from reptool.frontends.inputs import example_arguments
from reptool.plan.cost import DEFAULT, Costs
from reptool.plan.options import Options, matches
from reptool.probing.opaque import is_named
from reptool.rules.lifting import active_lifts

FLOAT = ("NonDynamicallyQuantizableLinear", "FloatFunctional")  # float modules that live among the quantized ones
REQUIREMENTS = ("no_batchnorm", "no_refusals", "all_traced")
Patterns = str | type[nn.Module] | Iterable[str | type[nn.Module]] | None
Affine = str | type[nn.Module] | Iterable[str | type[nn.Module]] | None


def check_model(model: Any, caller: str = "deploy") -> None:
    """Raise for what is not a plain module, with what to do instead.

    Args:
        model: what was given.
        caller: the function that it was given to.
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise UnsupportedModelError(
            "a ScriptModule cannot be read; deploy the Python module first, then script or trace the result"
        )
    if isinstance(model, ExportedProgram):
        raise UnsupportedModelError(f"{caller} takes a module, got an ExportedProgram, which deploy takes")
    check_is_module(model, caller)
    check_weights(model)
    if is_exported(model):
        raise UnsupportedModelError(
            f"this GraphModule is an exported program, made of ATen operators, which {caller} cannot change"
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


def _computes_itself(cls: type) -> bool:
    """Whether a tensor class has arithmetic of its own."""
    return any("__torch_function__" in c.__dict__ for c in cls.__mro__[: cls.__mro__.index(nn.Parameter)])


def behind_wrappers(model: nn.Module) -> nn.Module:
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
    force: Forced,
    include: Patterns,
    exclude: Patterns,
    affine: Affine,
    keep_fallback: bool,
    unwrap: bool = False,
    price: Costs | Mapping[str, float] | None = None,
) -> tuple[nn.Module, tuple[Any, ...] | None, dict[str, Any], Options]:
    """The module, its example arguments and the options, all of them checked."""
    model = behind_wrappers(model)
    if model.training:
        raise InputError(f"the {type(model).__name__} is in training mode; call model.eval() first")
    args, kwargs = example_arguments(example_inputs, model)
    chosen, rewrites = (None, ()) if rules is None else chosen_rules(rules)
    wanted = None if include is None else _patterns("include", include, model)
    left = () if exclude is None else _patterns("exclude", exclude, model)
    claimed = _parts("affine", affine, model)
    for name in claimed:
        if not any(is_named(path, module, name) for path, module in model.named_modules()):
            raise nothing_matches("affine", name, model, [n for n, _ in model.named_modules() if n])
    lifts = active_lifts(chosen)
    forced, costs = forced_rules(force, rewrites), _costs(price)
    return (
        model,
        args,
        kwargs,
        Options(chosen, forced, wanted, left, keep_fallback, claimed, lifts, unwrap, rewrites, costs),
    )


def is_program(model: Any) -> TypeIs[ExportedProgram | fx.GraphModule]:
    """Whether this is an exported program, or a graph module that was made of one."""
    return isinstance(model, ExportedProgram) or is_exported(model)


class OnnxModel(Protocol):
    """An ONNX model: an `onnx.ModelProto` or an `onnx_ir.Model`."""

    ir_version: int


def is_onnx(model: Any) -> TypeIs[OnnxModel | str | os.PathLike[str]]:
    """Whether this is an ONNX model, or the path of a file that is called one."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model).endswith(".onnx")
    kind = type(model)
    return kind.__module__.startswith(("onnx_ir", "onnx.")) and kind.__name__ in ("Model", "ModelProto")


def prepared_onnx(
    rules: Any, force: Forced, include: Any, exclude: Any, price: Costs | None = None, **others: Any
) -> Options:
    """The options for an ONNX model; `others` are options that are for modules alone."""
    given = next((name for name, value in others.items() if value is not None and value is not False), None)
    if given is not None:
        raise InputError(f"{given}= is for modules; an ONNX model has no code that it could concern")
    names = [(v,) if isinstance(v, (str, type)) else tuple(v) for v in (include or (), exclude or ())]
    for name in (n for some in names for n in some):
        if not isinstance(name, str):
            raise InputError(f"{name!r} was given; parts of an ONNX model are known by patterns on names alone")
    wanted = None if include is None else names[0]
    return Options(_names_alone(rules), forced_rules(force), wanted, names[1], price=_costs(price))


Call = tuple[tuple[Any, ...], dict[str, Any]]


def prepared_program(
    program: ExportedProgram | fx.GraphModule, example_inputs: Any, rules: Any, force: Forced, include: Patterns,
    exclude: Patterns, price: Costs | None = None, **others: Any,
) -> tuple[Call | None, Options]:  # fmt: skip
    """The example arguments and options for a program; `others` are options that are for modules alone."""
    given = next((name for name, value in others.items() if value), None)
    if given is not None:
        raise InputError(f"{given}= is for modules; a {type(program).__name__} has no code that it could concern")
    paths = [n for n, _ in (*program.named_parameters(), *program.named_buffers())]
    wanted = None if include is None else _on_paths("include", include, paths)
    left = () if exclude is None else _on_paths("exclude", exclude, paths)
    options = Options(_names_alone(rules), forced_rules(force), wanted, left, price=_costs(price))
    if example_inputs is None:
        return None, options
    module = program if isinstance(program, fx.GraphModule) else program.module()
    args, kwargs = example_arguments(example_inputs, module)
    return (args or (), kwargs), options


def _costs(price: Any) -> Costs:
    """The numbers of the price, which a recipe holds by name."""
    if price is None or isinstance(price, Costs):
        return price or DEFAULT
    if isinstance(price, Mapping):
        return Costs.of(price)
    raise InputError(f"price was given a {type(price).__name__}; give reptool.Costs(...)")


def _names_alone(rules: Any) -> frozenset[str] | None:
    """The names of the rules for a program, of which none rewrites."""
    names, rewrites = (None, ()) if rules is None else chosen_rules(rules)
    if rewrites:
        raise InputError("rules that rewrite are for modules; deploy the module with them, then export it")
    return names


def _on_paths(what: str, given: Any, paths: list[str]) -> tuple[str, ...]:
    """Patterns on the paths of parameters, each of which matches one."""
    names = (given,) if isinstance(given, (str, type)) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{what} was given {name!r}; parts of a program are known by patterns on paths alone")
        if not any(matches(p, [name]) for p in paths):
            raise InputError(f"{what} pattern {name!r} matches no parameter; there are {', '.join(paths[:3])}, ...")
    return names


def _parts(what: str, given: Any, model: nn.Module) -> tuple[str | type, ...]:
    """An argument that names parts of a model, as a tuple."""
    single = isinstance(given, (str, type, nn.Module)) or not isinstance(given, Iterable)
    names = () if given is None else (given,) if single else tuple(given)
    check_parts(what, names, model)
    return names


def _patterns(what: str, given: Any, model: nn.Module) -> tuple[str, ...]:
    """The patterns on paths that an argument means; a class stands for every module of it."""
    found: list[str] = []
    paths = [n for n, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()) if n]
    for name in _parts(what, given, model):
        if isinstance(name, type):
            of_it = [path for path, module in model.named_modules() if isinstance(module, name)]
            meant = ["*" if not path else path.replace("[", "[[]") for path in of_it]
        else:
            meant = [name] if any(matches(p, [name]) for p in paths) else []
        if not meant and not (isinstance(name, type) and "_reptool_report" in vars(model)):  # absorbed, perhaps
            raise nothing_matches(what, name, model, paths)
        found += meant
    return tuple(found)


def required(require: str | Iterable[str] | None) -> list[str]:
    """The requirements, all of them known ones."""
    needed = as_list(require or ())
    unknown = set(needed) - set(REQUIREMENTS)
    if unknown:
        raise InputError(f"unknown requirement {sorted(unknown)}; there are {', '.join(REQUIREMENTS)}")
    return needed
