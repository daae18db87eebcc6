"""Where maps wait for the next pass: in memory, and beyond its bounds in a temporary file."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch import Tensor

from artkernels.errors import UserError

from .maps import Shape

__all__ = ["Store", "check_disk"]


class Store:
    """A map, its first rows in memory, the others in a file that has no name and is gone when it is closed.

    A memory map would count as memory of the process. What is written and read by calls is in the system's cache, as
    long as nobody else needs that.

    Args:
        shape: of the map.
        dtype: of its values.
        resident: how many of its rows are in memory.
        device: whose memory that is.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, resident: int, device: torch.device) -> None:
        self._resident, self._dtype, self._device = resident, dtype, device
        self._row = shape[1:]
        self._row_bytes = shape.width * shape.channels * dtype.itemsize
        self._memory = torch.empty((resident, *self._row), dtype=dtype, device=device)
        self._file: IO[bytes] | None = None
        if resident < shape.height:
            with _disk():
                self._file = tempfile.TemporaryFile(prefix="artkernels-", buffering=0)  # noqa: SIM115

    def write(self, first: int, rows: Tensor) -> None:
        """Rows, [n, W, C], from the row ``first`` on."""
        held = max(0, min(self._resident - first, len(rows)))
        if held:
            self._memory[first : first + held] = rows[:held]
        if held < len(rows):
            with _disk():
                self._transfer(os.pwritev, first + held, rows[held:].cpu().contiguous())

    def read(self, first: int, end: int) -> Tensor:
        """Rows ``first`` to ``end``, on the device; where all of them are in memory, that memory itself."""
        held = self._memory[first:end]
        if end <= self._resident:
            return held
        read = torch.empty((end - first - len(held), *self._row), dtype=self._dtype)
        with _disk():
            self._transfer(os.preadv, first + len(held), read)
        read = read.to(self._device)
        return torch.cat([held, read]) if len(held) else read

    def close(self) -> None:
        """Gives back memory and disk."""
        self._memory = torch.empty(0)
        if self._file is not None:
            self._file.close()

    def _transfer(self, call: Callable[[int, list[Any], int], int], first: int, rows: Tensor) -> None:
        assert self._file is not None
        buffer = memoryview(rows.view(torch.uint8).numpy().data).cast("B")
        offset = (first - self._resident) * self._row_bytes
        while buffer:
            done = call(self._file.fileno(), [buffer], offset)
            if not done:
                raise OSError("the temporary file is shorter than what was written to it")
            buffer, offset = buffer[done:], offset + done


def check_disk(needed: int) -> None:
    """Raise the UserError that stores would raise who write ``needed`` bytes to files at one time."""
    if not needed:
        return
    with _disk():
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder):
            system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    if free < needed:
        raise UserError(
            f"{folder}: feature maps need {needed / 2**30:.1f} GiB on disk and {free / 2**30:.1f} GiB are free: name a "
            "folder with more in TMPDIR, or allow more memory"
        )


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or os.environ.get("TMPDIR", "no folder")
        raise UserError(
            f"{where}: feature maps cannot be kept here ({error.strerror or error}): name another folder in TMPDIR, or "
            "allow more memory"
        ) from error
