"""Runs two ONNX models beside each other in ONNX Runtime, without its own optimizations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

SIZES = ((2, 64), (1, 40), (2, 224), (1, 32))
"""What open sizes are taken for: the first axis, and those behind the channels."""
WANTED = 2
"""Sizes at which both are compared, where the model runs at as many."""


def compared(original: Any, model: Any, ir: Any) -> Iterator[tuple[list[tuple[int, ...]], float, str]]:
    """The largest difference at each size at which the original runs; nothing without ONNX Runtime.

    Yields:
        The shapes of the inputs, the difference relative to the largest value of an output, and its type.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        return
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        before = ort.InferenceSession(ir.to_proto(original).SerializeToString(), options)
    except Exception:  # a custom operator, or a type that the runtime has not
        return
    after = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    found = 0
    seen: set[str] = set()
    for size in SIZES:
        inputs = {i.name: _drawn(i, size) for i in before.get_inputs()}
        shapes = [v.shape for v in inputs.values()]
        if found == WANTED or str(shapes) in seen:
            break
        seen.add(str(shapes))
        try:
            wanted = before.run(None, inputs)
        except Exception:  # a size that the model does not take
            continue
        found += 1
        pairs = list(zip(wanted, after.run(None, inputs), strict=True))
        errors = [(_difference(a, b), str(np.asarray(a).dtype).upper().replace("32", "")) for a, b in pairs]
        error, dtype = max(errors, default=(0.0, "FLOAT"))
        yield shapes, error, dtype


def _drawn(given: Any, size: tuple[int, int]) -> Any:
    shape = [s if isinstance(s, int) else size[0] if i == 0 else size[1] for i, s in enumerate(given.shape)]
    rng = np.random.default_rng(0)
    kind = {"double": np.float64, "float16": np.float16, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
    dtype = kind.get(given.type[7:-1], np.float32)
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def _difference(wanted: Any, found: Any) -> float:
    """The largest difference, relative to the largest finite value."""
    if not isinstance(wanted, np.ndarray) or wanted.size == 0 or not np.issubdtype(wanted.dtype, np.number):
        return 0.0
    if wanted.shape != found.shape:
        return float("inf")
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    off = np.where(same, 0.0, np.abs(a - b))
    return float(off.max() / (np.abs(np.where(np.isfinite(a), a, 0.0)).max() + 1e-12))
