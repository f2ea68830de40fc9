"""Locks that what a signal handler raises cannot leave held.

CPython 3.14 looks for signals between the entry of a `with` statement and its body. What a handler raises there leaves
the lock held for ever; before 3.14 there was no such moment.

The rule for loops: 3.14 also looks for signals at the conditional jump back of a loop, which its table of exceptions
leaves out, so that what a handler raises there passes by the `finally` and `with` around the loop. Where those must be
passed, in code that handlers may interrupt, a loop has a function of its own, whose call is in the table.
"""

from __future__ import annotations

import sys
from _thread import RLock as _RLock

if sys.version_info < (3, 14):
    RLock = _RLock
else:

    class RLock(_RLock):  # type: ignore[valid-type,misc]
        """A re-entrant lock that is taken, and noted as taken, by one instruction."""

        def __enter__(self) -> None:
            """Take the lock. Blocks."""
            held: list[bool] = []
            try:
                held += map(self.acquire, (True,))
            except BaseException:
                if held:
                    self.release()
                raise
