"""The entry point of the command line: one paragraph for an error, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reptool.errors import ReptoolError, RequirementError, VerificationError

INTERRUPTED = 130
NEEDS = "the command line needs typer; pip install 'reptool[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        0 where it is so, 1 where the answer is no (a requirement, a comparison), 2 where it could not be done, 130
        after an interrupt.
    """
    try:
        from reptool.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "click"):
            raise
        print(f"error: {NEEDS}", file=sys.stderr)
        return 2
    try:
        found = app(list(sys.argv[1:] if arguments is None else arguments), "reptool", standalone_mode=False)
    except (RequirementError, VerificationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ReptoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        return _of_click(error)
    return _told(found if isinstance(found, int) else 0)


def _of_click(error: Exception) -> int:
    """Wrong options, which typer words, and its own ways to end; everything else is a fault of ours."""
    show = getattr(error, "show", None)
    if callable(show):
        show(sys.stderr)
        return 2
    code = getattr(error, "exit_code", INTERRUPTED if type(error).__name__ == "Abort" else None)
    if code is None:
        raise error
    return _told(int(code))


def _told(code: int) -> int:
    if code == INTERRUPTED:
        print("error: interrupted; no file was left half written", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
