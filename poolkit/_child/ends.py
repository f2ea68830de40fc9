"""Ends: what a worker does when it leaves: it joins its threads, then runs its own exit handlers and finalizers.

What was registered in the process that this one was forked from is that one's to run. The standard library's modules
register themselves when they are imported, or with the first finalizer; where that was before the fork, it is done
anew here.
Owner: the worker's main thread.
"""

from __future__ import annotations

import atexit
import sys

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

_kept: list[Any] = []  # finalizers that are not ours: let go of, their weak references would be dropped in odd places


def begin() -> None:
    """Forget what another process is to do at its end; call this in a forked child, before anything of its own runs."""
    atexit._clear()  # noqa: SLF001
    loaded = sys.modules.get
    if (weakref := loaded("weakref")) is not None:
        finalize: Any = weakref.finalize
        _kept.append(dict(finalize._registry))  # noqa: SLF001
        finalize._registry.clear()  # noqa: SLF001
        finalize._registered_with_atexit = False  # noqa: SLF001 -- the next one is registered
    if (logging := loaded("logging")) is not None:
        del logging._handlerList[:]  # noqa: SLF001
        atexit.register(logging.shutdown)
    if (util := loaded("multiprocessing.util")) is not None:
        util._finalizer_registry.clear()  # noqa: SLF001
        util._run_after_forkers()  # noqa: SLF001 -- as its own children do
        atexit.register(util._exit_function)  # noqa: SLF001


def run() -> None:
    """Join the threads that are no daemons, then run the exit handlers, as an interpreter does. The owner limits it."""
    try:
        if (threading := sys.modules.get("threading")) is not None:
            threading._shutdown()  # noqa: SLF001
    finally:
        atexit._run_exitfuncs()  # noqa: SLF001 -- os._exit does not, and a return would run the template's code
