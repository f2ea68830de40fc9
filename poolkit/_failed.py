"""Failed: the errors that are also a `subprocess.CalledProcessError`. They belong to `poolkit.errors`."""

from __future__ import annotations

from subprocess import CalledProcessError
from typing import Any

from poolkit._root_error import PoolkitError


class CommandFailed(PoolkitError, CalledProcessError):
    """A program exited with a code that was not asked for, or died of a signal that poolkit did not send.

    Attributes:
        completed: what it did, as a `poolkit.CompletedCommand`.
        returncode: as subprocess has it: the code, or the negative number of a signal.
        exitcode: the exit code, or None when a signal ended it.
        signal: the signal's name, for example "SIGSEGV", or None.
        cmd: its arguments.
        stdout, output: what it wrote.
        stderr: what it wrote there.
    """

    __module__ = "poolkit.errors"  # where it is to be found, also by pickle

    def __init__(self, message: str = "", *, completed: Any = None) -> None:
        Exception.__init__(self, message)
        self.completed = completed
        self.returncode = -1 if completed is None else completed.returncode
        self.exitcode: int | None = None if completed is None else completed.exitcode
        self.signal: str | None = None if completed is None else completed.signal
        self.cmd = () if completed is None else completed.argv
        self.output = None if completed is None else completed.stdout
        self.stderr = None if completed is None else completed.stderr

    def __str__(self) -> str:
        """Return the message: what `CalledProcessError` makes of its parts says less."""
        return str(self.args[0])


class OutputLimitExceeded(CommandFailed):
    """A program wrote more to its standard output than was to be kept, and was stopped.

    Attributes:
        limit: how much that is, in bytes; `stdout` has so many.
    """

    __module__ = "poolkit.errors"  # see above

    def __init__(self, message: str = "", *, completed: Any = None, limit: int | None = None) -> None:
        super().__init__(message, completed=completed)
        self.limit = limit
