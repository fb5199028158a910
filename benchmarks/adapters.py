"""The cases of PEFT's own tests, each deployed: right or wrong, one layer or left, and why.

    python benchmarks/adapters.py PEFT/tests/test_custom_models.py [--every K] [--skip N] [--match TEXT] [--out FILE]

The file is read from a checkout of PEFT; its models, its table and its names are taken, its tests are not run. Adapters
are not identities (their weights are drawn). A case is right where the output is within 1e-3 of the output's size of
the adapted model's, and collapsed where no more operations compute than in the model without an adapter. The exit code
is the number of cases that are wrong or raise.
"""

import argparse
import ast
import importlib
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reptool

# Operations that move numbers, and those of the checks that a deployed model makes of its settings.
FREE = ("view", "_unsafe_view", "t", "transpose", "permute", "detach", "alias", "clone", "_to_copy", "unsqueeze",
        "squeeze", "slice", "select", "split", "split_with_sizes", "unbind", "expand", "lift_fresh", "copy_", "empty",
        "_local_scalar_dense", "is_same_size", "as_strided", "arange", "zeros_like", "empty_like",
        "eq", "ne", "bitwise_and", "bitwise_or", "all")  # fmt: skip


class Computing(TorchDispatchMode):
    """Counts the operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func.overloadpacket.__name__) not in FREE:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def computed(model: nn.Module, x: Tensor) -> tuple[Counter[str], Tensor]:
    """What one call computes with, and its output."""
    with torch.no_grad(), Computing() as counted:
        out = model(x)
    return counted.seen, out


def table(path: Path) -> dict[str, Any]:
    """The names of a file of tests up to its first test, with what PEFT has of the names that it imports."""
    sys.modules["cases"] = ModuleType("cases")
    names = vars(sys.modules["cases"])
    for part in ast.parse(path.read_text()).body:
        if isinstance(part, ast.ImportFrom) and (part.module or "").partition(".")[0] == "peft":
            module = importlib.import_module(part.module or "")
            names |= {a.name: getattr(module, a.name, None) for a in part.names}
        elif isinstance(part, ast.ClassDef) and part.name.startswith("Test"):
            break
        elif not isinstance(part, ast.ImportFrom) or not part.level:
            exec(compile(ast.Module([part], []), str(path), "exec"), names)
    return names


def drawn(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a case with an adapter that does something, as PEFT's tests choose them."""
    name = kind.__name__
    if name in ("LNTuningConfig", "VBLoRAConfig") or given.get("init_weights") == "bat":
        return given
    own = {"LoraConfig": "init_lora_weights", "AdaLoraConfig": "init_lora_weights", "IA3Config": "init_ia3_weights"}
    return {**given, own.get(name, "init_weights"): "uniform" if name == "TinyLoraConfig" else False}


def checked(names: dict[str, Any], model_id: str, kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """One case, deployed."""
    base = names["MockTransformerWrapper"].from_pretrained(model_id).eval()
    x = torch.arange(90).view(9, 10)
    wanted_work, _ = computed(base, x)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, kind(**drawn(kind, given))).eval()
    work, wanted = computed(adapted, x)
    began = time.perf_counter()
    deployed = reptool.deploy(adapted.get_base_model(), x, verify="fast")
    seconds = round(time.perf_counter() - began, 1)
    left, got = computed(deployed, x)
    off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9))
    over = left - wanted_work
    state = "wrong" if not off < 1e-3 else "left" if over else "collapsed"
    why = [] if not over else [(r.code.value, r.sentence, r.nodes[:2]) for r in reptool.report(deployed).refusals]
    return {"state": state, "off": off, "left": over, "adds": work - wanted_work, "why": why, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", type=Path, help="test_custom_models.py of a checkout of PEFT")
    parser.add_argument("--every", type=int, default=1, help="each K-th case")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first N cases")
    parser.add_argument("--match", default="", help="cases whose name has this in it")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names, states, bad = table(options.tests), Counter[str](), 0
    for case, model_id, kind, given in names["TEST_CASES"][options.skip :: options.every]:
        if kind is None or options.match not in case:
            continue
        try:
            row = checked(names, model_id, kind, given)
        except Exception as error:  # one case's failure must not hide the others' rows
            row = {"state": "raises", "error": f"{type(error).__name__}: {error}"[:400]}
        bad += row["state"] in ("wrong", "raises")
        states[row["state"]] += 1
        line = json.dumps({"case": case, "model": model_id, "kind": kind.__name__.removesuffix("Config"), **row})
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")
        print(case, row["state"], {k: v for k, v in row.items() if k in ("left", "why", "error")}, flush=True)
    print(dict(states))
    return bad


if __name__ == "__main__":
    sys.exit(main())
