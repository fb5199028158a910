"""ONNX, there and back: export with a dynamic batch, run in ONNX Runtime."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["export_onnx", "onnx_operators", "run_onnx"]


def export_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write `model` to `path` as one ONNX file whose batch size is free.

    Args:
        model: takes one tensor; in eval mode.
        images: an example, (N, C, H, W); N >= 2, since a batch of one is taken for a constant.
        path: the file to write.
    """
    with _without_exporter_chatter():
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=["images"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _without_exporter_chatter() -> Iterator[None]:
    """Silence what the exporter says about itself: packages it could do without, its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def onnx_operators(path: Path) -> Counter[str]:
    """Count the operators of the ONNX file at `path` by type."""
    import onnx

    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    """Run the ONNX file at `path` in ONNX Runtime on `images` (N, C, H, W) and return its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return [torch.from_numpy(output) for output in outputs]
