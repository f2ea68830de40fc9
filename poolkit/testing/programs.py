"""Programs of a fake pool: they exist in the books only, and do on a virtual clock what a test has said.

What is kept of their output, and who waits for whom, are the real ones' (`_spawn/output.py`).
Owner: the thread whose turn it is.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shlex
import signal
import subprocess
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from poolkit import _os
from poolkit._child import starter as protocol
from poolkit._core.workforce import AnyTask
from poolkit._spawn.entrance import Entrance
from poolkit._spawn.output import Output
from poolkit._spawn.program import Program, Recipe, open_stream, why_not
from poolkit.errors import PoolkitError
from poolkit.testing.calls import Ending, Noted
from poolkit.testing.command_script import ENDS, MISSING, Act
from poolkit.testing.script import HANGS, RUNS
from poolkit.testing.waits import Driven, Until

_FIRST_PID = 1 << 30  # no system has one as large: what is sent to it reaches nobody
_DEFAULT = Act()
_HARMLESS = {getattr(signal, f"SIG{name}") for name in ("CHLD", "CONT", "URG", "WINCH", "STOP", "TSTP", "TTIN", "TTOU")}


class FakeProgram(Program):
    """One run of a program in the books."""

    act = _DEFAULT  # once it is begun

    def __init__(self, stage: Stage, recipe: Recipe, tell: Callable[[Program, str], object]) -> None:
        super().__init__(recipe, tell)
        self._stage = weakref.ref(stage)
        self.call: CommandCall | None = None
        self.written = 0  # how many of its writes it has made
        self.wrote_at = 0.0
        self.kill_at = math.inf  # its grace is over then
        self.full: set[Output] = set()  # those that wait for their readers
        self.files: dict[str, int] = {}  # descriptors of what is written to a file

    def send(self, number: int, *, group: bool) -> bool:  # noqa: ARG002 -- nobody else is in it
        """Send it a signal; False where it has ended."""
        stage = self._stage()
        if self.is_over or stage is None:
            return False
        stage.ask(lambda: stage.signal(self, number))
        return True

    def send_early(self) -> bool:
        """Once it is begun, send it what was left before that; False where it has ended."""
        stage = self._stage()
        if self.is_over or stage is None:
            return False
        stage.ask(lambda: stage.send_early(self))
        return True

    def waits(self) -> bool:
        """Whether it waits for its reader, or for the end of its input."""
        entrance = self.recipe.entrance
        reads = self.act.what in {ENDS, RUNS} and isinstance(entrance, FakeEntrance) and not entrance.is_over()
        return bool(self.full) or (reads and self.written == len(self.act.writes))

    def due(self) -> float:
        """When it goes on by itself."""
        act = self.act
        if self.waits():
            next_at = math.inf
        elif self.written < len(act.writes):
            next_at = self.wrote_at + act.writes[self.written][0]
        else:
            next_at = math.inf if act.what == HANGS else max(self.wrote_at, self.started_at + act.seconds)
        return min(self.kill_at, next_at)


class Stage:
    """Starts and ends the programs of one fake pool, in place of the programs thread (`_spawn/programs.py`).

    Attributes:
        waiting: programs that were sent and are not begun.
        running: those that are begun.
    """

    def __init__(self, driver: Driven) -> None:
        self._driver, self._clock = driver, driver.clock
        self.waiting: list[FakeProgram] = []
        self.running: list[FakeProgram] = []

    def ask(self, step: Callable[[], object]) -> None:
        """Have this done as the pool settles."""
        self._driver.ask_soon(lambda _now: step())

    def start(self, program: FakeProgram, written: list[Any]) -> None:
        """Have a program begun, in its turn."""
        self.waiting.append(program)
        written.append(True)

    def order(self, what: Callable[..., object], *args: Any) -> None:
        """Call this."""
        what(self, *args)

    def sweep(self) -> None:
        """Let go of those that were taken back."""
        for program in [program for program in self.waiting if not program.claims]:
            self.waiting.remove(program)
            self._over(program)

    def begin(self, program: FakeProgram) -> None:
        """Begin one that waits."""
        program.claims.pop()
        self.waiting.remove(program)
        call = program.call
        assert call is not None  # noqa: S101 -- it was sent
        program.started_at = program.wrote_at = self._clock.now
        acts = (when.next_act(call.argv) for when in self._driver.command_script)
        act = next((act for act in acts if act is not None), None)
        try:
            if act is None:
                raise refusal(call.argv)
            if act.what == MISSING:
                raise why_not(program.recipe, errno.ENOENT, protocol.PROGRAM)
            _open_files(program)
        except (OSError, PoolkitError) as exc:
            program.error = exc
            self._over(program)
            return
        program.act, program.pid = act, _FIRST_PID + program.number
        call.has_run = True
        self._clock.note(call.named, "begins")
        self.running.append(program)
        program.tell(program, "begun")
        self.send_early(program)
        self.go_on(program)

    def go_on(self, program: FakeProgram) -> None:
        """Have a program do what is due, up to what somebody may want to read before the rest happens."""
        while not program.is_over and program.due() <= self._clock.now:
            act = program.act
            if program.kill_at <= self._clock.now:
                self.signal(program, signal.SIGKILL)
            elif program.written < len(act.writes):
                _, to, data = act.writes[program.written]
                program.written += 1
                program.wrote_at = self._clock.now
                if self._write(program, to, data):
                    return
            elif act.what == RUNS:
                self._run(program)
            else:
                self._write(program, "stderr", act.last)
                self._end(program, act.payload or 0)

    def _write(self, program: FakeProgram, to: str, data: bytes) -> bool:
        """Write to a stream; whether somebody reads it."""
        recipe = program.recipe
        to = "stdout" if recipe.is_joined() else to
        stream = getattr(recipe, to)
        if not isinstance(stream, Output):
            view = memoryview(data if to in program.files else b"")
            while view:
                view = view[os.write(program.files[to], view) :]
            return False
        output: Output = stream
        goes_on = output.feed(data)
        if stream is recipe.stdout and stream.kept and stream.kept.dropped and not program.is_too_long:
            program.is_too_long = True
            self.end(program, recipe.stop_signal, recipe.grace)
        if not goes_on and not program.is_over:
            program.full.add(stream)
            stream.wait_for_room(lambda: self.ask(lambda: self._resume(program, stream)))
        return output.is_asked_for

    def _resume(self, program: FakeProgram, stream: Output) -> None:
        program.full.discard(stream)
        program.wrote_at = self._clock.now

    def _run(self, program: FakeProgram) -> None:
        recipe, entrance = program.recipe, program.recipe.entrance
        source = bytes(entrance.data) if isinstance(entrance, FakeEntrance) else recipe.stdin
        fd = open_stream(source, 0)
        try:
            done = subprocess.run(
                recipe.argv,
                stdin=fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if recipe.is_joined() else subprocess.PIPE,
                cwd=recipe.directory,
                env=recipe.env,
                start_new_session=True,
                check=False,
            )
        except OSError as exc:
            program.error = exc
            self._over(program)
            return
        finally:
            os.close(fd)
        self._write(program, "stdout", done.stdout)
        self._write(program, "stderr", done.stderr or b"")
        self._end(program, done.returncode)

    def end(self, program: FakeProgram, number: int, grace: float) -> None:
        """End a program: by this signal, and by SIGKILL when the grace is over."""
        if grace > 0.0:
            program.kill_at = min(program.kill_at, self._clock.now + grace)
        self.signal(program, number if grace > 0.0 else signal.SIGKILL)

    def signal(self, program: FakeProgram, number: int) -> None:
        """A program is sent a signal, which most often ends it."""
        if program.pid is None:
            program.recipe.early.append(number)
        elif not program.is_over:
            assert program.call is not None  # noqa: S101 -- it was sent
            self._clock.note(program.call.named, "is sent", _os.signal_name(number))
            is_kept_off = program.act.ignores_stop and number != signal.SIGKILL
            if number not in _HARMLESS and not is_kept_off:
                self._end(program, -number)

    def send_early(self, program: FakeProgram) -> None:
        """Once a program is begun, send it what was left before that."""
        while program.pid is not None and program.recipe.early:
            self.signal(program, program.recipe.early.popleft())

    def _end(self, program: FakeProgram, returncode: int) -> None:
        if not program.is_over:
            program.returncode = returncode
            program.peak_rss = program.act.nbytes
            self._over(program)

    def _over(self, program: FakeProgram) -> None:
        program.is_over = True
        program.ended_at = self._clock.now
        with contextlib.suppress(ValueError):
            self.running.remove(program)
        while program.files:
            _os.close_fd(program.files.popitem()[1])
        for output in program.recipe.outputs():
            output.end_run()
        if program.recipe.entrance is not None:
            program.recipe.entrance.end()
        program.tell(program, "over")


def _open_files(program: FakeProgram) -> None:
    """Open what its output goes to that is not read here."""
    for place, to in ((1, "stdout"), (2, "stderr")):
        stream = getattr(program.recipe, to)
        if isinstance(stream, bytes):
            try:
                program.files[to] = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            except OSError as exc:
                step = protocol.OUTPUT if place == 1 else protocol.ERRORS
                raise why_not(program.recipe, exc.errno or 0, step) from None
        elif isinstance(stream, int) or (isinstance(stream, str) and stream == "inherit"):
            program.files[to] = open_stream(stream, place)


def refusal(argv: tuple[str, ...]) -> PoolkitError:
    """What a command fails with of which nothing was said."""
    words = ", ".join(map(repr, argv))
    return PoolkitError(
        f"a fake pool runs no programs, and nothing was said of {shlex.join(argv)}: say what it does, for example "
        f'pool.when_command({words}).returns(stdout=b"..."), or have it really run: pool.when_command({words}).runs()'
    )


class CommandCall(Noted):
    """One command that a fake pool accepted.

    Attributes:
        argv: its arguments.
        cwd: its working directory.
        env: its environment, all of it.
        input: what it was given by `input`; None: nothing, or a file.
        name: the name of its task.
        options: the options of its task: `timeout`, `priority`, and so on.
        has_run: whether a run of it began.
        returncode: of its last run, once it is done; None when it never ran.
        submitted_at: when it was submitted, in virtual seconds.
        started_at: when its last run began, once it is done; None when it never ran.
        ended_at: when its last run ended, once it is done; None when it never ran.
        attempts: how many runs began, once it is done.
    """

    def __init__(self, command: AnyTask) -> None:
        recipe: Recipe = command.call.recipe
        self.argv: tuple[str, ...] = command.call.argv
        self.cwd = os.fsdecode(recipe.directory)
        self.env: Mapping[str, str] = {os.fsdecode(name): os.fsdecode(value) for name, value in recipe.env.items()}
        self.input: bytes | None = recipe.stdin if isinstance(recipe.stdin, bytes) else None
        self.has_run = False
        self.returncode: int | None = None
        self.named = ""  # in the timeline
        self._written = recipe.entrance.data if isinstance(recipe.entrance, FakeEntrance) else b""
        super().__init__(command)

    def end(self, task: AnyTask, ending: Ending) -> None:
        """Its task is done."""
        super().end(task, ending)
        self.returncode = None if task.program is None else task.program.returncode

    @property
    def written(self) -> bytes:
        """What was written to its input so far, by `Command.write`."""
        return bytes(self._written)

    def __str__(self) -> str:
        """It as it is written in a shell."""
        return shlex.join(self.argv)

    def __repr__(self) -> str:
        """Show it, and how it ended."""
        return f"<CommandCall {self} {self.outcome}>"


class FakeEntrance(Entrance):
    """What is written to a program in the books is kept for the test.

    Attributes:
        data: all that was written.
    """

    def __init__(self, encode: Callable[[str], bytes], command: AnyTask, driver: Driven) -> None:
        super().__init__(encode)
        self.data = bytearray()
        self._command, self._driver = weakref.ref(command), driver

    def is_over(self) -> bool:
        """Whether nothing more can be written."""
        return self._is_closed or self._has_ended

    def write(self, data: bytes, timeout: float | None) -> None:
        """Take all of it, once the program is begun."""
        command = self._command()

        def has_begun() -> bool:
            program = None if command is None else command.program
            return command is None or command.done() or (program is not None and program.pid is not None)

        self._driver.lead(Until(f"the start of {command!r}", has_begun), timeout)
        self._begin()
        self._end_writing()
        self.data += data

    async def write_async(self, data: bytes) -> None:
        """Do the same: it takes no time."""
        self.write(data, None)

    def close(self) -> None:
        """Nothing more will be written: the program goes on."""
        super().close()
        self._driver.ask_soon(lambda _now: None)
