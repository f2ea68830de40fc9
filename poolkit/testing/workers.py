"""Dedicated workers of a fake pool: their targets run in this process, in lockstep with who uses them.

    FakeWorker     what a `Worker` becomes that is made while a fake pool is in use
    FakeChannel    an end of its channel: messages go through the codec; who waits lets others go on
    Actor          a thread for one target, which runs only while who drives the pool waits for it

A target goes on until it returns, or waits in `send` or `recv`; then others do. Its task is one of a hidden fake pool,
so its end, a crash and a cancel are those of any task, and time passes on the same clock.
Owner: the thread whose turn it is; an actor has it lent.
"""

from __future__ import annotations

import contextlib
import math
import threading
from _thread import allocate_lock
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from poolkit import worker as workers
from poolkit._child.hosting import host
from poolkit._child.local_channel import LocalChannel, local_pair
from poolkit._child.port import ChannelEnd, Left, run_target
from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._core.workforce import WorkerExited
from poolkit._engine.calls import Calls
from poolkit._engine.life import Life
from poolkit._given import code_of
from poolkit._kinds.settings import PoolSettings
from poolkit._wire import codec
from poolkit._wire.buffers import Found
from poolkit.decorator import plain_function, pool_in_use
from poolkit.errors import WorkerCrashed
from poolkit.future import WaitTimeout
from poolkit.task import Task
from poolkit.testing.calls import FakeCall, Whole, short
from poolkit.testing.engine import FakeEngine
from poolkit.testing.script import CRASHES, Sentence, Step, known_signal
from poolkit.testing.waits import Until

if TYPE_CHECKING:
    from typing_extensions import Self

    from poolkit.testing.runs import Run


class WhenWorker(Sentence):
    """What happens to dedicated workers with one target; made by `FakePool.when_worker`."""

    def __init__(self, target: Callable[..., Any]) -> None:
        super().__init__()
        self._target = plain_function(target)

    def crashes(self, signal: str = "SIGKILL", *, exitcode: int | None = None, after: int = 0) -> Self:
        """Have it die when it receives, or sends, one message more than `after`: by a signal, or with an exit code."""
        code = None if exitcode is None else checks.whole("exitcode", exitcode, least=0)
        how = known_signal(signal) if code is None else None
        return self._do(CRASHES, (how, code, checks.whole("after", after, least=0)))

    def next_step(self, target: Callable[..., Any]) -> Step | None:
        """Use up a turn for a worker with this target."""
        step: Step | None = self._turn() if plain_function(target) == self._target else None
        return step


class _Killed(BaseException):
    """What a target gets, in its thread, whose worker is no more."""


class Actor:
    """A thread in which a target runs, between two switches."""

    def __init__(self, driver: FakeEngine, step: Step | None, *, by_reference: bool) -> None:
        self.by_reference = by_reference  # whether what it returns is not packed
        self.clock, self._turn = driver.clock, driver.turn
        self.crash: tuple[str | None, int | None, int] | None = step.payload if step is not None else None
        self.has_crashed = False
        self.outcome: Any = None
        self._run: Run | None = None
        self._thread: threading.Thread | None = None
        self._goes_on, self._waits = allocate_lock(), allocate_lock()
        self._goes_on.acquire()
        self._waits.acquire()
        self._is_killed = False

    def go_on(self, run: Run, play: Callable[[], Any]) -> bool:
        """Have it go on until it waits, or is over; whether it is over. By who drives."""
        run.ends_at = math.inf
        self._run = run
        if self._thread is None:
            self._thread = threading.Thread(target=self._play, args=(play,), name="poolkit-fake-worker", daemon=True)
            self._thread.start()
        try:
            with self._turn.lent(self._thread.ident):
                self._goes_on.release()
                self._waits.acquire()
        except BaseException:  # an interrupt: it does not run beside us
            self._is_killed = True
            raise
        return self._run is None

    def _play(self, play: Callable[[], Any]) -> None:
        self._goes_on.acquire()
        try:
            with contextlib.suppress(_Killed):
                self.outcome = play()
        finally:
            self._run = None
            del play
            self._waits.release()

    def pause(self, wakers: list[Callable[[], object]], may_go_on: Callable[[], bool], seconds: float | None) -> None:
        """Let others go on until one of them wakes it, or so many virtual seconds are over. By the target."""
        run = self._run
        self._check()
        assert run is not None  # noqa: S101 -- it runs
        due = math.inf if seconds is None else self.clock.now + seconds

        def wake() -> None:
            run.ends_at = self.clock.now

        run.ends_at = due
        wakers.append(wake)
        self._waits.release()
        self._goes_on.acquire()
        wakers.remove(wake)
        self._check()
        if not may_go_on() and self.clock.now >= due:
            raise TimeoutError(f"it was not to be had within {seconds} s of virtual time")

    def count(self, number: int) -> None:
        """It has received, or sent, so many messages: maybe one too many."""
        self._check()
        if self.crash is not None and number > self.crash[2]:
            self.has_crashed = self._is_killed = True
            raise _Killed

    def _check(self) -> None:
        if self._is_killed:
            raise _Killed

    def kill(self) -> None:
        """It goes on no more, but to unwind its thread."""
        self._is_killed = True
        if self._thread is not None and self._run is not None:
            with contextlib.suppress(RuntimeError):  # it runs: it comes to it
                self._goes_on.release()


class FakeChannel(LocalChannel):
    """One end; the worker's has an actor."""

    def __init__(
        self, end: LocalChannel, driver: FakeEngine, name: str, actor: Actor | None, *, by_reference: bool
    ) -> None:
        super().__init__(end._in, end._out)  # noqa: SLF001 -- it takes its place
        self._driver, self._name, self._actor, self._by_reference = driver, name, actor, by_reference
        self._sent = self._received = 0

    def countdown(self, timeout: object) -> Left:
        """Each wait lasts so many virtual seconds at most: in between, no time passes."""
        seconds = checks.wait_seconds("timeout", timeout)
        return lambda: seconds

    def listen(self, ring: Callable[[], object]) -> None:
        """Have this called with each message, and at the end."""
        self._in.wakers.append(ring)
        ring()

    def pack(self, message: object) -> Any:
        """Send it through the real codec."""
        if self._by_reference:
            return message
        with Found() as found:
            packed = codec.pack_value(message, found)
        return _Packed(packed, found.memories, short(message))

    def load(self, taken: list[Any]) -> Any:
        """Make it anew."""
        self._received += 1
        if self._actor is not None:
            self._actor.count(self._received)
        return codec.load_value(taken[0].data) if type(taken[0]) is _Packed else super().load(taken)

    def try_send(self, packed: Any) -> bool:
        """Add it; an eager pool goes on with it."""
        if self._actor is not None:
            self._actor.count(self._sent + 1)
        if not super().try_send(packed):
            return False
        self._sent += 1
        what = packed.shown if type(packed) is _Packed else short(packed)
        self._driver.clock.note(self._name, "is sent" if self._actor is None else "sends", what)
        if self._actor is None:
            self._driver.ask_soon(_nothing)
        return True

    def close(self) -> None:
        """Close one way; an eager pool goes on."""
        super().close()
        if self._actor is None:
            self._driver.ask_soon(_nothing)

    def wait(self, seconds: float | None, *, writes: bool) -> None:
        """Have others go on."""
        if self._actor is None:
            what = f"room for a message to {self._name}" if writes else f"a message of {self._name}"
            self._driver.lead(Until(what, lambda: self._may_go_on(writes=writes)), seconds)
        else:
            queue = self._out if writes else self._in
            self._actor.pause(queue.wakers, lambda: self._may_go_on(writes=writes), seconds)

    async def wait_async(self, *, writes: bool) -> None:
        """Do the same: it takes no time."""
        self.wait(None, writes=writes)


class _Packed:
    """A message on its way."""

    def __init__(self, data: Any, memories: Any, shown: str) -> None:
        self.data, self._memories, self.shown = data, memories, shown


def _nothing(_now: float) -> None:
    """Have the pool settle, and an eager one go on."""


class _Listener:
    """Calls a callback where the pool settles; see `Driver.deliver`."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call

    def call_back(self, _entry: object) -> None:
        """Call it, unless it has raised."""
        if (call := self._call) is not None:
            self._call = None
            call()
            self._call = call


class FakeWorker(workers.Worker[Any]):
    """What a `Worker` becomes that is made while a fake pool is in use."""

    def start(
        self, engine: FakeEngine, called: list[Any], options: CallOptions, settings: PoolSettings, number: int
    ) -> None:
        """Begin it; of what was checked."""
        is_hosting, is_thread = called[0] is host, settings.kind == "thread"
        self._engine = engine
        steps = (when.next_step(called[is_hosting]) for when in engine.worker_script)
        actor = Actor(engine, next((step for step in steps if step is not None), None), by_reference=is_thread)
        ours, theirs = local_pair()
        self._channel: FakeChannel = FakeChannel(ours, engine, f"worker {self.name}", None, by_reference=is_thread)
        end = FakeChannel(theirs, engine, f"worker {self.name}", actor, by_reference=is_thread)
        target, *given = called
        packed, nbytes = FakeCall(target, 0, lambda: (target, tuple(given), {})), 0
        if not is_thread:
            packed, nbytes = engine.workforce.pack(target, tuple(given), {})

        def whole() -> Whole:
            fn, args, _ = packed.load()
            return run_target, (end, fn, args), {"is_process": False}

        call = FakeCall(target, 0, whole, packed.memories, None, actor)
        self.task: Task[Any] = Task(engine, self.name, call, options, nbytes, code_of(target))
        self._is_closed = False
        self._listener: _Listener | None = None
        pool: Any = SimpleNamespace(engine=engine)
        self._life = life = Life(pool, self.task, self._channel, self.name, number)
        self._calls = Calls(life) if is_hosting else None
        if self._calls is not None:
            self._no_send = self._no_recv = f"worker {self.name} hosts an object: use call()"
        engine.submit(self.task)
        self.task.add_waker(lambda _task: _has_ended(life))

    def join(self, timeout: float | None = None) -> bool:
        """Have it go on until it is gone, for at most `timeout` virtual seconds; return whether it is."""
        with contextlib.suppress(WaitTimeout):
            self._engine.lead(self.task, checks.wait_seconds("timeout", timeout))
        return self.task.done()

    async def __aexit__(self, *exc: Any) -> None:  # noqa: PYI036 -- they are passed on
        """Do the same as `__exit__`, which takes no time."""
        self.__exit__(*exc)

    def on_message(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(message)` for each message, where the pool settles."""
        if not callable(callback):
            raise TypeError(f"callback must be something to call, was {callback!r}")
        if self._listener is not None:
            raise RuntimeError(f"on_message() gets the messages of worker {self.name}")
        channel = self._channel

        def call() -> None:
            taken: list[Any] = []
            with contextlib.suppress(ChannelEnd):
                while channel.try_take(taken):
                    callback(channel.load([taken.pop()]))

        self._listener = listener = _Listener(call)
        self._no_recv = f"on_message() gets the messages of worker {self.name}"
        channel.listen(lambda: self._engine.deliver(listener, None))
        self._engine.ask_soon(_nothing)

    def on_exit(self, callback: Callable[[WorkerExited], object]) -> None:
        """Call `callback(exited)` when it is gone; at once if it is."""
        if not callable(callback):
            raise TypeError(f"callback must be something to call, was {callback!r}")
        listener = _Listener(lambda: callback(self._exited()))
        self.task.add_waker(lambda _task: self._engine.deliver(listener, None))
        self._engine.ask_soon(_nothing)

    def _exited(self) -> WorkerExited:
        error = None if self.task.cancelled() else self.task.exception()
        cause = "terminated" if self.task.cancelled() else "finished" if error is None else "failed"
        if isinstance(error, WorkerCrashed):
            return WorkerExited(self._life.number, None, error.exitcode, error.signal, "crashed")
        return WorkerExited(self._life.number, None, None, None, cause)

    async def _end_async(self, *, sends: bool = False) -> BaseException:
        return self._end(lambda: None, sends=sends)


def _has_ended(life: Life) -> None:
    """Its task is done."""
    life.channel.shut()
    life.ended()
    life.gone.set()


def stand_in(
    worker: workers.Worker[Any], called: list[Any], options: CallOptions, settings: PoolSettings, number: int
) -> bool:
    """Make a worker one of the fake pool that is in use; False where there is none."""
    pool = pool_in_use()
    engine = None if pool is None else pool._supervisor  # noqa: SLF001 -- of this library
    if not isinstance(engine, FakeEngine):
        return False
    cls: Any = type(worker)
    worker.__class__ = FakeWorker if cls is workers.Worker else type(cls.__name__, (cls, FakeWorker), {})
    assert isinstance(worker, FakeWorker)  # noqa: S101 -- it is one now
    worker.start(engine.spawner(), called, options, settings, number)
    return True


workers.stand_in = stand_in
