"""What the kernel says about a process and its descendants: memory, CPU time, how often they woke up."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def family(root: int) -> dict[int, int]:
    """The process `root` and its descendants, each with its generation: 0 for itself, 1 for its children."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    generations = {root: 0}
    while found := {
        pid: generations[parent] + 1
        for pid, parent in parents.items()
        if parent in generations and pid not in generations
    }:
        generations.update(found)
    return generations


def switches(pid: int) -> int:
    """Voluntary context switches of all threads so far: each is one sleep that ended, or will end, in a wake-up."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for line in (thread / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads so far. The scheduler counts in nanoseconds, `/proc/PID/stat` in ticks of 10 ms."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / _TICKS


def pss(pid: int) -> int:
    """Proportional set size in bytes: what is shared counts in parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no Pss in /proc/{pid}/smaps_rollup")


def rss(pid: int | None = None) -> int:
    """Resident memory of a process, this one unless told otherwise, in bytes; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` from the state on; none when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
