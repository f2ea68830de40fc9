"""The check for leaks: what a process holds before and after a test. Orphans that came to it are reaped first."""

from __future__ import annotations

import contextlib
import os
import threading

from poolkit.testing import leakage
from poolkit.testing.leakage import Snapshot
from support import WATCHDOG, descendants, idle_templates, state_of

LEAK_GRACE = WATCHDOG / 3  # what is on its way out gets so long to leave


class Adopting(Snapshot):
    """What this process holds at one moment; see `support.adopt_orphans`."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.children = set(_family())
        self.fds = leakage._open_fds()

    def new_children(self) -> list[int]:
        """The processes that were not there. Whoever started a child of ours has reaped it by now, or never will."""
        if self.children.issuperset(_family()):
            return []
        for pid in super().new_children():
            if state_of(pid) == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return super().new_children()


def _family() -> list[int]:
    """The same as `descendants`; it asks for the children of few processes, not every process for its parent.

    That takes a tenth of the time, and every test looks thrice.
    """
    found = [os.getpid()]
    try:
        for pid in found:  # grows while we go through it
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 -- see above
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                    found += map(int, file.read().split())
    except OSError:  # one ended just now, or this system does not tell
        return descendants()
    known = {leakage._resource_tracker()[0], *(template.pid for template in idle_templates()), *leakage.starters()[0]}
    return [pid for pid in found[1:] if pid not in known]


def snapshot() -> Adopting:
    """Look at what this process holds now."""
    return Adopting()


def find_leaks(before: Adopting) -> list[str]:
    """What is held now and was not in `before`, in words. Waits up to LEAK_GRACE seconds for what is on its way out."""
    return before.leaks(LEAK_GRACE)
