"""What this process and the idle template processes hold: memory of their own (USS), descriptors, threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import support


@dataclass(frozen=True)
class Sample:
    """What was held at one moment; memory in bytes."""

    when: str
    owner: int
    template: int  # of the largest
    templates: int
    descriptors: int
    threads: int

    def line(self) -> str:
        """A row of the summary's table."""
        return (
            f"{self.when:<10}{self.owner / 2**20:>8.1f} MiB{self.template / 2**20:>14.1f} MiB"
            f"{self.templates:>11}{self.descriptors:>13}{self.threads:>9}"
        )


def take_sample(when: str) -> Sample:
    """Look at this process, after its free memory was given back, and at the templates that no pool has."""
    with contextlib.suppress(AttributeError):  # not every C library has that
        ctypes.CDLL(None).malloc_trim(0)
    templates = [uss(template.pid) for template in support.idle_templates()]
    return Sample(
        when,
        uss(os.getpid()),
        max(templates, default=0),
        len(templates),
        descriptors(os.getpid()),
        threads(os.getpid()),
    )


def uss(pid: int) -> int:
    """Memory that a process has for itself, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def descriptors(pid: int) -> int:
    """Open descriptors of a process; without the one that lists them."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir())) - (pid == os.getpid())


def threads(pid: int) -> int:
    """Threads of a process, as the kernel counts them."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
