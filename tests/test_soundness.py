"""After any change a deployed model gives what the original gives, or raises: over traps, blocks and random networks.

Two promises are kept apart. No change is answered in silence by another value. And what raises is an error of reptool
that says what to do, not one that Python happens to raise: `FOREIGN` lists where that is not so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool.ir.walk import map_tensors
from reptool.testing import PERTURBED_KINDS, randomize
from reptool.testing._perturb import failure_text
from reptool.testing._perturbing.change import Change
from reptool.testing._perturbing.session import Session, Verdict
from tests import traps
from tests.blocks.options import all_options
from tests.network_settings import settings_source
from tests.networks import build, random_network

TRIES = 200
FOREIGN = {("blocks", "method")}
"""Families and kinds of changes of which errors are known that are not reptool's: a method that is a weight by now."""


def _of_traps() -> Iterator[tuple[str, nn.Module, Any]]:
    yield "a convolution and a norm", traps.ConvBN(), traps.image()
    yield "branches", traps.Branches(), traps.image()
    yield "in a Sequential", nn.Sequential(traps.ConvBN(), nn.ReLU(), traps.Branches(4)), traps.image()
    yield "bare layers", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), traps.image()


def _of_blocks() -> Iterator[tuple[str, nn.Module, Any]]:
    options = list(all_options())
    for option in options[:: len(options) // 24]:
        yield option.id, option.build(), option.inputs()


def _of_networks() -> Iterator[tuple[str, nn.Module, Any]]:
    for seed in range(12):
        yield f"random_network({seed})", *random_network(seed)


def _of_settings() -> Iterator[tuple[str, nn.Module, Any]]:
    for seed in range(16):
        yield f"settings_source({seed})", *build(settings_source(seed), seed)


FAMILIES: dict[str, Callable[[], Iterator[tuple[str, nn.Module, Any]]]] = {
    "traps": _of_traps,
    "blocks": _of_blocks,
    "networks": _of_networks,
    "settings": _of_settings,
}


def _is_outside(changes: Sequence[Change], verdict: Verdict) -> bool:
    """Sizes that the original does not take are nothing that is promised."""
    return verdict.sort == "lenient" and any(change.kind == "size" for change in changes)


@functools.cache
def faults(family: str) -> dict[tuple[str, str], str]:
    """The first fault of each sort and kind in a family of models."""
    found: dict[tuple[str, str], str] = {}
    for name, model, inputs in FAMILIES[family]():
        wide = map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
        original = randomize(model, 1).double().eval()
        session = Session(original, reptool.deploy(original, wide), wide)
        for count in range(TRIES):
            changes = session.draw() if count else []
            verdict = session.judge(changes)
            if verdict.is_fault and not _is_outside(changes, verdict):
                changes, verdict = session.shrunk(changes, verdict)
                kind = changes[-1].kind if changes else "nothing"
                sort = "silent" if verdict.sort == "silent" else "foreign"
                found.setdefault((sort, kind), f"{name}: {failure_text(changes, verdict)}")
            again = session.judge([])
            assert again.sort == "agreed", f"{name}: not undone: {failure_text(changes, again)}"
    return found


def _cases() -> Iterator[Any]:
    for family in FAMILIES:
        for sort in ("silent", "foreign"):
            for kind in ("nothing", *PERTURBED_KINDS):
                known = sort == "foreign" and (family, kind) in FOREIGN
                marks = [pytest.mark.xfail(strict=False, reason="not sound yet")] if known else []
                yield pytest.param(family, sort, kind, id=f"{family}-{sort}-{kind}", marks=marks)


@pytest.mark.fuzz
@pytest.mark.parametrize(("family", "sort", "kind"), _cases())
def test_deployed_models_agree_or_raise(family: str, sort: str, kind: str) -> None:
    assert (sort, kind) not in faults(family), faults(family)[sort, kind]


def _unwrapped() -> Iterator[tuple[str, nn.Module, Any]]:
    yield from _of_traps()
    for seed in (47, 72, 226, 335):  # settings of a class, attributes that are not there yet, globals
        yield f"settings_source({seed})", *build(settings_source(seed), seed)


@pytest.mark.fuzz
@pytest.mark.parametrize(("name", "model", "inputs"), [pytest.param(*c, id=c[0]) for c in _unwrapped()])
def test_nothing_is_silent_where_layers_took_the_places_of_wrappers(name: str, model: nn.Module, inputs: Any) -> None:
    wide = map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
    original = randomize(model, 1).double().eval()
    session = Session(original, reptool.deploy(original, wide, unwrap=True), wide)
    for _ in range(TRIES):
        changes = session.draw()
        verdict = session.judge(changes)
        assert verdict.sort != "silent", f"{name}: {failure_text(*session.shrunk(changes, verdict))}"


def test_networks_with_settings_run_and_ask_each_kind_of_setting() -> None:
    sources = [settings_source(seed) for seed in range(200)]
    for seed, source in enumerate(sources[:60]):
        model, inputs = build(source, seed)
        with torch.no_grad():
            assert model(inputs).isfinite().all()
    everything = "\n".join(sources)
    for text in (
        *("getattr(self, 'late'", "hasattr(self, 'late'", "asks_late(self)", "os.environ", "enclosing(False)", "RAW_"),
        *("Settings()", "Options()", "SimpleNamespace(model", "any(self.flags", "['mode'][0]['raw']", "asks_flag(self"),
        *(
            "mode='plain'",
            "raw=False",
            "@property",
            "@staticmethod",
            "yield",
            "'raw' in self.",
            "shared",
            "is not None",
        ),
    ):
        assert text in everything, text
    assert settings_source(3) == settings_source(3) != settings_source(4)
