"""Operations that preserve the shape of their first argument."""

from __future__ import annotations

from torch import fx, nn

from reptool.ir.nodes import name_of

SAME_SHAPE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
    nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.Identity, nn.LogSigmoid, nn.RReLU,
    nn.Softmax, nn.Softmax2d, nn.LogSoftmax,
)  # fmt: skip
SAME_SHAPE = {
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "hardtanh", "hardtanh_", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "softmax",
    "log_softmax", "layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm", "dropout", "dropout2d",
    "contiguous", "clone", "detach", "neg", "exp", "sqrt", "rsqrt", "abs", "clamp", "clamp_", "barrier", "to", "float",
    "half", "pow", "square", "sin", "cos", "type_as", "normalize", "setitem",
}  # fmt: skip
_BROADCASTS = ("pow", "clamp", "clamp_")
"""Their other arguments may be tensors, which may have more axes."""


def keeps_shape(node: fx.Node) -> bool:
    """Whether an operation gives a value of the shape of its first argument."""
    if node.op == "call_module":
        return isinstance(node.meta.get("module"), SAME_SHAPE_MODULES)
    if node.op not in ("call_function", "call_method") or name_of(node) not in SAME_SHAPE:
        return False
    return name_of(node) not in _BROADCASTS or len(node.all_input_nodes) == 1
