"""The place of a group of terms: the layer stands in the place of one of them, the others are left out of the sum."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from torch import fx

from reptool.plan.terms import Tree
from reptool.pysource.places import named
from reptool.refusal import Code, Refusal
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


def term_of(traced: Traced, site: Site) -> fx.Node:
    """The term of a group in whose place its layer stands."""
    parts = set(traced.found.groups[site.region.value].parts.values())
    return next(n for n, behind in pairwise((site.carrier, *site.onpath)) if behind in parts)


def needed_there(traced: Traced, site: Site) -> Refusal | None:
    """Why the other terms of a group cannot be left out where its layer stands in the place of this one."""
    group = traced.found.groups.get(site.region.value)
    if group is None:
        return None
    tree, term = group.tree, term_of(traced, site)
    if not group.stands_at(term):
        return Refusal(Code.METHOD, f"{named(term)} enters the sum by another number than the layer", (term.name,))
    return kept_whole(traced, tree, group.terms - {term})


def kept_whole(traced: Traced, tree: Tree, gone: Collection[fx.Node]) -> Refusal | None:
    """Why a sum cannot do without these terms: what is left is scaled, or another value would be written in place."""
    storage, left = traced.reads.storage, tree.without(gone)
    for node, op in tree.ops.items():
        first = op.sources[0]
        if node in left and left[node] and tree.scale(node, left[node][0]) is not None:
            return Refusal(Code.METHOD, f"{named(node)} scales what would be left of it", (node.name,))
        if node in left or node not in traced.reads.mutates:
            continue
        written = first
        while kept := left.get(written, tree.handed_on(written)):
            written = kept[0]
        if written not in tree.ops and storage.get(written, written) is not storage.get(first, first):
            return Refusal(Code.MUTATED, f"{named(node)} would write into {named(written)}", (node.name,))
    return None
