"""What a new user has: the wheel, its run-time dependencies and nothing else (`make test-install`).

Runs with the Python of an environment that holds no more: every module of the package is imported, README's ten lines
and the code of each page of the docs run, and what needs more says what to install.

    python -I tests/bare.py dist/reptool-*.tar.gz
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import pkgutil
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ABSENT = ("pytest", "hypothesis", "sklearn", "onnx", "timm", "torchvision", "matplotlib", "typer")
WITH_MORE = (
    "reptool.testing._strategies", "reptool.testing._rules", "reptool.analysis.plots", "reptool.frontends.onnx.graph",
    "reptool.programs.onnx_writing", "reptool.cli.app",
)  # fmt: skip


def nothing_else_is_installed() -> None:
    """The environment is as empty as it is said to be, and the package is the installed one."""
    found = [name for name in ABSENT if importlib.util.find_spec(name) is not None]
    assert not found, f"{found} are installed, so that nothing is shown"
    import reptool

    home = Path(reptool.__file__ or "").resolve()
    assert Path(sys.prefix).resolve() in home.parents, f"reptool was imported from {home}"
    assert reptool.__version__ == importlib.metadata.version("reptool")


def every_module_imports() -> None:
    """All but those that are there for an extra."""
    import reptool

    for found in pkgutil.walk_packages(reptool.__path__, "reptool."):
        if found.name not in WITH_MORE and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    loaded = [name for name in ABSENT if name in sys.modules]
    assert not loaded, loaded


def page_runs(path: Path) -> None:
    """A page's blocks of Python in order, up to the first one that needs an extra; at least one runs."""
    names: dict[str, object] = {"__name__": "page"}
    blocks = BLOCK.findall(path.read_text())
    ran = 0
    for source in blocks:
        if any(re.search(rf"^\s*(from|import) {name}\b", source, re.MULTILINE) for name in ABSENT):
            break
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, str(path), "exec"), names)
        ran += 1
    assert ran, f"no code of {path.name} runs without extras"


def what_needs_more_says_so() -> None:
    """The strategies and the demo name what they need; a name that there is not is no import error."""
    import reptool.testing

    said = ""
    try:
        from reptool.testing import kernels  # noqa: F401
    except ImportError as error:
        said = str(error)
    assert "reptool[test]" in said, said or "the strategies do without Hypothesis"
    assert not hasattr(reptool.testing, "nothing")
    done = subprocess.run([sys.executable, "-I", "-m", "reptool.demo"], capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "reptool[demo]" in done.stdout, done.stdout
    done = subprocess.run([sys.executable, "-I", "-m", "reptool", "doctor"], capture_output=True, text=True)
    assert (done.returncode, "reptool[cli]" in done.stderr) == (2, True), done


def source_archive_is_whole(archive: Path) -> None:
    """Tests, docs and benchmarks are in the source archive, to the last file, and nothing that a run left."""
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("tests", "docs", "benchmarks", "reptool", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "Makefile",
        "mkdocs.yml",
        "pyproject.toml",
    }
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if "__pycache__" in name]


def _why(check: Callable[[], None]) -> str:
    """Why a check failed, '' if it did not."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(archive: str) -> int:
    """Run all of them, each by its name; 1 if one fails."""
    pages = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if BLOCK.search(p.read_text()))]
    checks: dict[str, Callable[[], None]] = {
        "nothing else is installed": nothing_else_is_installed,
        "every module imports": every_module_imports,
        **{f"{page.name} runs": (lambda page=page: page_runs(page)) for page in pages},  # type: ignore[misc]
        "what needs more says so": what_needs_more_says_so,
        "the source archive is whole": lambda: source_archive_is_whole(Path(archive)),
    }
    failed = 0
    archive = str(Path(archive).resolve())
    for name, check in checks.items():
        with tempfile.TemporaryDirectory() as empty:  # each in a folder of its own: pages write files of one name
            os.chdir(empty)
            why = _why(check)
            os.chdir(ROOT)
        failed += bool(why)
        print(f"FAILED {name}: {why}" if why else f"ok     {name}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
