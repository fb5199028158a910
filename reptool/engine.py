"""The engine: capture, analyse, choose, check and work out the surgery of one model, all on a throwaway copy."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool._copies import full_copy as full_copy
from reptool._copies import shallow_copy
from reptool.capture import Recorder
from reptool.errors import InputError
from reptool.facts import Facts
from reptool.forms import Form
from reptool.kernel import Axis
from reptool.lower import values as layer_values
from reptool.module_kinds import foreign_hooks, stock_forward, watched_classes
from reptool.ops import Affine, Sum, View
from reptool.plan import Analysis, Chooser, Region, analyse, forms_of
from reptool.reads import Reads, resolve
from reptool.refusal import Code, Refusal
from reptool.showing import Call, made_up, seen_calls
from reptool.surgery import Site, Surgeon, Surgery
from reptool.trace import CaptureLimitError, Event, Input, Trace, Unanswerable, fake
from reptool.walk import rebuilt
from reptool.wiring import Wiring

RULES = (
    "conv_bn", "bn_conv", "branch_add", "branch_concat", "kernel_size", "sequential", "shortcut", "avg_pool", "scale",
    "padding", "slice", "linear", "weights",
)  # fmt: skip
MAX_ROUNDS = 60


@dataclass
class Options:
    """What the caller asked for."""

    rules: frozenset[str] | None = None
    force: bool = False
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()


@dataclass
class Unit:
    """One traced module with everything worked out for it."""

    prefix: str
    trace: Trace
    reads: Reads
    facts: Facts
    found: Analysis
    surgery: Surgery
    refusals: dict[fx.Node, Refusal]
    questions: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """All units of a model, and what could not be followed."""

    units: list[Unit] = field(default_factory=list)
    untraced: dict[str, str] = field(default_factory=dict)


@dataclass
class Ownership:
    """Who else has a hand on a model's tensors and modules.

    Args:
        tied: path of a tensor, or of the module that holds it -> the other paths of shared tensors.
        hooked: paths of modules with hooks of the user's.
        held: paths of modules that are also kept in plain attributes.
    """

    tied: dict[str, set[str]]
    hooked: set[str]
    held: set[str]

    def under(self, prefix: str) -> Ownership:
        """The same for a submodule, by its own paths."""
        return Ownership(_under(self.tied, prefix), set(_strip(self.hooked, prefix)), set(_strip(self.held, prefix)))


def make_plan(
    model: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any],
    options: Options,
    values: bool,
    cast: bool = False,
) -> Plan:
    """Work out everything for `model`, which stays untouched.

    Args:
        model: the user's model, in eval mode.
        args: example positional inputs, or None when nothing is known.
        kwargs: example keyword inputs.
        options: what to do.
        values: whether values may be looked at (not on the meta device).
        cast: whether each layer's values are worked out; one whose values do not fit its dtype is then left alone.
    """
    plan = Plan()
    scratch = shallow_copy(model)
    owned = ownership(scratch)
    watched = watched_classes(scratch)
    queue: list[tuple[str, nn.Module, tuple[Any, ...] | None, dict[str, Any]]] = [("", scratch, args, kwargs)]
    done: set[int] = set()
    seen: dict[str, Call] | None = None
    while queue:
        prefix, module, given, named = queue.pop(0)
        if id(module) in done:
            continue
        done.add(id(module))
        if not hasattr(module, "forward") or type(module).forward is nn.Module.forward:
            queue += _children(prefix, module)
            continue
        if prefix and stock_forward(module):
            continue
        if prefix and args is not None:
            seen = seen_calls(model, args, kwargs) if seen is None else seen
            given, named = seen.get(prefix, (None, {}))
        traced = _trace(module, prefix, given, named, watched)
        if isinstance(traced, str):
            plan.untraced[prefix] = traced
            queue += _children(prefix, module)
            continue
        recorder, trace = traced
        plan.untraced.pop(prefix, None)  # it could be followed by itself
        for path, why in trace.opaque.items():
            inner = module.get_submodule(path)
            full = f"{prefix}.{path}" if prefix else path
            plan.untraced[full] = why
            queue.append((full, inner, None, {}))
        unit = _unit(recorder, trace, options, (values, cast), owned.under(prefix), _above(scratch, prefix), plan)
        plan.units.append(unit)
    return plan


def _children(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module, tuple[Any, ...] | None, dict[str, Any]]]:
    return [(f"{prefix}.{n}" if prefix else n, m, None, {}) for n, m in module.named_children()]


def _above(model: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """The modules that enclose the one at `prefix`."""
    parts = prefix.split(".") if prefix else []
    paths = [".".join(parts[:i]) for i in range(len(parts))]
    return {p: model.get_submodule(p) for p in paths}


def _strip(paths: Iterable[str], prefix: str) -> Iterable[str]:
    lead = f"{prefix}." if prefix else ""
    return (p[len(lead) :] for p in paths if p.startswith(lead))


def _under(tied: dict[str, set[str]], prefix: str) -> dict[str, set[str]]:
    lead = f"{prefix}." if prefix else ""
    return {p[len(lead) :]: others for p, others in tied.items() if p.startswith(lead)}


def ownership(model: nn.Module) -> Ownership:
    """Tensors and modules with more than one owner, and modules with hooks of the user's."""
    holders: dict[int, list[tuple[str, str]]] = {}
    hooked: set[str] = set()
    for path, module in model.named_modules():
        if foreign_hooks(module) or module._backward_hooks or module._backward_pre_hooks:
            hooked.add(path)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                holders.setdefault(id(tensor), []).append((path, f"{path}.{name}" if path else name))
    tied: dict[str, set[str]] = {}
    for places in holders.values():
        if len(places) > 1:
            for path, full in places:
                others = {f for p, f in places if f != full}
                tied.setdefault(path, set()).update(others)
                tied.setdefault(full, set()).update(others)
    kept = {id(m) for module in model.modules() for v in vars(module).items() for m in _kept(*v)}
    return Ownership(tied, hooked, {p for p, m in model.named_modules(remove_duplicate=False) if id(m) in kept})


def _kept(name: str, value: Any, depth: int = 0) -> Iterator[nn.Module]:
    """Modules held by a plain attribute: in containers, partials and bound methods."""
    if name == "_modules" or depth > 4:
        return
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _kept("", v, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for v in value:
            yield from _kept("", v, depth + 1)
    elif isinstance(value, functools.partial):
        yield from _kept("", (value.func, value.args, value.keywords), depth + 1)
    elif inspect.ismethod(value):
        yield from _kept("", value.__self__, depth + 1)
    elif inspect.isfunction(value):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):
                yield from _kept("", cell.cell_contents, depth + 1)


def _trace(
    module: nn.Module, prefix: str, args: tuple[Any, ...] | None, kwargs: dict[str, Any], watched: tuple[type, ...]
) -> tuple[Recorder, Trace] | str:
    recorder = Recorder(module, prefix, watched)
    try:
        inputs = _inputs(module) if args is None else (_placeholders(args, "input"), _placeholders(kwargs, ""))
        try:
            return recorder, recorder.run(*inputs)
        except Unanswerable:
            guess = made_up(module, inputs) if args is None else None
            if guess is None:
                raise
            recorder = Recorder(module, prefix, watched)
            recorder.guessed = True
            return recorder, recorder.run(*guess)
    except CaptureLimitError as error:
        return str(error)
    except Exception as error:  # the user's forward may raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _inputs(module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Placeholders for the parameters a forward must be given."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    named = [p for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    if not required and not named and parameters:
        first = parameters[0]
        if first.kind is first.VAR_POSITIONAL:
            return (Input(first.name),), {}
        return ((), {first.name: Input(first.name)}) if first.kind is first.KEYWORD_ONLY else ((Input(first.name),), {})
    return tuple(Input(p.name) for p in required), {p.name: Input(p.name) for p in named}


def _placeholders(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        return Input(name or "input", partial(fake, value.detach()))
    if isinstance(value, tuple):
        made = [_placeholders(v, f"{name}_{i}") for i, v in enumerate(value)]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, list):
        return [_placeholders(v, f"{name}_{i}") for i, v in enumerate(value)]
    if type(value) is dict:
        return {k: _placeholders(v, f"{name}_{k}".strip("_") if isinstance(k, str) else name) for k, v in value.items()}
    return rebuilt(value, lambda v: _placeholders(v, name) if isinstance(v, Tensor) else v)


# --- one unit -------------------------------------------------------------------------------------------------------
def _unit(
    recorder: Recorder,
    trace: Trace,
    options: Options,
    known: tuple[bool, bool],
    owned: Ownership,
    above: dict[str, nn.Module],
    plan: Plan,
) -> Unit:
    values, cast = known
    reads = resolve(trace.graph)
    facts = Facts(recorder, reads, {})
    blocked: dict[fx.Node, Refusal] = {}
    rejected: dict[fx.Node, dict[frozenset[fx.Node], Refusal]] = {}
    refusals: dict[fx.Node, Refusal] = {}
    for node in trace.graph.nodes:
        if node.meta.get("hooked"):
            blocked[node] = Refusal(Code.HOOK, f"{node.target!r} has hooks that would see other values", (node.name,))
    found = analyse(trace.graph, reads, facts, blocked, trace.escaped, values)
    surgeon = Surgeon(trace, found, owned.hooked, owned.tied, owned.held)
    wiring = Wiring(surgeon, above, plan.untraced, values)
    allowed = _filter(options, found, rejected, trace)
    surgery = Surgery()
    for _ in range(MAX_ROUNDS):
        sites, problems = _sites(Chooser(found, allowed, options.force).regions(), surgeon)
        if not problems:
            made = surgeon.operate(sites)
            if isinstance(made, Surgery):
                other = wiring.check(made)
                problems = other.problems or (_unfit(made.sites) if cast else {})
                if not problems:
                    for path, methods in other.methods.items():
                        made.methods.setdefault(path, {}).update(methods)
                    surgery = made
                    break
            else:
                problems = {s.region: made[s.region.value] for s in sites if s.region.value in made}
        for region, refusal in _largest(problems, found).items():
            refusals[region.value] = refusal
            rejected.setdefault(region.value, {})[region.form.ops] = refusal
    fused = {n for s in surgery.sites for n in s.region.form.ops}
    left = {n: r for n, r in {**found.refused, **refusals}.items() if n not in fused}
    return Unit(trace.prefix, trace, reads, facts, found, surgery, left, _questions(trace))


def _unfit(sites: list[Site]) -> dict[Region, Refusal]:
    """Regions whose values do not fit a layer of that dtype; NaN and infinity are the caller's to repair."""
    out: dict[Region, Refusal] = {}
    for site in sites:
        assert site.place is not None
        kernel = site.region.form.kernel()
        found = kernel if isinstance(kernel, Refusal) else layer_values(kernel, site.place)
        if isinstance(found, tuple):
            site.cast = found
        elif found.code is not Code.NON_FINITE:
            out[site.region] = found.at(site.region.value.name)
    return out


def _largest(problems: dict[Region, Refusal], found: Analysis) -> dict[Region, Refusal]:
    """Of regions that are in each other's way, the largest alone: without it the others may stand.

    Regions are in each other's way where they hold the same operation or the same module or tensor.
    """
    out: dict[Region, Refusal] = {}
    taken: set[object] = set()
    for region in sorted(problems, key=lambda r: -len(r.form.ops)):
        held: set[object] = {*region.form.ops, *(o for n in region.form.ops for o in found.ops[n].owners)}
        if not taken & held:
            out[region] = problems[region]
        taken |= held
    return out


def _sites(regions: list[Region], surgeon: Surgeon) -> tuple[list[Site], dict[Region, Refusal]]:
    sites: list[Site] = []
    problems: dict[Region, Refusal] = {}
    for region in regions:
        site = surgeon.site(region)
        if isinstance(site, Refusal):
            problems[region] = site
        else:
            sites.append(site)
    return sites, problems or surgeon.check(sites)


def _filter(
    options: Options, found: Analysis, rejected: dict[fx.Node, dict[frozenset[fx.Node], Refusal]], trace: Trace
) -> Callable[[fx.Node, Form], Refusal | None]:
    def allowed(node: fx.Node, form: Form) -> Refusal | None:
        refusal = rejected.get(node, {}).get(form.ops)
        if refusal is not None:
            return refusal
        if options.rules is not None:
            extra = rules_of(form, found) - options.rules
            if extra:
                return Refusal(Code.RULE_OFF, f"needs the rules {sorted(extra)}", (node.name,))
        for owner in sorted({o for n in form.ops for o in found.ops[n].owners}):
            full = f"{trace.prefix}.{owner}" if trace.prefix else owner
            if options.include is not None and not _matches(full, options.include):
                return Refusal(Code.EXCLUDED, f"{full!r} is not included", (node.name,))
            if _matches(full, options.exclude):
                return Refusal(Code.EXCLUDED, f"{full!r} is excluded", (node.name,))
        return None

    return allowed


def _matches(path: str, patterns: Iterable[str]) -> bool:
    parts = path.split(".")
    ancestors = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch.fnmatchcase(a, p) for p in patterns for a in ancestors)


def rules_of(form: Form, found: Analysis) -> frozenset[str]:
    """Names of the rules a form uses."""
    rules: set[str] = set()
    position = found.reads.position
    ops = sorted(form.ops, key=position.__getitem__)
    layers = [n for n in ops if isinstance(found.ops[n], Affine) and found.ops[n].layer]  # type: ignore[union-attr]
    for node in ops:
        op = found.ops[node]
        if isinstance(op, Affine):
            behind = _behind_layer(node, form, found)
            rules |= {
                "bn": {"conv_bn" if behind else "bn_conv"},
                "avg_pool": {"avg_pool"},
                "scale": {"scale"},
                "padding": {"padding"},
                "slice": {"slice"},
            }.get(op.paradigm, set())
            if op.computed:
                rules.add("weights")
            if op.layer and any(n is not node and n in _upstream(node, form, found) for n in layers):
                rules.add("sequential")
        elif isinstance(op, Sum):
            rules.add("branch_add")
            if any(_past_identities(s, found) is form.root for s in op.sources):
                rules.add("shortcut")
            shapes = [forms_of(found, s)[form.root].shape for s in op.sources]
            sizes = {tuple(a.kernel_size for a in s.axes or ((Axis(),) * len(form.shape.axes or ()))) for s in shapes}
            if len(sizes) > 1:
                rules.add("kernel_size")
        elif isinstance(op, View):
            rules.add("linear")
        else:
            rules.add("branch_concat")
    return frozenset(rules)


def _past_identities(node: fx.Node, found: Analysis) -> fx.Node:
    """The value that `node` hands on as it is."""
    op = found.ops.get(node)
    while isinstance(op, Affine) and op.paradigm == "identity":
        node = op.source
        op = found.ops.get(node)
    return node


def _upstream(node: fx.Node, form: Form, found: Analysis) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = list(found.ops[node].sources)
    while stack:
        n = stack.pop()
        if n in form.ops and n not in seen:
            seen.add(n)
            stack += found.ops[n].sources
    return seen


def _behind_layer(node: fx.Node, form: Form, found: Analysis) -> bool:
    return any(isinstance(found.ops[n], Affine) and found.ops[n].layer for n in _upstream(node, form, found))  # type: ignore[union-attr]


def _questions(trace: Trace) -> list[str]:
    out: list[str] = []

    def walk(event: Event) -> None:
        path = ".".join(p for p in (trace.prefix, event.path) if p) or "<root>"
        out.extend(f"{path}.{event.method}: {q.what} of {q.node} = {q.answer!r}" for q in event.questions)
        for item in event.items:
            if isinstance(item, Event):
                walk(item)

    walk(trace.top)
    return out


# --- the caller's input ---------------------------------------------------------------------------------------------
def example_arguments(example_inputs: Any, model: nn.Module) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """Example inputs as positional and keyword arguments.

    Raises:
        InputError: not a tensor, tuple, list or dict, or it does not fit the forward's signature.
    """
    if example_inputs is None:
        return None, {}
    if isinstance(example_inputs, Tensor):
        args: tuple[Any, ...] = (example_inputs,)
        kwargs: dict[str, Any] = {}
    elif isinstance(example_inputs, (tuple, list)):
        args, kwargs = tuple(example_inputs), {}
    elif isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    else:
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}; "
            "give a tensor, a tuple of positional or a dict of keyword arguments"
        )
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"example_inputs do not fit {type(model).__name__}.forward: {error}") from error
    return args, kwargs


def check_inputs_run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the model on the example inputs.

    Raises:
        InputError: the model does not accept them.
    """
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        raise InputError(f"the model does not run on example_inputs: {type(error).__name__}: {error}") from error
