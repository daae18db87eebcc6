"""Files that are written whole or not at all, and the reasons why one cannot be read, or written, in a sentence."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artkernels.errors import UserError

__all__ = ["check_writable", "readable", "whole_or_not_at_all"]


@contextmanager
def readable(path: Path | zipfile.Path, needed: str) -> Iterator[None]:
    """For a block that reads ``path``, ``needed`` being what must be there ("a picture").

    Raises:
        UserError: it is missing, a folder, or not to be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder, {needed} is needed") from error
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read it") from error
    except OSError as error:
        if error.errno is None:  # not the system's: Pillow has them for damaged files
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def check_writable(path: Path) -> None:
    """Raise the UserError that :func:`whole_or_not_at_all` would raise for ``path``, leaving no trace."""
    if path.is_dir():
        raise UserError(f"{path}: a folder of that name is in the way")
    temporary = _temporary(path)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """A file beside ``path`` for the block to write, forced to the disk and renamed to it when the block ends well.

    At no moment is there half a file at ``path``; when the block fails, what was there stays.

    Raises:
        UserError: the folder is missing, or the file cannot be written.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _unwritable(path: Path, error: OSError) -> UserError:
    if not path.parent.is_dir():
        return UserError(f"{path}: the folder {path.parent} does not exist")
    return UserError(f"{path}: cannot be written ({error.strerror or error})")
