"""ONNX operators as the functions of torch that `lift` reads; what has no entry here stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reptool.frontends.onnx.arithmetic import ARITHMETIC
from reptool.frontends.onnx.axes import AXES
from reptool.frontends.onnx.layers import LAYERS
from reptool.frontends.onnx.node import Made, Node, Reader
from reptool.frontends.onnx.resampling import RESAMPLING

_OPERATORS: dict[str, Callable[[Node], Made]] = {**LAYERS, **RESAMPLING, **ARITHMETIC, **AXES}


def read(node: Any, r: Reader, opset: int) -> Made:
    """What a node of the default domain computes.

    Args:
        node: a node of `onnx_ir`.
        r: the graph.
        opset: version of the default domain.
    """
    handler = _OPERATORS.get(node.op_type)
    return None if handler is None else handler(Node(node, r, opset))
