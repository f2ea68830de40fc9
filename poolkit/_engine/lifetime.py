"""Lifetime: what happens to every pool of this process when it forks, and when the interpreter ends.

At exit the accepted work of each is finished, then the template processes end; one Ctrl-C ends that, for all of them.
A fork waits until every pool is between two steps, so that the child sees a whole state, and there each copy is closed.
But what a template process has made, and not used, is taken over by each worker that it forks.
Lock order: FORKING, each pool's lock, `_live_lock`.
Guarded by: `_live_lock`: `_live`, `_registered`. By FORKING: `_held`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections.abc import Callable

from poolkit import _child
from poolkit._locks import RLock
from poolkit._spawn import registry
from poolkit._spawn.key import Start
from poolkit._spawn.launch import FORKING

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from typing import Any, Protocol

    from poolkit._kinds.settings import PoolSettings

    class Lasting(Protocol):
        """A pool, as far as its lifetime goes; see `Supervisor`, which imports this file."""

        def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
            """End."""

        def end_with_interpreter(self) -> None:
            """Finish what was accepted. Blocks."""

        def hold(self) -> None:
            """Be between two steps until `let_go`."""

        def let_go(self) -> None:
            """Go on, in the parent of a fork."""

        def after_fork_in_child(self, *, takes_over: bool) -> bool:
            """Be a copy in a forked child, or taken over, where that is asked for and can be done: true."""


def prepare(settings: PoolSettings) -> None:
    """Start the template process that a pool will want, so that it is up when the pool is.

    Where that cannot be done now it is left to the first worker, which tells what is wrong. Not in a worker or a
    template process: modules that make a pool are imported there, mostly for their functions, and a template might
    import such a module without end, each one in the next.
    """
    if settings.start_method == "fork" or _child.is_here:
        return
    with contextlib.suppress(Exception):
        start = Start(settings.start_method, settings.preload, settings.shares, settings.env, settings.lease_fd)
        registry.acquire(start, settings, waits=False)


is_over = False  # the interpreter ends
first: list[Callable[[], object]] = []  # called before they end
last: list[Callable[[], object]] = []  # called when all pools have ended at the end of the interpreter; may block
_live: weakref.WeakSet[Any] = weakref.WeakSet()  # those with anything to release
_registered = -1  # the process that is to finish the work of its pools at its end; guarded by: _live_lock
locks: list[Any] = []  # of others that keep pools, which a forked child is to have free
_live_lock: Any = RLock()  # re-entrant for finalizers that a collection runs while it is held


def begin(pool: Lasting) -> None:
    """From now on `pool` is told of forks and of the end. Once more by one that was taken over, when it is used."""
    global _registered  # noqa: PLW0603 -- guarded by: _live_lock
    with _live_lock:
        if _registered != os.getpid():  # a worker that was forked from a process with pools has forgotten what was
            atexit.unregister(_finish_all)
            atexit.register(_finish_all)
            _registered = os.getpid()
        _live.add(pool)


def end(pool: Lasting) -> None:
    """`pool` has nothing to release any more."""
    with _live_lock:
        _live.discard(pool)


def _all_live() -> list[Lasting]:
    with _live_lock:
        return sorted(_live, key=id)


def _finish_all() -> None:
    """At exit: finish the work of every pool. One Ctrl-C ends that, for all of them."""
    global is_over  # noqa: PLW0603 -- once
    is_over = True
    try:
        for call in first:
            call()
        for pool in _all_live():
            pool.end_with_interpreter()
    except KeyboardInterrupt:
        pools = _all_live()
        for pool in pools:
            pool.shutdown(wait=False, cancel_queued=True, kill=True, timeout=None)
        for pool in pools:
            pool.end_with_interpreter()
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # they end with us in any case
            for call in last:
                call()
            registry.end_all()


_held: list[Lasting] = []  # guarded by: FORKING


def _before_fork() -> None:
    FORKING.acquire()
    _held[:] = _all_live()
    for pool in _held:
        pool.hold()
    _live_lock.acquire()


def _after_fork_in_parent() -> None:
    _live_lock.release()
    for pool in _held:
        pool.let_go()
    _held.clear()
    FORKING.release()


def _after_fork_in_child() -> None:
    # Made anew, not released: where only this hook is called (some servers do), nobody has taken them.
    for lock in (_live_lock, FORKING, *locks):
        lock._at_fork_reinit()  # noqa: SLF001 -- as the standard library does
    pools, takes_over = _held or list(_live), _child.makes_worker
    ours = [pool for pool in pools if pool.after_fork_in_child(takes_over=takes_over)]
    registry.after_fork_in_child()
    _held.clear()
    _live.clear()
    # Not `begin`: what a process registers before it is a worker, that one forgets.
    _live.update(ours)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
