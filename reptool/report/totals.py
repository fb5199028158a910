"""Totals: how many layers and parameters a model has when a plan is carried out, without carrying it out."""

from __future__ import annotations

from math import prod

from torch import nn

from reptool.runtime.expect import KEPT
from reptool.surgery.units import Plan


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer."""
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))


def totals(model: nn.Module, plan: Plan) -> tuple[int, int]:
    """Layers that are modules, and parameters, after a plan is carried out.

    Args:
        model: the model that was planned.
        plan: everything that was worked out for it.
    """
    gone: set[str] = set()  # modules that go away, or get everything anew
    dropped: set[str] = set()
    layers = parameters = 0
    for unit in plan.units:
        lead = f"{unit.prefix}." if unit.prefix else ""
        surgery = unit.surgery
        gone |= {f"{lead}{p}".rstrip(".") for p in (*surgery.identities, *surgery.plain)}
        dropped |= {f"{lead}{p}" for p in surgery.dropped}
        places: set[tuple[str, ...]] = set()
        for site in surgery.sites:
            place = (site.slot,) if site.slot is not None else (site.owner, str(site.names[0]))
            if place in places:
                continue  # one layer for several calls
            places.add(place)
            shape = site.region.form.shape
            assert shape.channels is not None
            groups = shape.channels.groups if shape.axes != () else 1
            taps = prod(a.kernel_size for a in shape.axes or ())
            parameters += shape.channels.out_channels * (shape.channels.in_channels // groups) * taps
            parameters += shape.channels.out_channels if shape.biased else 0
            if site.slot is not None:
                gone.add(f"{lead}{site.slot}".rstrip("."))
                layers += 1
            else:
                owner = f"{lead}{site.owner}".rstrip(".")
                dropped |= {".".join(p for p in (owner, n) if p) for n in site.names if n}
    layers += sum(is_layer(m) and not _inside(p, gone) for p, m in _modules(model))
    for path, parameter in model.named_parameters():
        if not _inside(path, gone) and path not in dropped and KEPT not in path.split("."):
            parameters += parameter.numel()
    return layers, parameters


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(p, m) for p, m in model.named_modules() if KEPT not in p.split(".")]


def _inside(path: str, gone: set[str]) -> bool:
    """Whether a path is one of these, or lies inside of one."""
    parts = path.split(".") if path else []
    return any(".".join(parts[:i]) in gone for i in range(len(parts) + 1))
