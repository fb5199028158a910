"""What a type checker says of the public functions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CODE = """
import torch
from torch import nn
import reptool
from reptool.errors import InputError

class Net(nn.Module):
    width: int = 3

def flag() -> bool:
    return True

reveal_type(reptool.deploy(Net()))
reveal_type(reptool.deploy(Net(), torch.ones(1), inplace=True, exclude=[nn.Conv2d, "head"]).width)
reveal_type(reptool.deploy(Net(), flatten=False))
reveal_type(reptool.deploy(Net(), flatten=True))
reveal_type(reptool.deploy(Net(), flatten=flag()))
reptool.deploy(3)
reptool.deploy(Net(), include=3)
"""


@pytest.mark.slow  # mypy reads torch
def test_deploy_gives_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    root = Path(__file__).parents[1]
    file = tmp_path / "user.py"
    file.write_text(CODE)
    monkeypatch.setenv("MYPYPATH", str(root))
    said, errors, _ = api.run(["--config-file", str(root / "pyproject.toml"), "--no-incremental", str(file)])
    assert not errors
    revealed = [name.removeprefix("builtins.") for name in re.findall(r'Revealed type is "(.*)"', said)]
    assert revealed == [
        "user.Net",
        "int",
        "user.Net",
        "torch.fx.graph_module.GraphModule",
        "user.Net | torch.fx.graph_module.GraphModule",
    ], said
    assert len(re.findall(r"error: ", said)) == 2, said
