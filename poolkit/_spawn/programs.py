"""Programs: the one thread of this process that owns the programs of all commands, from their start to their end.

    ORDERED ── STARTED ──> RUNNING ── ENDED ──> DRAINING ── pipes at their end, or DRAIN seconds ─> BURYING ── BURIED ─┐
       └ FAILED, or taken back ────────────────────────────────────────────────────────────────────────> over: told once

It starts them through a starter (`starters.py`), reads their pipes, and ends them: by a signal to the group, and by
SIGKILL when the grace is over. It runs no code of the user and waits for no lock of a pool.
Owner: all of it belongs to the thread, but for what `program.py` says; anybody may leave orders. Lock order: FORKING,
nothing inside a program's lock.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import math
import os
import selectors
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from poolkit import _os, _os_processes
from poolkit._child import starter as protocol
from poolkit._clock import monotonic
from poolkit._locks import RLock
from poolkit._spawn import launch
from poolkit._spawn.launch import FORKING
from poolkit._spawn.output import AT_END, Output
from poolkit._spawn.program import Program, open_all, why_not
from poolkit._spawn.starters import Note, Starter

DRAIN = 0.5  # seconds that who was left behind may hold the output of a program that has ended
HANG = 30.0  # seconds that a starter may hang in an exec, until it is killed with what it has started
LAST_READ = 0.1  # seconds for the output of those that were killed then
UNREAD_FOR = 1.0  # seconds that a program waits for readers before that is told, if nobody asked for its output
_READ = 64 * 1024
_READS = 4  # of one pipe in a turn
_INLINE = 64 * 1024  # bytes of what is to be started that go through the socket
_SOON = 0.01  # seconds until another try to send what a starter had no room for

_numbers = itertools.count(1)


class Programs:
    """The thread; see the file's header."""

    def __init__(self) -> None:
        self._orders: deque[tuple[Any, ...]] = deque()  # a method, and what it is called with
        self._wakeup = _os.Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup.fileno(), selectors.EVENT_READ, lambda _fd: self._wakeup.clear())
        self._timers: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._waiting: deque[Program] = deque()  # to be started
        self._programs: dict[int, Program] = {}  # given to a starter
        self._starters: set[Starter] = set()
        self._starter: Starter | None = None  # the one that starts programs
        self.has_ended = False
        self._thread = threading.Thread(target=self._run, name="poolkit-programs", daemon=True)

    def begin(self) -> None:
        """Start it. Raises RuntimeError where no thread is to be had."""
        try:
            self._thread.start()
        except BaseException:
            if self._thread.ident is None:  # else it has started, and an interrupt came
                self.has_ended = True
                self._selector.close()
                self._wakeup.close()
            raise

    def order(self, what: Callable[..., object], *args: Any) -> None:
        """Have the thread call this method. From anywhere; does not block."""
        self._orders.append((what, *args))
        self._wake()

    def _wake(self) -> None:
        self._wakeup.set()
        if self.has_ended:  # meanwhile: another one takes what it has left
            self._leave_orders()

    def start(self, program: Program, written: list[Any]) -> None:
        """Have a program started, unless it is taken back before that; noted in `written` by one instruction."""
        written += map(self._orders.append, ((Programs._wait, program),))
        self._wake()

    def end(self, program: Program, number: int, grace: float) -> None:
        """End a program: by this signal to its group, and SIGKILL after the grace. `tell` says when it is over."""
        self.order(Programs._end, program, number, grace)

    # ===== the thread =====

    def _run(self) -> None:
        try:
            while True:
                left = self._act()
                self._look_at_pipes(self._selector.select(left))
        finally:  # a lack of memory: all ends with it, and the next command makes a new one
            self._abandon()

    def _act(self) -> float | None:
        """Carry out orders, and do what is due; seconds until there is more. In here, no variable lives on."""
        while self._orders:
            order, *given = self._orders.popleft()
            order(self, *given)
        while self._timers and self._timers[0][0] <= monotonic():
            _, _, what, args = heapq.heappop(self._timers)
            what(*args)
        self._start_waiting()
        return max(0.0, self._timers[0][0] - monotonic()) if self._timers else None

    def _look_at_pipes(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, _ in ready:
            if self._selector.get_map().get(key.fd) is key:  # what came before may have closed it
                key.data(key.fd)

    def _abandon(self) -> None:
        self.has_ended = True
        for program in [*self._programs.values(), *self._waiting]:
            self._lose(program)
        for starter in self._starters:
            starter.end()
        self._selector.close()
        self._wakeup.close()
        self._leave_orders()

    def _leave_orders(self) -> None:
        while self._orders:
            with contextlib.suppress(IndexError):  # another thread was faster
                programs().order(*self._orders.popleft())

    def _wait(self, program: Program) -> None:
        self._waiting.append(program)

    def _later(self, seconds: float, what: Callable[..., object], *args: Any) -> None:
        if seconds < math.inf:
            heapq.heappush(self._timers, (monotonic() + seconds, next(_numbers), what, args))

    # ----- starting -----

    def _start_waiting(self) -> None:
        """Give the starter what is to be started, one at a time: who waits behind a hanging exec goes to another."""
        while self._waiting and (self._starter is None or not self._starter.asked):
            program = self._waiting.popleft()
            try:
                program.claims.pop()
            except IndexError:  # it was taken back
                self._over(program)
                continue
            try:
                self._execute(program)
            except Exception as exc:  # noqa: BLE001 -- no descriptors, no such file, no interpreter: its outcome
                program.error = exc
                self._over(program)

    def _execute(self, program: Program) -> None:
        starter = self._starter
        if starter is None or not starter.fits():
            starter = self._new_starter()
        program.starter = starter
        try:
            self._hand_over(program, starter)
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):  # it has just died, or hangs
            self._starter = None
            program.starter = starter = self._new_starter()
            self._hand_over(program, starter)
        if starter.asked_at < math.inf:
            self._later(max(0.0, starter.answer_due() - monotonic()), self._look_at, starter, program.number)

    def _new_starter(self) -> Starter:
        before, self._starter = self._starter, Starter()
        starter = self._starter
        self._starters.add(starter)
        self._selector.register(starter.fileno(), selectors.EVENT_READ, lambda _fd: self._heard(starter))
        self._let_go(before)
        return starter

    def _let_go(self, starter: Starter | None) -> None:
        """Have a starter end that starts nothing more, and has nothing left."""
        if starter is None or starter is self._starter:
            return
        if all(program.starter is not starter for program in self._programs.values()):
            starter.let_go()

    def _look_at(self, starter: Starter, number: int) -> None:
        """Give a starter that hangs no more to start."""
        if starter.asked != number:
            return
        if not starter.hangs(monotonic()):  # it came up late
            self._later(max(0.01, starter.answer_due() - monotonic()), self._look_at, starter, number)
        elif self._starter is starter:
            self._starter = None
            self._later(HANG, self._look_at, starter, number)
        else:  # it has hung for long, and what it has started ends for nobody
            starter.kill()

    def _hand_over(self, program: Program, starter: Starter) -> None:
        """Open its streams, and have it started with them. No other process gets copies meanwhile."""
        recipe, packed = program.recipe, program.recipe.pack()
        theirs: list[int] = []
        ours: list[int] = []
        with FORKING:
            try:
                open_all(recipe, theirs, ours)
                if len(packed) > _INLINE:
                    theirs.append(launch.page_with(packed))
                    packed = b""
                starter.execute(program.number, packed, theirs)
            except BaseException:
                for fd in ours:
                    _os.close_fd(fd)
                raise
            finally:
                for fd in theirs:
                    os.close(fd)
            if recipe.entrance is not None:
                recipe.entrance.open(ours.pop(0))
            program.pipes = dict(zip(ours, recipe.outputs(), strict=True))
            program.send_by_starter = functools.partial(self.order, Programs._send_by_starter, program.number)
            self._programs[program.number] = program
        self._flush(starter)

    # ----- what a starter says -----

    def _heard(self, starter: Starter) -> None:
        notes = starter.receive()
        if notes is None:
            self._died(starter)
            return
        for note in notes:
            if note[0] == protocol.READY and starter.asked:
                self._later(max(0.0, starter.answer_due() - monotonic()), self._look_at, starter, starter.asked)
            else:
                self._note(starter, note)

    def _note(self, starter: Starter, note: Note) -> None:
        kind, number, fact, more = note
        program = self._programs.get(number)
        if program is None:
            _end_unknown(starter, note)
        elif kind == protocol.STARTED:
            program.begin(fact, more / 1e9)
            for fd, output in program.pipes.items():  # not before: who reads something finds it started
                self._watch(program, fd, output)
            program.tell(program, "begun")
        elif kind == protocol.FAILED:
            program.error = why_not(program.recipe, fact, more)
            self._over(program)
        elif kind == protocol.ENDED:
            program.ended_at, program.returncode = more / 1e9, fact
            for fd in [*program.paused]:
                self._resume(program, fd)
            if program.pipes:
                self._later(DRAIN, self._cut, number)
            self._bury_if_drained(program)
        elif kind == protocol.BURIED:
            program.cpu_time, program.peak_rss = fact / 1e9, _os.peak_bytes(more)
            self._over(program)

    def _died(self, starter: Starter) -> None:
        """A starter has died: so do its programs, by their numbers, which were theirs a moment ago."""
        self._selector.unregister(starter.fileno())
        self._starters.discard(starter)
        if self._starter is starter:
            self._starter = None
        starter.end()
        for program in [each for each in self._programs.values() if each.starter is starter]:
            if program.pid is None:  # it may have been started, and that was not told: who has its pipes?
                for group in _os_processes.groups_with([os.fstat(fd).st_ino for fd in program.pipes]):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(group, signal.SIGKILL)
            self._lose(program)

    def _lose(self, program: Program) -> None:
        if program.pid is not None and program.returncode is None:  # a moment ago the number was its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(program.pid, signal.SIGKILL)
        for fd, output in [*program.pipes.items()]:  # what they hold
            self._unwatch(fd)
            _feed_rest(fd, output)
        program.is_lost = program.returncode is None
        self._over(program)

    # ----- pipes -----

    def _watch(self, program: Program, fd: int, output: Output) -> None:
        self._selector.register(fd, selectors.EVENT_READ, lambda fd: self._readable(program, fd, output))

    def _unwatch(self, fd: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def _readable(self, program: Program, fd: int, output: Output) -> None:
        for _ in range(_READS):
            data = _read(fd)
            if data is None:
                return
            if not data:
                self._close_pipe(program, fd)
                self._bury_if_drained(program)
                return
            goes_on = output.feed(data)
            if output is program.recipe.stdout and output.kept and output.kept.dropped and not program.is_too_long:
                program.is_too_long = True
                self._end(program, program.recipe.stop_signal, program.recipe.grace)
            if not goes_on and (program.returncode is None or output.is_over_full()):
                self._pause(program, fd, output)
                return

    def _close_pipe(self, program: Program, fd: int) -> None:
        self._unwatch(fd)
        program.paused.discard(fd)
        output = program.pipes.pop(fd)
        os.close(fd)
        output.end_run()

    def _pause(self, program: Program, fd: int, output: Output) -> None:
        """The program is to wait until somebody has taken what it wrote."""
        self._unwatch(fd)
        program.paused.add(fd)
        if not output.is_asked_for:
            self._later(UNREAD_FOR, self._say_if_unread, program.number, fd)
        output.wait_for_room(lambda: self.order(Programs._resume, program, fd))

    def _resume(self, program: Program, fd: int) -> None:
        if fd in program.paused and fd in program.pipes:
            program.paused.discard(fd)
            self._watch(program, fd, program.pipes[fd])

    def _say_if_unread(self, number: int, fd: int) -> None:
        program = self._programs.get(number)
        if program is not None and fd in program.paused and not program.pipes[fd].is_asked_for:
            program.tell(program, "unread")

    # ----- ending -----

    def _end(self, program: Program, number: int, grace: float) -> None:
        if program.is_over:
            return
        if grace <= 0.0:
            number = signal.SIGKILL
        if not program.send(number, group=True):
            program.kill_group()  # what it has left behind
        if number != signal.SIGKILL:
            self._later(grace, self._kill, program.number)

    def _send_by_starter(self, number: int, which: int) -> None:
        program = self._programs.get(number)
        if program is not None and program.starter is not None:
            program.starter.signal(number, which)
            self._flush(program.starter)

    def _kill(self, number: int) -> None:
        program = self._programs.get(number)
        if program is not None:
            self._end(program, signal.SIGKILL, 0.0)

    def _cut(self, number: int) -> None:
        """Somebody may hold the pipes of a program that has ended: they end soon."""
        program = self._programs.get(number)
        if program is None:
            return
        self._read_rest(program)  # this thread may come late
        if program.pipes:
            program.cut_off = True
            program.kill_group()
            self._later(LAST_READ, self._close_pipes, number)
        else:
            self._bury_if_drained(program)

    def _close_pipes(self, number: int) -> None:
        program = self._programs.get(number)
        if program is not None and program.pipes:
            self._read_rest(program)
            for fd in [*program.pipes]:
                self._close_pipe(program, fd)
            self._bury_if_drained(program)

    def _read_rest(self, program: Program) -> None:
        """Read what is there, and close the pipes that are at their end."""
        for fd, output in [*program.pipes.items()]:
            if fd not in program.paused and _feed_rest(fd, output):
                self._close_pipe(program, fd)

    def _bury_if_drained(self, program: Program) -> None:
        """Have it buried once it has ended, as its pipes have: that is told with the end, then."""
        if not (program.pipes or program.is_over or program.starter is None) and program.let_go():
            program.starter.bury(program.number)
            self._flush(program.starter)

    def _flush(self, starter: Starter) -> None:
        if starter in self._starters and not starter.flush():
            self._later(_SOON, self._flush, starter)

    def _over(self, program: Program) -> None:
        self._programs.pop(program.number, None)
        self._let_go(program.starter)
        program.let_go()
        for fd in [*program.pipes]:
            self._unwatch(fd)
        program.close()
        if not program.is_over:
            program.is_over = True
            program.ended_at = program.ended_at or monotonic()
            program.tell(program, "over")
            program.tell = _nothing

    def lasting(self) -> tuple[list[int], list[int]]:
        """The processes and descriptors that it has as long as the program runs."""
        starters = [*self._starters]
        own = {*self._wakeup.both(), *(starter.fileno() for starter in starters)}
        if hasattr(self._selector, "fileno"):
            own.add(self._selector.fileno())
        return [starter.pid for starter in starters], [*own]

    def leave_parent(self) -> None:
        """Close the copies that a forked child has."""
        for starter in [*self._starters]:
            starter.close()
        for program in [*self._programs.values()]:
            program.leave_parent()
        self._wakeup.close()
        self._selector.close()


def _end_unknown(starter: Starter, note: Note) -> None:
    """An error came in the midst of starting a program, and nobody has it: it ends."""
    kind, number, fact, _ = note
    if kind == protocol.STARTED:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(fact, signal.SIGKILL)
    elif kind == protocol.ENDED:
        starter.bury(number)
        starter.flush()


def _nothing(_program: Program, _what: str) -> None:
    """Nobody is to be told any more."""


def _read(fd: int) -> bytes | None:
    """What is there now; None where there is nothing yet, nothing at its end."""
    try:
        return os.read(fd, _READ)
    except BlockingIOError:
        return None


def _feed_rest(fd: int, output: Output) -> bool:
    """Take in what is there, but no flood; whether that was the end."""
    for _ in range(AT_END // _READ):
        if not (data := _read(fd)):
            return data is not None
        output.feed(data)
    return False


_programs: Programs | None = None  # guarded by: _lock
_lock = RLock()  # re-entrant for signal handlers


def programs() -> Programs:
    """The thread of this process; it is started where there is none. Raises RuntimeError where none is to be had."""
    global _programs  # noqa: PLW0603 -- one for the process
    with _lock:
        if _programs is None or _programs.has_ended:
            _programs = Programs()
            _programs.begin()
        return _programs


def _after_fork_in_child() -> None:
    global _programs, _lock  # noqa: PLW0603 -- see above
    _lock = RLock()
    copy, _programs = _programs, None
    if copy is not None:
        copy.leave_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
