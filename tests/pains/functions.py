"""What the workers of these tests do."""

from __future__ import annotations

import subprocess


def run_command(path: str) -> bytes:
    """Run a shell that waits for a child of its own, which holds the pipe too; writes the child's number to a file."""
    script = 'sleep 99 & echo $! >"$0"; wait'
    return subprocess.run(["/bin/sh", "-c", script, path], stdout=subprocess.PIPE, check=True).stdout
