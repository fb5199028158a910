"""The entry points, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m reptool` in a folder."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )


def test_python_m_reptool_runs_models_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"
    )
    done = process("-m", "reptool", "deploy", "mynets:net", "--require", "no_batchnorm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "batch normalizations" in done.stdout
    done = process("-m", "reptool", "deploy", "mynets:no", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'mynets:no' could not be built")
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_typer_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['typer'] = None; from reptool.cli.main import main; sys.exit(main(['doctor']))"
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: the command line needs typer; pip install 'reptool[cli]'\n"
