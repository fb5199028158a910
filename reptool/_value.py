"""`Value`: what a model's code computes with while it is being captured."""

from __future__ import annotations

import dis
import functools
import operator
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from reptool.writing import Writing

_PROPERTIES = frozenset(
    [
        "shape",
        "ndim",
        "dtype",
        "device",
        "layout",
        "requires_grad",
        "is_cuda",
        "is_mps",
        "is_cpu",
        "is_meta",
        "is_sparse",
        "is_quantized",
        "itemsize",
        "nbytes",
        "names",
        "T",
        "mT",
        "H",
        "mH",
        "data",
        "real",
        "imag",
        "grad",
        "grad_fn",
        "is_leaf",
    ]
)
_FIXED = frozenset(["dtype", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_meta", "itemsize", "shape"])
_UNPACK = dis.opmap["UNPACK_SEQUENCE"]


class Asked(Exception):
    """Raised where an answer would have to be known."""


class Value:
    """A symbolic value: every operation on it is written into the recorder's graph."""

    __slots__ = ("__weakref__", "_node", "_recorder")

    def __init__(self, node: fx.Node | None, recorder: Writing) -> None:
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_recorder", recorder)

    @property
    def node(self) -> fx.Node:
        """The node that computes this value."""
        return self._node

    def hand_over(self, node: fx.Node, recorder: Writing) -> None:
        """Stand for a node of another run from now on."""
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_recorder", recorder)

    # a tensor to everybody who asks `isinstance(x, torch.Tensor)`
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if self._node is not None and self._node.op == "placeholder":
            self._recorder.asked_for_type(self._node, sys._getframe(1))
        return Tensor if self.node.meta.get("kind") == "tensor" else Value

    def __repr__(self) -> str:
        return f"Value({self.node.name})"

    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = _recorder_of(args) or _recorder_of(tuple((kwargs or {}).values()))
        assert recorder is not None
        if torch.overrides.is_tensor_method_or_property(func):
            name = getattr(func, "__name__", "")
            if name == "__get__":
                owner = getattr(func, "__self__", None)
                return recorder.emit("call_function", getattr, (args[0], getattr(owner, "__name__", "")), {})
            return recorder.emit("call_method", name, args, kwargs or {})
        return recorder.emit("call_function", func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if name in _FIXED and self.node.meta.get("listed"):
            return getattr(self.node.meta["tensor"], name)
        if name in _PROPERTIES and self.node.meta.get("kind") == "tensor":
            return self._recorder.emit("call_function", getattr, (self, name), {})
        return Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Asked(f"the forward writes the attribute {name!r} of a tensor")

    def __setitem__(self, key: Any, value: Any) -> None:
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

    def __deepcopy__(self, memo: Any) -> Value:
        return self


class Attribute(Value):
    """An attribute of a value: a method once it is called, otherwise a value of its own."""

    __slots__ = ("_name", "_owner")

    def __init__(self, owner: Value, name: str) -> None:
        super().__init__(None, owner._recorder)
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_name", name)

    @property
    def node(self) -> fx.Node:
        """The node that reads the attribute, made when it is first needed."""
        if self._node is None:
            made = self._recorder.emit("call_function", getattr, (self._owner, self._name), {})
            object.__setattr__(self, "_node", made.node)
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._recorder.emit("call_method", self._name, (self._owner, *args), kwargs)


def _recorder_of(args: tuple[Any, ...]) -> Writing | None:
    for a in args:
        if type(a) is Value or type(a) is Attribute:
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

    def inplace(function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Value, other: Any) -> Any:
            mutates = self.node.meta.get("kind") in ("tensor", "unknown")
            return self._recorder.emit("call_function", function if mutates else plain, (self, other), {})

        return run

    for name in _BINARY + _COMPARE:
        plain = getattr(operator, name)
        bare = name.rstrip("_")
        setattr(Value, f"__{bare}__", binary(plain))
        if name in _BINARY:
            setattr(Value, f"__r{bare}__", reflected(plain))
            setattr(Value, f"__i{bare}__", inplace(getattr(operator, f"i{bare}"), plain))
    for name in _UNARY:
        function = getattr(operator, name)
        setattr(Value, f"__{name}__", lambda self, _f=function: self._recorder.emit("call_function", _f, (self,), {}))
    Value.__getitem__ = binary(operator.getitem)  # type: ignore[misc]


_install()
