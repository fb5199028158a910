"""What the package asks for: what it imports is what it says it needs, in every place that says so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "reptool"


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.relative_to(ROOT).parent.parts) if node.level else ""
            home = f"{base}.{node.module}" if base and node.module else node.module or base
            found |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_nothing_outside_of_testing_imports_it_or_what_tests_need() -> None:
    for path in SOURCES:
        found = imported(path)
        tests = {name for name in found if re.match(r"(pytest|hypothesis)(\.|$)", name)}
        kit = {name for name in found if re.match(r"reptool\.testing(\.|$)", name)}
        if PACKAGE / "testing" in path.parents:
            assert not {t for t in tests if t.startswith("pytest")}, path
            assert not tests or path.name in ("_strategies.py", "_rules.py"), path
        else:
            assert not tests | kit, path


def test_the_rule_sees_an_import(tmp_path: Path) -> None:
    file = PACKAGE / "demo" / "measure.py"
    assert "reptool.probing.operations.count_operations" in imported(file)


def test_the_test_kit_without_hypothesis_does_all_but_draw() -> None:
    code = """
import sys
sys.modules["hypothesis"] = sys.modules["pytest"] = None
import reptool
from reptool.testing import assert_collapses, assert_equivalent, count_operations, randomize
from torch import nn
assert_collapses(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)))
try:
    from reptool.testing import kernels
except ImportError as error:
    assert "pip install 'reptool[test]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    (tested,) = re.findall(r"^TORCH_OLDEST \?= torch==([\d.]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tested.startswith(f"{oldest}.")
    assert f"torch {oldest} or newer" in (ROOT / "README.md").read_text()


def test_the_demo_needs_nothing_that_is_for_tests() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (demo,) = re.findall(r"^demo = \[(.*?)\]$", text, re.MULTILINE)
    assert "pytest" not in demo
    assert not re.search(r"reptool\[[^]]*test", demo)


def test_ci_runs_what_its_last_line_says() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    (targets,) = re.findall(r"^for target in (.*); do$", text, re.MULTILINE)
    assert "test-install" in targets.split()
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets.split())
    assert f"all passed: {targets}" in text
