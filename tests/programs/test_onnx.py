"""ONNX models: the layers of the module they were made of, from every exporter; all that is no layer as it was."""

from __future__ import annotations

import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import FileError, InputError, RequirementError, UnsupportedModelError, VerificationError
from reptool.testing import randomize
from tests.networks import random_network
from tests.programs.test_exported import Kinds, Net, Terms
from tests.traps import codes

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")
helper = onnx.helper


def ready(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomize(model).eval()


def image(*size: int) -> Tensor:
    return torch.randn(size or (2, 3, 12, 11))


def scripted(model: nn.Module, *args: Tensor) -> Any:
    """The older exporter, which leaves norms where they are."""
    file = io.BytesIO()
    axes = {f"x{i}": {0: "batch", **({2: "h", 3: "w"} if a.dim() == 4 else {})} for i, a in enumerate(args)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, args, file, dynamo=False, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
            input_names=list(axes), dynamic_axes=axes, opset_version=17,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def dynamo(model: nn.Module, *args: Tensor) -> Any:
    """The newer exporter, without its own optimizations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(model, args, dynamo=True, optimize=False, verbose=False).model_proto


def run(model: Any, *args: Tensor) -> list[np.ndarray]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)})  # type: ignore[no-any-return]


def kinds(proto: Any) -> list[str]:
    return [n.op_type for n in proto.graph.node]


def deployed(proto: Any, **options: Any) -> tuple[Any, Any]:
    model = reptool.deploy(ir.from_proto(proto), **options)
    return ir.to_proto(model), reptool.report(model)


@pytest.mark.parametrize("exporter", [scripted, dynamo])
def test_a_model_has_the_layers_of_its_module(exporter: Any) -> None:
    model = ready(Net())
    proto = exporter(model, image())
    text = proto.SerializeToString()
    made, report = deployed(proto)
    assert report.norms[1] == 0
    assert report.layers[1] == 4
    assert sorted(k for k in kinds(made) if k in ("Conv", "Gemm", "BatchNormalization")) == ["Conv"] * 3 + ["Gemm"]
    assert proto.SerializeToString() == text
    assert [i.name for i in made.graph.input] == [i.name for i in proto.graph.input]
    assert [o.name for o in made.graph.output] == [o.name for o in proto.graph.output]
    assert "stages.0.branches.dense.conv.weight" in {i.name for i in made.graph.initializer}
    for size in ((2, 3, 12, 11), (1, 3, 7, 9)) if exporter is scripted else ((2, 3, 12, 11),):
        x = image(*size)
        np.testing.assert_allclose(run(made, x)[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exporter", [scripted, dynamo])
@pytest.mark.parametrize(("network", "left"), [(Kinds, 6), (Terms, 3)])
def test_layers_of_every_kind(network: type[nn.Module], left: int, exporter: Any) -> None:
    model = ready(network())
    made, report = deployed(exporter(model, image()))
    assert report.norms[1] == 0
    assert report.layers[1] <= left
    np.testing.assert_allclose(run(made, image())[0].shape, model(image()).shape)
    x = image()
    np.testing.assert_allclose(run(made, x)[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_agree(seed: int) -> None:
    model, inputs = random_network(seed)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        proto = scripted(model, *(a.clone() for a in args))
        run(proto, *args)
    except Exception as error:
        pytest.skip(f"not exported: {type(error).__name__}")
    wide, _ = deployed(proto)
    for a, b in zip(run(proto, *args), run(wide, *args), strict=True):
        scale = np.abs(a).max() + 1e-6
        np.testing.assert_allclose(b / scale, a / scale, atol=2e-4)


# --- graphs made by hand --------------------------------------------------------------------------------------------
def conv_norm(opset: int = 17, **conv: Any) -> Any:
    """A convolution with a norm behind it, and a second reader of neither."""
    rng = np.random.default_rng(0)
    held = {
        "w": rng.standard_normal((4, 3, 3, 3)), "scale": rng.uniform(0.5, 2, 4), "shift": rng.standard_normal(4),
        "mean": rng.standard_normal(4), "var": rng.uniform(0.5, 2, 4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv", **conv),
        helper.make_node("BatchNormalization", ["y", "scale", "shift", "mean", "var"], ["z"], "norm"),
        helper.make_node("Relu", ["z"], ["out"], "act"),
    ]
    return model_of(nodes, held, opset)


def model_of(nodes: list[Any], held: dict[str, Any], opset: int = 17, ir_version: int = 8, **types: Any) -> Any:
    tensors = [onnx.numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in held.items()]
    kind = types.get("kind", onnx.TensorProto.FLOAT)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", kind, [None, 3, None, None])], [info("out", kind, [None] * 4)], tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


X = torch.randn(2, 3, 9, 10)


def same(proto: Any, made: Any) -> None:
    for a, b in zip(run(proto, X), run(made, X), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "conv",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [2, 0, 1, 1], "strides": [2, 1]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER", "dilations": [1, 1]},
        {"auto_pad": "VALID"},
    ],
)
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_padding_of_every_form(conv: dict[str, Any], opset: int) -> None:
    proto = conv_norm(opset, **conv)
    made, report = deployed(proto)
    assert kinds(made) == ["Conv", "Relu"]
    assert report.norms == (1, 0)
    same(proto, made)


def resized(opset: int, scales: list[float], kind: str = "Resize", **attributes: Any) -> Any:
    """A resampling in front of a convolution."""
    rng = np.random.default_rng(0)
    held = {"w": rng.standard_normal((4, 3, 3, 3)), "b": rng.standard_normal(4), "s": np.asarray(scales)}
    held["roi"] = np.zeros(0)
    names = ["a", "s"] if kind == "Upsample" or opset < 11 else ["a", "roi" if opset < 13 else "", "s"]
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]), helper.make_node(kind, names, ["u"], **attributes),
        helper.make_node("Conv", ["u", "w", "b"], ["out"], "conv", pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    return model_of(nodes, held, opset)


FEW = reptool.Costs(column=0.0, packed=0.0)
"""So that few channels pay."""
AT = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@pytest.mark.parametrize(("opset", "scales", "kind", "attributes"), [
    (17, [1, 1, 2, 2], "Resize", AT), (11, [1, 1, 3, 1], "Resize", AT), (13, [1, 1, 2, 4], "Resize", {}),
    (18, [2, 2], "Resize", {**AT, "axes": [2, 3]}), (10, [1, 1, 2, 2], "Resize", {}), (9, [1, 1, 2, 3], "Upsample", {}),
    (13, [1, 1, 5, 2], "Resize", {"nearest_mode": "round_prefer_ceil"}),
])  # fmt: skip
def test_upsampling_by_whole_numbers(opset: int, scales: list[float], kind: str, attributes: dict[str, Any]) -> None:
    proto = resized(opset, scales, kind, **attributes)
    made, report = deployed(proto, price=FEW)
    assert kinds(made) == ["Sigmoid", "ConvTranspose"]
    assert report.regions[0].rules == ["upsample"]
    same(proto, made)
    read = {name for node in made.graph.node for name in node.input}
    assert {t.name for t in made.graph.initializer} <= read | {"roi"} - ({"roi"} if opset == 11 else set())


@pytest.mark.parametrize(("scales", "attributes"), [
    ([1, 1, 1.5, 2], AT), ([1, 1, 2, 2], {"coordinate_transformation_mode": "asymmetric"}),
    ([1, 1, 2, 2], {"mode": "linear"}), ([1, 1, 2, 2], {"nearest_mode": "ceil"}), ([1, 1, 0.5, 1], AT),
])  # fmt: skip
def test_other_resampling_stays(scales: list[float], attributes: dict[str, Any]) -> None:
    proto = resized(17, scales, **attributes)
    made, _ = deployed(proto, price=FEW)
    assert kinds(made) == kinds(proto)


def test_padding_that_depends_on_the_size_stays() -> None:
    proto = conv_norm(auto_pad="SAME_UPPER", strides=[2, 2])
    made, _ = deployed(proto)
    assert kinds(made) == kinds(proto)


def test_initializers_that_are_inputs() -> None:
    proto = conv_norm()
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(i.name, onnx.TensorProto.FLOAT, list(i.dims)) for i in proto.graph.initializer
    )
    made, _ = deployed(proto)
    assert kinds(made) == ["Conv", "Relu"]
    assert {i.name for i in made.graph.initializer} < {i.name for i in made.graph.input}
    same(proto, made)


def test_a_norm_that_is_given_out_keeps_its_name() -> None:
    proto = conv_norm()
    proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [None] * 4))
    made, _ = deployed(proto)
    assert [o.name for o in made.graph.output] == ["out", "z"]
    assert kinds(made) == ["Conv", "Relu"]
    same(proto, made)


def test_a_convolution_that_is_given_out_stays() -> None:
    proto = conv_norm()
    proto.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4))
    made, _ = deployed(proto)
    assert kinds(made) == kinds(proto)
    same(proto, made)


def test_bodies_of_control_flow_are_collapsed_and_what_they_read_stays() -> None:
    inner = conv_norm()
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["a", "w2"], ["b"]),
            helper.make_node("BatchNormalization", ["b", "scale", "shift", "mean", "var"], ["c"]),
        ],
        "then", [], [helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["d"])], "else", [],
        [helper.make_tensor_value_info("d", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    w2 = onnx.numpy_helper.from_array(np.random.default_rng(1).standard_normal((4, 4, 1, 1)).astype(np.float32), "w2")
    yes = onnx.numpy_helper.from_array(np.asarray(True), "yes")
    proto = onnx.ModelProto()
    proto.CopyFrom(inner)
    del proto.graph.node[2:]
    proto.graph.initializer.extend([w2, yes])
    proto.graph.node.extend(
        [
            helper.make_node("Relu", ["z"], ["a"]),
            helper.make_node("If", ["yes"], ["out"], then_branch=body, else_branch=other),
        ]
    )
    made, report = deployed(proto)
    assert report.norms == (2, 0)
    (branch,) = [a.g for a in made.graph.node[-1].attribute if a.name == "then_branch"]
    assert [n.op_type for n in branch.node] == ["Conv"]
    same(proto, made)


def with_function() -> Any:
    """The same layers in a function of the model's own, which takes the weights as arguments."""
    proto = conv_norm()
    weights = [t.name for t in proto.graph.initializer]
    nodes, versions = list(proto.graph.node), [helper.make_opsetid("", 17)]
    block = helper.make_function("mine", "Block", ["x", *weights], ["out"], nodes, versions)
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("Block", ["x", *weights], ["out"], "block", domain="mine"))
    proto.functions.append(block)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    return proto


def test_functions_are_inlined_where_layers_become_fewer() -> None:
    proto = with_function()
    assert reptool.explain(proto).norms == (1, 0)
    made, report = deployed(proto)
    assert report.norms == (1, 0)
    assert [n.op_type for n in made.graph.node] == ["Conv", "Relu"]
    same(proto, made)
    kept, _ = deployed(made_of_function(["Relu"]))
    assert [n.op_type for n in kept.graph.node] == ["Block"]


def made_of_function(kinds: list[str]) -> Any:
    """A function without layers."""
    proto = with_function()
    block = proto.functions[0]
    del block.node[:]
    block.node.extend(helper.make_node(kind, ["x"], ["out"]) for kind in kinds)
    return proto


def _cycle(proto: Any) -> None:
    proto.graph.node[0].input[0] = "z"


def _nobody(proto: Any) -> None:
    proto.graph.node[2].input[0] = "nobody"


def _output(proto: Any) -> None:
    proto.graph.output[0].name = "nobody"


def _in_a_body(proto: Any) -> None:
    info = [helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)]
    body = helper.make_graph([helper.make_node("Relu", ["later"], ["b"])], "body", [], info)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(True), "yes"))
    proto.graph.node.insert(0, helper.make_node("If", ["yes"], ["i"], then_branch=body, else_branch=body))


def _unknown(proto: Any) -> None:
    proto.opset_import[0].version = 99


DAMAGE: dict[str, tuple[Any, str]] = {
    "cycle": (_cycle, "Conv 'conv' reads 'z', which nothing in front of it computes"),
    "nobody": (_nobody, "Relu 'act' reads 'nobody'"),
    "output": (_output, "nothing computes its output 'nobody'"),
    "in a body": (_in_a_body, "reads 'later'"),
    "newer opset": (_unknown, "its opset is 99; 7 to 28 are read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_graphs_that_are_none_are_told(name: str) -> None:
    damage, said = DAMAGE[name]
    proto = conv_norm()
    damage(proto)
    with pytest.raises(UnsupportedModelError, match=said):
        reptool.deploy(proto)


def test_two_values_of_one_name_are_told() -> None:
    proto = conv_norm()
    proto.graph.node[1].output[0] = "y"
    with pytest.raises(InputError, match="no ONNX model that can be read"):
        reptool.deploy(proto)


def test_sums_and_scales_as_constants_of_every_shape() -> None:
    held = {"w": np.random.default_rng(0).standard_normal((4, 3, 1, 1)), "one": [2.0], "row": np.ones((4, 1, 1)) * 3,
            "all": np.arange(4.0).reshape(1, 4, 1, 1)}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "one"], ["b"]),
        helper.make_node("Add", ["row", "b"], ["c"]),
        helper.make_node("Sub", ["c", "all"], ["d"]),
        helper.make_node("Div", ["d", "one"], ["e"]),
        helper.make_node("Neg", ["e"], ["out"]),
    ]
    proto = model_of(nodes, held)
    made, report = deployed(proto)
    assert kinds(made) == ["Conv"]
    assert report.layers == (1, 1)
    same(proto, made)


def test_quantized_weights_stay() -> None:
    proto = conv_norm()
    q = [onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "q"),
         onnx.numpy_helper.from_array(np.asarray(0.5, np.float32), "s"),
         onnx.numpy_helper.from_array(np.asarray(0, np.int8), "zero")]  # fmt: skip
    proto.graph.initializer.extend(q)
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["dq"]))
    proto.graph.node[1].input[1] = "dq"
    made, report = deployed(proto)
    assert kinds(made) == kinds(proto)
    assert "data-weight" in codes(report)


def test_other_domains_and_metadata_pass_through() -> None:
    proto = conv_norm()
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.graph.node.insert(1, helper.make_node("Odd", ["y"], ["y2"], "odd", domain="mine"))
    proto.graph.node[2].input[0] = "y2"
    proto.metadata_props.add(key="author", value="somebody")
    made, _ = deployed(proto)
    assert kinds(made) == ["Conv", "Odd", "BatchNormalization", "Relu"]
    assert made.metadata_props == proto.metadata_props


def test_a_norm_in_training_mode_stays() -> None:
    proto = conv_norm()
    proto.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    proto.graph.node[1].output.extend(["m", "v"])
    made, _ = deployed(proto)
    assert kinds(made) == kinds(proto)


def test_a_file_in_and_a_file_out(tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "größe.onnx"
    onnx.save(conv_norm(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = reptool.deploy(path)
    reptool.save(model, out)
    same(onnx.load(path), onnx.load(out))
    with pytest.raises(InputError, match="there already"):
        reptool.save(model, out)
    reptool.save(model, out, overwrite=True)
    with pytest.raises(FileError, match="cannot be written"):
        reptool.save(model, tmp_path / "nowhere" / "a.onnx")
    with pytest.raises(InputError, match=r"is written as \*\.onnx"):
        reptool.save(model, tmp_path / "a.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["größe.onnx", "in.onnx", "weights.bin"]
    assert reptool.explain(path).norms == (1, 0)


def kept() -> Any:
    """A model with a weight that stays what it is."""
    proto = conv_norm()
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    (out,) = proto.graph.node[-1].output
    proto.graph.node[-1].output[0] = "normed"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "kept"))
    proto.graph.node.extend([helper.make_node("Relu", ["normed"], ["bent"]),
                             helper.make_node("Conv", ["bent", "kept"], [out])])  # fmt: skip
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


@pytest.mark.parametrize("limit", [2**31, 0])
def test_weights_in_a_file_of_their_own(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go where the result goes: into one file, or, where they are too many for it, one by one into a second."""
    monkeypatch.setattr("reptool.programs.onnx.MESSAGE", limit)
    path, out = tmp_path / "in" / "a.onnx", tmp_path / "out" / "b.onnx"
    path.parent.mkdir()
    out.parent.mkdir()
    onnx.save(kept(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    whole = onnx.load(path)
    model = reptool.deploy(path)
    held = [type(v.const_value).__name__ for v in model.graph.initializers.values() if v.name == "kept"]
    assert held == (["ExternalTensor"] if limit == 0 else ["Tensor"])  # it stays in its file until it is written
    reptool.save(model, out)
    assert sorted(p.name for p in out.parent.iterdir()) == (["b.data", "b.onnx"] if limit == 0 else ["b.onnx"])
    shutil.rmtree(path.parent)
    assert reptool.report(model).norms == (1, 0)
    same(whole, onnx.load(out))
    if limit == 0:
        with pytest.raises(InputError, match="there already"):
            reptool.save(model, out)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.onnx"
    out.write_bytes(b"old")

    def full(model: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(FileError, match="no space left"):
        reptool.save(ir.from_proto(conv_norm()), out, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    assert out.read_bytes() == b"old"


def test_bad_files_are_errors_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(InputError, match="there is no file"):
        reptool.deploy(path)
    path.write_bytes(b"not a model")
    with pytest.raises((InputError, UnsupportedModelError)):
        reptool.deploy(path)
    whole = conv_norm().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no ONNX model that can be read"):
        reptool.deploy(path)
    onnx.save(conv_norm(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match="no ONNX model that can be read"):
        reptool.deploy(path)
    empty = conv_norm()
    del empty.graph.node[:]
    with pytest.raises(UnsupportedModelError, match="no nodes"):
        reptool.deploy(empty)


def test_options_and_requirements() -> None:
    proto = conv_norm()
    assert kinds(reptool.deploy(proto, exclude="w")) == kinds(proto)
    with pytest.raises(InputError, match="inplace= is for modules"):
        reptool.deploy(proto, inplace=True)
    with pytest.raises(InputError, match="patterns on names alone"):
        reptool.deploy(proto, exclude=nn.Conv2d)
    with pytest.raises(RequirementError, match="batch normalization"):
        reptool.deploy(proto, exclude="w", require="no_batchnorm")
    with pytest.raises(InputError, match="was not returned by"):
        reptool.report(reptool.deploy(proto))  # a message holds nothing beside the model


def test_a_whole_that_differs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.programs import onnx as programs

    right = programs.collapse

    def wrong(*args: Any) -> Any:
        made = right(*args)
        made.layers[0].pieces[0].weight.mul_(1.5)
        return made

    monkeypatch.setattr(programs, "collapse", wrong)
    with pytest.raises(VerificationError, match="nothing was changed"):
        reptool.deploy(conv_norm())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision(kind: str) -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(getattr(torch, kind))
    proto = scripted(model, image().to(getattr(torch, kind)))
    made, report = deployed(proto, verify=True)
    assert kinds(made) == ["Conv"]
    assert report.norms == (1, 0)


class Views(nn.Module):
    """Layers with views between them, one of which makes two axes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Conv2d(8, 4, 1)
        self.conv, self.line = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of one position, and tokens."""
        b, _, h, w = y.shape
        return self.last(self.first(x)[..., None, None]), self.line(
            self.conv(y).permute(0, 2, 3, 1).reshape(b, h * w, -1)
        )


def test_views_between_layers_are_read_through() -> None:
    model, given = ready(Views()), (torch.randn(5, 8), image(2, 3, 6, 5))
    with torch.no_grad():
        wanted = model(*given)
    made, report = deployed(dynamo(model, *given))
    assert report.layers[1] == 2
    for found, one in zip(run(made, *given), wanted, strict=True):
        np.testing.assert_allclose(found, one.numpy(), rtol=1e-4, atol=1e-5)
