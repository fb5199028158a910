"""`deploy`, `explain`, `report`: the phases in order.

capture -> analyse -> choose -> check -> measure      on a throwaway copy, nothing written
apply -> verify the whole -> report                    on the copy that is handed out
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from reptool._report import FusedRegion, Report
from reptool.apply import LoadGuard, write
from reptool.engine import (
    RULES,
    Options,
    Plan,
    Unit,
    _matches,
    check_inputs_run,
    example_arguments,
    full_copy,
    make_plan,
    rules_of,
)
from reptool.errors import InputError, RequirementError, UnsupportedModelError, VerificationError
from reptool.kernel import Kernel
from reptool.lower import Geometry, values
from reptool.refusal import Code, Refusal
from reptool.rehearse import rehearse
from reptool.surgery import Site
from reptool.undo import undone_on_error
from reptool.verify import EXACT, Measured, measure, tolerance
from reptool.walk import rebuilt

REQUIREMENTS = ("no_batchnorm", "no_refusals", "all_traced")
MODEL_FLOOR = 5e-6
ROUNDING = 10  # two roundings of one model were seen to differ by a factor of 3; a wrong region is off by far more
MAX_FLAT_ROUNDS = 4

Patterns = str | Iterable[str] | None


def deploy(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: bool = True,
    rules: str | Iterable[str] | None = None,
    force: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    require: str | Iterable[str] | None = None,
    flatten: bool = False,
) -> nn.Module:
    """Collapse every affine region of a model into one layer, exactly, and say what was done.

    Args:
        model: any `nn.Module` in eval mode. It stays as it is unless `inplace`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. Never needed
            for correctness; they answer what the model's code asks about shapes, and the whole model is compared
            on them.
        inplace: change `model` itself instead of a copy.
        verify: check every region in float64, before and after the cast.
        rules: names of the rules to apply (see `reptool.RULES`), default all.
        force: apply the rules also where the result is dearer.
        include: module path patterns (``fnmatch``); only these are touched.
        exclude: module path patterns that are left alone.
        require: ``"no_batchnorm"``, ``"no_refusals"`` or ``"all_traced"``; what is left raises `RequirementError`.
        flatten: hand out one `torch.fx.GraphModule` instead of the user's model.

    Returns:
        The user's model (same class or a subclass of it, same attributes, methods and parameter names as far as the
        layers still exist) with fewer layers. Its report is ``reptool.report(result)``.

    Raises:
        UnsupportedModelError: not a plain module (scripted, exported, quantized, lazy, on the meta device).
        InputError: training mode, example inputs that do not fit, unknown rules, patterns that match nothing,
            weights that are not finite.
        VerificationError: a region does not compute what the original computes; nothing was changed.
        RequirementError: `require` is not met; nothing was changed.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> deploy(model)
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    check_model(model)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise UnsupportedModelError(
            "the model is on the meta device; materialize its weights first (explain() works on meta)"
        )
    if inplace and flatten:
        raise InputError("flatten=True returns another module, inplace=True changes the one given; choose one of them")
    model, args, kwargs, options = _prepared(model, example_inputs, rules, force, include, exclude)
    needed = _required(require)
    reference = None if args is None else _reference(model, args, kwargs, verify)
    plan = make_plan(model, args, kwargs, options, values=True, cast=True)
    measured = {unit.prefix: _measure(unit, verify) for unit in plan.units}
    report = _report(model, plan, measured)
    _check_requirements(report, needed)
    target = model if inplace and not verify else full_copy(model)
    with undone_on_error(target):
        _write_all(target, plan, measured, report)
    if verify:
        report.rehearsed = rehearse(model, target, plan)
    if verify and reference is not None and args is not None:
        _compare(target, args, kwargs, reference, report)
    if flatten:
        return _flattened(target, args, kwargs, report, options, verify)
    if inplace and verify:
        with undone_on_error(model):
            _write_all(model, plan, measured, report)
        return model
    return target


def explain(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rules: str | Iterable[str] | None = None,
    force: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Report:
    """The plan without the work: what `deploy` would fuse, at what price, and what it would leave and why.

    Args: as `deploy`. The model may be on the meta device; what depends on values is then refused.

    Returns:
        A `Report`: print it, or take `to_dict()` or `to_json()`.

    Raises:
        UnsupportedModelError, InputError: as `deploy`.

    >>> report = explain(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    >>> [(r.layer, r.rules) for r in report.regions]
    [('0', ['conv_bn'])]
    """
    check_model(model)
    model, args, kwargs, options = _prepared(model, example_inputs, rules, force, include, exclude)
    known = not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    if known and args is not None:
        _reference(model, args, kwargs, wide=False)
    plan = make_plan(model, args, kwargs, options, values=known)
    return _report(model, plan, {})


def report(deployed: nn.Module) -> Report:
    """What `deploy` did to a model it returned, with the errors it measured.

    Args:
        deployed: a model returned by `deploy`.

    Raises:
        InputError: the model was not deployed by reptool.

    >>> model = deploy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    >>> report(model).norms
    (1, 0)
    """
    found = getattr(deployed, "_reptool_report", None)
    if not isinstance(found, Report):
        raise InputError(
            f"this {type(deployed).__name__} was not returned by reptool.deploy; use reptool.explain for a plan"
        )
    return found


# --- what comes in --------------------------------------------------------------------------------------------------
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
    for path, module in model.named_modules():
        home = type(module).__module__
        if (
            "quantized" in home
            and home.startswith(("torch.nn", "torch.ao"))
            and "NonDynamically" not in type(module).__name__
        ):
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


def _prepared(
    model: nn.Module, example_inputs: Any, rules: Any, force: bool, include: Patterns, exclude: Patterns
) -> tuple[nn.Module, tuple[Any, ...] | None, dict[str, Any], Options]:
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
        if not any(_matches(p, [pattern]) for p in paths):
            raise InputError(f"include pattern {pattern!r} matches no module of {type(model).__name__}")
    return model, args, kwargs, Options(chosen, force, wanted, tuple(_names(exclude or ())))


def _names(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _required(require: str | Iterable[str] | None) -> list[str]:
    needed = _names(require or ())
    unknown = set(needed) - set(REQUIREMENTS)
    if unknown:
        raise InputError(f"unknown requirement {sorted(unknown)}; there are {', '.join(REQUIREMENTS)}")
    return needed


# --- measuring ------------------------------------------------------------------------------------------------------
Values = dict[Site, tuple[Measured | None, Tensor, Tensor | None]]


def _measure(unit: Unit, verify: bool) -> Values:
    out: Values = {}
    for site in list(unit.surgery.sites):
        assert site.place is not None
        name = _layer_name(unit, site)
        found: Any
        if verify:
            found = measure(
                site.region,
                site.shape,
                site.place,
                unit.found.ops,
                unit.facts,
                unit.reads,
                unit.facts.rank(site.region.root),
            )
        else:
            kernel = site.region.form.kernel()
            made = site.cast or (values(kernel, site.place) if isinstance(kernel, Kernel) else kernel)
            found = made if isinstance(made, Refusal) else (None, *made)
        if isinstance(found, Refusal):
            raise _value_error(found, name, unit, site)
        errors = found[0]
        if errors is not None:
            if not errors.exact <= EXACT:
                raise VerificationError(
                    f"region {name!r} ({', '.join(sorted(rules_of(site.region.form, unit.found)))}) "
                    f"is off by {errors.exact:.3g} "
                    f"at input size {errors.size}; nothing was changed. Exclude it and report this"
                )
            if not errors.cast <= tolerance(site.place.dtype):
                raise VerificationError(
                    f"region {name!r} is off by {errors.cast:.3g} after the cast to {site.place.dtype} "
                    f"at input size {errors.size}; "
                    "nothing was changed. Exclude it, or deploy in a wider dtype"
                )
        out[site] = found
    return out


def _value_error(refusal: Refusal, name: str, unit: Unit, site: Site) -> Exception:
    if refusal.code is Code.NON_FINITE:
        bad = ", ".join(_not_finite(unit, site)) or site.region.value.name
        return InputError(f"region {name!r}: {refusal}: NaN or infinity in {bad}; repair or exclude it first")
    return VerificationError(f"region {name!r}: {refusal}; nothing was changed. Exclude it, or deploy in a wider dtype")


def _not_finite(unit: Unit, site: Site) -> list[str]:
    """Paths of the tensors in a region that hold NaN or infinity."""
    owners = [o for n in site.region.form.ops for o in unit.found.ops[n].owners]
    root = unit.trace.root
    return sorted(
        f"{unit.prefix}.{name}".strip(".")
        for name, tensor in (*root.named_parameters(), *root.named_buffers())
        if any(name == o or name.startswith(f"{o}." if o else "") for o in owners)
        and tensor.is_floating_point()
        and not bool(tensor.isfinite().all())
    )


def _reference(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], wide: bool) -> tuple[Any, Any]:
    """The model's own output, and its output in float64 (None where it cannot run there, or if it is not `wide`)."""
    own = check_inputs_run(full_copy(model), _cloned(args), _cloned(kwargs))
    if not wide:
        return own, None
    try:
        double = full_copy(model).double()
        with torch.no_grad():
            exact = double(*_cloned(args, True), **_cloned(kwargs, True))
    except Exception:  # a model that fixes a dtype in its code
        exact = None
    return own, exact


def _cloned(value: Any, double: bool = False) -> Any:
    """Example inputs that a forward may write into, in float64 if asked."""

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().double().clone() if double and leaf.is_floating_point() else leaf.detach().clone()

    return rebuilt(value, clone)


def tensors_in(value: Any) -> list[Tensor]:
    """Every floating tensor of a nested output, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_in(v)]
    if hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return [t for v in vars(value).values() for t in tensors_in(v)]
    return []


def _error(found: Any, wanted: Any) -> float:
    a, b = ([t.detach() for t in tensors_in(v)] for v in (found, wanted))
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=False)):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if y.numel():
            off = float((x.double() - y.double()).abs().nan_to_num(0.0).max()) / (
                float(y.double().abs().nan_to_num(0.0).max()) + 1e-12
            )
            worst = max(worst, off)
            if bool((x.isnan() != y.isnan()).any()):
                return float("nan")
    return worst


def _compare(
    target: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reference: tuple[Any, Any] | None,
    found: Report,
) -> None:
    assert reference is not None
    own, exact = reference
    with torch.no_grad():
        out = full_copy(target)(*_cloned(args), **_cloned(kwargs))
    dtypes = [t.dtype for t in tensors_in(own)] or [torch.float32]
    floor = max(MODEL_FLOOR, 40 * max(torch.finfo(d).eps for d in dtypes))
    wanted = own if exact is None else exact
    error, base = _error(out, wanted), _error(own, wanted)
    found.model_error = (error, base)
    if not error <= max(ROUNDING * base, floor):
        raise VerificationError(
            f"the deployed {found.model} is off by {error:.3g} on example_inputs (the original itself by {base:.3g}); "
            "nothing was changed. Every region was exact by itself: a region is used in a way that was not seen. "
            "Exclude parts to find it and report this"
        )


# --- what goes out --------------------------------------------------------------------------------------------------
def _layer_name(unit: Unit, site: Site) -> str:
    path = site.slot if site.slot is not None else site.owner
    full = ".".join(p for p in (unit.prefix, path) if p)
    return full if site.slot is not None else f"{full or '<root>'} (functional)"


def _shown(shape: Geometry) -> str:
    if shape.kind == "linear":
        return f"Linear({shape.in_channels}, {shape.out_channels})"
    name = "ConvTranspose" if shape.kind == "transposed" else "Conv"
    extra = "".join(
        f", {k}={v}"
        for k, v, plain in (
            ("stride", shape.stride, (1,) * len(shape.stride)),
            ("padding", shape.padding, (0,) * len(shape.kernel_size)),
            ("dilation", shape.dilation, (1,) * len(shape.dilation)),
            ("groups", shape.groups, 1),
            ("outer", shape.outer, None),
        )
        if v != plain
    )
    size = "x".join(map(str, shape.kernel_size))
    return f"{name}{len(shape.kernel_size)}d({shape.in_channels}, {shape.out_channels}, {size}{extra})"


def _places(unit: Unit) -> dict[str, str]:
    """Node name -> the path of the module it calls, or of the module whose code it stands in with its name."""
    out: dict[str, str] = {}
    for node in unit.trace.graph.nodes:
        event = node.meta.get("event")
        inside = str(node.target) if node.op == "call_module" or event is None else event.path
        path = ".".join(p for p in (unit.prefix, inside) if p)
        out[node.name] = path if node.op == "call_module" else f"{path}: {node.name}" if path else node.name
    return out


def _report(model: nn.Module, plan: Plan, measured: dict[str, Values]) -> Report:
    out = Report(type(model).__name__, untraced=dict(plan.untraced))
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    gone_norms = gone_layers = 0
    for unit in plan.units:
        out.specialized += unit.questions
        places = _places(unit)
        out.refusals += [r.at(*(places.get(n, n) or "<root>" for n in r.nodes)) for r in unit.refusals.values()]
        seen: set[str] = set()
        for site in unit.surgery.sites:
            region, form = site.region, site.region.form
            absorbed = list(
                dict.fromkeys(
                    o for n in sorted(form.ops, key=unit.reads.position.__getitem__) for o in unit.found.ops[n].owners
                )
            )
            full = [".".join(p for p in (unit.prefix, o) if p) for o in absorbed]
            name = _layer_name(unit, site)
            errors = measured.get(unit.prefix, {}).get(site, (None,))[0]
            if name in seen:
                continue
            seen.add(name)
            out.regions.append(
                FusedRegion(
                    name,
                    _shown(site.shape),
                    full,
                    sorted(rules_of(form, unit.found)),
                    (region.before.multiplications, region.after.multiplications),
                    (region.before.total, region.after.total),
                    None if errors is None else errors.exact,
                    None if errors is None else errors.cast,
                    0 if errors is None else errors.sizes,
                )
            )
            out.names[name] = full
            gone_layers += region.before.layers - region.after.layers
            gone_norms += sum(unit.found.ops[n].paradigm == "bn" for n in form.ops)
    layers = sum(isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)) for m in model.modules())
    out.layers, out.norms = (layers, layers - gone_layers), (norms, max(norms - gone_norms, 0))
    out.parameters = (sum(p.numel() for p in model.parameters()),) * 2
    return out


def _check_requirements(found: Report, needed: list[str]) -> None:
    left: list[str] = []
    if "no_batchnorm" in needed and found.norms[1]:
        left.append(f"{found.norms[1]} batch normalizations are left")
    if "no_refusals" in needed and found.refusals:
        left.append(f"{len(found.refusals)} sites were refused")
    if "all_traced" in needed and found.untraced:
        left.append(f"{len(found.untraced)} modules could not be followed: {', '.join(list(found.untraced)[:3])}")
    if left:
        reasons = "; ".join(str(r) for r in found.refusals[:5])
        raise RequirementError(f"{'; '.join(left)}. Nothing was changed. {reasons}")


def _write_all(target: nn.Module, plan: Plan, measured: dict[str, Values], found: Report) -> None:
    before = set(target.state_dict())
    for unit in plan.units:
        write(target, unit.prefix, unit.surgery, {s: (w, b) for s, (_, w, b) in measured[unit.prefix].items()})
    found.parameters = (found.parameters[0], sum(p.numel() for p in target.parameters()))
    modules = list(target.modules())
    found.layers = (found.layers[0], sum(isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)) for m in modules))
    found.norms = (found.norms[0], sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules))
    absorbed = before - set(target.state_dict())
    for hook in [
        k for k, h in target._load_state_dict_pre_hooks.items() if isinstance(getattr(h, "hook", h), LoadGuard)
    ]:
        absorbed |= set(getattr(target._load_state_dict_pre_hooks.pop(hook), "hook", LoadGuard(frozenset())).absorbed)
    if absorbed:
        target.register_load_state_dict_pre_hook(LoadGuard(frozenset(absorbed)))
    earlier = target.__dict__.get("_reptool_report")
    if isinstance(earlier, Report) and not found.regions:
        return
    target.__dict__["_reptool_report"] = found


def _flattened(
    target: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any],
    found: Report,
    options: Options,
    verify: bool,
) -> nn.Module:
    """One GraphModule; what only the borders of modules and methods had kept apart is fused in it too."""
    from reptool.flatten import flatten_model

    flat: nn.Module = flatten_model(target, args, kwargs)
    for _ in range(MAX_FLAT_ROUNDS):
        plan = make_plan(flat, args, kwargs, options, values=True, cast=True)
        if not any(unit.surgery.sites for unit in plan.units):
            break
        measured = {unit.prefix: _measure(unit, verify) for unit in plan.units}
        found.regions += _report(flat, plan, measured).regions
        for unit in plan.units:
            write(flat, unit.prefix, unit.surgery, {s: (w, b) for s, (_, w, b) in measured[unit.prefix].items()})
        flat = flatten_model(flat, args, kwargs)
    flat.__dict__["_reptool_report"] = copy.deepcopy(found)
    return flat
