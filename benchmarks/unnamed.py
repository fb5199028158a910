"""Sites in the executed program of a deployed model that were neither folded nor named in its report.

    python benchmarks/unnamed.py [--models NAME ...] [--list FILE] [--every K] [--skip N] [--out FILE]

A site is an operation with constants of the model's own that a layer next to it might take: a norm, a layer whose
weight is computed at every call, a scale or shift by a constant along one axis. It is found in the operations that a
forward really runs, with the path of the module in which it ran, and without asking reptool; a refusal names it by that
path.
Each model is deployed bare and with example inputs. The exit code is the number of models with sites left unnamed.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from residue import Node, Record, bare, nested, shape
from torch import nn

import reptool
from reptool import Report

_NORMS = {"native_layer_norm": 2, "native_group_norm": 1, "rms_norm": 2, "_fused_rms_norm": 2}
"""Norms of a sample, and where their weight is."""
_VIEWS = {
    "t",
    "transpose",
    "permute",
    "view",
    "reshape",
    "detach",
    "alias",
    "expand",
    "unsqueeze",
    "squeeze",
    "_to_copy",
}
_SCALES = {"add", "sub", "rsub", "mul", "div", "addcmul", "addcdiv"}


class Placed(Record):
    """Writes down in which module each operation runs."""

    def __init__(self, inputs: list[torch.Tensor], stack: list[str], own: set[int]) -> None:
        self.stack, self.own = stack, own
        super().__init__(inputs)

    def keep(self, tensor: torch.Tensor, node: Node) -> None:
        """Remember whether a tensor is one of the model's own."""
        super().keep(tensor, node)
        node.meta["own"] = id(tensor) in self.own
        node.meta["floating"] = tensor.is_floating_point()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        last = self.graph._root._prev
        out = super().__torch_dispatch__(func, types, args, kwargs)
        node = self.graph._root._prev
        while node is not last:
            node.meta["path"] = self.stack[-1] if self.stack else ""
            node = node._prev
        return out


@contextmanager
def followed(model: nn.Module) -> Iterator[list[str]]:
    """The paths of the modules that are running, innermost last."""
    stack: list[str] = []

    def left(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    handles: list[Any] = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, args, p=path: stack.append(p), prepend=True))
        handles.append(module.register_forward_hook(left, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def executed(model: nn.Module, call: Callable[[], Any], inputs: Any) -> list[Node]:
    """The operations of one call, each with its module's path."""
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    with torch.no_grad(), followed(model) as stack, Placed(list(nested(inputs)), stack, own) as record:
        outputs = [record.node[id(t)] for t in nested(call()) if id(t) in record.node]
    record.graph.output(tuple(outputs))
    record.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or str(n.target).endswith("_"))
    return list(record.graph.nodes)


def sites(nodes: list[Node]) -> list[tuple[str, str]]:
    """Kind and module path of each site among executed operations."""
    const: set[Node] = set()
    made: set[Node] = set()  # constants that come from the model's own tensors
    found: list[tuple[str, str]] = []
    for node in nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            const.add(node)
            made |= {node} if node.meta.get("own") else set()
        elif node.op == "call_function" and all(i in const for i in inputs):
            const.add(node)
            made |= {node} if any(i in made for i in inputs) else set()
        elif node.op == "call_function":
            kind = _kind(node, const, made)
            if kind:
                found.append((kind, node.meta.get("path", "")))
    return found


def _kind(node: Node, const: set[Node], made: set[Node]) -> str:
    name, args = bare(node), node.args
    if "batch_norm" in name:
        return "norm" if any(i in made for i in node.all_input_nodes[1:]) else ""
    if name in _NORMS:
        weight = next((a for a in args[1:] if isinstance(a, Node)), None)
        return "norm" if weight in made else ""
    weight = args[1] if name == "convolution" else None
    if name in ("addmm", "mm", "linear"):
        weight = next((a for a in reversed(args) if isinstance(a, Node) and a in const), None)
    if isinstance(weight, Node):
        while isinstance(weight, Node) and weight.op == "call_function" and bare(weight) in _VIEWS:
            weight = weight.args[0]
        return "weight" if weight in made and weight.op != "get_attr" else ""
    if name in _SCALES:
        constants = [a for a in args if isinstance(a, Node) and a in made and a.meta.get("floating")]
        values = [a for a in args if isinstance(a, Node) and a not in const]
        narrow = constants and len(values) == 1 and min(sum(n != 1 for n in shape(c) or ()) for c in constants) <= 1
        return "scale" if narrow and not _is_bias(node, values[0]) else ""
    return ""


def _is_bias(node: Node, value: Node) -> bool:
    """Whether this adds the bias of a linear layer, which torch does by itself where its input is not contiguous."""
    while value.op == "call_function" and bare(value) in (*_VIEWS, "_unsafe_view") and value.all_input_nodes:
        value = value.all_input_nodes[0]
    return bare(node) == "add" and bare(value) in ("mm", "bmm") and value.meta.get("path") == node.meta.get("path")


def unnamed(model: nn.Module, report: Report, args: tuple[Any, ...]) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Sites that a deployed model still runs, by kind; and those that its report does not name.

    Args:
        model: the deployed model.
        report: of it.
        args: what it is run on.
    """
    found = sites(executed(model, lambda: model(*args), args))
    named: Counter[str] = Counter()
    whole: set[str] = set()  # what was not followed runs as often as it likes
    for refusal in report.refusals:
        paths = {n.partition(": ")[0].replace("<root>", "") for n in refusal.nodes}
        named.update(paths)
        whole |= paths if refusal.code is reptool.Code.UNTRACEABLE else set()
    left: list[tuple[str, str]] = []
    for kind, path in found:
        if path in whole:
            continue
        named[path] -= 1
        if named[path] < 0:
            left.append((kind, path))
    return Counter(kind for kind, _ in found), left


def checked(name: str, size: list[int]) -> dict[str, Any]:
    """One model of timm, deployed bare and with inputs."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    images = (torch.randn(1, *size),)
    row: dict[str, Any] = {"model": name}
    for how in ("bare", "inputs"):
        began = time.perf_counter()
        deployed = reptool.deploy(model, None if how == "bare" else images, verify=False)
        kinds, left = unnamed(deployed, reptool.report(deployed), images)
        row[how] = {"sites": dict(kinds), "unnamed": left, "seconds": round(time.perf_counter() - began, 1)}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME", help="timm's names")
    parser.add_argument("--list", type=Path, help="JSON: a list of [name, parameters, norms, convolutions, input size]")
    parser.add_argument("--every", type=int, default=1, help="each K-th model of the list")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first N models of the list")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each model; those in it are left out")
    options = parser.parse_args()
    torch.set_num_threads(1)

    import timm

    rows = json.loads(options.list.read_text()) if options.list else []
    todo = [(row[0], row[4] or [3, 224, 224]) for row in rows[options.skip :: options.every]]
    todo += [(n, list(timm.get_pretrained_cfg(n).input_size)) for n in options.models]  # type: ignore[union-attr]
    known = options.out is not None and options.out.exists()
    done = {json.loads(line)["model"] for line in options.out.read_text().splitlines()} if known else set()
    bad = 0
    for name, size in todo:
        if name in done:
            continue
        try:
            row = checked(name, size)
        except Exception as error:  # one model's failure must not hide the others' rows
            row = {"model": name, "error": f"{type(error).__name__}: {error}"[:300]}
        silent = "error" in row or any(row[how]["unnamed"] for how in ("bare", "inputs"))
        bad += silent
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(
            name, "SILENT" if silent else "ok", json.dumps({k: v for k, v in row.items() if k != "model"}), flush=True
        )
    return bad


if __name__ == "__main__":
    sys.exit(main())
