"""Command: a program that a pool runs, as a task; what it writes can be read while it runs.

    Command          the task; its program is owned by the programs thread (`_spawn/programs.py`)
    Lines, Chunks    who reads: each line goes to one reader
    Caller           calls a callback with each line

What was asked for is checked in `_command_line.py`.

Owner: whoever made it; every method is thread-safe.
"""

from __future__ import annotations

import math
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from poolkit import waiting
from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._engine.interface import PoolEngine
from poolkit._kinds.commands import Call, CompletedCommand, shown, signal_number
from poolkit._kinds.loggers import log
from poolkit._locks import RLock
from poolkit._owner import Arrivals
from poolkit._spawn.entrance import Entrance
from poolkit._spawn.output import Output
from poolkit.task import Task

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping
    from typing import BinaryIO, TypedDict

    from typing_extensions import Self

    Stream = Literal["capture", "lines", "null", "inherit"] | os.PathLike[str] | BinaryIO

    class _Options(TypedDict, total=False):
        input: bytes | bytearray | memoryview | str | BinaryIO | None
        stdin: Literal["null", "pipe", "inherit"]
        stdout: Stream
        stderr: Stream | Literal["stdout"]
        cwd: os.PathLike[str] | str | None
        env: Mapping[str, str | None] | None
        shell: bool
        encoding: str
        errors: str
        check: bool | Collection[int]
        timeout: float | None
        max_output: int
        grace: float
        stop_signal: str

    class BytesOptions(_Options, total=False):
        """What `run` takes for a program whose output is bytes."""

        text: Literal[False]
        on_stdout: Callable[[bytes], object] | None
        on_stderr: Callable[[bytes], object] | None

    class TextOptions(_Options, total=False):
        """What `run` takes for a program whose output is text."""

        on_stdout: Callable[[str], object] | None
        on_stderr: Callable[[str], object] | None

else:
    Self = Any  # for those who look at the annotations; not in CPython 3.10

Text = TypeVar("Text", str, bytes)
Item = TypeVar("Item")


class Command(Task[CompletedCommand[Text]]):
    """A program that is run, as a task: `await` it, or ask for its `result()`, a `CompletedCommand`. Thread-safe.

    Iterating over it is iterating over its lines. Leaving a `with` of it stops it, and waits for its end.

    Attributes:
        argv: its arguments.
    """

    argv: tuple[str, ...]

    def __init__(
        self,
        engine: PoolEngine,
        name: str,
        call: Call,
        options: CallOptions,
        *,
        makes_text: bool,
    ) -> None:
        """Take what was checked."""
        super().__init__(engine, name, call, options)
        self.argv = call.argv
        self._engine, self._call = engine, call
        self._outputs = {output.name: output for output in call.recipe.outputs()}
        self._entrance: Entrance | None = call.recipe.entrance
        self._early = call.recipe.early
        self._makes_text = makes_text
        self._taken_of: dict[tuple[str, str], Taking] = {}
        self.add_waker(self._done)

    def _done(self, _task: object) -> None:
        for output in self._outputs.values():
            output.end()
        if self._entrance is not None and self.program is None:
            self._entrance.end()

    @property
    def pid(self) -> int | None:
        """The process id; None until it was started."""
        return None if self.program is None else self.program.pid

    # ===== its output =====

    def lines(self, stream: Literal["stdout", "stderr", "both"] = "stdout") -> Lines[Any]:
        """Return its lines, without their ends, as they come: an iterator and async iterator. Each goes to one reader.

        After the last it raises what `result()` would, if that is an error. "both": pairs of the stream and the line.

        Raises:
            ValueError: that stream is neither "capture" nor "lines", or there is none of that name.
            UnicodeError: with `errors="strict"`, in the loop: it cannot be decoded.
        """
        _check_stream(stream, ("stdout", "stderr", "both"))
        names = ("stdout", "stderr") if stream == "both" else (stream,)
        taking = Taking(self._outputs_of(names), lines=True, paired=stream == "both")
        return Lines(self, self._taken_of.setdefault(("lines", stream), taking))

    def chunks(self, stream: Literal["stdout", "stderr"] = "stdout") -> Chunks:
        """Return its output as bytes, as they come: an iterator and async iterator. The rest is as of `lines`."""
        _check_stream(stream, ("stdout", "stderr"))
        taking = Taking(self._outputs_of((stream,)), lines=False, paired=False)
        return Chunks(self, self._taken_of.setdefault(("chunks", stream), taking))

    def _outputs_of(self, names: Sequence[str]) -> list[Output]:
        if missing := [name for name in names if name not in self._outputs]:
            known = ", ".join(self._outputs) or "none"
            msg = f"cannot read {missing[0]} of {self!r}: only what is 'capture' or 'lines' can be read, here {known}"
            raise ValueError(msg)
        outputs = [self._outputs[name] for name in names]
        for output in outputs:
            output.ask()
        return outputs

    def __iter__(self) -> Iterator[Text]:
        """Return the lines of its standard output."""
        return iter(self.lines())

    def __aiter__(self) -> AsyncIterator[Text]:
        """Return the lines of its standard output."""
        return aiter(self.lines())

    def wait_for_output(self, arrivals: Arrivals) -> None:
        """Wait until this is rung. Blocks."""
        arrivals.get()

    def is_taken(self) -> bool:
        """Whether some of its output was taken, or it is to end, so that it cannot be run again."""
        return self._call.is_stopped or any(output.taken for output in self._outputs.values())

    # ===== its input =====

    def write(self, data: Text, timeout: float | None = None) -> None:
        """Write to its input, with `stdin="pipe"`. Blocks until it is started, and while the pipe is full.

        Raises:
            ChannelClosed: it does not read any more.
            TimeoutError: not all could be written within `timeout` seconds.
            ValueError: its input is no pipe.
        """
        self._open_entrance().write(self._bytes(data), checks.wait_seconds("timeout", timeout))

    async def write_async(self, data: Text) -> None:
        """Do the same without blocking the event loop."""
        await self._open_entrance().write_async(self._bytes(data))

    def close_stdin(self) -> None:
        """Tell it that its input has ended. Idempotent; does not block."""
        self._open_entrance().close()

    def _open_entrance(self) -> Entrance:
        if self._entrance is None:
            msg = f"{self!r} has no pipe to its input: give stdin='pipe'"
            raise ValueError(msg)
        return self._entrance

    def _bytes(self, data: Any) -> bytes:
        if isinstance(data, str) != self._makes_text:
            wanted = "str" if self._makes_text else "bytes"
            msg = f"write() takes {wanted} of a command with text={self._makes_text}, was given {data!r:.80}"
            raise TypeError(msg)
        if isinstance(data, str):
            return self._open_entrance().encode(data)
        try:
            return bytes(memoryview(data))  # `bytes` alone would make something of numbers, too
        except TypeError as exc:
            msg = f"write() takes bytes, or an object with a buffer, was given {data!r:.80}"
            raise TypeError(msg) from exc

    # ===== its end =====

    def send_signal(self, name: str, *, group: bool = False) -> bool:
        """Send it a signal, by its name, such as "SIGHUP", or its whole group; False where it has ended.

        One that is queued gets it when it starts, with its group. Does not block.
        """
        number = signal_number("name", name)
        if self.done():
            return False
        if self.program is None:
            self._early.append(number)
            if self.program is None:
                return True
        return bool(self.program.send(number, group=group))

    def stop(self, grace: float | None = None) -> None:
        """Have it end: by its stop signal, and SIGKILL after `grace` seconds (None: those it was given).

        Its result is what it did, whatever the code; one that is queued is cancelled. Idempotent; does not block.
        """
        seconds = self.options.grace if grace is None else checks.wait_seconds("grace", grace)
        if not self.done():
            self._engine.finish(self, math.inf if seconds is None else seconds)

    def __enter__(self) -> Self:
        """Use the command as a context manager."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop it, and wait for its end."""
        self.stop()
        if not self.done():
            self._wait(None)

    async def __aenter__(self) -> Self:
        """Use the command as an asynchronous context manager."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop it, and wait for its end."""
        self.stop()
        if not self.done():
            end = Arrivals()
            end.owner = self.add_waker(end.ring)
            with waiting.shield():
                await waiting.wait_for(end)

    def leave_parent(self) -> None:
        """Be a copy in a forked child."""
        super().leave_parent()
        for output in self._outputs.values():
            output.leave_parent()

    def __repr__(self) -> str:
        """Show id, name and state."""
        return super().__repr__().replace("Task", "Command", 1)


def _check_stream(name: object, names: Sequence[str]) -> None:
    if name not in names:
        msg = f"the stream to read must be one of {', '.join(map(repr, names))}, was {name!r}"
        raise ValueError(msg)


class Taking:
    """What was taken of some outputs, as lines or as chunks, for whoever of their readers is next."""

    def __init__(self, outputs: list[Output], *, lines: bool, paired: bool) -> None:
        self.outputs = outputs
        self.ready: deque[Any] = deque()
        self._lines, self._paired = lines, paired
        self._lock = RLock()  # so that nothing is on its way from the outputs to `ready` while somebody looks

    def fetch(self) -> bool | None:
        """Take what is there: whether there is something; None at the end."""
        with self._lock:
            is_over = True
            for output in self.outputs:
                found = output.take(lines=self._lines)
                is_over &= found is None
                if found:
                    self.ready.extend([(output.name, item) for item in found] if self._paired else found)
            return True if self.ready else None if is_over else False

    def has_some(self) -> bool:
        """Whether a reader need not wait."""
        with self._lock:
            some = bool(self.ready) or any(output.has_some() for output in self.outputs)
            return some or all(output.has_ended for output in self.outputs)


class _Reader(Generic[Item]):
    """Takes what comes. Thread-safe."""

    def __init__(self, command: Command[Any], taking: Taking) -> None:
        self._command, self._taking = command, taking

    def __iter__(self) -> Iterator[Item]:
        """Take one after the other, at the speed of a generator."""
        ready = self._taking.ready
        while True:
            try:
                while True:
                    yield ready.popleft()
            except IndexError:
                pass
            if not self._more():
                return

    def __next__(self) -> Item:
        """Take the next. Blocks."""
        while True:
            try:
                item: Item = self._taking.ready.popleft()
            except IndexError:
                if not self._more():
                    raise StopIteration from None
            else:
                return item

    def _more(self) -> bool:
        """Wait until there is more, or may be; at the end False, or the error of the command."""
        found = self._taking.fetch()
        if found is None:
            self._command.result()
            return False
        if not found:
            with _Waiting(self._taking.outputs) as arrivals:
                if not self._taking.has_some():
                    self._command.wait_for_output(arrivals)
        return True

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Take one after the other, without blocking the event loop."""
        ready = self._taking.ready
        while True:
            try:
                while True:
                    yield ready.popleft()
            except IndexError:
                pass
            if not await self._more_async():
                return

    async def __anext__(self) -> Item:
        """Take the next, without blocking the event loop."""
        while True:
            try:
                item: Item = self._taking.ready.popleft()
            except IndexError:
                if not await self._more_async():
                    raise StopAsyncIteration from None
            else:
                return item

    async def _more_async(self) -> bool:
        found = self._taking.fetch()
        if found is None:
            await self._command
            return False
        if found:
            await waiting.turn()
            return True
        with _Waiting(self._taking.outputs) as arrivals:
            if not self._taking.has_some():
                await waiting.wait_for(arrivals)
        return True


class Lines(_Reader[Item]):
    """The lines of a command's output, as they come: an iterator and an async iterator. Each goes to one reader."""


class Chunks(_Reader[bytes]):
    """A command's output, as it comes, in bytes: an iterator and an async iterator. Each chunk goes to one reader."""


class _Waiting:
    """What is rung when one of these outputs has something."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._arrivals = Arrivals()

    def __enter__(self) -> Arrivals:
        for output in self._outputs:
            output.waiters.append(self._arrivals.ring)
        return self._arrivals

    def __exit__(self, *_exc: object) -> None:
        for output in self._outputs:
            output.waiters.remove(self._arrivals.ring)


class Caller:
    """Has a callback called with each line, on the callback thread; see `Records.add_call`.

    The command is not kept by it, whose outputs have it.
    """

    def __init__(self, command: Command[Any], output: Output, callback: Callable[[Any], object]) -> None:
        self._command, self._engine, self._output = weakref.ref(command), command._owner, output  # noqa: SLF001 -- its own half
        self._callback: Callable[[Any], object] | None = callback
        self._is_called = allocate_lock()  # held while a call is on its way
        self.task_id = self.worker_id = 0
        output.ask()
        output.waiters.append(self._ring)

    def _ring(self) -> None:
        command = self._command()
        if command is not None and self._output.has_some() and self._is_called.acquire(blocking=False):
            self.task_id, self.worker_id = command.id, command.worker_id or 0
            assert self._engine is not None  # noqa: S101 -- it runs
            self._engine.deliver(self, None)

    def call_back(self, _entry: object) -> None:
        """Call the callback with what is there. On the callback thread."""
        self._is_called.release()  # before the look: what comes from now on is called again
        while self._output.has_some():
            try:
                for line in self._output.take(lines=self._callback is not None) or ():
                    if self._callback is not None:
                        self._callback(line)
            except Exception:  # of decoding, too; what comes from now on is dropped
                self._callback = None
                command = self._command()
                how = "on_%s of %s (pid %s), task %d (%s), raised, and is not called again"
                if command is not None:
                    log.exception(how, self._output.name, shown(command.argv), command.pid, command.id, command.name)
            except BaseException:
                self._callback = None
                raise
