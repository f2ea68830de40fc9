"""Command: a program that a pool runs, as a task; what it writes can be read while it runs.

Its program is owned by the programs thread (`_spawn/programs.py`); who reads is in `reading.py`; what was asked for is
checked in `_command_line.py`.
Owner: whoever made it; every method is thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from poolkit import waiting
from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._engine.interface import PoolEngine
from poolkit._kinds.commands import Call, CompletedCommand, signal_number
from poolkit._owner import Arrivals
from poolkit._spawn.entrance import Entrance
from poolkit._spawn.output import Output
from poolkit._waits import get
from poolkit.reading import Chunks, Lines, Taking
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

        Does not block: the loop over them does.

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
        """Return its output as bytes, as they come: an iterator and async iterator.

        Does not block; the rest is as of `lines`.
        """
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
        get(arrivals)

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
        """Do the same without blocking the event loop. Raises: ChannelClosed, ValueError."""
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
        program = self.program
        if program is None or program.pid is None:  # it may be taken back, and another run begin
            self._call.recipe.early.append(number)
            program = self.program
            return program is None or bool(program.send_early())
        return bool(program.send(number, group=group))

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
