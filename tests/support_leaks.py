"""The check for leaks: what a process holds before and after a test. Orphans that came to it are reaped first."""

from __future__ import annotations

import contextlib
import os

from poolkit.testing.leakage import Snapshot
from support import WATCHDOG, state_of

LEAK_GRACE = WATCHDOG / 3  # what is on its way out gets so long to leave


class Adopting(Snapshot):
    """What this process holds at one moment; see `support.adopt_orphans`."""

    def new_children(self) -> list[int]:
        """The processes that were not there. Whoever started a child of ours has reaped it by now, or never will."""
        for pid in super().new_children():
            if state_of(pid) == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return super().new_children()


def snapshot() -> Adopting:
    """Look at what this process holds now."""
    return Adopting()


def find_leaks(before: Adopting) -> list[str]:
    """What is held now and was not in `before`, in words. Waits up to LEAK_GRACE seconds for what is on its way out."""
    return before.leaks(LEAK_GRACE)
