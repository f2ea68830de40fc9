"""A control group with a limit of memory, for tests of what the kernel does where that is used up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import wait_until


@contextlib.contextmanager
def limited_group(nbytes: int) -> Iterator[Path]:
    """A group of its own, whose processes may use so much; the test is skipped where none can be made."""
    tops = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
    for top, limit in tops.items():
        group = top / f"poolkit-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            with contextlib.suppress(OSError):
                (group / limit).write_text(str(nbytes))
                with contextlib.suppress(OSError):  # there is no swap
                    name = "memory.swap.max" if limit == "memory.max" else "memory.memsw.limit_in_bytes"
                    (group / name).write_text("0" if limit == "memory.max" else str(nbytes))
                yield group
                return
        finally:
            wait_until(lambda found=group: not (found / "cgroup.procs").read_text(), "an empty group")
            group.rmdir()
    pytest.skip("no control group with a limit of memory can be made here")
