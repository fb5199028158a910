"""After any change a deployed model gives what the original gives, or raises: over traps, blocks and random networks.

Two promises are kept apart. No change is answered in silence by another value. And what raises is an error of reptool
that says what to do, not one that Python happens to raise: `FOREIGN` lists where that is not so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool.ir.walk import map_tensors
from reptool.testing import randomize
from reptool.testing._perturb import failure_text
from reptool.testing._perturbing.change import Change
from reptool.testing._perturbing.session import Session, Verdict
from tests import traps
from tests.blocks.options import Option, all_options
from tests.network_settings import settings_source
from tests.networks import build, random_network

TRIES = 200
tries = pytest.mark.parametrize("tries", [60, pytest.param(TRIES, marks=pytest.mark.slow)])
FOREIGN: set[tuple[str, str]] = set()
"""Families and kinds of changes of which errors are known that are not reptool's: a method that is a weight by now."""


Made = tuple[nn.Module, Any]
TRAPS: dict[str, Callable[[], nn.Module]] = {
    "a convolution and a norm": traps.ConvBN,
    "branches": traps.Branches,
    "in a Sequential": lambda: nn.Sequential(traps.ConvBN(), nn.ReLU(), traps.Branches(4)),
    "bare layers": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
}


def _of_traps(name: str) -> Made:
    return TRAPS[name](), traps.image()


def _of_block(option: Option) -> Made:
    return option.build(), option.inputs()


def _of_settings(seed: int) -> Made:
    return build(settings_source(seed), seed)


def _models() -> list[Any]:
    """Each is built where it is tried: what is imported here is imported by all processes."""
    options = list(all_options())
    made: list[tuple[str, str, Callable[..., Made], Any]] = [
        *(("traps", name, _of_traps, name) for name in TRAPS),
        *(("blocks", option.id, _of_block, option) for option in options[:: len(options) // 24]),
        *(("networks", str(seed), random_network, seed) for seed in range(12)),
        *(("settings", str(seed), _of_settings, seed) for seed in range(16)),
    ]
    return [pytest.param(family, partial(of, what), id=f"{family}-{name}") for family, name, of, what in made]


def _is_outside(changes: Sequence[Change], verdict: Verdict) -> bool:
    """Sizes that the original does not take are nothing that is promised."""
    return verdict.sort == "lenient" and any(change.kind == "size" for change in changes)


@pytest.mark.fuzz
@tries
@pytest.mark.parametrize(("family", "made"), _models())
def test_deployed_models_agree_or_raise(family: str, made: Callable[[], Made], tries: int) -> None:
    model, inputs = made()
    wide = map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
    original = randomize(model, 1).double().eval()
    session = Session(original, reptool.deploy(original, wide), wide)
    for count in range(tries):
        changes = session.draw() if count else []
        verdict = session.judge(changes)
        if verdict.is_fault and not _is_outside(changes, verdict):
            changes, verdict = session.shrunk(changes, verdict)
            assert verdict.sort != "silent", failure_text(changes, verdict)
            assert (family, changes[-1].kind) in FOREIGN, failure_text(changes, verdict)
        if count % 10 == 9:  # what one of ten left behind
            again = session.judge([])
            assert again.sort == "agreed", f"not undone: {failure_text(changes, again)}"


@pytest.mark.fuzz
@tries
@pytest.mark.parametrize(
    "made",
    [
        *(pytest.param(partial(_of_traps, name), id=name) for name in TRAPS),
        # settings of a class, attributes that are not there yet, globals
        *(pytest.param(partial(_of_settings, seed), id=f"settings-{seed}") for seed in (47, 72, 226, 335)),
    ],
)
def test_nothing_is_silent_where_layers_took_the_places_of_wrappers(made: Callable[[], Made], tries: int) -> None:
    model, inputs = made()
    wide = map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
    original = randomize(model, 1).double().eval()
    session = Session(original, reptool.deploy(original, wide, unwrap=True), wide)
    for _ in range(tries):
        changes = session.draw()
        verdict = session.judge(changes)
        assert verdict.sort != "silent", failure_text(*session.shrunk(changes, verdict))


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
