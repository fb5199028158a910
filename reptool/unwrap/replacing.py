"""Put layers into the places of their wrappers; what only the wrapper had raises there.

The layer means what the wrapper meant, so its gate goes. What it keeps: the number of axes that the wrapper took, what
its tensors hold, and errors for the names that went with the wrapper and for a geometry set on it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from reptool.ir.trace import all_events
from reptool.report.fields import Found
from reptool.rewrite.method_source import sealed_method
from reptool.runtime.absorbed import names_lost
from reptool.runtime.gates.chain import WITHIN
from reptool.runtime.gates.gate import drop_gate
from reptool.runtime.hooks import guard_state, load_guard, set_dtype_guard, set_guard
from reptool.runtime.method import ORIGINAL, Method
from reptool.runtime.state import FOLDED
from reptool.runtime.subclass import derive, original_class, warn_in_training
from reptool.safety.ownership import ownership
from reptool.surgery.conversions import set_class
from reptool.surgery.units import Plan
from reptool.unwrap.handing_on import wrappers
from reptool.unwrap.reached import Reach, checks_outside, dtypes_of, names_gone, ranks_of

_SETTING = """def __setattr__(self, name, value):
    _not_set(self, name, _names)
    _not_new(self, name, value)
    _original(self, name, value)
"""
_READING = """def __getattr__(self, name):
    try:
        return _original(self, name)
    except AttributeError:
        _not_inside(self, name, _inside)
        _not_there(self, name, _names)
        raise
"""
_ADDING = """def add_module(self, name, module):
    _not_new(self, name, module)
"""


def unwrap(model: nn.Module, plan: Plan, found: Found, inplace: bool) -> None:
    """Put layers into the places of the wrappers that only hand on to them, and say in the report where and where not.

    Args:
        model: the model that the plan was carried out on; it is changed.
        plan: what was carried out.
        found: the report, which gets the new names.
        inplace: whether the model is the caller's own object.
    """
    reach, before = Reach(model, ownership(model), inplace, _traced(plan)), set(model.state_dict())
    candidates = wrappers(plan)
    kept = reach.kept({p: h for p, h in candidates.items() if not _unseen(p, plan)})
    for path, held in candidates.items():
        if any(path.startswith(f"{done}.") for done in found.unwrapped):
            continue
        why = _unseen(path, plan) or kept.get(path, "")
        if why:
            found.wrapped[path] = why
            continue
        kind = original_class(model.get_submodule(path)).__name__
        _replace(model, path, held.layer)
        found.unwrapped[path] = kind
        _rename(found, held.layer, path)
    if not found.unwrapped:
        return
    _seal(model, {key for path in found.unwrapped for key in reach.sealed.get(path, ())})
    earlier, after = load_guard(model), set(model.state_dict())
    absorbed = (before - after) | (frozenset() if earlier is None else earlier.absorbed)
    grown = (after - before) | (frozenset() if earlier is None else earlier.grown & after)
    guard_state(model, absorbed - after, grown)
    warn_in_training(model, found.norms[0] - found.norms[1])


def _traced(plan: Plan) -> set[tuple[str, str]]:
    """Full path of a module and name of each of its methods that were called."""
    events = ((u.prefix, e) for u in plan.units for e in all_events(u.trace.top))
    return {(".".join(p for p in (prefix, e.path) if p), e.method) for prefix, e in events}


def _seal(model: nn.Module, methods: set[tuple[str, str]]) -> None:
    """Let methods raise that ask what a wrapper is: they would go on without it and do something else."""
    for path, name in sorted(methods):
        module = model.get_submodule(path)
        made = sealed_method(type(module), name, path)
        if made is not None:
            set_class(module, derive(type(module), (made,)))


def _unseen(path: str, plan: Plan) -> str:
    """Whether a module around it runs code that could not be followed."""
    above = next((p for p in plan.untraced if not p or path.startswith(f"{p}.")), None)
    return "" if above is None else f"the code of {above or 'the model itself'}, which calls it, could not be followed"


def _replace(model: nn.Module, path: str, layer_path: str) -> None:
    wrapper, layer = model.get_submodule(path), model.get_submodule(layer_path)
    ranks, dtypes = ranks_of(wrapper, layer), dtypes_of(wrapper)
    lost = [n for n in (*names_lost(wrapper), *names_gone(wrapper)) if not hasattr(layer, n)]
    own = [n for n, v in vars(layer).items() if _is_geometry(n, v) and not hasattr(wrapper, n)]
    inside = tuple(wrapper._modules)
    drop_gate(layer)
    vars(layer).pop(WITHIN, None)
    for rank in ranks or ():
        set_guard(layer, rank)
    for dtype in dtypes:
        set_dtype_guard(layer, dtype)
    if FOLDED in vars(layer):
        vars(layer)[FOLDED] = tuple(replace(f, place=path) for f in vars(layer)[FOLDED])
    gone = (("_names", (*lost, *own)), ("_inside", inside))
    texts = {"__setattr__": _SETTING, "__getattr__": _READING, "add_module": _ADDING}
    methods = [Method(name, text, constants=gone) for name, text in texts.items()]
    methods += [_checking(m, lines) for m, lines in checks_outside(wrapper.modules())]
    set_class(layer, derive(type(layer), tuple(methods)))
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner)._modules[name] = layer


def _checking(method: Method, lines: list[str]) -> Method:
    """The forward of a layer behind the checks of what decided which code its wrapper ran."""
    checks = "".join(f"    {line}\n" for line in lines)
    text = f"def forward(self, input):\n{checks}    return self.{ORIGINAL}forward(input)\n"
    return Method("forward", text, method.names, constants=method.constants)


def _is_geometry(name: str, value: object) -> bool:
    return not name.startswith("_") and name != "training" and isinstance(value, (int, str, tuple))


def _rename(found: Found, old: str, new: str) -> None:
    """Let the report speak of a layer by its new path."""
    for region in found.regions:
        region.layer = new if region.layer == old else region.layer
    for operation in (o for g in found.graphs for o in g.after):
        operation.place = new if operation.place == old else operation.place
    found.names = {new if key == old else key: names for key, names in found.names.items()}
