"""Print what the README's example prints: `python -m tests.readme`."""

import os
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def example(text: str) -> str:
    """The first block of Python in `text`."""
    block = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1]


def shown(text: str) -> str:
    """The block of output behind it."""
    block = re.search(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1]


if __name__ == "__main__":
    os.environ["COLUMNS"] = "120"  # reports are as wide as the terminal
    exec(compile(example(README.read_text()), "README.md", "exec"), {})
