"""What the kernel tells of memory that ran out: limits, and the count of its out-of-memory kills. Linux; else nothing.

A kill is counted in the control group of the process that was killed, and for the machine; both are looked at, as a
worker may have been moved into a group of its own. A count says how many and not whom: the program that a task started
may have been meant. So counts are noted at every start and end of a worker, and what is told says since when.
"""

from __future__ import annotations

import errno
import os

from poolkit._clock import monotonic
from poolkit._os import CGROUPS, control_groups, read_text

EVERY = 1.0  # seconds at least between two looks
SETTLED = 5.0  # seconds that a kill may take until the death is known: a look that is younger may have counted it
FRESH = 60.0  # seconds in which a kill and a death are most likely the same
_NO_LIMIT = 1 << 60  # what version 1 of the control groups shows is near to that of a word
_OTHERS = "the task itself, another process or an operator"


class OutOfMemory:
    """Whether the kernel's out-of-memory killer ended a worker. Owner: the supervisor thread."""

    def __init__(self, root: str = CGROUPS, proc: str = "/proc", now: float | None = None) -> None:
        """Begin to count."""
        self._root, self._proc = root, proc
        # When, and the kills in our group and on the machine. The first is what deaths are compared with.
        self._looks = [(monotonic() if now is None else now, self._counts())]

    def look(self, now: float | None = None) -> None:
        """Note what was counted by now."""
        now = monotonic() if now is None else now
        if now >= self._looks[-1][0] + EVERY:
            self._looks.append((now, self._counts()))
        while len(self._looks) > 1 and self._looks[1][0] <= now - SETTLED:
            del self._looks[0]

    def explain(self, now: float | None = None) -> str:
        """Why a worker was killed by a SIGKILL that was not ours, as far as it can be known; "" for not at all."""
        now = monotonic() if now is None else now
        self.look(now)
        (since, before), counts = self._looks[0], self._counts()
        if counts == (None, None):
            return ""
        in_group, on_machine = map(_more, before, counts)
        if not in_group and not on_machine:
            return f"not killed by poolkit, but by {_OTHERS}; the kernel counted no out-of-memory kill"
        # One of them is told now. The rest is left for deaths that come together with this one.
        self._looks = [(since, (_one_more(before[0], counts[0]), _one_more(before[1], counts[1])))]
        what = f"in the {max(1.0, now - since):.0f} s before, the kernel's out-of-memory killer ended"
        likely = "most likely" if in_group and now - since <= FRESH else "perhaps"
        if not in_group:
            return f"{what} {_processes(on_machine)} on the machine, {likely} this one; if not, {_OTHERS} did"
        limit = memory_limit(self._root, self._proc)
        used = f"the {limit / 1e6:.0f} MB of the group were" if limit else "the machine's memory was"
        return (
            f"{what} {_processes(in_group)} of its control group, {likely} this one: {used} used up; allow more, let "
            "tasks need less, or let fewer run at once"
        )

    def _counts(self) -> tuple[int | None, int | None]:
        counts = (
            _number(read_text(f"{folder}/{name}"), "oom_kill")
            for folders in control_groups("memory", self._root, self._proc)
            for folder in folders[:1]  # those above count what happens to others as well
            for name in ("memory.events", "memory.oom_control")
        )
        in_group = next((count for count in counts if count is not None), None)
        return in_group, _number(read_text(f"{self._proc}/vmstat"), "oom_kill")


def memory_limit(root: str = CGROUPS, proc: str = "/proc") -> int | None:
    """The least that the control groups of this process allow, in bytes; None without a limit."""
    limits = (
        int(text)
        for folders in control_groups("memory", root, proc)
        for folder in folders
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := read_text(f"{folder}/{name}").strip()).isdigit()
    )
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def check_room(nbytes: int) -> None:
    """Raise OSError for more memory than there is: to reserve it would have the kernel kill some process."""
    most = min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), memory_limit() or _NO_LIMIT)
    if nbytes > most:
        raise OSError(errno.ENOMEM, f"there are {most} bytes of memory in all")


def _more(old: int | None, new: int | None) -> int:
    return 0 if old is None or new is None else max(0, new - old)


def _one_more(old: int | None, new: int | None) -> int | None:
    return old + 1 if old is not None and _more(old, new) else new


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _number(text: str, name: str) -> int | None:
    """The number in the line that begins with `name`."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():  # noqa: PLR2004 -- name and number
            return int(words[1])
    return None
