"""Fifos between the owner and the functions that workers run: one holds workers, another brings instants."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.functions import MARK


class Fifo:
    """The owner's end of a fifo that workers open by its path. It lies in the folder of its trial."""

    def __init__(self, name: str) -> None:
        self.path = str(Path(tempfile.gettempdir(), name))
        os.mkfifo(self.path, 0o600)
        self._fd = os.open(self.path, os.O_RDWR)  # both ways: nobody's open waits for the other side

    def release(self, count: int) -> None:
        """Let `count` holders go."""
        os.write(self._fd, b"x" * count)

    def instant(self) -> float:
        """The next instant that was marked; waits for it."""
        return float(MARK.unpack(os.read(self._fd, MARK.size))[0])

    def close(self) -> None:
        """Close and remove it."""
        os.close(self._fd)
        Path(self.path).unlink()
