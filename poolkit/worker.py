"""Worker: a process, or thread, of its own for one function, with a channel to it.

It is a task on a hidden pool (`_engine/dedicated.py`), and the owner's end of a channel (`_child/port.py`). The channel
is shut when the task is done: what was sent before is still received, then the task tells how it ended.
Owner: whoever made the worker ends it, by `with`, `close` or `terminate`. Every method is thread-safe.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Optional, TypeVar, cast

from poolkit import waiting
from poolkit._child.hosting import host
from poolkit._child.local_channel import local_pair
from poolkit._child.port import Channel, Ends, Left, Port, countdown, run_target
from poolkit._child.socket_channel import socket_pair
from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._core.workforce import WorkerExited
from poolkit._engine.calls import Calls
from poolkit._engine.dedicated import DedicatedPool, pool_for
from poolkit._engine.life import END_WITHIN, Life
from poolkit._engine.services import services
from poolkit._given import code_of, name_of, to_be_sent
from poolkit._kinds.settings import PoolSettings
from poolkit._owner import Arrivals
from poolkit._waits import until
from poolkit.errors import ChannelClosed
from poolkit.task import Task

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")
else:
    Self = Ts = Any  # for those who look at the annotations; not in CPython 3.10
    Unpack = Optional

T = TypeVar("T")

LEAVE_WITHIN = 5.0  # seconds that the end of a `with` gives a worker to end by itself

_numbers = itertools.count(1)


def stand_in(worker: Worker[Any], called: list[Any], options: CallOptions, settings: PoolSettings, number: int) -> bool:  # noqa: ARG001 -- for another
    """Begin a worker in place of `Worker._begin`, and return True; `poolkit.testing` sets what does."""
    return False


class Worker(Ends, Generic[T]):
    """A process, or thread, that nobody had before, for one function; with a channel to it. Thread-safe.

    `with Worker(target) as worker:` tells it at the end that nothing more comes, gives it five seconds to return, and
    then terminates it. One that is dropped while it runs is terminated, and so are all when the interpreter ends.

    Attributes:
        task: what the target returned or raised, as of any task.
        name: for logs and errors.
    """

    def __init__(  # noqa: PLR0913 -- the contract
        self,
        target: Callable[[Port, Unpack[Ts]], T],
        /,
        *args: Unpack[Ts],
        kind: Literal["process", "thread"] = "process",
        name: str | None = None,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        start_method: Literal["forkserver", "spawn", "fork"] | None = None,
        memory_limit: int | None = None,
        shm_threshold: int | None = 64 * 1024,
    ) -> None:
        """Start a worker that calls `target(port, *args)`; coroutines are run to their end. Does not block for it.

        Args:
            target: what to call; keyword arguments go into a `functools.partial`.
            args: its arguments, behind the port.
            kind: "process" or "thread".
            name: for logs and errors; None: the target's, with a number.
            preload: names of modules imported once, before workers fork.
            env: environment variables, set before anything is imported.
            start_method: of processes: "forkserver" (the default), "spawn" or "fork".
            memory_limit: bytes of memory of its own that the worker may use; process workers only.
            shm_threshold: buffers of so many bytes in a message lie in shared memory, and arrive writable; None: only
                what is too large for the channel.

        Raises:
            TypeError, ValueError: an argument has no sense.
            SerializationError: target or arguments cannot be pickled.
            RuntimeError: start_method="fork" while other threads run, or a platform without process workers.
            OSError: there are no more descriptors.
            PoolClosed: the interpreter is ending.
        """
        target = to_be_sent(target)
        called: list[Any] = [target, *args]
        settings = PoolSettings(1, kind, start_method, None, (), preload, env, shm_threshold)
        options = CallOptions().changed(memory_limit=memory_limit, name=name)
        number = next(_numbers)
        is_hosting = called[0] is host  # see `hosting`
        if is_hosting:
            called[1] = to_be_sent(called[1])
        self.name = options.name or f"{name_of(called[is_hosting])}-{number}"
        if stand_in(self, called, options, settings, number):
            return
        pool = pool_for(settings)
        try:
            self._begin(pool, called, options, settings, number)
        except BaseException:
            pool.release()
            raise

    def _begin(
        self,
        pool: DedicatedPool,
        called: list[Any],
        options: CallOptions,
        settings: PoolSettings,
        number: int,
    ) -> None:
        target, *args = called
        engine, is_process = pool.engine, settings.kind == "process"
        options.check_memory_limit(engine.workforce.why_memory_unknown)
        with contextlib.ExitStack() as stack:
            channel: Channel
            theirs: Any
            if is_process:
                threshold = float("inf") if settings.shm_threshold is None else settings.shm_threshold
                channel, end, theirs = socket_pair(threshold, pool.sent())
                stack.callback(end.close)  # a copy of it is in the call
            else:
                channel, theirs = local_pair()
            call, nbytes = engine.workforce.pack(run_target, (theirs, target, tuple(args)), {"is_process": is_process})
        self.task: Task[T] = Task(engine, options.name or name_of(target), call, options, nbytes, code_of(target))
        self._channel = channel
        self._is_closed = False
        life = Life(pool, self.task, channel, self.name, number)
        self._calls = Calls(life) if target is host else None
        if self._calls is not None:
            self._no_send = self._no_recv = f"worker {self.name} hosts an object: use call()"
        life.begin()
        self._life = life

    @classmethod
    def hosting(cls, factory: Callable[..., object], /, *args: Any, **options: Any) -> Worker[None]:
        """Start a worker that makes one object, `factory(*args)`, and runs the calls to it. Does not block.

        What the factory raises is the outcome of the worker's task and of every call.

        Args:
            factory: what to call in the worker, mostly a class.
            args: its arguments.
            options: the keyword arguments of `Worker`.

        Raises:
            TypeError, ValueError, SerializationError, RuntimeError, OSError, PoolClosed: as `Worker` does.
        """
        make: Any = cls
        return cast("Worker[None]", make(host, factory, *args, **options))

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Task[Any]:
        """Have a method of the object called that the worker hosts; coroutines are run to their end. Thread-safe.

        Calls run one at a time, in this order. Does not block; arguments are pickled on this thread. The task gives the
        value or the exception, or what ended the worker; `cancel()` takes a call back that has not begun, one that has
        goes on.

        Raises:
            TypeError: it hosts none (see `Worker.hosting`), or `method` is no string.
            AttributeError: the method is private; that there is none is the outcome of the task.
            SerializationError: an argument cannot be pickled.
            ChannelClosed: the worker was closed.
        """
        if self._calls is None:
            msg = f"{self!r} hosts no object: make it by Worker.hosting"
            raise TypeError(msg)
        if not isinstance(method, str):
            msg = f"method must be the name of one, was {method!r}"
            raise TypeError(msg)
        if method.startswith("_"):
            msg = f"{method!r} is private: only public methods can be called"
            raise AttributeError(msg)
        if self._is_closed:
            raise self._end(countdown(None), sends=True)
        return self._calls.call(f"{self.name}.{method}", method, args, kwargs)

    def on_message(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(message)` for each message, those first that came before. Thread-safe; does not block.

        On the one callback thread that all such callbacks have, so be quick: while it runs, other callbacks wait, and
        when too many messages are left, the worker. From now on `recv` and loops raise RuntimeError. A callback that
        raises is logged and not called again.

        Raises:
            TypeError: it cannot be called.
            RuntimeError: there is one already, or the worker hosts an object.
            OSError: there are no more descriptors.
        """
        _check_callback(callback)
        if self._no_recv:
            raise RuntimeError(self._no_recv)
        self._life.on_message(callback)
        self._no_recv = f"on_message() gets the messages of worker {self.name}"

    def on_exit(self, callback: Callable[[WorkerExited], object]) -> None:
        """Call `callback(exited)` when the worker is gone and its messages were handed over; at once if it is.

        On the callback thread, as `on_message`. The record's `cause` is "finished", "failed" (the target raised),
        "crashed", "memory" or "terminated"; its `worker_id` is a number of the worker's own. Thread-safe; does not
        block.

        Raises:
            TypeError: it cannot be called.
            PoolClosed: this process was forked from that of the worker; so do all that have to do with it.
        """
        _check_callback(callback)
        self._life.on_exit(callback)

    @property
    def pid(self) -> int | None:
        """The process id; None before it is up, and of a thread."""
        exited = self._life.exited
        if self._channel.fd is None:
            return None
        return self._life.engine.pid_of(self.task) if exited is None else exited.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._life.gone.is_set()

    def close(self) -> None:
        """Send nothing more: the worker's loop over its port ends after what was sent. Idempotent; does not block."""
        self._is_closed = True
        if self._calls is None:
            self._channel.close()
        else:
            self._calls.close()  # behind those that are left

    def terminate(self, grace: float = 0.0) -> None:
        """Close, and stop the worker if it has not ended after `grace` seconds; its task is cancelled. Does not block.

        A coroutine is cancelled where it awaits; all else is killed, with what it started. A thread gets an exception,
        and is abandoned where it does not stop.
        """
        seconds = checks.wait_seconds("grace", grace)
        self.close()
        if seconds == 0.0:
            self.task.cancel()
        elif seconds is not None:
            self._life.engine.cancel_after(self.task, seconds)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it is gone, for at most `timeout` seconds; return whether it is. Blocks, but not in callbacks."""
        seconds = checks.wait_seconds("timeout", timeout)
        if self._life.engine.callbacks.thread.ident != threading.get_ident() and not services.is_here():
            until(self._life.gone.wait, seconds)
        return self._life.gone.is_set()

    def __enter__(self) -> Self:
        """Use the worker as a context manager."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close, and wait for its end; terminate it after five seconds, or where the block was interrupted."""
        self.close()
        try:
            if not waiting.is_interruption(exc) and self.join(LEAVE_WITHIN):
                return
        finally:
            self.terminate()
        self.join(LEAVE_WITHIN)

    async def __aenter__(self) -> Self:
        """Use the worker as an asynchronous context manager."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Do the same as `__exit__`, without blocking the event loop."""
        self.close()
        name = f"poolkit-{self.name}-exit"
        try:
            if not waiting.is_interruption(exc):
                await waiting.run_in_thread(self.join, LEAVE_WITHIN, name=name)
        finally:
            self.terminate()
            with waiting.shield():
                await waiting.run_in_thread(self.join, LEAVE_WITHIN, name=name)

    def _end(self, left: Left, *, sends: bool = False) -> BaseException:
        if sends and self._is_closed:
            return ChannelClosed(f"nothing can be sent to worker {self.name} any more: it was closed")
        return self._life.end(left)

    async def _end_async(self, *, sends: bool = False) -> BaseException:
        if not (self.task.done() or (sends and self._is_closed)):
            arrivals = Arrivals()
            arrivals.owner = self.task.add_waker(arrivals.ring)
            await waiting.wait_until(arrivals, END_WITHIN)
            if not self.task.done():
                return self._life.closed_itself()
        return self._end(countdown(None), sends=sends)

    def __del__(self) -> None:
        """Warn about a worker that runs, and terminate it."""
        life = getattr(self, "_life", None)
        if life is not None and not life.task.done() and os.getpid() == life.engine.pid:
            life.engine.cancel_soon(life.task)  # before the warning, which may be made an error
            warnings.warn(
                f"{self!r} was dropped while it ran; use `with`, or keep it until it has ended",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        """Show name, process id and state."""
        return f"<poolkit.Worker {self.name!r} pid={self.pid} {'running' if self.alive else 'ended'}>"

    def __reduce__(self) -> NoReturn:
        """Refuse: a worker belongs to the process that made it."""
        msg = f"{self!r} cannot be pickled: it belongs to the process that made it"
        raise TypeError(msg)


def _check_callback(callback: object) -> None:
    if not callable(callback):
        msg = f"callback must be something to call, was {callback!r}"
        raise TypeError(msg)
