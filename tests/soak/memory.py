"""What this process and the idle template processes hold: memory of their own (USS), descriptors, threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import support


@dataclass(frozen=True)
class Sample:
    """What was held at one moment; memory in bytes."""

    when: str
    owner: int
    allocated: int  # of that, what the C library has given out and not got back; 0 where it does not tell
    blocks: int  # that Python has given out to objects
    template: int  # of the largest
    templates: int
    descriptors: int
    threads: int

    def line(self) -> str:
        """A row of the summary's table, under HEAD."""
        return (
            f"{self.when:<8}{self.owner / 2**20:>8.1f} MiB{self.allocated / 2**20:>8.1f} MiB{self.blocks:>13,}"
            f"{self.template / 2**20:>8.1f} MiB{self.templates:>11}{self.descriptors:>13}{self.threads:>9}"
        )


HEAD = (
    f"{'when':<8}{'owner':>12}{'allocated':>12}{'objects':>13}{'template':>12}"
    f"{'templates':>11}{'descriptors':>13}{'threads':>9}"
)


def take_sample(when: str) -> Sample:
    """Look at this process, after its free memory was given back, and at the templates that no pool has."""
    allocated = _allocated()
    own = os.getpid()
    templates = [uss(template.pid) for template in support.idle_templates()]
    return Sample(
        when=when,
        owner=uss(own),
        allocated=allocated,
        blocks=sys.getallocatedblocks(),
        template=max(templates, default=0),
        templates=len(templates),
        descriptors=descriptors(own),
        threads=threads(own),
    )


class _Mallinfo(ctypes.Structure):
    """What `mallinfo2` of the GNU C library tells."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    )


def _allocated() -> int:
    """Bytes that the C library has given out, after it was asked to give back to the system what is free."""
    with contextlib.suppress(AttributeError):  # not every C library has these
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallinfo2.restype = _Mallinfo
        found = libc.mallinfo2()
        return int(found.uordblks + found.hblkhd)
    return 0


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
