"""What the workers of these tests do."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from typing import Any, NoReturn


def run_command(path: str) -> bytes:
    """Run a shell that waits for a child of its own, which holds the pipe too; writes the child's number to a file."""
    script = 'sleep 99 & echo $! >"$0"; wait'
    return subprocess.run(["/bin/sh", "-c", script, path], stdout=subprocess.PIPE, check=True).stdout


def grow_and_die(nbytes: int) -> NoReturn:
    """Use so much memory, then be killed as the kernel kills."""
    ballast = bytearray(nbytes)
    ballast[::4096] = b"x" * len(range(0, nbytes, 4096))  # memory counts when it is touched
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def same_and_peak(value: Any) -> tuple[Any, int]:
    """The value itself, and the most resident memory that this process ever used, in bytes."""
    return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
