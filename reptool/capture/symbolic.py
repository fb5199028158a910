"""`Value`: what a model's code computes with while it is being captured.

A symbolic tensor *is* a tensor to every C function that may get hold of it (`TensorValue`): what honours
``__torch_function__`` is written into the graph, and what reads a tensor without asking it (an autograd function, a
legacy constructor, DLPack) reaches the dispatcher, which raises. So no code reads memory that is not there, and no
capture ends the process. Sizes, numbers and objects of unknown type are plain `Value`s.
"""

from __future__ import annotations

import dis
import functools
import operator
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from reptool.ir.trace import Unanswerable
from reptool.ir.walk import KINDS
from reptool.runtime.containers import Leaf

if TYPE_CHECKING:
    from reptool.capture.graph_builder import Writing

_FIXED = frozenset(["dtype", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_meta", "itemsize", "shape"])
_UNPACK = dis.opmap["UNPACK_SEQUENCE"]


_PROPERTIES = frozenset(n for n in dir(Tensor) if not n.startswith("_") and not callable(getattr(Tensor, n)))
_OWN = frozenset({"node", "hand_over"})


class Asked(Exception):
    """Raised where an answer would have to be known."""


class Symbolic(Leaf):
    """What all symbolic values do: every operation on one is written into its recorder's graph."""

    __slots__ = ()

    _node: fx.Node | None
    _recorder: Writing

    @property
    def node(self) -> fx.Node:
        """The node that computes this value."""
        assert self._node is not None
        return self._node

    def hand_over(self, node: fx.Node, recorder: Writing) -> None:
        """Stand for a node of another run from now on."""
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_recorder", recorder)

    def __repr__(self) -> str:
        return f"Value({self.node.name})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = _recorder_of(args) or _recorder_of(tuple((kwargs or {}).values()))
        assert recorder is not None
        if torch.overrides.is_tensor_method_or_property(func):
            name = getattr(func, "__name__", "")
            if name == "__get__":
                return args[0]._property(getattr(getattr(func, "__self__", None), "__name__", ""))
            if name in ("__array__", "numpy"):
                raise recorder.refused(Unanswerable("the code takes a tensor's numbers into numpy"))
            return recorder.emit("call_method", name, args, kwargs or {})
        return recorder.emit("call_function", func, args, kwargs or {})

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        return self._recorder.emit("call_function", func, args, kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        return self._recorder.emit("call_function", function, inputs, kwargs)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self._recorder.refused(Unanswerable(f"numpy takes the numbers of {self._node} into an array"))

    def _property(self, name: str) -> Any:
        """A property of a tensor."""
        if name in _FIXED and self.node.meta.get("listed"):
            return getattr(self.node.meta["tensor"], name)
        return self._recorder.emit("call_function", getattr, (self, name), {})

    def __setattr__(self, name: str, value: Any) -> None:
        raise Asked(f"the forward writes the attribute {name!r} of a tensor")

    def __setitem__(self, key: Any, value: Any) -> None:
        if not self._recorder.rewrites(self, key, value):
            self._recorder.emit("call_function", operator.setitem, (self, key, value), {})

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        fine = True if _is_assertion(frame) else _answer_without_error(frame.f_code, frame.f_lasti)
        if fine is not None:
            holds = self if fine else self._recorder.emit("call_function", operator.not_, (self,), {})
            self._recorder.emit("call_function", torch._assert, (holds, "asserted in the original forward"), {})
            return fine
        return bool(self._recorder.ask(self.node, "truth", bool))

    def __len__(self) -> int:
        known = self.node.meta.get("length")
        return int(known) if known is not None else int(self._recorder.ask(self.node, "length", len))

    def __index__(self) -> int:
        return int(self._recorder.ask(self.node, "integer", int))

    def __int__(self) -> int:
        return int(self._recorder.ask(self.node, "integer", int))

    def __float__(self) -> float:
        return float(self._recorder.ask(self.node, "number", float))

    def __contains__(self, item: Any) -> bool:
        return bool(self._recorder.ask(self.node, "membership", lambda v: item in v))

    def __iter__(self) -> Iterator[Any]:
        frame = sys._getframe(1)
        code, at = frame.f_code.co_code, frame.f_lasti
        if at >= 0 and code[at] == _UNPACK and not (self._recorder.guessed and self.node.op == "placeholder"):
            count = code[at + 1]
        else:
            known = self.node.meta.get("length")
            count = known if known is not None else self._recorder.ask(self.node, "length", len)
        return iter([self._recorder.emit("call_function", operator.getitem, (self, i), {}) for i in range(count)])

    def __reversed__(self) -> Iterator[Any]:
        return reversed(list(iter(self)))

    def __ceil__(self) -> Any:
        import math

        return self._recorder.emit("call_function", math.ceil, (self,), {})

    def __round__(self, digits: int | None = None) -> Any:
        return self._recorder.emit("call_function", round, (self,) if digits is None else (self, digits), {})

    def __deepcopy__(self, memo: Any) -> Symbolic:
        return self


class Value(Symbolic):
    """A size, a number, a sequence, or something of unknown type."""

    __slots__ = ("__weakref__", "_node", "_recorder")

    def __init__(self, node: fx.Node | None, recorder: Writing) -> None:
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_recorder", recorder)

    def __hash__(self) -> int:
        return int(self._recorder.ask(self.node, "hash", hash))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Attribute(self, name)


class TensorValue(Symbolic, Tensor):  # type: ignore[misc]  # a repr without a tensor's optional argument
    """A tensor."""

    @staticmethod
    def __new__(cls, node: fx.Node, recorder: Writing) -> TensorValue:
        """An empty tensor whose every property is asked of this class."""
        made: TensorValue = Tensor._make_wrapper_subclass(
            cls, (0,), dispatch_sizes_strides_policy="sizes", dispatch_device=True, dispatch_layout=True
        )
        object.__setattr__(made, "_node", node)
        object.__setattr__(made, "_recorder", recorder)
        return made

    def __init__(self, node: fx.Node, recorder: Writing) -> None:
        pass

    __hash__ = object.__hash__

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = _recorder_of(args) or _recorder_of(tuple((kwargs or {}).values()))
        error = Unanswerable(f"{func} gets a symbolic tensor from code that cannot be followed")
        raise error if recorder is None else recorder.refused(error)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in _OWN:
            return object.__getattribute__(self, name)
        if name in _PROPERTIES:
            return self._property(name)
        if not hasattr(Tensor, name) and (self.node.op != "placeholder" or self._recorder.knows_inputs):
            raise AttributeError(f"a tensor has no attribute {name!r}")  # of other inputs nobody showed what they are
        return Attribute(self, name)


class Attribute(Value):
    """An attribute of a value: a method once it is called, otherwise a value of its own."""

    __slots__ = ("_name", "_owner")

    def __init__(self, owner: Symbolic, name: str) -> None:
        super().__init__(None, owner._recorder)
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_name", name)

    @property
    def node(self) -> fx.Node:
        """The node that reads the attribute, made when it is first needed."""
        if self._node is None:
            made = self._recorder.emit("call_function", getattr, (self._owner, self._name), {})
            object.__setattr__(self, "_node", made.node)
        return super().node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method of this name."""
        if self._name.endswith("_") and not self._name.startswith("_"):
            return self._recorder.in_place(self._owner, self._name, args, kwargs)
        return self._recorder.emit("call_method", self._name, (self._owner, *args), kwargs)


KINDS.update({Value, TensorValue, Attribute})


def _recorder_of(args: tuple[Any, ...]) -> Writing | None:
    for a in args:
        if type(a) in KINDS:
            return a._recorder
        if type(a) in (tuple, list):
            inner = _recorder_of(tuple(a))
            if inner is not None:
                return inner
    return None


def _is_assertion(frame: Any) -> bool:
    code = frame.f_code.co_code
    try:
        op = dis.opname[code[frame.f_lasti]]
    except IndexError:
        return False
    if not op.startswith(("POP_JUMP", "TO_BOOL")):
        return False
    at = frame.f_lasti + 2
    for _ in range(12):
        if at >= len(code):
            return False
        name = dis.opname[code[at]]
        if name in ("LOAD_ASSERTION_ERROR", "LOAD_COMMON_CONSTANT"):
            return True
        if name not in ("CACHE", "NOP", "POP_JUMP_IF_TRUE", "POP_JUMP_FORWARD_IF_TRUE"):
            return False
        at += 2
    return False


@functools.lru_cache(maxsize=4096)
def _answer_without_error(code: Any, at: int) -> bool | None:
    """What a test must give so that the code does not raise at once (``if size != 4: raise``), None for others."""
    if getattr(code, "co_exceptiontable", b""):
        return None  # somebody may catch it
    instructions = list(dis.get_instructions(code))
    if any(i.opname in ("SETUP_FINALLY", "SETUP_WITH") for i in instructions):
        return None
    where = {i.offset: n for n, i in enumerate(instructions)}
    here, inverted = where.get(at), False
    while here is not None and here < len(instructions):
        name = instructions[here].opname
        if name.startswith("POP_JUMP") and name.endswith(("IF_TRUE", "IF_FALSE")):
            break
        inverted ^= name == "UNARY_NOT"
        if name not in ("UNARY_NOT", "TO_BOOL", "CACHE", "NOP", "COMPARE_OP"):
            return None
        here += 1
    else:
        return None
    jumps = instructions[here].opname.endswith("IF_TRUE") ^ inverted
    falls, goes = _raises(instructions, here + 1), _raises(instructions, where[instructions[here].argval])
    return None if falls == goes else jumps if falls else not jumps


def _raises(instructions: list[dis.Instruction], at: int) -> bool:
    """Whether straight code that ends in ``raise`` begins here."""
    for instruction in instructions[at : at + 200]:
        if instruction.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in instruction.opname or instruction.opname.startswith(("RETURN", "FOR_", "YIELD")):
            return False
    return False


_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift"]
_UNARY = ["neg", "pos", "invert", "abs"]
_COMPARE = ["eq", "ne", "lt", "le", "gt", "ge"]


def _install() -> None:
    def binary(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, other: self._recorder.emit("call_function", function, (self, other), {})

    def reflected(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, other: self._recorder.emit("call_function", function, (other, self), {})

    def unary(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self: self._recorder.emit("call_function", function, (self,), {})

    def inplace(function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Symbolic, other: Any) -> Any:
            mutates = self.node.meta.get("kind") in ("tensor", "unknown")
            return self._recorder.emit("call_function", function if mutates else plain, (self, other), {})

        return run

    for name in _BINARY + _COMPARE:
        plain = getattr(operator, name)
        bare = name.rstrip("_")
        setattr(Symbolic, f"__{bare}__", binary(plain))
        if name in _BINARY:
            setattr(Symbolic, f"__r{bare}__", reflected(plain))
            setattr(Symbolic, f"__i{bare}__", inplace(getattr(operator, f"i{bare}"), plain))
    for name in _UNARY:
        setattr(Symbolic, f"__{name}__", unary(getattr(operator, name)))
    Symbolic.__getitem__ = binary(operator.getitem)  # type: ignore[misc]


_install()
