"""Feed: what goes into one `map`: items are taken from its input, and submitted in chunks, several calls in one task.

By who reads the results (`poolkit/results.py`), and by who drives a map that nobody reads (`maps.py`); also by both at
once. Who reads takes up to `buffersize` items ahead of what was yielded, and the first exception ends it. Who drives
takes the rest, with as many chunks at work at a time, and an item of an unread map that raises stops no other.
With no `chunksize`, chunks grow until one takes about CHUNK_SECONDS; with a time limit or retries they hold one item,
because both are meant for one item. Where results come as they arrive, a chunk is only what a worker may claim at once:
what is in one with a slow item waits for it, so it is small, whatever `chunksize`, and there are more of them.
Guarded by: `_lock`: all but `_begun`, `_closed`, `dropped` and `_cut`, which anybody may set, and read. Held while the
input is asked for items, so it is re-entrant; who must not wait for that tries it. Finalizers do not take it.
"""

from __future__ import annotations

import itertools
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from poolkit._child.chunk import ChunkStopped
from poolkit._kinds.loggers import log
from poolkit._locks import RLock
from poolkit._owner import Arrivals
from poolkit.errors import PoolClosed, PoolkitError, QueueFull, SerializationError
from poolkit.task import Task

T = TypeVar("T")
Attempt = Callable[[Task[Any], Callable[[], bool]], bool]

CHUNK_SECONDS = 0.01  # a chunk that nobody chose is about this much work, so a slow item delays few others
MOST_ITEMS = 4096  # items in such a chunk
CLAIM_SECONDS = 0.001  # the same where results come as they arrive
MOST_CLAIMED = 16
CHUNK_COST = 0.00001  # seconds that any chunk takes, however few its items
GROWTH = 8  # how many times larger the next chunk may be
AHEAD = 2  # chunks per worker that are taken ahead when `buffersize` is not given: more would be more to begin with
MOST_AHEAD = 16  # where chunks are small, and as many take no more than CHUNK_SECONDS

_driving = threading.local()  # .depth > 0 while this thread drives a map, so that others may be the input of that


class Keeper(Protocol):
    """What a map needs of what keeps the maps of its pool; see `Maps`."""

    def enlist(self, feed: Feed[Any]) -> bool:
        """Note a new map; false when the pool takes no more."""

    def forget(self, feed: Feed[Any]) -> None:
        """A map is at its end."""

    def leave(self, feed: Feed[Any]) -> None:
        """Have somebody else take a map up."""


class Submits(Protocol):
    """What a map needs of a pool or view."""

    def cancel_soon(self, task: Task[Any]) -> None:
        """Cancel a task without taking a lock."""

    def submit_chunk(
        self, fn: Callable[..., Any], items: list[Any], *, starred: bool, block: bool | None, late: bool
    ) -> Task[list[Any]]:
        """Submit one task that calls `fn` for each item; `late`: also where a graceful shutdown has begun.

        `block`: whether to wait while the queue is full, else raise QueueFull; None: as the options say.
        """

    def submit_chunk_async(
        self, fn: Callable[..., Any], items: list[Any], attempt: Attempt, *, starred: bool, late: bool
    ) -> Coroutine[Any, Any, None]:
        """Pack one, and have it submitted by what is to be awaited: it waits for room without blocking the event loop.

        `attempt` is given the task and what tries to submit it, each time that there may be room, until it is true.
        """


class Feed(Generic[T]):
    """What goes in of one `map`; see the file's header."""

    def __init__(  # noqa: PLR0913 -- what `map` was given
        self,
        pool: Submits,
        fn: Callable[..., T],
        items: Iterator[Any],
        *,
        name: str,
        starred: bool,
        chunksize: int | None,
        buffersize: int | None,
        workers: int,
        ordered: bool = True,
        is_sized: bool = False,
        maps: Keeper | None = None,
    ) -> None:
        self.name = name
        self.is_sized = is_sized  # the input has a length
        self.dropped = False  # before anybody read it
        self._pool = pool
        self._maps = maps  # None: it is run in place
        self._fn = fn
        self._items: Iterator[Any] | None = items  # None: exhausted
        self._starred = starred  # whether an item is a tuple of arguments
        self._context = copy_context()  # of who called `map`, as somebody else may submit the rest
        self._ordered = ordered
        self._adapt = chunksize is None or not ordered
        self._chunk = (chunksize or 1) if ordered else 1
        self._most = MOST_ITEMS if ordered else min(chunksize or MOST_CLAIMED, MOST_CLAIMED)
        self._workers = workers
        self._arrivals = Arrivals()  # where results come as they arrive
        self._slots = workers * AHEAD
        self._bound = buffersize
        if buffersize is not None:
            self._most = min(self._most, max(1, buffersize // (2 * workers)))
            self._chunk = min(self._chunk, buffersize)
        self._lock = RLock()
        self._tasks: deque[tuple[Task[list[T]], int]] = deque()  # submitted and not read, with their number of items
        self._taken = 0  # items in _tasks
        self._ready: deque[T] = deque()  # results at hand, in order
        self._error: BaseException | None = None  # to be raised after what is at hand and submitted
        self._held: list[Any] = []  # items taken from the input, for which the queue had no room
        self._filler = 0  # the thread that asks the input for items
        self._begun = False  # to be read
        self._closed = False
        # While nobody has begun to read, and for who drives: what was submitted and not seen to be done, and its items.
        self._sent: list[tuple[Task[list[T]], list[Any]]] | None = []
        self._claim = allocate_lock()  # held for who drives
        self._driver: SimpleQueue[Any] | None = None  # his
        self._rings = False  # whether tasks tell him when they are done
        self._told = False  # what an item has raised
        self._cut: PoolClosed | None = None  # what reading on raises, after a shutdown
        self._late = False  # accepted also where a graceful shutdown has begun, as the pool knows of it

    def start(self) -> None:
        """Have the pool know of it, and submit the first chunks. Last: who shuts the pool down may go on with it."""
        try:
            self._late = self._maps is not None and self._maps.enlist(self)
            self._fill()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel what has not been yielded, and take no more items. Idempotent; does not block."""
        self._closed = True
        self._forget()
        while self._tasks:
            self._tasks.popleft()[0].cancel()
        self._let_go()

    def _let_go(self) -> None:
        """Close the input. Does not block: who just asks it for items does this afterwards."""
        if self._lock.acquire(blocking=False):
            try:
                items, self._items = self._items, None
                self._held, self._sent = [], None
                close = getattr(items, "close", None)
                if close is not None:
                    close()
            finally:
                self._lock.release()

    def drop(self) -> None:
        """Nobody will read any more: cancel what is left, or have it taken up if nobody ever did. Without a lock."""
        if self._begun or self._closed:
            self._closed = True
            self._forget()
            for task, _ in list(self._tasks):
                self._pool.cancel_soon(task)
        elif self._tasks or self._held:  # else there was nothing in it
            self.dropped = True
            if self._maps is not None:
                self._maps.leave(self)
            else:
                while self.go_on():
                    pass
        else:
            self._forget()

    def _forget(self) -> None:
        if self._maps is not None:
            self._maps.forget(self)

    # ===== who drives it =====

    def claim(self, driver: SimpleQueue[Any]) -> bool:
        """Have `driver` told whenever there is something to go on with; false when somebody else is."""
        if self._driver is driver:
            return True
        if not self._claim.acquire(blocking=False):
            return False
        self._driver = driver
        return True

    def release(self) -> None:
        """Who has claimed it does not drive it any more."""
        self._driver = None
        self._claim.release()

    def go_on(self, *, wait: bool = True) -> bool:
        """Submit what is left, as far as there is room; false when that is all, and nothing submitted may need it.

        Waits for room, if it may `wait` and nothing is submitted.
        """
        depth = getattr(_driving, "depth", 0)
        if not self._lock.acquire(blocking=self._cut is None):
            return False  # its reader is about to submit what he has taken
        try:
            _driving.depth = depth + 1
            self._look_at_sent()
            self._fill(wait=wait, driving=True)
            left = self._has_more(driving=True) or (self._sent and not self._begun)
            return bool(left) and not self._closed
        finally:
            self._lock.release()
            _driving.depth = depth
            if self._closed:
                self._let_go()

    def _look_at_sent(self) -> None:
        """Be told of what is at work, and see what became of what is done. Under the lock."""
        sent = self._sent
        if sent is None:  # it was begun to be read
            sent = [(task, []) for task, _ in list(self._tasks)]
        if not self._rings:
            self._rings = True
            for task, _ in sent:
                self._ring_when_done(task)
        if self.dropped:
            self._tasks.clear()
        self._sent = []
        for task, items in sent:
            if task.done():
                self._look_at(task, items)
            else:
                self._sent.append((task, items))

    def is_held(self) -> bool:
        """Whether there was no room for what was taken, and nothing is submitted that would tell when there is."""
        return bool(self._held) and not self._sent

    def goes_on(self) -> bool:
        """The pool is shut down gracefully: whether something is to be taken up. Without a lock."""
        if (not self._begun or self.is_sized) and self._filler != threading.get_ident():
            return not self._closed
        self._cut = PoolClosed(f"cannot take more items for {self.name}: its pool was shut down")
        return bool(self._held)

    def leave_parent(self) -> None:
        """Be a copy in a forked child: another thread may have held the lock."""
        self._lock = RLock()

    def _ring_when_done(self, task: Task[list[T]]) -> None:
        owner = task.add_waker(self._ring)
        if owner is not None:
            owner.end_lease()

    def _ring(self, _task: object) -> None:
        driver = self._driver
        if driver is not None:
            driver.put(self)

    def _look_at(self, task: Task[list[T]], items: list[Any]) -> None:
        """See what became of a chunk. The rest of one in which an item raised is submitted anew."""
        if task.cancelled():  # by `cancel_all` or a shutdown
            self._items, self._held = None, []
            return
        self._learn(task, len(items))
        if not task.has_failed():
            return
        error = task.exception()
        if isinstance(error, ChunkStopped):
            rest, error = items[len(error.results) + 1 :], error.__cause__
            self._held = rest + self._held
        elif isinstance(error, SerializationError) and not task.attempts and len(items) > 1:
            self._held, self._chunk = items + self._held, 1  # none of them was run: one by one, as one is to blame
            return
        if self.dropped and error is not None:
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        """Log what an item of a map raised that nobody reads; the first of them."""
        if not self._told:
            self._told = True
            log.error(
                "an item of %s raised, and nobody reads the results; the others are run, and if they raise that is not "
                "logged",
                self.name,
                exc_info=error,
            )

    # ===== chunks =====

    def _learn(self, task: Task[list[T]], count: int) -> None:
        if self._adapt and task.run_time is not None:
            seconds = max(task.run_time - CHUNK_COST, 1e-6)
            fitting = (CHUNK_SECONDS if self._ordered else CLAIM_SECONDS) * count / seconds
            self._chunk = int(max(1, min(fitting, GROWTH * max(count, self._chunk), self._most)))
            if not self._ordered:
                self._slots = self._workers * int(max(AHEAD, min(CHUNK_SECONDS / seconds, MOST_AHEAD)))

    def _fill(self, *, wait: bool = True, driving: bool = False) -> None:
        """Take items ahead, up to the bound, and submit them. Waits for room if it may, and for nothing else."""
        with self._lock:
            filler, self._filler = self._filler, threading.get_ident()
            try:
                self._fill_up(wait=wait, driving=driving)
            except BaseException:
                self.close()
                raise
            finally:
                self._filler = filler

    def _fill_up(self, *, wait: bool, driving: bool) -> None:
        while self._has_more(driving=driving) and not self._closed:
            ahead: Any = self._sent if driving else self._tasks
            if len(ahead) >= self._slots or not self._fill_one(ahead, wait=wait, driving=driving):
                return

    def _fill_one(self, ahead: Any, *, wait: bool, driving: bool) -> bool:
        """Submit one more chunk; false when there is no room."""
        size = self._chunk
        if self._bound is not None:
            taken = sum(len(items) for _, items in ahead) if driving else self._taken + len(self._ready)
            size = min(size, self._bound - taken)
            if size <= 0 and ahead:
                return False
            size = max(1, size)
        chunk = self._take(size, driving=driving)
        if not chunk:
            return True
        block = False if ahead or not wait else True if driving else None
        try:
            submit = self._context.copy().run  # a copy, as who packs an item may come here again
            task = submit(self._pool.submit_chunk, self._fn, chunk, starred=self._starred, block=block, late=self._late)
        except QueueFull:
            if block is not False:
                raise
            self._held = chunk + self._held  # there is something to wait for; then there will be room
            return False
        except PoolkitError as exc:
            if not driving:
                raise
            self._items, self._held, self._error = None, [], self._error or exc
            if self.dropped and not isinstance(exc, PoolClosed):
                self._tell(exc)
            return False
        self._add(task, chunk)
        return True

    def _add(self, task: Task[list[T]], chunk: list[Any]) -> None:
        if not self.dropped:
            self._tasks.append((task, len(chunk)))
            self._taken += len(chunk)
        if not self._ordered:
            self._arrivals.owner = task.add_waker(self._arrivals.ring) or self._arrivals.owner
        if self._sent is not None:
            self._sent.append((task, chunk))
        if self._rings:
            self._ring_when_done(task)
        if self._closed:  # meanwhile, by another thread
            self._pool.cancel_soon(task)

    def _has_more(self, *, driving: bool) -> bool:
        """Whether there is something to submit: who drives it once it is cut takes no more items from the input."""
        return bool(self._held) or (self._items is not None and not (driving and self._cut is not None))

    def _take(self, size: int, *, driving: bool) -> list[Any]:
        """Take up to `size` items. What the input raises comes after the results of what it gave before."""
        chunk, self._held = self._held[:size], self._held[size:]
        if not self._has_more(driving=driving):
            return chunk
        if self._cut is not None and self._items is not None and not getattr(_driving, "depth", 0):
            self._items, self._error = None, self._cut
        if len(chunk) < size and self._items is not None:
            try:
                chunk.extend(itertools.islice(self._items, size - len(chunk)))
                if len(chunk) < size:
                    self._items = None
            except Exception as exc:
                if not chunk and not self._tasks and not self._ready and not self._rings:
                    raise
                self._items, self._error = None, exc
                if self.dropped:
                    self._tell(exc)
        return chunk
