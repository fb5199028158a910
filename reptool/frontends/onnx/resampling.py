"""Images of other sizes: Resize and Upsample of ONNX as `interpolate`, DepthToSpace as a pixel shuffle."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import functional as F

from reptool.frontends.onnx.node import Made, Node

_RESAMPLED = {
    ("nearest", "asymmetric", "floor"): ("nearest", None),
    ("linear", "half_pixel", ""): ("linear", False),
    ("linear", "pytorch_half_pixel", ""): ("linear", False),
    ("linear", "align_corners", ""): ("linear", True),
    ("cubic", "half_pixel", ""): ("cubic", False),
    ("cubic", "pytorch_half_pixel", ""): ("cubic", False),
    ("cubic", "align_corners", ""): ("cubic", True),
}
"""The mode, the coordinates and the rounding of Resize -> how torch calls it, and whether the corners are aligned."""
_BY_AXES = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}


def _resampled(n: Node) -> Made:
    """The image to other sizes that the file fixes, as one of torch's."""
    x, shape, mode = n.value(0), n.r.shape(n.given(0)), n.attribute("mode", "nearest")
    rounding = n.attribute("nearest_mode", "round_prefer_floor") if mode == "nearest" else ""
    known = _RESAMPLED.get((mode, n.attribute("coordinate_transformation_mode", "half_pixel"), rounding))
    odd = n.attribute("axes") is not None or n.attribute("antialias", 0) or n.attribute("exclude_outside", 0)
    if x is None or shape is None or known is None or odd or len(n) < 3 or n.opset < 11:
        return None
    name = known[0] if known[0] == "nearest" else _BY_AXES.get((known[0], len(shape) - 2))
    if mode == "cubic" and n.attribute("cubic_coeff_a", -0.75) != -0.75:
        return None
    scales, sizes = (n.constant(i) if n.given(i) is not None else None for i in (2, 3))
    by = [] if scales is None else [float(s) for s in scales]
    if name is not None and len(by) == len(shape) and by[:2] == [1.0, 1.0]:
        return n.r.call(F.interpolate, x, None, by[2:], name, known[1])
    to = [] if sizes is None else [int(s) for s in sizes]
    if name is None or len(to) != len(shape) or to[:2] != list(shape[:2]):
        return None
    if name == "nearest" and all(s is not None and not t % s for t, s in zip(to[2:], shape[2:], strict=True)):
        return n.r.call(F.interpolate, x, None, [t // s for t, s in zip(to[2:], shape[2:], strict=True) if s], name)
    return n.r.call(F.interpolate, x, to[2:], None, name, known[1])


def _repeated(n: Node) -> Made:
    """Nearest resampling by whole numbers, however the file says where a position is read."""
    x, rank = n.value(0), n.rank()
    at = 1 if n.node.op_type == "Upsample" or (n.opset < 11 and len(n) < 3) else 2
    held = n.constant(at)
    scales = list(n.attribute("scales", [])) if held is None else [float(v) for v in held.reshape(-1)]
    if x is None or rank is None or n.attribute("mode", "nearest") != "nearest" or n.given(3) is not None:
        return None
    axes = n.attribute("axes")
    if axes is not None:
        known = {a % rank: s for a, s in zip(axes, scales, strict=True)}
        scales = [known.get(a, 1.0) for a in range(rank)]
    if len(scales) != rank or not 3 <= rank <= 5 or scales[:2] != [1, 1] or any(s < 1 or s % 1 for s in scales):
        return None
    if n.node.op_type == "Resize" and n.opset > 10:
        where = n.attribute("coordinate_transformation_mode", "half_pixel")
        rounded = n.attribute("nearest_mode", "round_prefer_floor")
        if (where, rounded) != ("asymmetric", "floor") and not (where == "half_pixel" and rounded.startswith("round")):
            return None
    return n.r.call(F.interpolate, x, None, [int(s) for s in scales[2:]], "nearest")


def _resize(n: Node) -> Made:
    return _repeated(n) or _resampled(n)


def _depth_to_space(n: Node) -> Made:
    x = n.value(0)
    return n.r.call(F.pixel_shuffle, x, n.attribute("blocksize")) if n.attribute("mode", "DCR") == "CRD" and x else None


RESAMPLING: dict[str, Callable[[Node], Made]] = {
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "DepthToSpace": _depth_to_space,
}
