"""Planning: choose regions until all of them can be carried out; the others are left, each with its reason.

A choice is made island by island. What is in the way of a region (no place, another user, a class that cannot be
derived from) rejects that form of it, and only the island in which it lies is chosen anew. Every round rejects at least
one form, so this ends; an island that takes more than `MAX_TRIES` rounds is left as it is, and says so.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx

from reptool.algebra.budget import too_large, weight_bytes
from reptool.algebra.kernel import Kernel
from reptool.ir.decisions import decided
from reptool.ir.ops import Affine
from reptool.plan.candidates import Analysis, out_of_reach
from reptool.plan.forms import Form
from reptool.plan.options import Options, allowed_by
from reptool.plan.select import Chooser, Region
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import values as layer_values
from reptool.runtime.subclass import derive
from reptool.safety.check import Wiring
from reptool.surgery.conversions import silenced
from reptool.surgery.placing.shared_layers import alike
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon
from reptool.surgery.units import GivenUp

MAX_TRIES = 40
SAME = 1e-12
"""How far two weights may be apart, of the largest, to be those of one layer."""
Problems = dict[Region, Refusal]


class Planning:
    """Finds a surgery of one trace.

    Args:
        surgeon: finds the places.
        wiring: checks other code.
        options: what the caller asked for.
        cast: whether each layer's values are worked out.
        given_up: regions that must not be formed, and why.
    """

    def __init__(self, surgeon: Surgeon, wiring: Wiring, options: Options, cast: bool, given_up: GivenUp) -> None:
        self.surgeon, self.wiring, self.cast, self.given_up = surgeon, wiring, cast, given_up
        self.found, self.prefix = surgeon.found, surgeon.trace.prefix
        self.rejected: dict[fx.Node, dict[frozenset[fx.Node], Refusal]] = {}
        self.refusals: dict[fx.Node, Refusal] = {}
        self.tries: Counter[int] = Counter()
        self._by_options = allowed_by(options, self.found, surgeon.trace)
        self._alike = alike(surgeon)
        self._sites: dict[Region, Site | Refusal] = {}
        self.chooser = Chooser(self.found, self._allowed, options.force)

    def done(self) -> tuple[Surgery, dict[fx.Node, Refusal]] | None:
        """The surgery, and why other regions were not taken; None once a norm is seen to keep its scale and shift."""
        while True:
            sites, problems = self._placed(self.chooser.regions())
            made = Surgery() if problems else self.surgeon.operate(sites)
            if not isinstance(made, Surgery):
                problems = {s.region: made[s.region.value] for s in sites if s.region.value in made}
            elif not problems:
                problems = self._carried_out(made)
                if not problems:
                    return made, self.refusals
            self._reject(problems)
            if out_of_reach(self.found, self.rejected):
                return None

    def _allowed(self, node: fx.Node, form: Form) -> Refusal | None:
        refusal = self.rejected.get(node, {}).get(form.ops)
        if refusal is None and self.given_up.regions:
            refusal = self.given_up.regions.get((self.prefix, frozenset(n.name for n in form.ops)))
            refusal = None if refusal is None else refusal.at(node.name)
        return refusal or self._by_options(node, form) or self._alike(node, form) or self._too_large(node, form)

    def _too_large(self, node: fx.Node, form: Form) -> Refusal | None:
        ops = [op for op in map(self.found.ops.get, form.ops) if isinstance(op, Affine) and op.layer]
        refusal = too_large(form.shape, sum(weight_bytes(op.shape) for op in ops))
        return None if refusal is None else refusal.at(node.name)

    def _placed(self, regions: list[Region]) -> tuple[list[Site], Problems]:
        """The places of regions, and what is in the way."""
        for region in regions:
            if region not in self._sites:
                self._sites[region] = self.surgeon.site(region)
        places = {r: self._sites[r] for r in regions}
        problems = {r: p for r, p in places.items() if isinstance(p, Refusal)}
        sites = [p for p in places.values() if isinstance(p, Site)]
        return sites, problems or self.surgeon.check(sites)

    def _carried_out(self, made: Surgery) -> Problems:
        """Complete a surgery by what other code needs; the regions for which that is impossible."""
        other = self.wiring.check(made)
        problems = other.problems or (_unfit(made.sites) if self.cast else {})
        if made.fallbacks is not None:
            problems = problems or made.fallbacks.finish(made) or made.fallbacks.write(made)
        if problems:
            return problems
        for path, methods in other.methods.items():
            made.methods.setdefault(path, {}).update(methods)
        return self._underivable(made)

    def _underivable(self, made: Surgery) -> Problems:
        """Regions in modules of whose class no subclass can be made."""
        modules = self.surgeon.modules
        wanted = {p: tuple(m.values()) for p, m in made.methods.items()}
        wanted |= {p: () for p in silenced(self.surgeon.trace.root, made) if p not in wanted}
        out: Problems = {}
        for path, methods in wanted.items():
            if isinstance(modules[path], fx.GraphModule):
                continue
            try:
                derive(type(modules[path]), methods, path in made.plain)
            except Exception as error:  # whatever a class of the user's raises
                why = f"no subclass can be made of {type(modules[path]).__qualname__}: {type(error).__name__}: {error}"
                out |= {s.region: Refusal(Code.METHOD, why, (path or "<root>",)) for s in _below(path, made.sites)}
        return out

    def _reject(self, problems: Problems) -> None:
        """Reject the forms that are in the way, and whole islands that were tried too often."""
        islands: set[int] = set()
        for region, refusal in _largest(problems, self.found).items():
            self.refusals[region.value] = refusal
            self.rejected.setdefault(region.value, {})[region.form.ops] = refusal
            islands.add(self.chooser.island_of(region.value))
        for island in islands:
            self.tries[island] += 1
            if self.tries[island] > MAX_TRIES:
                why = f"no plan was found in {MAX_TRIES} tries"
                self.refusals |= {n: Refusal(Code.BUDGET, why, (n.name,)) for n in self.chooser.give_up(island)}
            else:
                self.chooser.choose_again(island)


def _below(path: str, sites: list[Site]) -> list[Site]:
    """The sites with a layer or code in the module at a path."""
    lead = f"{path}." if path else ""

    def inside(site: Site) -> bool:
        paths = {site.slot if site.slot is not None else site.owner}
        paths |= {e.path for n in site.region.form.ops for e in n.meta["event"].ancestors()}
        return any(p == path or p.startswith(lead) for p in paths)

    return [s for s in sites if inside(s)]


def _unfit(sites: list[Site]) -> Problems:
    """Regions whose values do not fit a layer of that dtype; NaN and infinity are the caller's to repair."""
    out: dict[Region, Refusal] = {}
    for site in sites:
        assert site.place is not None
        form = site.region.form
        refusal = decided("fits", (form.root, *form.ops), lambda: _cast(site), None)  # noqa: B023 - asked at once
        if refusal is not None:
            out[site.region] = refusal.at(site.region.value.name)
    return out or _unlike(sites)


def _unlike(sites: list[Site]) -> Problems:
    """Regions of one layer, called in several places, that would need other values than the first of them."""
    out: dict[Region, Refusal] = {}
    first: dict[object, Site] = {}
    for site in sites:
        one = first.setdefault(site.slot if site.slot is not None else (site.owner, site.names), site)
        ops = (*one.region.form.ops, *site.region.form.ops)
        if one is not site and not decided("alike", ops, lambda: _alike(one, site), True):  # noqa: B023 - asked at once
            where = site.slot if site.slot is not None else f"{site.owner}.{site.names[0]}".lstrip(".")
            sentence = f"{where!r} is called in places that would need different weights"
            out[site.region] = Refusal(Code.SHARED, sentence, (site.region.value.name, one.region.value.name))
    return out


def _alike(one: Site, other: Site) -> bool:
    """Whether two layers are the same up to rounding in float64."""
    kernels = [s.region.form.kernel() for s in (one, other)]
    known = [(k.weight, k.bias) for k in kernels if isinstance(k, Kernel)]
    return len(known) == 2 and all(_close(a, b) for a, b in zip(*known, strict=True))


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.allclose(one, other, SAME, SAME * float(one.abs().amax()))


def _cast(site: Site) -> Refusal | None:
    """Work out the values of a layer, in its dtype; why they do not fit."""
    assert site.place is not None
    kernel = site.region.form.kernel()
    found = kernel if isinstance(kernel, Refusal) else layer_values(kernel, site.place, site.region.form.parts)
    if isinstance(found, tuple):
        site.cast = found
        return None
    return None if found.code is Code.NON_FINITE else found


def _largest(problems: Problems, found: Analysis) -> Problems:
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
