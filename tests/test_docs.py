"""The pages of docs/ that show code: it runs, in order, and the tests in it pass.

`tests/bare.py` runs what needs no extra once more in an environment that has none.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import settings
from torch._inductor import config

DOCS = Path(__file__).parents[1] / "docs"
RUN = sorted(page.name for page in DOCS.glob("*.md") if "```python" in page.read_text())
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return BLOCK.findall((DOCS / page).read_text())


@pytest.mark.parametrize("page", RUN)
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    try:
        with config.patch(freezing=False, joint_custom_pre_pass=None):  # pages set them for good
            for source in code_of(page):
                exec(compile(source, page, "exec"), names)
    finally:
        settings.load_profile("reptool")  # pages set one of their own
    for name, found in names.items():
        if name.startswith("test_") and callable(found):
            found()


def commands_of(page: str) -> list[str]:
    """The commands of reptool on a page, without what is said of them."""
    return re.findall(r"^\$ reptool (.*?)(?:\s+#.*)?$", (DOCS / page).read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", ["cli.md"])
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(code_of(page)[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (DOCS / page).read_text()
    assert len(commands_of(page)) > 5
    for command in commands_of(page):
        line = next(line for line in text.splitlines() if command in line)
        assert main(shlex.split(command)) == ("exit code 1" in line), line
    assert {"net.safetensors", "net.onnx", "net.html", "grown.safetensors"} <= {p.name for p in tmp_path.iterdir()}


def test_three_new_blocks_take_less_than_ten_lines_each() -> None:
    lengths = {}
    for source in code_of("blocks.md"):
        names = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        if any(name.startswith("test_") for name in names):
            assert "assert_collapses" in source
            lengths[names[0]] = sum(bool(line.strip()) for line in source.splitlines())
    assert len(lengths) == 3
    assert max(lengths.values()) < 10


def test_every_file_that_the_architecture_names_exists() -> None:
    root = DOCS.parent
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", (DOCS / "architecture.md").read_text()))
    assert len(named) > 20
    assert [p for p in sorted(named) if not ((root / "reptool" / p).exists() or (root / p).exists())] == []
