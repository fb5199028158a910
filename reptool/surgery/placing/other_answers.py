"""Questions whose other answers run the same operations: they decide nothing.

``if x.shape[0] >= 64: x = x.contiguous()`` asks for a size and goes on with the same values. The code around a region
is run again on symbolic values with every combination of other answers; where each of these runs computes what the
first does, all that hands on its values left out, what was asked is forgotten. Code that writes in place, has effects,
asks anything but truths or asks too much is believed to decide by it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from reptool.capture.evaluation.contained import contained
from reptool.capture.graph_builder import Writing
from reptool.capture.tracer import Recorder
from reptool.ir.aliasing import resolve
from reptool.ir.kinds.casts import cast_target
from reptool.ir.trace import Event, Input, Trace, all_events, fake
from reptool.models.copies import full_copy
from reptool.plan.candidates import analyse
from reptool.plan.inference.facts import Facts
from reptool.runtime.containers import leaves, mapped
from reptool.surgery.traced import is_plain_identity

MAX_QUESTIONS = 4
"""Of a call: all combinations of their answers are tried."""
MAX_NODES = 64
"""Of a call that is run again."""


def forget_what_decides_nothing(event: Event, recorder: Writing) -> bool:
    """Forget the questions of a call, where none of them decides anything; whether they were forgotten.

    Args:
        event: a call of a module, with questions.
        recorder: what traced it.
    """
    if event.decides or len(event.questions) > MAX_QUESTIONS or any(q.what != "truth" for q in event.questions):
        return False
    small = sum(1 for _ in event.nodes()) <= MAX_NODES
    if event.method != "forward" or event.hooked or not small or any(e.effects for e in all_events(event)):
        return False
    given = _inputs(event, recorder)
    event.decides = given is None or not _always_same(event.module, given, len(event.questions))
    if event.decides:
        return False
    event.questions.clear()
    return True


def _inputs(event: Event, recorder: Writing) -> tuple[Any, Any] | None:
    """Placeholders like what a call is given; None where it is given anything that is not known."""
    if not recorder.knows_inputs:
        return None
    known: dict[fx.Node, Input] = {}
    for value in leaves((event.args, event.kwargs)):
        if isinstance(value, fx.Node):
            made = recorder.evaluate(value)
            if not isinstance(made, torch.Tensor):
                return None
            empty = torch.empty(made.shape, dtype=made.dtype, device="meta" if made.device.type == "meta" else "cpu")
            known[value] = Input(value.name, partial(fake, empty))
    return mapped((event.args, event.kwargs), lambda v: known[v] if isinstance(v, fx.Node) else v)


class _Told(Recorder):
    """Gives the other answer to some questions of the outermost call.

    Args:
        root: the module.
        others: a bit for each question: whether it gets the other answer.
    """

    def __init__(self, root: nn.Module, others: int) -> None:
        super().__init__(root)
        self.others, self.count = others, 0

    def ask(self, node: fx.Node, what: str, read: Callable[[Any], Any]) -> Any:
        """Answer a question about a value, or give the other answer."""
        answer = super().ask(node, what, read)
        if what != "truth" or node.meta["const"] or len(self.stack) > 1:
            return answer
        self.count += 1
        return not answer if self.others >> (self.count - 1) & 1 else answer


def _always_same(module: nn.Module, given: tuple[Any, Any], asked: int) -> bool:
    """Whether a module computes the same whatever its questions, so many, are answered."""
    module, known = full_copy(module), dict[str, int]()
    first: object = None
    others, most = 0, 0
    while others < 2**most or not others:
        recorder = _Told(module, others)
        try:
            with contained():
                made = _computed(recorder.run(*given), recorder, known)
        except Exception:  # whatever code raises that is told what is not so
            return False
        if recorder.count > MAX_QUESTIONS or made is None or (others and made != first):
            return False
        if not others and recorder.count != asked:
            return False  # some are asked in methods that it calls, which are not told another answer
        first, most, others = made, max(most, recorder.count), others + 1
    return True


def _computed(trace: Trace, recorder: Recorder, known: dict[str, int]) -> object:
    """What the results of a run are, equal where they are computed in the same way; None where something is written.

    Args:
        trace: the run.
        recorder: of the run.
        known: a number for each way to compute a value from others, in all runs.
    """
    reads = resolve(trace.graph)
    if reads.mutates or trace.opaque or any(e.effects for e in all_events(trace.top)):
        return None
    ops = analyse(trace.graph, reads, Facts(recorder, reads, {}), {}, trace.escaped, False).ops
    values: dict[fx.Node, _Value] = {}
    for node in trace.graph.nodes:
        if is_plain_identity(ops.get(node), node) and cast_target(node) is None:  # of another dtype it is none
            values[node] = values[ops[node].sources[0]]
            continue
        args = mapped((node.args, node.kwargs), lambda v: values[v] if isinstance(v, fx.Node) else v)
        own = node.name if node.op == "placeholder" else ""
        values[node] = _Value(known.setdefault(repr((node.op, str(node.target), own, args)), len(known)))
    return repr(mapped(trace.top.output, lambda v: values[v] if isinstance(v, fx.Node) else v))


class _Value:
    """A value, by its number.

    Args:
        number: of the way in which it is computed.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"<{self.number}>"
