"""What the kernel tells of memory that ran out: limits, and the count of its out-of-memory kills. Linux; else nothing.

A kill is counted in the control group of the process that was killed, and for the machine; both are looked at, as a
worker may have been moved into a group of its own, and other groups are other people's.
"""

from __future__ import annotations

import time

ROOT, PROC = "/sys/fs/cgroup", "/proc"
TOGETHER = 1.0  # seconds in which kills that were counted at once may explain several deaths
_NO_LIMIT = 1 << 60  # what version 1 of the control groups shows is near to that of a word
_NEARLY = 0.9


class OutOfMemory:
    """Whether the kernel's out-of-memory killer ended a worker. Owner: the supervisor thread."""

    def __init__(self, root: str = ROOT, proc: str = PROC) -> None:
        """Begin to count."""
        self._root, self._proc = root, proc
        self._seen = self._counts()
        self._unexplained = [0, 0]  # kills, in our group and on the machine, that no death was put down to
        self._until = 0.0  # they may explain one

    def explain(self, peak: int, now: float | None = None) -> str:
        """Why a worker was killed by a SIGKILL that was not ours, as far as it can be known; "" for not at all."""
        now = time.monotonic() if now is None else now
        before, self._seen = self._seen, self._counts()
        if now > self._until:
            self._unexplained = [0, 0]
        for which, (old, new) in enumerate(zip(before, self._seen, strict=True)):
            if old is not None and new is not None and new > old:
                self._unexplained[which] += new - old
                self._until = now + TOGETHER
        if not any(self._unexplained):
            if self._seen == (None, None):
                return ""
            near = self.near_limit(peak)
            return "killed from outside poolkit, by a SIGKILL; the kernel counted no out-of-memory kill" + (
                f", though {near}" if near else ""
            )
        in_group = self._unexplained[0] > 0 or self._seen[0] is None
        self._unexplained = [max(0, count - 1) for count in self._unexplained]
        if not in_group:
            return (
                "the kernel's out-of-memory killer ended a process of another control group at that time: this worker, "
                "if it was moved into one of its own"
            )
        limit = self._limit()
        what = f"the {limit / 1e6:.0f} MB of its control group were" if limit else "the machine's memory was"
        return (
            f"the kernel's out-of-memory killer ended it, as {what} used up: allow more, let tasks need less, or let "
            "fewer run at once"
        )

    def near_limit(self, peak: int) -> str:
        """That a process whose resident memory was `peak` at most had nearly all that it may have; "" if it had not."""
        limit, whose = self._limit() or _NO_LIMIT, "its control group"
        for line in _read(f"{self._proc}/self/limits").splitlines():
            words = line.split()
            if words[:3] == ["Max", "address", "space"] and "".join(words[3:4]).isdigit() and int(words[3]) < limit:
                limit, whose = int(words[3]), "RLIMIT_AS"
        return f"it had nearly all of the {limit / 1e6:.0f} MB that {whose} allows" if peak >= _NEARLY * limit else ""

    def _groups(self) -> list[str]:
        """The folders of the control groups that may count and limit this process's memory, the innermost first."""
        folders = []
        for line in _read(f"{self._proc}/self/cgroup").splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if controllers and "memory" not in controllers.split(","):
                continue
            base = f"{self._root}/memory" if controllers else self._root  # version 1, version 2
            parts = [
                "",
                *path.strip("/").split("/"),
            ]  # in a container the path may not be there, but its end is the root
            folders += [base + "/".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
        return folders

    def _counts(self) -> tuple[int | None, int | None]:
        counts = (
            _number(_read(f"{group}/{name}"), "oom_kill")
            for group in self._groups()
            for name in ("memory.events", "memory.oom_control")
        )
        in_group = next((count for count in counts if count is not None), None)
        return in_group, _number(_read(f"{self._proc}/vmstat"), "oom_kill")

    def _limit(self) -> int | None:
        """The least that the control groups allow."""
        limits = (
            int(text)
            for group in self._groups()
            for name in ("memory.max", "memory.limit_in_bytes")
            if (text := _read(f"{group}/{name}").strip()).isdigit()
        )
        return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- as in `_os.py`
            return file.read().decode("utf-8", "replace")
    except OSError:  # not there, or not for us
        return ""


def _number(text: str, name: str) -> int | None:
    """The number in the line that begins with `name`."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():  # noqa: PLR2004 -- name and number
            return int(words[1])
    return None
