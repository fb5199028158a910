"""Sites in the executed programs of timm's models that were neither folded nor named in the report.

    python benchmarks/unnamed.py [--models NAME ...] [--list FILE] [--every K] [--skip N] [--out FILE]

A site is an operation with constants of the model's own that a layer next to it might take: a norm, a layer whose
weight is computed at every call, a scale or shift by a constant along one axis. `reptool.testing.unnamed_sites` finds
it in the operations that a forward really runs. Each model is deployed bare and with example inputs. The exit code is
the number of models with sites left unnamed.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch

import reptool
from reptool.testing import executed_sites, unnamed_sites


def checked(name: str, size: list[int]) -> dict[str, Any]:
    """One model of timm, deployed bare and with inputs."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    images = torch.randn(1, *size)
    row: dict[str, Any] = {"model": name}
    for how in ("bare", "inputs"):
        began = time.perf_counter()
        deployed = reptool.deploy(model, None if how == "bare" else images, verify=False)
        seconds = round(time.perf_counter() - began, 1)
        kinds = Counter(site.kind for site in executed_sites(deployed, images))
        left = unnamed_sites(deployed, reptool.report(deployed), images)
        row[how] = {"sites": dict(kinds), "unnamed": [(s.kind, s.path) for s in left], "seconds": seconds}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME", help="timm's names")
    parser.add_argument("--list", type=Path, help="JSON: rows of which the first item is a name and the fifth its size")
    parser.add_argument("--every", type=int, default=1, help="each K-th model of the list")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first N models of the list")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each model; those in it are left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
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
        rest = json.dumps({k: v for k, v in row.items() if k != "model"})
        print(name, "SILENT" if silent else "ok", rest, flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
