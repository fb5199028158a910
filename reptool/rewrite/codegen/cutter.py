"""Code generation: the one method in which a fused operation occurs is written anew.

A method is cut out of the trace (its nodes, its calls of children and of its own methods), the fused operations are
left out, and the rest is printed as Python by `torch.fx`. The module's class is replaced by a subclass that keeps its
name, pickles (the source goes along) and still is an instance of the original class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import fx

from reptool.capture.graph_builder import Writing
from reptool.capture.optional_arguments import offered
from reptool.ir.aliasing import Reads
from reptool.ir.trace import Event, Setting
from reptool.ir.walk import nodes_in
from reptool.pysource.globals_read import Outside
from reptool.pysource.places import asked
from reptool.refusal import Code, Refusal
from reptool.rewrite.codegen.body import Body
from reptool.rewrite.codegen.edits import Edits, is_dead
from reptool.rewrite.codegen.rewritable import check_rewritable
from reptool.rewrite.constants import CannotCutError, Constants
from reptool.rewrite.method_source import AbsorbedCheck, Check, FusedCheck, checks, header_of, signature_of
from reptool.rewrite.own_mode import decides_nothing
from reptool.rewrite.printer import Printer, read_item
from reptool.rewrite.setting_checks import path_text, setting_checks, settings_of
from reptool.runtime.containers import read_key
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
        self.absorbed: tuple[str, ...] = ()  # paths of modules whose work the method does itself
        self.body = Body(event, edits, reads, prefix)
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
        questions = [*self.event.questions, *self.event.minor]
        if questions and not self.fallback:
            raise CannotCutError(f"it asks for {asked(questions[0])}")
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
            self.specialized, guards = bool(guards or questions or self.settings), []
        else:
            guards += setting_checks(self.event, self._settings())
        lead = self.event.path
        texts = {p: text for p in self.fused if (text := path_text(lead, p)) is not None}
        guards += [FusedCheck(text, p[len(lead) :].lstrip(".")) for p, text in texts.items()]
        gone = [p[len(lead) :].lstrip(".") for p in self.absorbed]
        guards += [AbsorbedCheck(gone)] if gone else []
        self.body.now = max((self.reads.position[n] + 1 for n in self.event.nodes()), default=self.body.now)
        self.body.graph.output(self.body.lookup_all(self.event.output))
        return self._print(guards)

    def _settings(self) -> list[Setting | Outside]:
        """The settings that the text no longer reads: what they were was written into it."""
        folded = (self.edits.bypass.keys() | self.edits.dead) - self.edits.layers.keys()
        read = settings_of(self._written_out(self.event))
        if any(map(self._is_mode, read)) and decides_nothing(self.event, folded, self.recorder):
            read = [s for s in read if not self._is_mode(s)]
        return read

    def _is_mode(self, setting: Setting | Outside) -> bool:
        return isinstance(setting, Setting) and (setting.path, setting.name) == (self.event.path, "training")

    def _written_out(self, event: Event) -> Iterator[Event]:
        """A call, and those of the module's own methods that are not made any more."""
        yield event
        for item in event.items:
            if not isinstance(item, Event) or item.module is not self.event.module:
                continue
            if is_dead(item, self.edits) or not any(True for _ in item.nodes()):
                yield from self._written_out(item)

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
        for node in reversed(list(self.body.graph.nodes)):
            if not node.users and node.op == "call_function" and node.target in (read_item, read_key):
                self.body.graph.erase_node(node)
        constants = Constants([*self.parameters, "self", *(n.name for n in self.body.graph.nodes)])
        lines = [*checks(guards, constants), *Printer(self.body.graph, self.parameters, constants).body()]
        source = "\n".join([f"def {self.event.method}({self.header}):", *lines]) + "\n"
        return Method(
            self.event.method,
            source,
            constants.names,
            tuple(dict.fromkeys(self.body.buffers)),
            frozenset(self.body.read),
            constants.values,
        )
