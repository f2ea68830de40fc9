"""Face: what a pool and a view of it have in common, submitting calls; and the view.

Every method is thread-safe. The annotations say `poolkit.Task` and the like, as that is imported when somebody looks at
them, and not before the template process is started.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Sequence
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, overload

import poolkit
from poolkit import waiting
from poolkit._child.chunk import run_chunk
from poolkit._core import options as checks
from poolkit._core.options import UNSET, CallOptions
from poolkit._given import (
    arguments,
    check_callable,
    check_iterable,
    code_of,
    has_large,
    name_of,
    note_the_place,
    to_be_sent,
)
from poolkit._owner import Arrivals
from poolkit.ending import Ending
from poolkit.errors import SerializationError

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    import os
    from typing import Literal

    from typing_extensions import Unpack

    from poolkit._engine.interface import PoolEngine
    from poolkit.command import BytesOptions, TextOptions

    _Argv = Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]] | str

P = ParamSpec("P")
T = TypeVar("T")
_Later = Callable[P, Coroutine[Any, Any, T]]
_Items = Callable[P, Iterable[T]]
_LaterItems = Callable[P, AsyncIterable[T]]


class Face(Ending):
    """What a pool and a view of it have in common: submitting calls. `_options` are the defaults of its calls."""

    name: str
    _chunksize: int | None = None  # items of `map` in one task; None: by their measured times
    if TYPE_CHECKING:
        _supervisor: PoolEngine
        _options: CallOptions

    @property
    @abstractmethod
    def max_workers(self) -> int:
        """How many workers there may be."""

    @overload
    def submit(self, fn: _Later[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Task[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Task[T]: ...
    def submit(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Task[Any]:
        """Queue the call `fn(*args, **kwargs)`; every keyword belongs to `fn`.

        Thread-safe. Serialises the call on this thread; blocks while a bounded queue is full. Where a signal handler
        interrupts it by an exception, the task may have been accepted all the same.

        Raises:
            TypeError: `fn` cannot be called.
            PoolClosed: after shutdown, or in a forked child of the owner.
            InitializerFailed: the pool's initializer raised.
            QueueFull: the queue is full, and `options(block=False)` or a callback must not wait.
        """
        task, error = self._task(fn, args, kwargs, None)
        supervisor = self._supervisor
        (supervisor.submit_waiting if supervisor.bounded else supervisor.submit)(task, error)
        return task

    @overload
    async def submit_async(self, fn: _Later[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Task[T]: ...
    @overload
    async def submit_async(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Task[T]: ...
    async def submit_async(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Task[Any]:
        """Do the same as `submit`, but wait for room in the queue without blocking the event loop.

        Large arguments are serialised in a thread: nobody must change them until it returns.

        Raises: what `submit` raises; QueueFull for `options(block=False)`, or in a callback.
        """
        if self._is_large(args, kwargs):
            task, error = await self._aside(self._task, fn, args, kwargs, None)
        else:
            await waiting.checkpoint()
            task, error = self._task(fn, args, kwargs, None)
        await self._submit_when_room(task, error)
        return task

    def _is_large(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether it would block an event loop for long to serialise these arguments."""
        return bool(args or kwargs) and not self._supervisor.workforce.by_reference and has_large(args, kwargs)

    async def _aside(self, make: Callable[..., T], *args: Any) -> T:
        """Serialise in a thread what is large, without blocking the event loop."""
        from poolkit._memory.arena import write_aside  # noqa: PLC0415 -- see the file's header

        return await waiting.run_in_thread(write_aside, make, *args, name=f"poolkit-{self.name}-pack")

    async def _submit_when_room(
        self, task: poolkit.Task[Any], error: SerializationError | None, attempt: Callable[..., bool] | None = None
    ) -> None:
        """Submit a task once there is room; each time that it is tried, by `attempt`."""
        from poolkit._engine.waiters import Waiter  # noqa: PLC0415 -- see the file's header

        turn, call = Arrivals(), waiting.caller()
        waiter = Waiter(lambda: call(turn.ring))

        def submit() -> bool:
            return self._supervisor.submit(task, error, waiter)

        try:
            while not (submit() if attempt is None else attempt(task, submit)):
                await waiting.wait_for(turn)
                turn.clear()
        except BaseException:
            self._supervisor.stop_waiting(waiter)
            raise

    @overload
    def stream(self, fn: _LaterItems[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Stream[T]: ...
    @overload
    def stream(self, fn: _Items[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Stream[T]: ...
    def stream(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Stream[Any]:
        """Run a generator function in a worker, and yield its items as they are made.

        `fn` may also be an async generator function, or whatever returns an iterable; every keyword belongs to `fn`.
        The generator waits at its `yield` while 1,024 items or 4 MiB of them are not taken, or as many items as
        `options(buffersize=...)` says. Closing the stream, or dropping it, closes the generator. Thread-safe; the
        stream belongs to one thread or coroutine at a time. Blocks while a bounded queue is full.

        Raises: as `submit`.
        """
        stream, error = self._stream(fn, args, kwargs)
        supervisor = self._supervisor
        if supervisor.bounded:
            supervisor.submit_waiting(stream.task, error)
        else:
            supervisor.submit(stream.task, error)
        return stream

    @overload
    async def stream_async(self, fn: _LaterItems[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Stream[T]: ...
    @overload
    async def stream_async(self, fn: _Items[P, T], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Stream[T]: ...
    async def stream_async(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> poolkit.Stream[Any]:
        """Do the same as `stream`, but wait for room in the queue without blocking the event loop.

        Thread-safe. Raises: as `submit`.
        """
        if self._is_large(args, kwargs):
            stream, error = await self._aside(self._stream, fn, args, kwargs)
        else:
            await waiting.checkpoint()
            stream, error = self._stream(fn, args, kwargs)
        await self._submit_when_room(stream.task, error)
        return stream

    def _stream(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[poolkit.Stream[Any], SerializationError | None]:
        from poolkit._child.stream import run_stream  # noqa: PLC0415 -- only for those who stream
        from poolkit.stream import stream_of  # noqa: PLC0415 -- see above

        self._check_runs("streams")
        fn, options = to_be_sent(fn), self._options.for_stream()
        task, error = self._task(run_stream, (fn, args, kwargs, options.window), {}, name_of(fn), fn)
        task.options = options
        return stream_of(self._supervisor, task), error

    @overload
    def run(self, argv: _Argv, *, text: Literal[True], **options: Unpack[TextOptions]) -> poolkit.Command[str]: ...
    @overload
    def run(self, argv: _Argv, **options: Unpack[BytesOptions]) -> poolkit.Command[bytes]: ...
    def run(self, argv: Sequence[Any] | str, **options: Any) -> poolkit.Command[Any]:  # noqa: D417 -- they are named
        """Run a program, as a task: it takes a place of the pool, and no worker. Its result is a `CompletedCommand`.

        The program is looked up in the PATH that it will have, and leads a session of its own. When it ends, on time
        or not, what it has started ends with it. Thread-safe. Blocks while a bounded queue is full.

        Args:
            argv: the program and its arguments; with `shell=True` one string, for /bin/sh.
            input: bytes, text or a file: what it reads. stdin: without that, "null", "pipe" (see `Command.write`), or
                "inherit".
            stdout, stderr: "capture": in the result; "lines": to be read while it runs, by whoever sets its pace;
                "null", "inherit", a path or a file to write to; `stderr` also "stdout".
            cwd: its working directory. env: variables to be added to those of this process; None takes one out.
            shell: whether `argv` is a command line.
            text: whether its output is text, decoded by `encoding` and `errors`; else bytes.
            check: which exit codes are a success: True: 0; False: all; or a collection of them.
            timeout: seconds that it may run, from its start; None: no limit.
            on_stdout, on_stderr: called with each line, on the callback thread; all calls are over before the result.
            max_output: bytes of its output that are kept. Beyond that it is stopped, and what it wrote to `stderr` is
                shortened in the middle.
            stop_signal, grace: how it is ended: by this signal to its group, and after so many seconds by SIGKILL.

        Raises:
            TypeError, ValueError: an argument has no sense.
            PoolClosed, InitializerFailed, QueueFull: as `submit`.
        """
        return self.run_as("Pool.run", argv, options)

    def run_as(self, called: str, argv: Sequence[Any] | str, options: dict[str, Any]) -> poolkit.Command[Any]:
        """Do what `run` does, for a function that is called so."""
        command = self._command(called, argv, options)
        supervisor = self._supervisor
        (supervisor.submit_waiting if supervisor.bounded else supervisor.submit)(command, None)
        return command

    @overload
    async def run_async(
        self, argv: _Argv, *, text: Literal[True], **options: Unpack[TextOptions]
    ) -> poolkit.Command[str]: ...
    @overload
    async def run_async(self, argv: _Argv, **options: Unpack[BytesOptions]) -> poolkit.Command[bytes]: ...
    async def run_async(self, argv: Sequence[Any] | str, **options: Any) -> poolkit.Command[Any]:
        """Do the same as `run`, but wait for room in the queue without blocking the event loop.

        Thread-safe. Raises: as `run`.
        """
        await waiting.checkpoint()
        command = self._command("Pool.run_async", argv, options)
        await self._submit_when_room(command, None)
        return command

    def _command(self, called: str, argv: Any, options: dict[str, Any]) -> poolkit.Command[Any]:
        from poolkit import _command_line  # noqa: PLC0415 -- only for those who run programs

        command = _command_line.command(called, self._supervisor, self._options, argv, options)
        return self._as_sent(command, argv, options)

    def _as_sent(self, command: poolkit.Command[Any], argv: Any, options: dict[str, Any]) -> poolkit.Command[Any]:
        """What is submitted for a command that was checked."""
        del argv, options
        return command

    def _check_runs(self, what: str) -> None:
        """Raise RuntimeError where only calls are run."""
        if self._supervisor.workforce.runs_only_calls:
            msg = f"{what} are for pools on one machine; this version has them not on nodes"
            raise RuntimeError(msg)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool | str | Callable[..., Any] = False,
    ) -> poolkit.Results[T]:
        """Call `fn` with the items of the iterables, in parallel, and yield the results.

        Lazy: takes `buffersize` items ahead at most (default: a few chunks per worker), so endless iterables work.
        All of it is done, whether or not somebody reads: what was never read when it is dropped, in the background, and
        what is alive at a graceful shutdown, by that. Closing the result cancels the rest, and so does dropping one
        that was begun to be read. Thread-safe; does not block; the result belongs to one thread, and its `next` blocks.

        Args:
            fn: what to call.
            iterables: as with the built-in `map`; the shortest ends it.
            timeout: seconds from now after which a result that is not there raises TimeoutError; None: never.
            chunksize: items in one message; None chooses and adapts it.
            buffersize: items taken ahead of those yielded; None: a few chunks per worker.
            ordered: yield in the order of the input; False: as results arrive.
            progress: show a bar: True, a description, or what makes one of `total` and `desc`.

        Raises:
            TypeError, ValueError: `fn` cannot be called, an iterable cannot be iterated, a size is not positive.
            PoolClosed, InitializerFailed: as `submit`. ModuleNotFoundError: a bar needs tqdm.
        """
        check_callable(fn)  # first, as who gives the two the other way round is to read of the function
        for position, iterable in enumerate(iterables, 1):
            check_iterable(iterable, f"argument {position} of map() after the function cannot be iterated over:")
        starred = len(iterables) != 1
        items = zip(*iterables) if starred else iterables[0]  # noqa: B905 -- the shortest ends it, as in `map`
        return self._results(
            fn, items, iterables, timeout, chunksize, buffersize, starred=starred, ordered=ordered, progress=progress
        )

    def starmap(  # noqa: PLR0913 -- what `map` takes
        self,
        fn: Callable[..., T],
        iterable: Iterable[Sequence[Any]],
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool | str | Callable[..., Any] = False,
    ) -> poolkit.Results[T]:
        """Do the same as `map`, with an iterable of argument tuples. Thread-safe; does not block.

        Raises: what `map` raises; TypeError for an item that is no tuple of arguments.
        """
        check_callable(fn)
        check_iterable(iterable, "starmap() needs an iterable of tuples, was given")
        items, sizes = map(arguments, iterable), (timeout, chunksize, buffersize)
        return self._results(fn, items, (iterable,), *sizes, starred=True, ordered=ordered, progress=progress)

    def options(  # noqa: PLR0913 -- the options of a call
        self,
        *,
        timeout: float | None = UNSET,
        queue_timeout: float | None = UNSET,
        deadline: float | None = UNSET,
        memory_limit: float | None = UNSET,
        priority: int = UNSET,
        retries: int = UNSET,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = UNSET,
        block: bool = UNSET,
        name: str | None = UNSET,
        buffersize: int | None = UNSET,
    ) -> PoolView:
        """The same pool with other defaults for the calls made through it: `pool.options(timeout=2).submit(f, x)`.

        Thread-safe; does not block.

        Args:
            timeout: seconds that a task may run, from when it begins in its worker.
            queue_timeout: seconds that it may wait until it begins.
            deadline: seconds from `submit` to the end, retries included.
            memory_limit: bytes of memory of its own that its worker may use while it runs, or a command with its
                children; `submit` to threads refuses it.
            priority: larger runs earlier; FIFO within one priority.
            retries: how often it runs again when its worker crashed.
            retry_on: exception types that are retried too.
            block: whether `submit` waits while a bounded queue is full; False raises QueueFull.
            name: the task's name in stats, errors and logs.
            buffersize: of streams: how many items may be made and not taken, whatever their size; None: 1,024, but no
                more than 4 MiB of them.

        Raises:
            TypeError, ValueError: an option has no sense.
        """
        changed = self._options.changed(
            timeout=timeout,
            queue_timeout=queue_timeout,
            deadline=deadline,
            memory_limit=memory_limit,
            priority=priority,
            retries=retries,
            retry_on=retry_on,
            block=block,
            name=name,
            buffersize=buffersize,
        )
        return PoolView(self, changed)

    def check_memory_limit(self) -> None:
        """Raise ValueError where its tasks are to have a limit on memory that its workers cannot keep."""
        self._options.check_memory_limit(self._supervisor.workforce.why_memory_unknown)

    def _task(
        self,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None,
        chunk_of: Callable[..., Any] | None = None,
    ) -> tuple[poolkit.Task[T], SerializationError | None]:
        """Serialise a call, on this thread; with what went wrong, if it did."""
        if type(fn) is not FunctionType:
            fn = to_be_sent(fn)
            code = code_of(fn)
        else:
            code = fn.__code__ if chunk_of is None else code_of(chunk_of)
        options, supervisor = self._options, self._supervisor
        if options.memory_limit is not None:
            self.check_memory_limit()
        name = options.name or name or (fn.__qualname__ if type(fn) is FunctionType else name_of(fn))
        try:
            call, nbytes = supervisor.workforce.pack(fn, args, kwargs)
        except SerializationError as exc:
            note_the_place(exc, name)
            return poolkit.Task(supervisor, name, None, options), exc
        return poolkit.Task(supervisor, name, call, options, nbytes, code), None

    def cancel_soon(self, task: poolkit.Task[Any]) -> None:
        """Have a task cancelled by the supervisor's thread; for finalizers, which must not wait for a lock."""
        self._supervisor.cancel_soon(task)

    def submit_chunk(
        self, fn: Callable[..., Any], items: list[Any], *, starred: bool, block: bool | None, late: bool
    ) -> poolkit.Task[list[Any]]:
        """Submit one task that calls `fn` for each of `items`; what `map` is made of. See `Submits`."""
        task, error = self._task(run_chunk, (fn, items), {"starred": starred}, f"map({name_of(fn)})", fn)
        if block is not None and block != task.options.block:
            task.options = task.options.changed(block=block)
        task.late = late
        supervisor = self._supervisor
        if supervisor.bounded:
            supervisor.submit_waiting(task, error)
        else:
            supervisor.submit(task, error)
        return task

    def submit_chunk_async(
        self, fn: Callable[..., Any], items: list[Any], attempt: Callable[..., bool], *, starred: bool, late: bool
    ) -> Coroutine[Any, Any, None]:
        """Do the same, but wait for room without blocking the event loop. See `Submits`."""
        task, error = self._task(run_chunk, (fn, items), {"starred": starred}, f"map({name_of(fn)})", fn)
        task.late = late
        return self._submit_when_room(task, error, attempt)

    def _results(  # noqa: PLR0913 -- what `map` was given
        self,
        fn: Callable[..., T],
        items: Iterable[Any],
        given: tuple[Any, ...],
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        *,
        starred: bool,
        ordered: bool,
        progress: object,
    ) -> poolkit.Results[T]:
        fn = to_be_sent(fn)
        from poolkit.results import Results  # noqa: PLC0415 -- see above

        chunksize = checks.whole_or_none("chunksize", chunksize) or self._chunksize
        options = self._options
        self.check_memory_limit()
        if options.timeout is not None or options.memory_limit is not None or options.retries:
            chunksize = 1  # a limit is meant for one item, and so is a retry
        sized = [iterable for iterable in given if hasattr(iterable, "__len__")]
        chunks: Any = None
        if progress is not False:
            from poolkit.bars import drawn_chunks  # noqa: PLC0415 -- only for who wants to see one

            chunks = drawn_chunks(progress, sized, self._supervisor.clock)
        return Results(
            self,
            fn,
            iter(items),
            chunks,
            name=options.name or f"map({name_of(fn)})",
            starred=starred,
            chunksize=chunksize,
            buffersize=checks.whole_or_none("buffersize", buffersize),
            workers=self.max_workers,
            is_sized=bool(sized),
            maps=self._supervisor.maps,
            ordered=checks.flag("ordered", ordered),
            timeout=checks.wait_seconds("timeout", timeout),
            clock=self._supervisor.clock,
        )


for _method in (
    Face.submit,
    Face.submit_async,
    Face.stream,
    Face.stream_async,
    Face.run,
    Face.run_async,
    Face.map,
    Face.starmap,
    Face.options,
    Face.shutdown,
):
    _method.__qualname__ = f"Pool.{_method.__name__}"  # what a TypeError calls it


class PoolView(Face):
    """A pool with other defaults for the calls made through it. Cheap; made by `options`, and views chain.

    An Executor too: `shutdown`, and leaving a `with` of it, are the pool's own.
    """

    def __init__(self, pool: Face, options: CallOptions) -> None:
        self._of: Face = pool._of if isinstance(pool, PoolView) else pool  # noqa: SLF001 -- of this class
        self.name = pool.name
        self._options = options
        self._chunksize = pool._chunksize  # noqa: SLF001 -- its other half
        self._supervisor = pool._supervisor  # noqa: SLF001 -- see above

    @property
    def max_workers(self) -> int:
        """How many workers the pool may have."""
        return self._of.max_workers

    def _as_sent(self, command: poolkit.Command[Any], argv: Any, options: dict[str, Any]) -> poolkit.Command[Any]:
        return self._of._as_sent(command, argv, options)  # noqa: SLF001 -- see above

    def __repr__(self) -> str:
        """Show the pool and what differs from the defaults."""
        plain = CallOptions().as_dict()
        changed = [f"{name}={value!r}" for name, value in self._options.as_dict().items() if value != plain[name]]
        return f"<poolkit.PoolView of {self._of.name!r} {' '.join(changed)}>"
