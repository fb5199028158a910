"""Code generation: the one method in which a fused operation occurs is written anew.

A method is cut out of the trace (its nodes, its calls of children and of its own methods), the fused operations are
left out, and the rest is printed as Python by `torch.fx`. The module's class is replaced by a subclass that keeps its
name, pickles (the source goes along) and still is an instance of the original class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from reptool.capture.graph_builder import Writing
from reptool.capture.optional_arguments import offered
from reptool.ir.aliasing import Reads
from reptool.ir.kinds.asked import asks_kinds
from reptool.ir.trace import Event, Question, Setting, all_events, questions_of
from reptool.ir.walk import nodes_in
from reptool.pysource.globals_read import Outside
from reptool.pysource.places import asked
from reptool.refusal import Code, Refusal
from reptool.rewrite.codegen.body import Body
from reptool.rewrite.codegen.edits import Edits
from reptool.rewrite.codegen.rewritable import check_rewritable
from reptool.rewrite.constants import CannotCutError, Constants
from reptool.rewrite.kind_checks import KindOf, is_fixed, kinds_asked
from reptool.rewrite.method_source import (
    AbsorbedCheck,
    CalledCheck,
    Check,
    FusedCheck,
    WideCheck,
    checks,
    header_of,
    signature_of,
)
from reptool.rewrite.own_mode import decides_nothing
from reptool.rewrite.printer import Printer
from reptool.rewrite.setting_checks import after, path_text, setting_checks, settings_of
from reptool.runtime.method import Method


class Cutter:
    """Prints the method of one event from the trace.

    Args:
        event: the call whose method is printed.
        edits: what is left out.
        reads: the resolved reads of the trace.
        recorder: what traced it.
        assumed: whether the call was made up (nobody knows which optional arguments it is given).
        fallback: whether what is specialized gets a fallback instead of errors; `specialized` says if anything was.
        prefix: where in the model the traced module is; "" where it is the model itself.
    """

    def __init__(
        self,
        event: Event,
        edits: Edits,
        reads: Reads,
        recorder: Writing,
        assumed: bool = False,
        fallback: bool = False,
        prefix: str = "",
    ) -> None:
        self.event, self.edits, self.reads, self.assumed, self.prefix = event, edits, reads, assumed, prefix
        self.recorder = recorder
        self.fallback, self.specialized = fallback, False
        self.settings: list[Setting | Outside] = []
        self.fused: tuple[str, ...] = ()  # paths of layers that stand for regions which the method ran
        self.wide: dict[str, torch.dtype] = {}  # weights that took up tensors which no conversion reaches
        self.is_part = False  # whether a method beside `forward` does a part of what a region does
        self.absorbed: tuple[str, ...] = ()  # paths of modules whose work the method does itself
        self.asked: list[Question] = []  # what the regions in it rely on: dtypes of arguments
        self.gone: frozenset[str] = frozenset()  # paths of modules that are absorbed
        self.fixed = False  # whether it is right for the dtypes that were shown alone
        self.body = Body(event, edits, reads, prefix, fallback)
        self.header: str = ""
        self.parameters: tuple[str, ...] = ()

    def method(self) -> Method | Refusal:
        """The method's new source, or why it cannot be written."""
        try:
            return self._method()
        except CannotCutError as error:
            return Refusal(error.code, f"{self.event.function}: {error}", (self.event.place,))

    def _method(self) -> Method:
        function = getattr(type(self.event.module), self.event.method)
        check_rewritable(function)
        if self.event.effects:
            raise CannotCutError(f"it {self.event.effects[0]}")
        guards = self._parameters(function)
        for item in self.event.items:
            if isinstance(item, Event):
                self.body.call(item)
            else:
                self.body.node(item)
        if self.fallback:
            self.settings = self._settings()
            self.specialized, guards = bool(guards or questions_of(self.event) or self.settings), []
        else:
            held = [*self._settings(), *self._dtypes()]
            self.fixed = any(map(is_fixed, held))
            guards += setting_checks(self.event, held)
        lead = self.event.path
        texts = {p: text for p in self.fused if (text := path_text(lead, p)) is not None}
        guards += [FusedCheck(text, p[len(lead) :].lstrip(".")) for p, text in texts.items()]
        gone = [p[len(lead) :].lstrip(".") for p in self.absorbed]
        guards += [AbsorbedCheck(gone)] if gone else []
        guards += [WideCheck(text, d) for p, d in self.wide.items() if (text := path_text(lead, p)) is not None]
        guards += [CalledCheck(self.event.method)] if self.is_part else []
        self.body.now = max((self.reads.position[n] + 1 for n in self.event.nodes()), default=self.body.now)
        self.body.graph.output(self.body.lookup_all(self.event.output))
        return self._print(guards)

    def _settings(self) -> list[Setting | Outside]:
        """The settings that the text no longer reads: what they were was written into it."""
        folded = (self.edits.bypass.keys() | self.edits.dead) - self.edits.layers.keys()
        read = after(settings_of(self._written_out()), self.gone)
        if any(map(self._is_mode, read)) and decides_nothing(self.event, folded, self.recorder):
            read = [s for s in read if not self._is_mode(s)]
        return read

    def _dtypes(self) -> list[KindOf]:
        """The dtypes of arguments that decided what is written down."""
        shown = self.recorder.knows_inputs
        other = next((q for q in questions_of(self.event) if not (shown and asks_kinds(q))), None)
        if other is not None:
            raise CannotCutError(f"it asks for {asked(other)}")
        told = [q for e in (self.event, *self.body.left_out) for q in questions_of(e) if asks_kinds(q)]
        return kinds_asked(self.event, [*told, *self.asked], self.recorder)

    def _is_mode(self, setting: Setting | Outside) -> bool:
        return isinstance(setting, Setting) and (setting.path, setting.name) == (self.event.path, "training")

    def _written_out(self) -> Iterable[Event]:
        """The call, those of the module's own methods that are not made any more, and those that only hand on."""
        found = {self.event: None}
        for event in all_events(self.event):
            idle = event.parent in found and not any(True for _ in event.nodes())
            own = event.module is self.event.module and (idle or event in self.body.left_out)
            if own or event in self.body.handed_on:
                found[event] = None
        return found

    def _parameters(self, function: Callable[..., Any]) -> list[Check]:
        signature = signature_of(function)
        try:
            bound = signature.bind(self.event.module, *self.event.args, **self.event.kwargs)
        except TypeError as error:
            raise CannotCutError(f"its call does not fit its signature ({error})") from error
        given = set(bound.arguments)
        bound.apply_defaults()
        guards: list[Check] = []
        self.header, self.parameters = header_of(signature), tuple(signature.parameters)[1:]
        for name in list(signature.parameters)[1:]:
            parameter, value = signature.parameters[name], bound.arguments[name]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if value:
                    raise CannotCutError(f"it takes *{name}")
                guards.append(Check(name, name, (value,)))
                continue
            if not any(True for _ in nodes_in(value)):
                if self.assumed and (self.event.parent is not None or name not in given):
                    raise CannotCutError(f"whether it is called with {name!r} is not known")
                if not self.fallback and offered(self.event, parameter, value, name in given, self.prefix):
                    raise CannotCutError(f"its callers may switch {name!r}", Code.SPECIALIZED)
                guards.append(Check(name, name, (value,)))
                continue
            made = self.body.graph.placeholder(name)
            made.meta["kind"] = "tensor" if isinstance(value, fx.Node) else None
            self.body.unpack(value, made)
        return guards

    def _print(self, guards: list[Check]) -> Method:
        read = self.body.tensors_read()
        constants = Constants([*self.parameters, "self", *(n.name for n in self.body.graph.nodes)])
        lines = [*checks(guards, constants), *Printer(self.body.graph, self.parameters, constants).body()]
        source = "\n".join([f"def {self.event.method}({self.header}):", *lines]) + "\n"
        return Method(
            self.event.method,
            source,
            constants.names,
            tuple(dict.fromkeys(t for t in read if t in self.edits.constants)),
            frozenset(t.rpartition(".")[0] for t in read if t not in self.edits.constants),
            constants.values,
        )
