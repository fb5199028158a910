"""The graph builder: an operation on a symbolic value becomes a node; a question about one is recorded in its call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from reptool.capture.evaluation.fakes import Evaluation
from reptool.capture.patching import DRAWS
from reptool.capture.side_effects import contents_of, held_by, metadata_of, written_so_far
from reptool.capture.symbolic import Symbolic, TensorValue, Value
from reptool.ir.aliasing import mutated_argument, shares, writes_many
from reptool.ir.decisions import decided
from reptool.ir.kinds.asked import asks_kinds, follows, mark_ranks
from reptool.ir.kinds.casts import CAST_TO, mark, written_out
from reptool.ir.nodes import tensor_kind
from reptool.ir.trace import VALUE, CaptureLimitError, Event, Question, Setting, Unanswerable
from reptool.ir.walk import KINDS, leaves_in, nodes_in
from reptool.pysource.module_info import calls_itself
from reptool.pysource.places import frame_of, named, said
from reptool.runtime.containers import Place, filled, mapped, parts, template_of, with_parts, written
from reptool.runtime.snapshot import snapshot, taken

MAX_NODES = 100_000
_PLAIN = frozenset({int, float, str, bool, type(None), TensorValue, Value, Tensor, nn.Parameter})
_CONTAINERS = frozenset({list, tuple, dict, immutable_list, immutable_dict})
_isinstance = isinstance  # the builtin, which is another one while tracing
_SAMPLES: dict[str, Any] = {"size": torch.Size(()), "dtype": torch.float32, "device": torch.device("cpu")}
"""One value of each kind that tells its type."""
_OF_VALUES = frozenset(["truth", "integer", "number", "membership"])
_UNKNOWN = object()


def _is_named(value: tuple[Any, ...]) -> bool:
    return hasattr(type(value), "_fields")


class Writing:
    """The graph of one run, while it is written.

    Args:
        root: the module.
        prefix: its path in the whole model.
        watched: classes whose outputs are kept apart.
        like: a recorder of the same root, whose structure has not changed since.
    """

    def __init__(
        self, root: nn.Module, prefix: str = "", watched: tuple[type, ...] = (), like: Writing | None = None
    ) -> None:
        self.root = root
        self.prefix = prefix
        self.graph = fx.Graph()
        self.active = False
        self._thread = threading.get_ident()
        self.paths: dict[int, str] = {} if like is None else like.paths
        self.callers: set[type] = set() if like is None else like.callers  # classes with a __call__ of their own
        for name, module in root.named_modules() if like is None else ():
            self.paths.setdefault(id(module), name)
            if (caller := calls_itself(type(module))) is not None:
                self.callers.add(caller)
        self.stack: list[Event] = []
        self.params: dict[int, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.opaque: dict[str, str] = {}
        self.functions: set[Any] = set()  # functions that were called and not followed
        self.calls = 0
        self.read = 0  # settings
        self.known = Evaluation(root)
        self.contents = contents_of(root) if like is None else {}
        self.watched = watched
        self.guessed = False  # whether the inputs were made up: then every answer is one that may be wrong
        self.knows_inputs = False
        self.guarded = True  # what a layer was made for is checked by the code around it
        self.constant_writes: list[fx.Node] = []  # operations that write into a constant
        self.reads_plain = True  # whether nothing was read of modules that can change
        self.reads_constants = False  # whether an answer depended on the values of weights
        self.escapes: set[fx.Node] = set()
        self.closed: Callable[[str], str] | None = None  # kind of value of a module that need not be opened, or ''
        self.named: frozenset[str] = frozenset()  # paths the caller says are affine: not opened
        self.own_functions: Sequence[FunctionType] = ()  # what a user's rule reads: not followed
        self.wrapped: list[tuple[nn.Module, str]] = []  # methods that stand behind a recorder for now
        self.written: list[tuple[nn.Module, str, Any]] = []  # attributes that hold symbolic values for now, with theirs
        self.unanswered: Exception | None = None
        self.unsettled: dict[int, str] = {}  # layers that the code itself sets -> an attribute it writes
        self.modes: dict[tuple[Event, frozenset[fx.Node]], bool] = {}  # calls whose mode decides nothing, once asked
        self.alike: dict[Any, list[tuple[list[Setting], bool]]] = {}  # the same of modules that are alike
        self.given: list[weakref.ref[Symbolic]] = []  # every value handed to the model's code
        self.over = False

    @property
    def tracing(self) -> bool:
        """Whether it is the model's code that runs: while tracing, and in this thread."""
        return self.active and threading.get_ident() == self._thread

    # --- what an earlier run left behind
    def adopt(self, earlier: Writing) -> None:
        """Values of an earlier run that the model's code kept become values of this one, of which shapes are known."""
        for value in (v for ref in earlier.given if (v := ref()) is not None):
            node = self.graph.create_node("get_attr", f"_kept_{value.node.name}")
            node.meta.update(event=None, const=False, kind=value.node.meta.get("kind"), kept=value.node)
            try:
                seen = earlier.evaluate(value.node)
            except Unanswerable:
                seen = None
            if isinstance(seen, Tensor):
                with self.known.fake_mode():
                    seen = torch.empty(seen.shape, dtype=seen.dtype, device=seen.device)
            if seen is not None:
                self.known.fakes[node] = seen
            value.hand_over(node, self)

    # --- nodes
    def emit(
        self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kind: str | None = None
    ) -> Symbolic:
        """Write one node and return its value; `kind` says what it is where its target does not."""
        if self.over:
            raise Unanswerable("the code computes with a value that it kept from an earlier run")
        if self.calls > MAX_NODES:
            raise CaptureLimitError(f"more than {MAX_NODES} operations in one forward; does it end?")
        self.calls += 1
        exact = op == "call_module" or (op == "call_function" and target in self.functions)
        lowered = tuple(self.operand(a, exact) for a in args)
        keyword = {k: self.operand(v, exact) for k, v in kwargs.items()}
        like = written_out(op, target, lowered, keyword)
        if like is not None:
            read = {k: self.emit("call_function", getattr, (self.value(like[0]), k), {}).node for k in CAST_TO}
            target, lowered, keyword = "to", lowered[:1], {**read, **like[1]}
        node = self.graph.create_node(op, target, lowered, keyword)
        node.meta["event"], node.meta["frame"] = self.stack[-1], frame_of(self.stack[-1])
        node.meta["const"] = op != "placeholder" and all(n.meta["const"] for n in node.all_input_nodes)
        if op in ("call_function", "call_method") and not node.all_input_nodes:
            node.meta["const"] = getattr(target, "__name__", target) not in DRAWS
        node.meta["kind"] = kind or tensor_kind(node)
        mark(node)
        mark_ranks(node)
        if writes_many(node):
            raise Unanswerable(f"{named(node)} writes several tensors in place")
        written = mutated_argument(node) if op != "call_module" else None
        if written is not None and written.meta["const"]:
            self.constant_writes.append(node)
        self.stack[-1].items.append(node)
        return self.hand(node)

    def value(self, node: fx.Node) -> Symbolic:
        """What stands for a node."""
        return TensorValue(node, self) if node.meta.get("kind") == "tensor" else Value(node, self)

    def hand(self, node: fx.Node) -> Symbolic:
        """A value for the model's code; who still holds it when the forward has ended keeps it outside."""
        value = self.value(node)
        node.meta["time"] = self.calls + self.read
        self.given.append(weakref.ref(value, lambda _: node.meta.update(dead=self.calls + self.read)))
        return value

    def refused(self, error: Exception) -> Exception:
        """Remember an error that the model's code must not catch: it would go another way than it does on data."""
        self.unanswered = error
        return error

    def lower(self, value: Any) -> Any:
        """A structure with values as nodes and tensors as constants; its containers keep their classes."""
        held = None if type(value) in _PLAIN else parts(value)
        if held is None:
            return self._lowered(value)
        if not isinstance(value, (list, tuple, dict, slice)) and not any(True for _ in leaves_in(value)):
            return value  # an object that has nothing to do with data
        return with_parts(value, [self.lower(v) for _, v in held])

    def _lowered(self, value: Any) -> Any:
        if type(value) in KINDS:
            if value._recorder is not self:
                raise Unanswerable("the code computes with a value that it kept from an earlier run")
            return value.node
        return self.tensor(value) if isinstance(value, Tensor) else value

    def operand(self, value: Any, exact: bool) -> Any:
        """An argument of an operation, as fx holds it: plain containers of nodes and constants.

        Args:
            value: the argument.
            exact: whether containers of other classes are built as what they are, since unknown code gets them.
        """
        held = None if type(value) in _PLAIN else parts(value)
        if held is None:
            return self._lowered(value)
        if isinstance(value, slice):
            return slice(*(self.operand(v, exact) for _, v in held))
        if isinstance(value, (list, tuple, dict)) and (not exact or type(value) in _CONTAINERS):
            if isinstance(value, dict):
                return {k: self.operand(v, exact) for k, v in dict.items(value)}
            made = [self.operand(v, exact) for v in tuple(value)]
            return made if isinstance(value, list) else type(value)(*made) if _is_named(value) else tuple(made)
        found = list({id(v): v for v in leaves_in(value)}.values())
        if not found:
            return value
        places = {id(v): Place(i) for i, v in enumerate(found)}
        template = template_of(mapped(value, lambda v: places.get(id(v), v)))
        return self.emit("call_function", filled, (template, *found), {}, "unknown").node

    def tensor(self, tensor: Tensor) -> fx.Node:
        """The get_attr node of a parameter, buffer or constant."""
        node = self.params.get(id(tensor))
        if node is None:
            name = f"_constant{len(self.constants)}"
            self.constants[name] = tensor
            node = self._get_attr(name, tensor)
        return node

    def _get_attr(self, path: str, tensor: Tensor) -> fx.Node:
        node = self.graph.create_node("get_attr", path)
        node.meta.update(event=self.stack[-1], const=True, kind="tensor", tensor=tensor)
        self.params[id(tensor)] = node
        self.known.real[node] = tensor
        return node

    def parameter(self, module: nn.Module, name: str, tensor: Tensor) -> Symbolic:
        """What code sees when it reads a parameter or buffer."""
        node = self.params.get(id(tensor))
        owner = self.paths.get(id(module))
        self.peek(module)
        if node is None:
            if owner is None:
                node = self.tensor(tensor)
            else:
                node = self._get_attr(f"{owner}.{name}" if owner else name, tensor)
        return self.value(node)

    def peek(self, module: nn.Module, lacks: bool = False) -> None:
        """Remember that code looks at another module than its own: what it is, or at a parameter that it lacks."""
        path, event = self.paths.get(id(module)), self.stack[-1] if self.stack else None
        if path is not None and event is not None and event.module is not module:
            (event.lacking if lacks else event.peeked).add(path)

    def listed(self, module: nn.Module, name: str, tensor: Tensor) -> Symbolic:
        """What code sees of a parameter or buffer that it gets from ``named_parameters`` and the like."""
        value = self.parameter(module, name, tensor)
        value.node.meta["listed"] = True  # its dtype and device are known for sure
        return value

    def setting(self, module: nn.Module, name: str, value: Any, home: str) -> None:
        """Remember an attribute that is no data, read by code of the package or module `home`."""
        path = self.paths.get(id(module))
        if path is None or not self.stack:
            return
        by_torch = home.partition(".")[0] == "torch"
        kind = None if name in vars(module) else type(module)
        self.stack[-1].settings.append(Setting(path, name, taken(value), self.calls + self.read, by_torch, kind))
        self.read += 1

    def rewrites(self, value: Symbolic, key: Any, items: Any) -> bool:
        """Write into a constant that was just made and that nobody has read: it is another constant from then on."""
        given = (self.operand(key, False), self.operand(items, False))
        if not self._is_fresh(value.node, given):
            return False
        made = self.emit("call_function", written, (value, key, items), {}, "tensor")
        value.hand_over(made.node, self)
        return True

    def in_place(self, value: Symbolic, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Symbolic:
        """A method that writes into a value; into a constant that was just made, it makes another one."""
        given = (self.operand(args, False), self.operand(kwargs, False))
        plain = name[:-1]
        if not hasattr(Tensor, plain) or not self._is_fresh(value.node, given):
            return self.emit("call_method", name, (value, *args), kwargs)
        value.hand_over(self.emit("call_method", plain, (value, *args), kwargs).node, self)
        return value

    def _is_fresh(self, node: fx.Node, given: Any) -> bool:
        """Whether a constant lies in memory of its own that nobody has read, and what is written is constant too."""
        made = node.meta["const"] and node.op in ("call_function", "call_method") and not shares(node)
        constant = all(n.meta["const"] for n in nodes_in(given))
        return bool(made and constant and not node.users and node.meta.get("kind") == "tensor")

    # --- questions
    def ask(self, node: fx.Node, what: str, read: Callable[[Any], Any]) -> Any:
        """Answer a question about a value, or raise `Unanswerable`."""
        try:
            if self.guessed and what in ("length", "membership") and node.op == "placeholder":
                raise Unanswerable(f"{named(node)} was taken for an image, and is asked for its {what}")
            if node.meta["const"] and self.constant_writes and written_so_far(self.constant_writes, node):
                raise Unanswerable(f"{named(node)} was written in place, and is asked for its {what}")
            if node.meta.get("cast"):
                raise Unanswerable(f"{named(node)} is of the dtype of a value, and is asked for its {what}")
            answer = self._answer(node, what, read)
        except Exception as error:
            if type(error).__name__ == "DataDependentOutputException":
                error = Unanswerable(f"it decides by the {what} of {named(node)}, which depends on data")
            raise self.refused(error)  # noqa: B904 - it is the same error
        question = Question(what, node.name, answer, node, read)
        if not node.meta["const"]:
            self.stack[-1].questions.append(question)
            if asks_kinds(question):
                self._asked_of_weights(question)
            return answer
        self.reads_constants = True
        self._asked_of_weights(question)
        held = list(held_by(node)) if what in _OF_VALUES else []
        self.stack[-1].valued.update(held)
        if held and what != "number":
            self.stack[-1].questions.append(Question(VALUE, held[0], answer))
        return answer

    def _answer(self, node: fx.Node, what: str, read: Callable[[Any], Any]) -> Any:
        """What a value answers; code that decides by the numbers of a weight is followed as it was before."""
        if not node.meta["const"] or what not in _OF_VALUES:
            return read(self.evaluate(node))
        found = decided(f"asked {what}", (node,), lambda: read(self.evaluate(node)), _UNKNOWN)
        return read(self.evaluate(node)) if found is _UNKNOWN else found

    def _asked_of_weights(self, question: Question) -> None:
        """What code decides by and a weight has beside its numbers (``requires_grad``, a dtype) is a setting."""
        assert question.at is not None
        for weight, name in metadata_of(question.at):
            path, _, tensor = str(weight.target).rpartition(".")
            value = snapshot(getattr(weight.meta["tensor"], name))
            same = name == "dtype" and follows(question, value, self.evaluate, self.known.run)
            now = self.calls + self.read
            self.stack[-1].settings.append(Setting(path, f"{tensor}.{name}", value, now, follows=same))
            self.read += 1

    def is_instance(self, value: Symbolic, kinds: Any, frame: Any) -> bool:
        """Of what type a value is, as code asks that is not torch's own."""
        home = str(frame.f_globals.get("__name__")).partition(".")[0]
        node, own = value.node, home in ("torch", "reptool", "numpy")
        if node.op == "get_attr" and node.meta.get("tensor") is not None:
            return _isinstance(node.meta["tensor"], kinds)
        if _isinstance(value, Tensor):
            if node.op == "placeholder" and not own and len(self.stack) == 1:  # a list of images may go another way
                self.stack[-1].questions.append(Question("type", str(node.target), "Tensor"))
            return _isinstance(value, kinds)
        if own:
            return _isinstance(value, kinds)
        sample = _SAMPLES.get(str(node.meta.get("kind")))
        if sample is not None:
            return _isinstance(sample, kinds)
        try:
            return _isinstance(self.evaluate(node), kinds)
        except Unanswerable as error:
            raise self.refused(Unanswerable(f"{named(node)} is asked for its type: {error}")) from None

    def evaluate(self, node: fx.Node) -> Any:
        """The concrete value of a constant, or a fake one of what depends on the inputs."""
        active, self.active = self.active, False
        try:
            return self.known.of(node)
        except (Unanswerable, CaptureLimitError):
            raise
        except Exception as error:
            raise Unanswerable(f"{named(node)}: {said(error)}") from error
        finally:
            self.active = active
