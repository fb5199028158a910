"""Rewrites: users' rules on the flattened network, each verified in float64 before it stands.

    match -> check -> rewrite, on a copy; compared with the network before; again until nothing changes

A rule is applied at all its sites at once; where the result differs, each site is tried by itself, and those that are
wrong are refused. Rules that go on rewriting are an error that names them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from reptool.errors import RegionWarning, RuleError, warn
from reptool.ir.nodes import metadata_read
from reptool.models.copies import full_copy
from reptool.plan.options import Options
from reptool.refusal import Code, Refusal
from reptool.report.fields import Found, Rewritten
from reptool.rules.rule import Rule, Site, in_the_way
from reptool.runtime.state import Folded, set_folded
from reptool.verify.rewrites import EXACT, Compared, inputs_for

MAX_ROUNDS = 50
Rewrite: TypeAlias = "Rule | Callable[[fx.GraphModule], fx.GraphModule]"


def rewritten(
    flat: fx.GraphModule, options: Options, args: tuple[Any, ...] | None, kwargs: dict[str, Any], found: Found
) -> fx.GraphModule:
    """The network with the rules of `options.rewrites` applied; the same object where none applies.

    Args:
        flat: the flattened network, which stays as it is.
        options: with the rules.
        args: example positional inputs or None.
        kwargs: example keyword inputs.
        found: gets what was done, and what was refused.

    Raises:
        RuleError: a rule raised, broke the graph, wrote into a weight, or goes on for ever.
        InputError: nobody showed what the model reads, and nothing was found that it runs on.
    """
    work = _Rewriting(flat, inputs_for(flat, args, kwargs), options.forces)
    work.run(options.rewrites)
    found.refusals += [r for r in work.refusals.values() if r not in found.refusals]
    if not work.done:
        return flat
    found.rewritten += work.done
    return _narrowed(work.network, flat)


@dataclass
class _Done:
    """One application of a rule at several sites.

    Args:
        network: the copy that was changed.
        sites: the places, by the names of their nodes.
        refused: by the same names, why not.
    """

    network: fx.GraphModule
    sites: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)


class _Rewriting:
    """Applies rules until nothing changes; see `rewritten`."""

    def __init__(self, flat: fx.GraphModule, inputs: list[Any], forces: Callable[[str], bool]) -> None:
        self.network = copied(flat).double()
        self.inputs, self.forces = inputs, forces
        self.done: list[Rewritten] = []
        self.refusals: dict[tuple[str, str], Refusal] = {}
        self.wrong: set[tuple[str, str]] = set()

    def run(self, rewrites: Sequence[Rewrite]) -> None:
        """Functions once, in their order; rules until none applies."""
        names: list[list[str]] = []
        for count in range(MAX_ROUNDS):
            changed = [name_of_rewrite(r) for r in rewrites if (count == 0 or isinstance(r, Rule)) and self._applied(r)]
            names.append(changed)
            if not any(isinstance(r, Rule) and name_of_rewrite(r) in changed for r in rewrites):
                return
        last = ", ".join(map(repr, dict.fromkeys(n for round_ in names[-4:] for n in round_)))
        raise RuleError(
            f"the rules {last} go on rewriting what they wrote: {MAX_ROUNDS} rounds were not enough, the last one at "
            f"{self.done[-1].places[0]}; let `check` refuse what the rule itself makes"
        )

    def _applied(self, rewrite: Rewrite) -> bool:
        """Apply one rule or function, if it changes anything and is right."""
        name = name_of_rewrite(rewrite)
        if not isinstance(rewrite, Rule):
            made = _of_function(rewrite, name, self.network)
            return made is not None and self._stands(name, _Done(made, {name: "the whole network"}))
        one = self._tried(rewrite, None)
        self.refusals |= {(name, key): r for key, r in one.refused.items()}
        if not one.sites:
            return False
        if self._stands(name, one, len(one.sites) == 1):
            return True
        for key in one.sites if len(one.sites) > 1 else ():
            self._stands(name, self._tried(rewrite, key), True, False)
        again = self._tried(rewrite, None)
        return bool(again.sites) and self._stands(name, again)

    def _stands(self, name: str, made: _Done, warns: bool = True, keeps: bool = True) -> bool:
        """Whether a changed network computes the same; then it is the network from now on, if it `keeps`."""
        before = Compared(self.network, self.inputs)
        error = before.error(made.network)
        if error <= EXACT:
            if keeps:
                self.network = made.network
                self.done.append(Rewritten(name, list(made.sites.values()), error, len(before.cases)))
            return True
        if warns:
            where = "; ".join(made.sites.values())
            sentence = f"rule {name!r} at {where} computes something else: off by {error:.3g}"
            warn(f"{sentence}; it was left as it is, and the rest is deployed", RegionWarning)
            for key, place in made.sites.items():
                self.wrong.add((name, key))
                self.refusals[name, key] = Refusal(Code.UNVERIFIED, sentence, (place,))
        return False

    def _tried(self, rule: Rule, only: str | None) -> _Done:
        """A copy on which a rule was applied at all its sites, or at one."""
        out = _Done(copied(self.network))
        touched: set[fx.Node] = set()
        for site in _sites(rule, out.network):
            key, place = " ".join(n.name for n in site.nodes), site.place
            if (rule.name, key) in self.wrong or (only is not None and key != only) or touched & set(site.nodes):
                continue
            evidence = _asked(rule, site, self.forces(rule.name))
            if isinstance(evidence, Refusal):
                out.refused[key] = Refusal(evidence.code, f"rule {rule.name!r}: {evidence.sentence}", (place,))
                continue
            nodes = set(out.network.graph.nodes)
            _guarded(rule.name, place, "rewrite", lambda s=site, e=evidence: rule.rewrite(s, e))  # type: ignore[misc]
            touched |= {*site.nodes, *(set(out.network.graph.nodes) - nodes)}
            _sweep(site)
            out.sites[key] = place
        _checked(rule.name, out.network, self.network, "; ".join(out.sites.values()))
        return out


def name_of_rewrite(rewrite: Rewrite) -> str:
    """The name of a rule, or that of a function."""
    return rewrite.name if isinstance(rewrite, Rule) else getattr(rewrite, "__name__", type(rewrite).__name__)


def _guarded(name: str, place: str, what: str, run: Callable[[], Any]) -> Any:
    """What a rule gives; what it raises is an error that names it."""
    try:
        return run()
    except Exception as error:  # whatever a rule raises
        raise RuleError(f"rule {name!r} at {place}: {what} raised {type(error).__name__}: {error}") from error


def _sites(rule: Rule, network: fx.GraphModule) -> list[Site]:
    sites: list[Any] = _guarded(rule.name, "the whole network", "match", lambda: list(rule.match(network)))
    if not all(isinstance(s, Site) and s.nodes and s.graph is network for s in sites):
        raise RuleError(f"rule {rule.name!r}: match has to give Sites of the graph it is given")
    return sites


def _asked(rule: Rule, site: Site, force: bool) -> Any:
    """What the check of a rule found, or why it is not applied."""
    refusal = in_the_way(site)
    if refusal is not None:
        return refusal
    evidence = _guarded(rule.name, site.place, "check", lambda: rule.check(site))
    if evidence is None:
        raise RuleError(f"rule {rule.name!r} at {site.place}: check returned None; return a Refusal or evidence")
    if isinstance(evidence, Refusal):
        return evidence
    more = _guarded(rule.name, site.place, "price", lambda: rule.price(site, evidence))
    if more > 0 and not force:
        return Refusal(Code.DEARER, f"it would cost {more:g} more")
    return evidence


def _sweep(site: Site) -> None:
    """Take out the nodes of a site, and constants, that nobody reads any more."""
    for node in reversed(site.nodes):
        if not node.users and node.op != "output":
            site.graph.graph.erase_node(node)
    for node in reversed(list(site.graph.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            site.graph.graph.erase_node(node)


def _checked(name: str, made: fx.GraphModule, before: fx.GraphModule, place: str) -> None:
    """Raise for a graph that is none, and for weights that were written into."""
    _guarded(name, place, "the rewritten graph", lambda: (made.graph.lint(), made.recompile()))
    old, new = _tensors(before), _tensors(made)
    for key in old.keys() & new.keys():
        if old[key].shape != new[key].shape or not torch.equal(old[key].nan_to_num(), new[key].nan_to_num()):
            raise RuleError(f"rule {name!r} at {place} wrote into {key!r}, which others read; put a new layer there")
    made.delete_all_unused_submodules()


def _of_function(function: Callable[..., Any], name: str, network: fx.GraphModule) -> fx.GraphModule | None:
    """What a function makes of a copy of the network; None where it changed nothing."""
    made = _guarded(name, "the whole network", "it", lambda: function(copied(network)))
    if not isinstance(made, fx.GraphModule):
        raise RuleError(f"rule {name!r} returned a {type(made).__name__}; return a GraphModule")
    _guarded(name, "the whole network", "the rewritten graph", lambda: (made.graph.lint(), made.recompile()))
    made.delete_all_unused_submodules()
    old, new = _tensors(network), _tensors(made)
    same = (
        _parts(network) == _parts(made)
        and old.keys() == new.keys()
        and all(old[k].shape == new[k].shape and torch.equal(old[k], new[k]) for k in old)
    )
    return None if same and made.code == network.code else made


def _parts(network: nn.Module) -> list[tuple[str, type, str]]:
    return [(n, type(m), m.extra_repr()) for n, m in network.named_modules() if n]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())}


# --- copies ---------------------------------------------------------------------------------------------------------
def copied(flat: fx.GraphModule) -> fx.GraphModule:
    """A GraphModule with a graph, modules and tensors of its own, without sizes that nobody uses."""
    graph = copy.deepcopy(flat.graph)
    for node in reversed(list(graph.nodes)):
        if not node.users and metadata_read(node):
            graph.erase_node(node)
    made = fx.GraphModule(full_copy(flat), graph, type(flat).__name__)
    for module in made.modules():  # modules keep their own mode: a norm in training mode stays in it
        if module is made or type(module) is nn.Module:
            module.training = flat.training
    return made


def _narrowed(wide: fx.GraphModule, flat: fx.GraphModule) -> fx.GraphModule:
    """The network in the dtypes of the original; layers whose values were changed say so in their state."""
    old, changed = _tensors(flat), set[str]()
    most = [t.dtype for t in old.values() if t.is_floating_point()]
    plain = max(set(most), key=most.count) if most else torch.float32
    for key, tensor in (*wide.named_parameters(), *wide.named_buffers()):
        if not tensor.is_floating_point():
            continue
        before = old.get(key)
        tensor.data = tensor.data.to(plain if before is None else before.dtype)
        if before is not None and not (before.shape == tensor.shape and torch.equal(before, tensor.detach())):
            changed.add(key)
    for path in {k.rpartition(".")[0] for k in changed}:
        names = tuple(k.rpartition(".")[2] for k in sorted(changed) if k.rpartition(".")[0] == path)
        text = f"{path or 'the model'} and what rules of the caller's own changed"
        set_folded(wide.get_submodule(path), Folded(text, names, None, path))
    return wide
