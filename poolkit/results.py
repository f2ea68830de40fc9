"""Results: what `map` returns, an iterator and an async iterator in one, that takes its input as it is consumed.

Guarantees: at most `buffersize` items are taken ahead of what was yielded; order is that of the input unless
`ordered=False`; an item's exception is raised at its place and ends the iteration, and what is left is cancelled, as
in the standard library; an item that was yielded is not kept alive. A wait that was interrupted can be taken up again;
what interrupts the taking of items or results ends the iteration, as it ends a generator. What was never read is done
all the same.
Items travel in chunks, several calls in one task, see `_engine/feed.py`.
Owner: the one thread (or coroutine) that iterates. Not thread-safe. They are iterated in C, see `at_hand.py`.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty
from typing import Any, NoReturn, TypeVar

from poolkit import waiting
from poolkit._child.chunk import ChunkStopped
from poolkit._clock import monotonic
from poolkit._engine.feed import Feed, Submits
from poolkit._waits import get
from poolkit.at_hand import AtHand
from poolkit.future import WaitTimeout
from poolkit.task import Task

T = TypeVar("T")

_SOON = 0.001  # seconds; a wait may end a rounding error before its time


class Results(AtHand[T]):
    """The results of a `map`, as an iterator and an async iterator. `close()` cancels what is left.

    `next()` blocks until the next result is there. It raises TimeoutError when that is not the case `timeout` seconds
    after the call of `map`, and else what the call raised, or what stopped it. For one thread or coroutine.
    """

    _chunks: Chunks[T]

    def __init__(
        self,
        pool: Submits,
        fn: Callable[..., T],
        items: Iterator[Any],
        chunks: Callable[..., Chunks[T]] | None = None,
        **options: Any,
    ) -> None:
        """Take what `Chunks` takes, or the class that is given instead."""
        self._chunks = (chunks or Chunks)(pool, fn, items, **options)
        self._feed_from(self._chunks)
        self._chunks.start()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """The next result, without blocking the event loop."""
        await self._chunks.wait_async()
        return next(self)

    def close(self) -> None:
        """Cancel what has not been yielded, and take no more items. Idempotent; does not block."""
        self._chunks.close()

    async def aclose(self) -> None:
        """The same as `close`, for `contextlib.aclosing`. Does not wait."""
        self._chunks.close()
        await waiting.checkpoint()

    def __reduce__(self) -> NoReturn:
        """Refuse: results belong to the process that asked for them."""
        msg = "the results of map() cannot be copied or pickled: make a list of them first"
        raise TypeError(msg)

    def __del__(self) -> None:
        """Cancel what nobody will ask for, or have it done if nobody ever has asked for any of it.

        Takes no lock: a garbage collection may come while this thread holds it.
        """
        chunks = getattr(self, "_chunks", None)
        if chunks is not None:  # else its making was interrupted
            self._feed.clear()  # it holds the waiter, which holds it
            chunks.drop()


class Chunks(Feed[T]):
    """The chunks of one `map`: the submitted ones, and the results at hand."""

    def __init__(
        self,
        *args: Any,
        timeout: float | None,
        clock: Callable[[], float] = monotonic,
        **options: Any,
    ) -> None:
        """Take what `Feed` takes, too."""
        super().__init__(*args, **options)
        self._clock = clock  # the pool's
        self._deadline = None if timeout is None else clock() + timeout
        self._timeout = timeout
        self._to_take: Iterator[deque[T]] = iter(())  # says `_ready` once for each of them

    # ===== what comes next =====

    def wait(self) -> bool:
        """Wait until something is at hand; false at the end."""
        self._begin()
        while not self._ready:
            if not self._tasks:
                self._fill()  # what was left there by `wait_async`, or for who drives it just now
            if not self._tasks:
                self._raise_error()
                return False
            self._wait_for_one()
            self._collect()
        return True

    def at_hand(self) -> Iterator[T]:
        """What is at hand now, taken out one by one."""
        self._to_take = itertools.repeat(self._ready, len(self._ready))
        return map(deque.popleft, self._to_take)

    async def wait_async(self) -> None:
        """Wait until something is at hand, without blocking the event loop. Raises StopAsyncIteration at the end."""
        self._begin()
        try:
            if sys.modules.get("trio") is not None:
                await waiting.checkpoint()
            if self._ready:
                return
            if not self._tasks:
                self._fill(wait=False)
                while self._held and not self._tasks:
                    await self._submit_held()
            if self._tasks:
                await self._wait_for_one_async()
        except BaseException:
            self.close()
            raise
        if not self._tasks:
            self._raise_error()
            raise StopAsyncIteration
        self._collect(wait=False)

    async def _wait_for_one_async(self) -> None:
        """Do what `_wait_for_one` does, in a coroutine."""
        arrivals = self._arrivals
        arrivals.clear()  # as in `_wait_for_any`
        tasks = self._candidates()
        if self._ordered:
            arrivals.owner = tasks[0].add_waker(arrivals.ring)
        is_late = False
        while not any(task.done() for task in tasks):
            if is_late:
                self._end_at_timeout()
            is_late = not await waiting.wait_until(arrivals, self._pause())
            arrivals.clear()

    async def _submit_held(self) -> None:
        """Submit what there was no room for, when there is: the others' tasks fill the queue.

        It stays where it is until then, as who drives the map meanwhile takes it up before what comes behind it.
        """
        held = self._held

        def attempt(task: Task[list[T]], submit: Callable[[], bool]) -> bool:
            with self._lock:
                if self._held is held:
                    if not submit():
                        return False
                    self._held = []
                    self._add(task, held)
            return True

        await self._context.copy().run(
            self._pool.submit_chunk_async, self._fn, held, attempt, starred=self._starred, late=self._late
        )

    def _begin(self) -> None:
        """Somebody reads. Unless it is driven, what was submitted need not be known by its items any more."""
        if not self._begun:
            self._begun = True
            if self._lock.acquire(blocking=False):
                try:
                    if self._driver is None:
                        self._sent = None
                finally:
                    self._lock.release()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is None:
            self._forget()
            return
        self.close()
        try:
            raise error
        finally:
            del error  # it holds this frame

    def _candidates(self) -> list[Task[list[T]]]:
        with self._lock:
            tasks = [self._tasks[0]] if self._ordered else self._tasks
            return [task for task, _ in tasks]

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    _pause = _left  # for how long to wait before it is looked again; called before each wait but that for one chunk

    def _timed_out(self) -> None:
        self.close()
        msg = f"the next result of map() was not there {self._timeout} s after the call"
        raise WaitTimeout(msg)

    def _wait_for_one(self) -> None:
        """Wait until a chunk is done; in order, the first one."""
        if not self._ordered:
            self._wait_for_any()
            return
        task = self._candidates()[0]
        try:
            task.exception(self._left())
        except Exception:
            if not task.done():
                self._end_at_timeout()
            if not task.cancelled():  # that is raised by `_collect`
                raise  # what a signal handler raised

    def _wait_for_any(self) -> None:
        arrivals = self._arrivals  # all that the owner asks is whether it is done
        while True:
            arrivals.clear()  # before the look: each rings when it is done
            if any(task.done() for task in self._candidates()):
                return
            try:
                pause = self._pause()
                if arrivals.owner is not None:
                    arrivals.owner.lead(arrivals, pause)
                    pause = self._pause()
                get(arrivals, pause)
            except Exception as exc:
                self._end_at_timeout()
                if type(exc) is not Empty:
                    raise  # what a signal handler raised

    def _end_at_timeout(self) -> None:
        left = self._left()
        if left is not None and left < _SOON:
            self._timed_out()

    def _collect(self, *, wait: bool = True) -> None:
        """Take the results of one chunk that is done, and put new items in its place."""
        with self._lock:
            index = 0 if self._ordered else next(i for i, (task, _) in enumerate(self._tasks) if task.done())
            task, count = self._tasks[index]
            del self._tasks[index]
            self._taken -= count
        try:
            try:
                results = task.result()
                task.forget_result()  # whoever still holds the task for a moment must not keep what is yielded
                self._ready.extend(results)
                del results
            except ChunkStopped as exc:
                self._ready.extend(exc.results)
                self._stop(exc.__cause__)
                return
            self._learn(task, count)
            del task
            self._fill(wait=wait)
        except BaseException:
            self.close()
            raise

    def _stop(self, error: BaseException | None) -> None:
        """An item raised: what was submitted after it is cancelled, and the error comes after what was before it."""
        ready = list(self._ready)
        self.close()
        self._ready.extend(ready)
        self._error = error

    def close(self) -> None:
        """Cancel what has not been yielded, and take no more items. Idempotent; does not block."""
        super().close()
        deque(self._to_take, maxlen=0)  # nobody takes what is at hand
        self._ready.clear()
