"""Clock: the real monotonic clock, where nobody exchanges it.

Tests freeze time: `mock.patch("time.monotonic")` exchanges the module's attribute; freezegun does that, and in every
module that was imported exchanges each attribute that is one of the real functions. Limits and waits must hold all the
same, so a partial object of the function is kept here, which is no such attribute. Imported while time is frozen, it is
made of the system call, which on Linux is the same clock.
"""

from __future__ import annotations

import time
from functools import partial
from types import BuiltinFunctionType

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable


def _real() -> Callable[[], float]:
    if isinstance(time.monotonic, BuiltinFunctionType):
        return time.monotonic
    return partial(time.clock_gettime, time.CLOCK_MONOTONIC)


monotonic: Callable[[], float] = partial(_real())
