"""The structure of the package, as CONTRIBUTING states it: what a stranger can rely on in every folder."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1] / "reptool"
FILES = sorted(ROOT.rglob("*.py"))
MOST_FILES, MOST_LINES, MOST_BRANCHES = 10, 40, 12
MARK = "# long: "
"""Behind the signature of a function that is longer, with the reason."""
LARGE_FOLDERS = {"blocks": "one file for each published block, under the name that users' pickles hold"}
TABLES = {
    "lift": "reads operations",
    "ir": "the vocabulary of the graph",
    "capture": "what symbolic values do, and functions that torch does not dispatch",
    "probing": "operations below torch's functions, as dispatch names them",
    "frontends/aten.py": "operations of exported programs, as functions of torch",
    "plan/inference": "ranks and constants by operation",
    "plan/settled.py": "activations, which keep every axis",
    "report/left.py": "what nothing reads is known by its name",
    "rewrite/guard_inference.py": "what code asks of a tensor",
    "pysource/globals_read.py": "modes of torch that code asks for",
    "testing": "random values, and functions that are no layers",
}
"""Where names of operations may stand."""


def relative(path: Path) -> str:
    """A file as the tables here name it."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text())


# --- folders
@pytest.mark.parametrize("folder", sorted({p.parent for p in FILES}), ids=lambda p: p.name)
def test_a_folder_has_few_files_and_says_what_it_is_for(folder: Path) -> None:
    init = folder / "__init__.py"
    told = ast.get_docstring(tree_of(init))
    assert told
    assert told.splitlines()[0].endswith((".", "`", ":"))
    if relative(folder) not in LARGE_FOLDERS:
        names = sorted(p.name for p in folder.glob("*.py") if p != init)
        assert len(names) <= MOST_FILES, names


def test_what_is_excused_exists() -> None:
    for name in (*LARGE_FOLDERS, *TABLES):
        assert (ROOT / name).exists(), name


# --- tests
COVERED = {
    "__main__.py": "cli/test_main.py",
    "algebra/compose.py": "algebra/test_laws.py",
    "algebra/operands.py": "algebra/test_laws.py",
    "algebra/work.py": "plan/test_cost.py",
    "api/accept.py": "frontends/test_given.py",
    "api/pipeline/modules.py": "api/test_deploy.py",
    "api/reporting.py": "report/test_data.py",
    "api/rules_given.py": "api/flat/test_rewriting.py",
    "api/pipeline/tracing.py": "api/test_deploy.py",
    "api/pipeline/unit.py": "api/test_deploy.py",
    "api/work.py": "api/test_deploy.py",
    "blocks/_activation.py": "blocks/test_options.py",
    "blocks/_checks.py": "blocks/test_options.py",
    "blocks/behind.py": "blocks/test_compose.py",
    "blocks/switched.py": "test_switch.py",
    "blocks/weight_maps.py": "blocks/test_parametrizations.py",
    "capture/graph_builder.py": "capture/test_tracer.py",
    "errors.py": "test_refusals.py",
    "expansion/blocks/adapter.py": "expansion/blocks/test_table.py",
    "expansion/blocks/geometry.py": "expansion/blocks/test_table.py",
    "expansion/blocks/kinds.py": "expansion/blocks/test_table.py",
    "frontends/call_samples.py": "capture/test_tracer.py",
    "frontends/examples.py": "testing/test_testing.py",
    "frontends/exported.py": "programs/test_exported.py",
    "frontends/graph.py": "programs/test_exported.py",
    "frontends/inputs.py": "frontends/test_given.py",
    "frontends/onnx/arithmetic.py": "programs/test_onnx.py",
    "frontends/onnx/axes.py": "programs/test_onnx.py",
    "frontends/onnx/graph.py": "programs/test_onnx.py",
    "frontends/onnx/layers.py": "programs/test_onnx.py",
    "frontends/onnx/node.py": "programs/test_onnx.py",
    "frontends/onnx/operators.py": "programs/test_onnx.py",
    "frontends/onnx/resampling.py": "programs/test_onnx.py",
    "frontends/onnx/valid.py": "programs/test_onnx.py",
    "fusions/distribute.py": "passages/test_passages.py",
    "ir/ops.py": "ir/test_spec.py",
    "ir/trace.py": "ir/test_spec.py",
    "lift/constants.py": "lift/test_products.py",
    "lift/layers/convolutions.py": "lift/test_reading.py",
    "lift/layers/transposed.py": "lift/test_reading.py",
    "lift/layout/identities.py": "lift/test_reading.py",
    "lift/layout/padding.py": "lift/layout/test_slices.py",
    "lift/layout/views.py": "lift/layout/test_orders.py",
    "lift/norms.py": "lift/test_reading.py",
    "models/tensor_arguments.py": "frontends/test_given.py",
    "passages/arrangements.py": "passages/test_passages.py",
    "passages/norm_affine.py": "passages/test_own_affines.py",
    "passages/passage.py": "passages/test_passages.py",
    "passages/poolings.py": "passages/test_passages.py",
    "passages/spread.py": "plan/spreading/test_spreads.py",
    "passages/views.py": "passages/test_passages.py",
    "plan/inference/constants.py": "plan/inference/test_facts.py",
    "plan/inference/ranks.py": "plan/inference/test_facts.py",
    "plan/options.py": "api/test_deploy.py",
    "plan/pricing.py": "plan/test_select.py",
    "plan/rules.py": "api/test_deploy.py",
    "plan/spreading/ahead.py": "plan/spreading/test_way.py",
    "plan/spreading/back.py": "plan/spreading/test_way.py",
    "plan/spreading/code.py": "plan/spreading/test_spreads.py",
    "probing/operations.py": "testing/test_testing.py",
    "probing/sandbox.py": "probing/test_impulse.py",
    "probing/trials.py": "probing/test_impulse.py",
    "programs/collapse.py": "programs/test_exported.py",
    "programs/holders.py": "programs/test_exported.py",
    "programs/onnx_compare.py": "programs/test_exported.py",
    "programs/onnx_writing.py": "programs/test_exported.py",
    "programs/operators.py": "programs/test_exported.py",
    "programs/reporting.py": "programs/test_exported.py",
    "programs/writing.py": "programs/test_exported.py",
    "pysource/globals_read.py": "safety/test_settings.py",
    "pysource/module_info.py": "capture/test_patching.py",
    "refusal.py": "test_refusals.py",
    "report/fields.py": "report/test_data.py",
    "report/page.py": "report/test_data.py",
    "report/text.py": "report/test_data.py",
    "report/words.py": "report/test_data.py",
    "rewrite/codegen/body.py": "rewrite/codegen/test_cutter.py",
    "rewrite/codegen/edits.py": "rewrite/codegen/test_cutter.py",
    "rewrite/codegen/values.py": "rewrite/codegen/test_cutter.py",
    "rewrite/method_source.py": "rewrite/codegen/test_cutter.py",
    "rewrite/other_graphs.py": "surgery/test_surgeon.py",
    "rewrite/setting_checks.py": "safety/test_settings.py",
    "rules/channelwise.py": "api/flat/test_rewriting.py",
    "rules/layers.py": "api/flat/test_rewriting.py",
    "rules/reading.py": "rules/test_lifting.py",
    "rules/rule.py": "api/flat/test_rewriting.py",
    "runtime/gates/calls.py": "runtime/gates/test_gate.py",
    "runtime/gates/chain.py": "runtime/gates/test_gate.py",
    "runtime/gates/check.py": "runtime/gates/test_gate.py",
    "runtime/gates/in_place.py": "runtime/gates/test_gate.py",
    "runtime/gates/marker.py": "runtime/gates/test_gate.py",
    "runtime/gates/release.py": "runtime/gates/test_gate.py",
    "runtime/gates/whole.py": "runtime/gates/test_gate.py",
    "runtime/legacy.py": "runtime/test_old_pickles.py",
    "runtime/method.py": "runtime/test_subclass.py",
    "safety/methods.py": "safety/test_check.py",
    "safety/verdict.py": "safety/test_ownership.py",
    "surgery/apply.py": "surgery/test_surgeon.py",
    "surgery/conversions.py": "surgery/test_surgeon.py",
    "surgery/editing/draft.py": "surgery/test_surgeon.py",
    "surgery/editing/dropped.py": "surgery/test_surgeon.py",
    "surgery/editing/layer_call.py": "surgery/test_surgeon.py",
    "surgery/editing/left_out.py": "surgery/test_surgeon.py",
    "surgery/editing/operate.py": "surgery/test_surgeon.py",
    "surgery/fallbacks/fallback.py": "surgery/fallbacks/test_fallbacks.py",
    "surgery/fallbacks/keeping.py": "surgery/fallbacks/test_fallbacks.py",
    "surgery/graph_modules.py": "surgery/test_surgeon.py",
    "surgery/placing/asked.py": "surgery/test_surgeon.py",
    "surgery/placing/functional.py": "surgery/test_surgeon.py",
    "surgery/placing/placement.py": "surgery/test_surgeon.py",
    "surgery/placing/side_by_side.py": "plan/resolutions/test_joined.py",
    "surgery/placing/use_check.py": "surgery/test_surgeon.py",
    "surgery/site.py": "surgery/test_surgeon.py",
    "surgery/traced.py": "surgery/test_surgeon.py",
    "surgery/units.py": "surgery/test_surgeon.py",
    "testing/_apply.py": "testing/test_testing.py",
    "testing/_collapse.py": "testing/test_testing.py",
    "testing/_equivalence.py": "testing/test_testing.py",
    "testing/_perturbing/calls.py": "testing/test_perturb.py",
    "testing/_perturbing/change.py": "testing/test_perturb.py",
    "testing/_perturbing/code.py": "testing/test_perturb.py",
    "testing/_perturbing/outcome.py": "testing/test_perturb.py",
    "testing/_perturbing/places.py": "testing/test_perturb.py",
    "testing/_perturbing/session.py": "testing/test_perturb.py",
    "testing/_perturbing/snapshot.py": "testing/test_perturb.py",
    "testing/_perturbing/sources.py": "testing/test_perturb.py",
    "testing/_perturbing/state.py": "testing/test_perturb.py",
    "testing/_perturbing/values.py": "testing/test_perturb.py",
    "testing/_randomize.py": "testing/test_testing.py",
    "testing/_ruled/applied.py": "testing/test_rules.py",
    "testing/_ruled/trial.py": "testing/test_rules.py",
    "testing/_strategies.py": "testing/test_testing.py",
    "verify/deformable.py": "lift/layers/test_deformable.py",
    "verify/originals.py": "verify/test_methods.py",
    "verify/regions.py": "api/test_deploy.py",
    "verify/spreads.py": "plan/spreading/test_spreads.py",
}
"""Files without a test file of their name, and the tests that see what they do."""
NO_NAME = {"__main__": "main"}


def where_tested(path: Path) -> str:
    """Where the tests of a file are."""
    stem = NO_NAME.get(path.stem, path.stem.lstrip("_"))
    return (Path(relative(path)).parent / f"test_{stem}.py").as_posix()


def test_each_file_has_a_test_file_or_is_seen_by_one_that_is_named() -> None:
    tests = Path(__file__).parent
    files = {relative(p): where_tested(p) for p in FILES if p.name != "__init__.py"}
    without = {f for f, test in files.items() if not (tests / test).exists()}
    assert sorted(without - COVERED.keys()) == []
    assert sorted(COVERED.keys() - without) == []  # it has one by now, or is gone
    assert sorted(t for t in set(COVERED.values()) if not (tests / t).exists()) == []


# --- circles
def name_of(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """What a file imports when it is imported or its functions run; what only types need is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        yield from imports_of(node, known)


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Files that import each other, by what is left when whatever imports nothing that is left is taken away."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while free := [n for n, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    reach = {n: _reached(n, left) for n in left}
    return [c for c in {frozenset(m for m in reach[n] if n in reach[m]) for n in left} if c]  # type: ignore[misc]


def _reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    stack = list(arrows[start])
    while stack:
        name = stack.pop()
        if name in arrows and name not in seen:
            seen.add(name)
            stack += arrows[name]
    return seen


def test_no_files_import_each_other() -> None:
    known = {name_of(p) for p in FILES}
    arrows = {name_of(p): set(imports_of(tree_of(p), known)) - {name_of(p)} for p in FILES}
    assert sum(map(len, arrows.values())) > 500
    assert circles(arrows) == []


def test_a_circle_is_seen() -> None:
    found = circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}})
    assert found == [{"b", "c"}]


# --- functions
Function = ast.FunctionDef | ast.AsyncFunctionDef


def size_of(function: Function) -> tuple[int, int]:
    """Lines of a function's body but for its docstring, and how often it branches."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = 0 if not body else (function.end_lineno or 0) - body[0].lineno + 1
    branches = sum(isinstance(n, (ast.If, ast.For, ast.While, ast.ExceptHandler)) for n in ast.walk(function))
    return lines, branches


def too_long(source: str) -> Iterator[str]:
    """Functions above the limits without a reason."""
    rows = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Function):
            continue
        lines, branches = size_of(node)
        signature = rows[node.lineno - 1 : node.body[0].lineno - 1] or rows[node.lineno - 1 : node.lineno]
        excused = any(MARK in row and len(row.partition(MARK)[2]) > 20 for row in signature)
        if (lines > MOST_LINES or branches > MOST_BRANCHES) and not excused:
            yield f"{node.name}: {lines} lines, {branches} branches"


def test_a_function_is_short_or_says_why_not() -> None:
    assert [f"{relative(p)}: {found}" for p in FILES for found in too_long(p.read_text())] == []


def test_a_long_function_is_seen_and_excused_by_its_reason_alone() -> None:
    body = "".join(f"    x = {i}\n" for i in range(MOST_LINES + 1))
    assert list(too_long(f"def f():\n{body}")) == ["f: 41 lines, 0 branches"]
    assert list(too_long(f"def f():  {MARK}\n{body}"))
    assert not list(too_long(f"def f():  {MARK}one state machine, state by state\n{body}"))
    assert list(too_long("def f(x):\n" + "    if x: pass\n" * (MOST_BRANCHES + 1))) == ["f: 13 lines, 13 branches"]


# --- tables
def tables(tree: ast.Module) -> Iterator[str]:
    """Constants of a module that are collections of names of operations."""
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        texts = {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        names = {t for t in texts if not t.startswith("__")}
        if len(names) >= 3 and sum(map(is_operation, names)) > 0.8 * len(names):
            yield ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)


def is_operation(name: str) -> bool:
    """Whether torch or Python computes something under a name."""
    homes = (torch, torch.Tensor, torch.nn.functional, operator)
    return any(callable(getattr(home, name, None)) for home in homes)


def test_names_of_operations_stand_where_operations_are_read() -> None:
    found = {f"{relative(p)}: {n}" for p in FILES for n in tables(tree_of(p))}
    homes = {h for h in TABLES if any(f.startswith(h) for f in found)}
    assert homes == TABLES.keys()
    assert sorted(f for f in found if not f.startswith(tuple(TABLES))) == []
