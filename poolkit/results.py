"""Results: what `map` returns, an iterator and an async iterator in one, that takes its input as it is consumed.

Guarantees: at most `buffersize` items are taken ahead of what was yielded; order is that of the input unless
`ordered=False`; an item's exception is raised at its place and ends the iteration, and what is left is cancelled, as
in the standard library; an item that was yielded is not kept alive. A wait that was interrupted can be taken up again;
what interrupts the taking of items or results ends the iteration, as it ends a generator.
Items travel in chunks, several calls in one task. With no `chunksize`, chunks grow until one takes about
CHUNK_SECONDS; with a time limit or retries they hold one item, because both are meant for one item.
Owner: the one thread (or coroutine) that iterates. Not thread-safe.
Longer than most: the two iterators share one state, and half of it says why it holds.

How to iterate at the speed of C: 30 ns an item, where a `__next__` in Python takes 60 to 110 (a quarter of what a tiny
item costs in all). `Results` is an `itertools.chain` of two kinds of iterators by turns:

    _Waiter    waits, in Python, until a chunk is at hand; then it is over, having put into the chain
    map        of `deque.popleft` over the chunk's results, in C, and itself once more

All that can raise, raises inside one of those two, which a chain keeps; what feeds the chain is a deque, in C.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, cast

from poolkit._child.chunk import ChunkStopped
from poolkit._clock import monotonic
from poolkit.errors import QueueFull
from poolkit.task import Task, WaitTimeout

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = Any  # for those who look at the annotations; not in CPython 3.10

T = TypeVar("T")

CHUNK_SECONDS = 0.01  # a chunk that nobody chose is about this much work, so a slow item delays few others
MOST_ITEMS = 4096  # items in such a chunk
CHUNK_COST = 0.00001  # seconds that any chunk takes, however few its items
GROWTH = 8  # how many times larger the next chunk may be
AHEAD = 2  # chunks per worker that are taken ahead when `buffersize` is not given: more would be more to begin with
_END = object()


class Submits(Protocol):
    """What `Results` needs of a pool or view."""

    def cancel_soon(self, task: Task[Any]) -> None:
        """Cancel a task without taking a lock."""

    def submit_chunk(self, fn: Callable[..., Any], items: list[Any], *, starred: bool, block: bool) -> Task[list[Any]]:
        """Submit one task that calls `fn` for each item. Without `block`, raises QueueFull for a full queue."""

    async def submit_chunk_async(self, fn: Callable[..., Any], items: list[Any], *, starred: bool) -> Task[list[Any]]:
        """Submit one, and wait for room without blocking the event loop."""


class Results(itertools.chain[T]):
    """The results of a `map`, as an iterator and an async iterator. `close()` cancels what is left.

    `next()` blocks until the next result is there. It raises TimeoutError when that is not the case `timeout` seconds
    after the call of `map`, and else what the call raised, or what stopped it.
    """

    _feed: deque[object]  # iterators, and _END behind the last
    _chunks: _Chunks[T]

    def __new__(cls, *_args: Any, **_options: Any) -> Self:
        """Make a chain that takes its iterators from `_feed`."""
        feed: deque[object] = deque()
        self = cast("Self", cls.from_iterable(cast("Iterator[Iterator[T]]", iter(feed.popleft, _END))))
        self._feed = feed
        return self

    def __init__(self, pool: Submits, fn: Callable[..., T], items: Iterator[Any], **options: Any) -> None:
        """Take what `_Chunks` takes."""
        self._chunks = _Chunks(pool, fn, items, **options)
        self._feed.append(_Waiter(self._chunks, self._feed))

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
        """The same as `close`, for `contextlib.aclosing`."""
        self._chunks.close()

    def __reduce__(self) -> NoReturn:
        """Refuse: results belong to the process that asked for them."""
        msg = "the results of map() cannot be copied or pickled: make a list of them first"
        raise TypeError(msg)

    def __del__(self) -> None:
        """Cancel what nobody will ask for. Takes no lock: a garbage collection may come while this thread holds it."""
        self._feed.clear()  # it holds the waiter, which holds it
        chunks = getattr(self, "_chunks", None)
        if chunks is not None:
            chunks.drop()


class _Waiter(zip):  # type: ignore[type-arg]  # it cannot be subscripted
    """What a `Results` iterates over while nothing is at hand. A `zip` for its `__iter__` in C: nothing can come in."""

    def __new__(cls, *_args: Any) -> Self:
        return cast("Self", zip.__new__(cls))

    def __init__(self, chunks: _Chunks[Any], feed: deque[object]) -> None:
        self._chunks = chunks
        self._feed = feed

    def __next__(self) -> Any:
        if not self._feed:  # else an interrupt came after that
            try:
                is_more = self._chunks.wait()
            except StopIteration as exc:  # of the user's code, and not the end
                msg = "a result of map() raised StopIteration when it was unpickled"
                raise RuntimeError(msg) from exc
            self._feed.extend((self._chunks.at_hand(), self) if is_more else (_END,))
        raise StopIteration


class _Chunks(Generic[T]):
    """The chunks of one `map`: submitted ones, and the results at hand."""

    def __init__(  # noqa: PLR0913 -- what `map` was given
        self,
        pool: Submits,
        fn: Callable[..., T],
        items: Iterator[Any],
        *,
        starred: bool,
        chunksize: int | None,
        buffersize: int | None,
        workers: int,
        ordered: bool,
        timeout: float | None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._pool = pool
        self._fn = fn
        self._items: Iterator[Any] | None = items  # None: exhausted
        self._starred = starred  # whether an item is a tuple of arguments
        self._ordered = ordered
        self._clock = clock  # the pool's
        self._deadline = None if timeout is None else clock() + timeout
        self._timeout = timeout
        self._adapt = chunksize is None
        self._chunk = chunksize or 1
        self._most = MOST_ITEMS
        self._slots = workers * AHEAD
        self._bound = buffersize
        if buffersize is not None:
            self._most = max(1, buffersize // (2 * workers))
            self._chunk = min(self._chunk, buffersize)
        self._tasks: deque[tuple[Task[list[T]], int]] = deque()  # submitted, with their number of items
        self._taken = 0  # items in _tasks
        self._ready: deque[T] = deque()  # results at hand, in order
        self._to_take: Iterator[deque[T]] = iter(())  # says `_ready` once for each of them
        self._error: BaseException | None = None  # to be raised after what is at hand and submitted
        self._held: list[Any] = []  # items taken from the input, for which the queue had no room
        self._fill()

    # ===== what comes next =====

    def wait(self) -> bool:
        """Wait until something is at hand; false at the end."""
        while not self._ready:
            if self._held and not self._tasks:  # left there by `wait_async`
                self._fill()
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
        import asyncio  # noqa: PLC0415 -- only where there is an event loop

        if not self._ready:
            if self._held and not self._tasks:
                await self._submit_held()
            if not self._tasks:
                self._raise_error()
                raise StopAsyncIteration
            waiting = [asyncio.wrap_future(task) for task, _ in self._candidates()]
            try:
                done, _ = await asyncio.wait(waiting, timeout=self._left(), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self.close()
                raise
            for future in waiting:  # a future that was not awaited must not cancel, or complain about, its task
                future.add_done_callback(_retrieve)
            if not done:
                self._timed_out()
            self._collect(wait=False)

    async def _submit_held(self) -> None:
        """Submit what there was no room for, when there is: the others' tasks fill the queue."""
        try:
            task = await self._pool.submit_chunk_async(self._fn, self._held, starred=self._starred)
        except BaseException:
            self.close()
            raise
        self._add(task, self._held)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self.close()
            try:
                raise error
            finally:
                del error  # it holds this frame

    def close(self) -> None:
        """Cancel what has not been yielded, and take no more items. Idempotent; does not block."""
        items, self._items = self._items, None
        self._held = []
        while self._tasks:
            self._tasks.popleft()[0].cancel()
        deque(self._to_take, maxlen=0)  # nobody takes what is at hand
        self._ready.clear()
        close = getattr(items, "close", None)
        if close is not None:
            close()

    def drop(self) -> None:
        """Have what is left cancelled, without a lock."""
        for task, _ in getattr(self, "_tasks", ()):
            self._pool.cancel_soon(task)

    # ===== chunks =====

    def _candidates(self) -> list[tuple[Task[list[T]], int]]:
        return [self._tasks[0]] if self._ordered else list(self._tasks)

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def _timed_out(self) -> None:
        self.close()
        msg = f"the next result of map() was not there {self._timeout} s after the call"
        raise WaitTimeout(msg)

    def _wait_for_one(self) -> None:
        """Wait until a chunk is done; in order, the first one."""
        candidates = [task for task, _ in self._candidates()]
        if len(candidates) > 1:
            done: Any = wait(candidates, timeout=self._left(), return_when=FIRST_COMPLETED).done
            if not done:
                self._timed_out()
            return
        try:
            candidates[0].exception(self._left())
        except WaitTimeout:
            if not candidates[0].done():
                self._timed_out()
        except Exception:  # noqa: BLE001, S110 -- cancelled by somebody: `_collect` raises it
            pass

    def _collect(self, *, wait: bool = True) -> None:
        """Take the results of one chunk that is done, and put new items in its place."""
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

    def _learn(self, task: Task[list[T]], count: int) -> None:
        if self._adapt and task.run_time is not None:
            fitting = CHUNK_SECONDS * count / max(task.run_time - CHUNK_COST, 1e-6)
            self._chunk = int(max(1, min(fitting, GROWTH * max(count, self._chunk), self._most)))

    def _fill(self, *, wait: bool = True) -> None:
        """Take items ahead, up to the bound, and submit them. Waits for room if it may, and for nothing else."""
        try:
            while (self._items is not None or self._held) and len(self._tasks) < self._slots:
                size = self._chunk
                if self._bound is not None:
                    size = min(size, self._bound - self._taken - len(self._ready))
                    if size <= 0 and self._tasks:
                        return
                    size = max(1, size)
                chunk = self._take(size)
                if chunk:
                    try:
                        block = wait and not self._tasks
                        task = self._pool.submit_chunk(self._fn, chunk, starred=self._starred, block=block)
                    except QueueFull:
                        if block:
                            raise
                        self._held = chunk  # there is something to wait for; then there will be room
                        return
                    self._add(task, chunk)
        except BaseException:
            self.close()
            raise

    def _add(self, task: Task[list[T]], chunk: list[Any]) -> None:
        self._held = []
        self._tasks.append((task, len(chunk)))
        self._taken += len(chunk)

    def _take(self, size: int) -> list[Any]:
        """Take up to `size` items. What the input raises comes after the results of what it gave before."""
        chunk, self._held = self._held, []
        if len(chunk) < size and self._items is not None:
            try:
                chunk.extend(itertools.islice(self._items, size - len(chunk)))
                if len(chunk) < size:
                    self._items = None
            except Exception as exc:
                if not chunk and not self._tasks and not self._ready:
                    raise
                self._items, self._error = None, exc
        return chunk


def _retrieve(future: Any) -> None:
    if not future.cancelled():
        future.exception()
