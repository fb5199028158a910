"""The trace of a module: followed once, or twice where it may keep something for its next call."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any

from torch import nn

from reptool.capture.own_state import held_by, leaves_no_state
from reptool.capture.replay_check import mark_state
from reptool.capture.tracer import Recorder
from reptool.frontends.call_samples import made_up
from reptool.frontends.inputs import placeholders, unknown_inputs
from reptool.ir.trace import CaptureLimitError, Trace, Unanswerable
from reptool.pysource.places import said


def trace_of(
    module: nn.Module, prefix: str, args: tuple[Any, ...] | None, kwargs: dict[str, Any], watched: tuple[type, ...],
    closed: frozenset[str], own: Sequence[FunctionType],
) -> tuple[Recorder, Trace] | str:  # fmt: skip
    """The trace of a module's forward and what recorded it; a sentence where it cannot be followed.

    Args:
        module: to trace.
        prefix: its path in the model.
        args: example positional inputs, or None where nobody knows them.
        kwargs: example keyword inputs.
        watched: classes whose calls hooks of the user's see.
        closed: paths of modules that are one node each.
        own: functions that rules of the user's speak of.
    """

    def new() -> Recorder:
        made = Recorder(module, prefix, watched)
        made.named, made.own_functions = closed, own
        return made

    recorder = new()

    def again(inputs: tuple[Any, Any], trace: Trace) -> Trace:
        other = new()
        other.guessed, other.unsettled = recorder.guessed, recorder.unsettled
        other.opaque = dict(trace.opaque)
        other.adopt(recorder)
        mark_state(trace, other.run(*inputs))
        return trace

    def checked(inputs: tuple[Any, Any]) -> Trace:
        before = held_by(module)
        trace = recorder.run(*inputs)
        return trace if leaves_no_state(trace, before, inputs, recorder.reads_plain) else again(inputs, trace)

    try:
        inputs = unknown_inputs(module) if args is None else (placeholders(args, "input"), placeholders(kwargs, ""))
        try:
            return recorder, checked(inputs)
        except Unanswerable:
            guess = made_up(module, inputs) if args is None else None
            if guess is None:
                raise
            recorder = new()
            recorder.guessed = True
            return recorder, checked(guess)
    except CaptureLimitError as error:
        return str(error)
    except Exception as error:  # the user's forward may raise anything
        return said(error)
