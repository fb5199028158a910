"""ONNX files of public models in training form, collapsed beside what other tools make of them.

    pip install onnxslim onnxsim onnxoptimizer openvino
    python benchmarks/onnx_peers.py [--output FILE] [--rounds N] [MODEL ...]

Each file is what torch's exporter writes of a model of timm with random statistics (it folds norms by itself). Layers
are counted in what each tool writes: convolutions, `Gemm`, and products with a constant matrix. Each result runs in
ONNX Runtime, which optimizes it in its own way as well; seconds of both are processor time of one thread, in turns.
"""

import argparse
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import onnx
import onnxoptimizer
import onnxruntime
import onnxscript.optimizer
import onnxscript.rewriter
import onnxsim
import onnxslim
import openvino
import timm
import torch
from openvino._offline_transformations import apply_moc_transformations

import reptool
from reptool.frontends.spec import input_shape
from reptool.ship.runtimes import without_chatter
from reptool.testing import randomize

MODELS = (
    "repvgg_a0", "mobileone_s1", "fastvit_t8", "repvit_m1", "repghostnet_050", "levit_128s", "resnet18",
    "res2net50_26w_4s", "resnext50_32x4d", "densenet121", "efficientnet_b0", "mobilenetv3_small_100",
    "ghostnet_100", "regnety_002", "dla34", "hrnet_w18_small",
    "inception_next_atto", "convnext_atto", "edgenext_xx_small", "vit_tiny_patch16_224",
)  # fmt: skip
MARK = "<!-- measured: the table below is written by benchmarks/onnx_peers.py -->"
END = "<!-- end -->"
WRONG = 1e-3
"""A difference of more than this part of the largest output is a wrong one."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm", "NhwcFusedConv")
_PRODUCTS = ("MatMul", "FusedMatMul")
Proto = onnx.ModelProto


@dataclass
class Counts:
    """What is in a file, and what making it and running it takes."""

    layers: int = 0
    norms: int = 0
    nodes: int = 0
    seconds: float = 0.0
    error: float = 0.0
    milliseconds: float = 0.0
    failed: str = ""


@dataclass
class Row:
    """One model, by tool."""

    name: str
    by: dict[str, Counts] = field(default_factory=dict)


def exported(name: str) -> tuple[Proto, numpy.ndarray]:
    """A model as a file, and an image."""
    torch.manual_seed(0)
    model = randomize(timm.create_model(name, pretrained=False)).eval()
    image = torch.randn(1, *input_shape(model))
    with tempfile.TemporaryDirectory() as folder, without_chatter():
        path = Path(folder, "m.onnx")
        torch.onnx.export(model, (image,), path, dynamo=True, external_data=False, verbose=False)
        return onnx.load(path), image.numpy()


# --- the tools
def of_runtime(model: Proto) -> Proto:
    """What ONNX Runtime makes of it for any processor: basic and extended optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "m.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def of_onnxscript(model: Proto) -> Proto:
    """The optimizer and the default rewrites of onnxscript."""
    return onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(model))


def of_onnxoptimizer(model: Proto) -> Proto:
    """All passes that fuse and eliminate."""
    return onnxoptimizer.optimize(model, onnxoptimizer.get_fuse_and_elimination_passes())


TOOLS: dict[str, Callable[[Proto], Proto]] = {
    "as exported": lambda model: model,
    "ONNX Runtime": of_runtime,
    "onnxslim": onnxslim.slim,
    "onnxsim": lambda model: onnxsim.simplify(model)[0],
    "onnxoptimizer": of_onnxoptimizer,
    "onnxscript": of_onnxscript,
    "reptool": reptool.deploy,
}


# --- what they made
def counted(model: Proto) -> Counts:
    """The operators of a file."""
    graph = model.graph
    held = {i.name for i in graph.initializer} | {o for n in graph.node if n.op_type == "Constant" for o in n.output}
    products = sum(n.op_type in _PRODUCTS and any(i in held for i in n.input) for n in graph.node)
    layers = sum(n.op_type in _LAYERS for n in graph.node) + products
    return Counts(layers, sum(n.op_type == "BatchNormalization" for n in graph.node), len(graph.node))


def of_openvino(model: Proto) -> Counts:
    """What OpenVINO's transformations of every model leave; it runs elsewhere, and is only counted."""
    start = time.process_time()
    made = openvino.Core().read_model(io.BytesIO(model.SerializeToString()))
    apply_moc_transformations(made, False)
    taken = time.process_time() - start
    nodes = [n for n in made.get_ops() if n.get_type_name() not in ("Parameter", "Result", "Constant")]
    kinds = [n.get_type_name() for n in nodes]
    products = sum(n.get_type_name() == "MatMul" and any(map(_is_constant, n.inputs())) for n in nodes)
    layers = sum("Convolution" in kind for kind in kinds) + products
    return Counts(layers, sum("BatchNorm" in kind for kind in kinds), len(nodes), taken)


def _is_constant(given: Any) -> bool:
    return bool(given.get_source_output().get_node().get_type_name() == "Constant")


def session(model: Proto) -> Any:
    """A file in ONNX Runtime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measured(name: str, rounds: int) -> Row:
    """What each tool makes of a model, and how that runs."""
    model, image = exported(name)
    row, runs = Row(name), dict[str, Any]()
    wanted: Any = None
    for tool, make in TOOLS.items():
        given = Proto()
        given.CopyFrom(model)
        start = time.process_time()
        try:
            made = make(given)
            taken = time.process_time() - start
            run = session(made)
            (found,) = run.run(None, {run.get_inputs()[0].name: image})
        except Exception as error:  # whatever a tool or the runtime raises
            row.by[tool] = Counts(failed=f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        wanted = found if wanted is None else wanted
        row.by[tool], runs[tool] = counted(made), run
        row.by[tool].seconds = taken
        row.by[tool].error = float(numpy.abs(found - wanted).max() / numpy.abs(wanted).max())
    taken_by: dict[str, list[float]] = {tool: [] for tool in runs}
    for _ in range(rounds):
        for tool, run in runs.items():
            start = time.process_time()
            run.run(None, {run.get_inputs()[0].name: image})
            taken_by[tool].append(time.process_time() - start)
    for tool, times in taken_by.items():
        row.by[tool].milliseconds = 1e3 * median(times)
    row.by["OpenVINO"] = of_openvino(model)
    return row


# --- tables
def _of_all(rows: list[Row]) -> Iterable[str]:
    columns = "layers", "norms", "operators", "seconds", "failed", "wrong", "worst error", "time in ONNX Runtime"
    yield f"| made by | {' | '.join(columns)} |"
    yield f"| --- {'| ---: ' * len(columns)}|"
    for tool in (*list(TOOLS)[:-1], "OpenVINO", "reptool"):
        found = [r.by[tool] for r in rows]
        right = [c for c in found if not c.failed]
        ratios = [r.by[tool].milliseconds / r.by["as exported"].milliseconds for r in rows if not r.by[tool].failed]
        timed = tool != "OpenVINO"
        ratio = f"{exp(sum(map(log, ratios)) / len(ratios)):.2f}" if timed else "-"
        wrong, worst = sum(c.error > WRONG for c in right), max(c.error for c in right)
        yield (
            f"| {tool} | {sum(c.layers for c in right):,} | {sum(c.norms for c in right):,} | "
            f"{sum(c.nodes for c in right):,} | {sum(c.seconds for c in right):.0f} | {len(found) - len(right)} | "
            + (f"{wrong} | {worst:.1g} | {ratio} |" if timed else "- | - | - |")
        )


def _of_each(rows: list[Row]) -> Iterable[str]:
    tools = ("as exported", "ONNX Runtime", "onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "OpenVINO", "reptool")
    yield f"| layers + norms | {' | '.join(tools)} |"
    yield f"| --- {'| ---: ' * len(tools)}|"
    for row in rows:
        cells = [row.by[t] for t in tools]
        shown = ["failed" if c.failed else f"{c.layers} + {c.norms}" if c.norms else str(c.layers) for c in cells]
        yield f"| {row.name} | {' | '.join(shown)} |"


def main() -> None:
    """Measure, print, and write the tables into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in given.models:
        rows.append(measured(name, given.rounds))
        print(rows[-1], flush=True)
    versions = ", ".join(
        f"{m.__name__} {m.__version__.split('-')[0]}"
        for m in (torch, timm, onnxruntime, onnxslim, onnxsim, onnxoptimizer, onnxscript, openvino)
        if hasattr(m, "__version__")
    )
    text = "\n".join([*_of_all(rows), "", *_of_each(rows), "", f"{len(rows)} models, {versions}."])
    print(text)
    if given.output is not None:
        page = given.output.read_text()
        lead, rest = page.split(MARK)[0], page.split(END)[-1]
        given.output.write_text(f"{lead}{MARK}\n\n{text}\n\n{END}{rest}")


if __name__ == "__main__":
    main()
