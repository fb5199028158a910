"""Functions of Python that a user's rule reads: while tracing, a call of one is one operation, however it is reached.

The code of the function itself is exchanged, so that every name under which it is known leads to the recorder. Other
threads, and calls without data, run what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from reptool.ir.walk import nodes_in

if TYPE_CHECKING:
    from reptool.capture.tracer import Recorder

_CALL = "_reptool_call"


def _stub(*args: Any, _reptool_call: Callable[..., Any], **kwargs: Any) -> Any:
    return _reptool_call(*args, **kwargs)


@contextmanager
def intercepted(recorder: Recorder) -> Iterator[None]:
    """For the time of a trace: calls of `recorder.own_functions` are recorded as they stand."""
    saved: list[tuple[FunctionType, CodeType, Any]] = []
    try:
        for function in recorder.own_functions:
            saved.append((function, function.__code__, function.__kwdefaults__))
            recorded = _recorded(recorder, function)
            function.__kwdefaults__ = {**(function.__kwdefaults__ or {}), _CALL: recorded}
            function.__code__ = _stub.__code__.replace(co_freevars=function.__code__.co_freevars)
        yield
    finally:
        for function, code, defaults in reversed(saved):
            function.__code__ = code
            function.__kwdefaults__ = defaults


def _recorded(recorder: Recorder, function: FunctionType) -> Callable[..., Any]:
    same = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    same.__kwdefaults__ = function.__kwdefaults__

    def call(*args: Any, **kwargs: Any) -> Any:
        if recorder.tracing and any(True for _ in nodes_in((args, kwargs))):
            return recorder.emit("call_function", function, args, kwargs, "tensor")
        return same(*args, **kwargs)

    return call
