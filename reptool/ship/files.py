"""Writing a file whole or not at all.

Everything is written beside the file, under a name of its own, and put in its place once it is complete. A full disk,
an error or an interrupt leaves what was there before, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reptool.errors import FileError, InputError


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends without an error.

    Args:
        path: the file that is made.
        overwrite: whether it may be there already.

    Raises:
        InputError: it is there already, or is a folder.
        FileError: it cannot be written there.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as beside:
    ...         _ = beside.write_text("whole")
    ...     print(Path(folder, "a.txt").read_text(), os.listdir(folder))
    whole ['a.txt']
    """
    target = Path(path)
    check_free(target, overwrite)
    try:
        handle, name = tempfile.mkstemp(target.suffix, f".{target.stem[:80]}.", target.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(target, error) from error
    beside = Path(name)
    try:
        try:
            yield beside
            _finish(beside, target, overwrite)
        except OSError as error:
            raise _unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def companion(target: Path, beside: Path, suffix: str, overwrite: bool = False) -> Iterator[None]:
    """Put a second file of the same name in its place as well, when the block ends without an error.

    Args:
        target: the first file that is made.
        beside: where it is written to.
        suffix: of the second one, empty where there is none.
        overwrite: whether it may be there already.

    Raises:
        InputError: it is there already, or is a folder.
        FileError: it cannot be written there.
    """
    if not suffix:
        yield
        return
    made, place = beside.with_suffix(suffix), target.with_suffix(suffix)
    check_free(place, overwrite)
    try:
        yield
        try:
            _finish(made, place, overwrite)
        except OSError as error:
            raise _unwritable(place, error) from error
    finally:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)


def check_free(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise where a file cannot be put; before the work that it takes to make it.

    Args:
        path: the file that is to be made.
        overwrite: whether it may be there already.

    Raises:
        InputError: it is there already, or is a folder.
        FileError: there is no such folder, or it is not writable.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{str(target)!r} is a folder; name a file in it")
    if target.exists() and not overwrite:
        raise InputError(f"{str(target)!r} is there already; name another file, or give overwrite=True")
    if not target.parent.is_dir():
        raise FileError(f"{str(target)!r} cannot be written: there is no folder {str(target.parent)!r}; make it first")
    if not os.access(target.parent, os.W_OK):
        raise FileError(f"{str(target)!r} cannot be written: the folder {str(target.parent)!r} is not writable")


def _finish(beside: Path, target: Path, overwrite: bool) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(beside, 0o666 & ~umask)
    with open(beside, "rb+") as file:
        os.fsync(file.fileno())
    check_free(target, overwrite)  # somebody else may have made it in the meantime
    os.replace(beside, target)


def _unwritable(target: Path, error: OSError) -> FileError:
    why = error.strerror or str(error)
    return FileError(f"{str(target)!r} cannot be written: {why}; what was there before is as it was")
