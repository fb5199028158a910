"""Command line of the demo: `python -m reptool.demo --help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from reptool.demo import show
from reptool.demo.others import DemoError
from reptool.demo.run import run_digits, run_model
from reptool.errors import ReptoolError

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m reptool.demo", description="Train, collapse, check, export, compare."
    )
    add = options.add_argument
    add(
        "--model",
        metavar="SPEC",
        help="timm:NAME, torchvision:NAME, hf:NAME or package.module:callable",
    )
    add("--epochs", type=int, default=20, help="passes over the training images (default: %(default)s)")
    add("--seed", type=int, default=0, help="chooses weights, split and images (default: %(default)s)")
    add("--threads", type=int, default=2, help="threads that PyTorch may use (default: %(default)s)")
    add("--onnx", type=Path, default=Path("demo.onnx"), metavar="FILE", help="written (default: %(default)s)")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if every prediction stayed the same, 1 if one differs, 2 if it could not be run."""
    options = parser().parse_args(arguments)
    console = Console()
    torch.set_num_threads(options.threads)
    show.environment(console)
    try:
        if options.model:
            same = run_model(console, options.onnx, options.model, seed=options.seed)
        else:
            same = run_digits(console, options.onnx, epochs=options.epochs, seed=options.seed)
    except (DemoError, ReptoolError, ModuleNotFoundError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}")
        if isinstance(error, ModuleNotFoundError):
            console.print(escape("the demo's packages come with: pip install 'reptool[demo]'"))
        return 2
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
