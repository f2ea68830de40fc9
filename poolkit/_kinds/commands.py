"""Commands: programs behind the Workforce protocol. Each is a worker of its own that runs one task, and is gone.

    ProgramForce   orders of the scheduler ──> the programs thread (`_spawn/programs.py`) ──> reports
    Call           what a command's task is sent as: what to start, and what is to be made of its end

Guarded by: the pool's one lock: `_runs`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import repeat, starmap
from typing import Any, Generic, Protocol, TypeVar

from poolkit import _os, _os_processes, errors
from poolkit._core import options as checks
from poolkit._core.records import record
from poolkit._core.workforce import AnyTask, Begun, Died, Finished, Report, Status, Workforce
from poolkit._spawn.output import Output
from poolkit._spawn.program import Program, Recipe
from poolkit._spawn.programs import Programs, programs

Text = TypeVar("Text", str, bytes)

_MOST_CODE = 255  # of an exit
_SHOWN = 200  # characters of the arguments in an error
_LAST = 2000  # bytes of what a program wrote last that an error looks at
_LINES = 3  # of those, so many lines
_LOST = "the process that starts programs (poolkit's starter) died, and they ended with it; run the command again"


@record(frozen=True)
class CompletedCommand(Generic[Text]):
    """What a program did that has ended.

    Attributes:
        argv: its arguments.
        returncode: as subprocess has it: the exit code, or the negative number of the signal that ended it.
        exitcode: the exit code, or None when a signal ended it.
        signal: the signal's name, for example "SIGKILL", or None.
        stdout: what it wrote and was kept; empty where nothing is kept.
        stderr: the same; beyond the bound its middle is left out, and a mark is in its place.
        dropped: how many bytes of `stderr` were left out.
        cut_off: whether processes that it left behind held its output, and were killed, so that some may be missing.
        run_time: seconds from its start to its end.
        cpu_time: seconds of CPU time, of it and of those that it has waited for.
        peak_rss: the most resident memory that one of these had, in bytes.
        pid: its process id.
    """

    argv: tuple[str, ...]
    returncode: int
    exitcode: int | None
    signal: str | None
    stdout: Text
    stderr: Text
    dropped: int
    cut_off: bool
    run_time: float
    cpu_time: float
    peak_rss: int
    pid: int


class Call:
    """What a command's task is sent as. Frozen after __init__, but for that it is to end."""

    def __init__(
        self,
        argv: tuple[str, ...],
        recipe: Recipe,
        decode: Callable[[bytes], Any],
        check: Callable[[int], bool],
    ) -> None:
        self.argv, self.recipe, self.decode, self.check = argv, recipe, decode, check
        self.is_stopped = False  # it was asked to end, and is to deliver what it did

    def __str__(self) -> str:
        """The arguments, as an error has them."""
        return shown(self.argv)

    def completed(self, program: Program) -> CompletedCommand[Any]:
        """What a program did that is over."""
        code = program.returncode if program.returncode is not None else -9
        out, err = (self._kept(stream) for stream in (self.recipe.stdout, self.recipe.stderr))
        return CompletedCommand(
            argv=self.argv,
            returncode=code,
            exitcode=code if code >= 0 else None,
            signal=_os.signal_name(-code) if code < 0 else None,
            stdout=self.decode(out),
            stderr=self.decode(err),
            dropped=_dropped(self.recipe.stderr),
            cut_off=program.cut_off,
            run_time=max(0.0, program.ended_at - program.started_at),
            cpu_time=program.cpu_time,
            peak_rss=program.peak_rss,
            pid=program.pid or 0,
        )

    def completed_anyway(self, program: Program) -> CompletedCommand[Any] | None:
        """The same for an error that there is: what is no text is made some; None where there is no memory for it."""
        with contextlib.suppress(Exception):
            return self.completed(program)
        with contextlib.suppress(Exception):
            lossy = Call(self.argv, self.recipe, lambda data: data.decode("utf-8", "backslashreplace"), self.check)
            return lossy.completed(program)
        return None

    @staticmethod
    def _kept(stream: object) -> bytes:
        return stream.kept.value() if isinstance(stream, Output) and stream.kept is not None else b""

    def succeeded(self, program: Program) -> bool:
        """Whether a program that is over did what was asked for."""
        code = program.returncode
        if program.error is not None or code is None or program.is_too_long:
            return False
        return self.is_stopped or self.check(code)

    def load(self, program: Program) -> Any:
        """The result of a program that is over, or its error. Joins what was kept: for who asks for it."""
        if program.error is not None:
            return program.error
        try:
            completed = self.completed(program)
        except UnicodeError as exc:  # errors="strict"
            if self.succeeded(program):
                raise
            return exc
        if program.is_too_long:
            limit = len(self._kept(self.recipe.stdout))
            why = f"wrote more than max_output={limit} bytes to its standard output, and was stopped"
            return errors.OutputLimitExceeded(self._text(completed, why), completed=completed, limit=limit)
        if self.succeeded(program):
            return completed
        how = f"was killed by {completed.signal}" if completed.signal else f"exited with code {completed.exitcode}"
        return errors.CommandFailed(self._text(completed, how), completed=completed)

    def _text(self, completed: CompletedCommand[Any], how: str) -> str:
        text = f"{self} {how} after {completed.run_time:.1f} s (pid {completed.pid})"
        lines = self.last_lines()
        return f"{text}: {lines}" if lines else text

    def last_lines(self) -> str:
        """The last that it wrote to its standard error, wherever that went, as far as it is kept."""
        stream = self.recipe.stderr
        if isinstance(stream, str) and stream == "stdout":
            stream = self.recipe.stdout
        last = stream.kept.last(_LAST) if isinstance(stream, Output) and stream.kept is not None else b""
        lines = last.decode("utf-8", "backslashreplace").splitlines()
        return "\n".join(line.rstrip() for line in [line for line in lines if line.strip()][-_LINES:])


def _dropped(stream: object) -> int:
    return stream.kept.dropped if isinstance(stream, Output) and stream.kept is not None else 0


def shown(argv: Sequence[str]) -> str:
    """The arguments of a program, as an error has them."""
    text = shlex.join(argv)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def signal_number(name: str, value: object) -> signal.Signals:
    """Check the name of a signal."""
    if not isinstance(value, str):
        msg = f"{name} must be the name of a signal, such as 'SIGTERM', was {value!r}"
        raise TypeError(msg)
    try:
        return signal.Signals[value]
    except KeyError:
        msg = f"{name}: there is no signal {value!r}; a name is as 'SIGTERM'"
        raise ValueError(msg) from None


def checker(check: object) -> Callable[[int], bool]:
    """What tells whether an exit code is a success."""
    if check is False:
        return lambda _code: True
    if check is True:
        return (0).__eq__
    if isinstance(check, (str, bytes, bytearray)) or not isinstance(check, Collection):
        msg = f"check must be True, False or a collection of exit codes, was {check!r}"
        raise TypeError(msg)
    good = {checks.whole("a code in check", code, least=-64) for code in check}
    if max(good, default=0) > _MOST_CODE:
        msg = f"check must have exit codes from 0 to 255, or negative numbers of signals, was {check!r:.200}"
        raise ValueError(msg)
    return good.__contains__


def _nothing(_programs: Programs) -> None:
    """Have the programs thread look at its orders."""


class Starting(Protocol):
    """What starts and ends programs, and has them tell how they fare; see `Programs`."""

    def start(self, program: Any, written: list[Any]) -> None:
        """Have a program started."""

    def end(self, program: Any, number: int, grace: float) -> None:
        """End a program."""

    def order(self, what: Callable[..., object], *args: Any) -> None:
        """Have this called by who owns the programs."""


MakeProgram = Callable[[Recipe, Callable[[Program, str], object]], Program]


class _Run:
    """One program of a pool."""

    __slots__ = ("announce", "call", "is_killed", "program", "task")

    def __init__(
        self, task: AnyTask, make: MakeProgram, tell: Callable[[_Run, str], object], *, announce: bool
    ) -> None:
        self.task, self.announce = task, announce
        self.call: Call = task.call  # which a task that is cancelled forgets
        self.program = make(self.call.recipe, lambda _program, what: tell(self, what))
        self.is_killed = False


class ProgramForce(Workforce):
    """The programs of one pool. `post` takes reports, on the programs thread; `leave` does from anywhere, later."""

    max_batch = 1
    ends_coroutines = False
    why_memory_unknown = (
        None if _os.own_bytes(os.getpid()) else "this system does not tell the memory of other processes"
    )

    def __init__(
        self,
        post: Callable[[Iterable[Report]], object],
        leave: Callable[[Report], object],
        warn: Callable[[str], None],
        make: MakeProgram = Program,
        by: Callable[[], Starting] = programs,
    ) -> None:
        self._post, self._leave, self._warn = post, leave, warn
        self._make, self._by = make, by
        self._runs: dict[int, _Run] = {}

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        """Have the programs thread start the program of the one task."""
        for task in tasks:
            if task.attempts:
                for output in task.call.recipe.outputs():
                    output.reset()
            run = _Run(task, self._make, functools.partial(self._told, worker_id), announce=announce)
            self._runs[worker_id] = run
            task.program = run.program
            self._by().start(run.program, written)
        if not tasks:  # the thread may not have been woken
            self._by().order(_nothing)

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:  # noqa: ARG002 -- it is told anyway
        """Take back a program that is not begun; the thread then says that it is over."""
        run = self._runs.get(worker_id)
        if run is not None:
            with contextlib.suppress(IndexError):
                taken += starmap(run.program.claims.pop, repeat(()))

    def status(self, worker_id: int) -> Status:
        """What is known of a program."""
        run = self._runs.get(worker_id)
        if run is None or run.program.pid is None:
            return Status()
        task_id, program = run.task.id, run.program
        is_done = program.returncode is not None and not run.is_killed  # it was cut short else
        return Status(task_id, program.started_at, task_id if is_done else 0)

    def progress(self, worker_id: int, task: AnyTask) -> None:
        """Programs report none."""

    def memory(self, worker_id: int) -> int | None:
        """What a program and its children have for themselves."""
        run = self._runs.get(worker_id)
        pid = None if run is None else run.program.pid
        return None if pid is None else _os_processes.tree_bytes(pid)

    def kill(self, worker_id: int, *, want_stack: bool) -> None:  # noqa: ARG002 -- it has none
        """End a program: by its signal, and by SIGKILL after its grace."""
        run = self._runs.get(worker_id)
        if run is not None:
            run.is_killed = True
            recipe = run.program.recipe
            self._by().end(run.program, recipe.stop_signal, recipe.grace)

    def finish(self, worker_id: int, grace: float) -> None:
        """Have a program end, and deliver what it did."""
        run = self._runs.get(worker_id)
        if run is not None:
            run.call.is_stopped = True
            self._by().end(run.program, run.program.recipe.stop_signal, grace)

    def forget(self, worker_id: int) -> None:
        """Let go of one that is over."""
        self._runs.pop(worker_id, None)

    def stop(self, worker_id: int) -> None:
        """Say that a record is gone that has no program."""
        self._leave(Died(worker_id))

    def start(self, worker_id: int) -> None:
        """Not for programs, nor are these."""

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        """They have no items."""

    def mail(self, worker_id: int, task_id: int, mail: deque[Any]) -> None:
        """They take no messages."""

    def end(self, worker_id: int, task: AnyTask) -> None:
        """They end by a kill."""

    def _told(self, worker_id: int, run: _Run, what: str) -> None:
        """The programs thread says something of a program."""
        program, task = run.program, run.task
        if what == "begun":
            if run.announce:
                self._post((Begun(worker_id, task.id),))
        elif what == "unread":
            self._warn(f"{task!r} waits until its output is read, and nobody has asked for it")
        elif program.error is None and program.pid is None and not program.is_lost:  # it was taken back
            self._post((Died(worker_id),))
        else:
            try:
                self._over(worker_id, run)
            except Exception:  # noqa: BLE001 -- a lack of memory; its place is to be free all the same
                self._leave(Died(worker_id, pid=program.pid))

    def _over(self, worker_id: int, run: _Run) -> None:
        program, task, call = run.program, run.task, run.call
        if program.is_lost:
            how = None if program.pid is None else "SIGKILL"
            self._post((Died(worker_id, signal=how, pid=program.pid, hint=_LOST, output=call.last_lines()),))
            return
        ok = call.succeeded(program)
        began = program.started_at if program.pid is not None else program.ended_at
        finished = Finished(worker_id, task.id, began, program.ended_at, 0, program, ok, call.load)
        if program.error is not None:  # whose type is known
            finished.payload, finished.load = program.error, None
        is_told = run.is_killed and program.pid is not None and not task.done()
        completed, output = (call.completed_anyway(program), call.last_lines()) if is_told else (None, "")
        self._post((finished, Died(worker_id, pid=program.pid, completed=completed, output=output)))
