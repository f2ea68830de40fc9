"""Cluster: several processes that serve one address, and are replaced without a lost connection.

Its thread (`_cluster/thread.py`) carries out what its rules (`_core/cluster.py`) decide; each worker is a dedicated
worker (`worker.py`) that serves with a `ClusterContext` (`_child/serving.py`).
Owner: whoever made it ends it, by `with`, `stop` or `run`. Every method is thread-safe.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from poolkit import _os, waiting
from poolkit._child.serving import ClusterContext
from poolkit._clock import monotonic
from poolkit._cluster.acceptor import SCHEDULES, Schedule
from poolkit._cluster.binding import bind_all
from poolkit._cluster.logger import log
from poolkit._cluster.member import Why
from poolkit._cluster.plan import Plan
from poolkit._cluster.records import ClusterStats, ClusterWorkerInfo
from poolkit._cluster.signals import Waking, handling
from poolkit._cluster.thread import EVENTS, ClusterThread
from poolkit._core import options as checks
from poolkit._core.cluster import BOOT_FAILED, STOPPED, STOPPING
from poolkit._core.workforce import WorkerExited
from poolkit._engine import lifetime
from poolkit._given import name_of, to_be_sent
from poolkit._kinds.settings import PoolSettings
from poolkit._locks import RLock
from poolkit._select import poll
from poolkit._waits import get, until
from poolkit.errors import ClusterFailed, PoolClosed, ReloadFailed

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = Any  # for those who look at the annotations; not in CPython 3.10

__all__ = ["Cluster", "ClusterContext", "ClusterStats", "ClusterWorkerInfo"]

SHM_THRESHOLD = 64 * 1024
_LOOK = 20.0  # milliseconds between two looks whether it has stopped
_START_WITHIN = 1.0  # seconds in which another thread's `start` has begun it
AT_EXIT = 2.0  # seconds that the end of the interpreter waits for workers to be gone

_numbers = itertools.count(1)
_live: weakref.WeakSet[Cluster] = weakref.WeakSet()


class Cluster:
    """Workers that serve one address, each in a process of its own. Thread-safe.

    Attributes:
        address: what the first socket is bound to, as `getsockname()` gives it; None without one.
        addresses: the same of all.
        url: `http://host:port` of the first; "" where there is no such.
        name: for logs and errors.
    """

    def __init__(  # noqa: PLR0913 -- the contract
        self,
        target: Callable[[ClusterContext], object],
        workers: int | None = None,
        bind: str | socket.socket | Sequence[str | socket.socket] | None = "127.0.0.1:8000",
        *,
        schedule: Literal["kernel", "round_robin", "least_busy", "sticky"] | Schedule = "kernel",
        grace: float = 30.0,
        kind: Literal["process", "thread"] = "process",
        name: str | None = None,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        start_method: Literal["forkserver", "spawn", "fork"] | None = None,
        boot_timeout: float = 60.0,
        liveness: float | None = None,
        max_requests: int | None = None,
        max_memory: int | None = None,
        backlog: int = 2048,
    ) -> None:
        """Bind the addresses, and start nothing yet.

        Args:
            target: what each worker calls with its `ClusterContext`, and which serves until `stopping` is set; a
                coroutine is run on a new event loop. Put it into a module: a reload imports that anew.
            workers: how many; None: one for each CPU that may be used.
            bind: "host:port" (port 0: any free one), "[v6]:port", ":port", "unix:/path", a bound socket, or several;
                None: none, for workers that are only kept alive. The sockets are the cluster's from now on.
            schedule: who gets a connection: "kernel" (whoever is free), or, passed on by this process, "round_robin",
                "least_busy", "sticky" (by the client's IP address), or a function of the address and the ready slots.
            grace: seconds that a worker has to finish what is in flight when it is to stop; then it is killed.
            kind: "process"; or "thread", for tests and debuggers.
            name: for logs and errors; None: the target's, with a number.
            preload: names of modules imported once in each generation, before its workers fork.
            env: environment variables of the workers.
            start_method: of processes: "forkserver" (the default), "spawn" or "fork".
            boot_timeout: seconds that a worker has until it is ready.
            liveness: seconds without a sign of life (`alive`, `count`, an accepted connection) after which a worker is
                killed, and its stack logged; None: never.
            max_requests: of `count`, after up to a tenth fewer of which a worker is replaced; None: never.
            max_memory: bytes of resident memory, beyond up to a tenth fewer of which it is replaced; None: never.
            backlog: connections that wait in the kernel.

        Raises:
            TypeError, ValueError: an argument has no sense.
            OSError: an address cannot be bound.
            SerializationError: the target cannot be pickled.
        """
        target = to_be_sent(target)
        size = _os.usable_cpus() if workers is None else checks.whole("workers", workers)
        settings = PoolSettings(1, kind, start_method, None, (), preload, env, SHM_THRESHOLD)
        numbers: dict[str, Any] = {
            "grace": _seconds("grace", grace, may_be_zero=True),
            "boot_timeout": _seconds("boot_timeout", boot_timeout),
            "liveness": None if liveness is None else _seconds("liveness", liveness),
            "max_requests": checks.whole_or_none("max_requests", max_requests),
            "max_memory": checks.whole_or_none("max_memory", max_memory),
        }
        checks.whole("backlog", backlog)
        if not (callable(schedule) or schedule in SCHEDULES):
            msg = f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, or a function, was {schedule!r}"
            raise ValueError(msg)
        if name is not None and not isinstance(name, str):
            msg = f"name must be a string or None, was {name!r}"
            raise TypeError(msg)
        self.name = name or f"{name_of(target)}-{next(_numbers)}"
        bound = bind_all(bind, backlog)
        try:
            if schedule != "kernel" and not all(each.is_stream for each in bound):
                msg = f"schedule {schedule!r} is for sockets that accept connections; datagrams take 'kernel'"
                raise ValueError(msg)
            self.addresses: list[Any] = [each.address for each in bound]
            self.address: Any = self.addresses[0] if bound else None
            plan = Plan(
                name=self.name, target=target, size=size, bound=bound, schedule=schedule, settings=settings, **numbers
            )  # fmt: skip
            self._thread = ClusterThread(plan)
        except BaseException:
            for each in bound:
                if not each.is_given:  # else it stays the caller's
                    each.close()
            raise
        self._pid = os.getpid()
        self._lock = RLock()  # re-entrant for signal handlers
        self._has_begun = False
        _live.add(self)

    @property
    def url(self) -> str:
        """`http://host:port` of the first address that has a port; "" where there is none."""
        for address in self.addresses:
            if isinstance(address, tuple):
                host = str(address[0])
                host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- what clients connect to
                return f"http://[{host}]:{address[1]}" if ":" in host else f"http://{host}:{address[1]}"
        return ""

    # ===== from start to stop =====

    def start(self, timeout: float | None = None) -> None:
        """Start the workers, and wait until all are ready, for at most `timeout` seconds. Blocks.

        Raises:
            ClusterFailed: the target raised before it was ready, or workers died three times; all are stopped. Also
                where the cluster was stopped meanwhile.
            TimeoutError: not all were ready in time; they are stopped.
            RuntimeError: it was started before.
        """
        seconds = checks.wait_seconds("timeout", timeout)
        self._begin()
        self._come_up(seconds)

    def _come_up(self, seconds: float | None) -> None:
        try:
            is_up = until(self._thread.is_up.wait, seconds)
        except BaseException:
            self.stop(kill=True)
            raise
        if not is_up:
            self.stop(kill=True)
            msg = f"not all {self._thread.rules.size} workers of cluster {self.name} were ready within {seconds:g} s"
            raise TimeoutError(msg)
        self._raise_if_failed()

    def _begin(self) -> None:
        self._check_process()
        with self._lock:
            self._refuse_second_start()
            self._has_begun = True
        try:
            self._thread.launch()
        except BaseException:
            self._thread.give_up()
            raise

    def _refuse_second_start(self) -> None:
        if self._has_begun:
            msg = f"cluster {self.name} was started before: make another one"
            raise RuntimeError(msg)

    def _raise_if_failed(self) -> None:
        rules = self._thread.rules
        if self._thread.is_over.is_set() or rules.exit_code:
            until(self._thread.is_over.wait)
            raise self._failure()

    def _failure(self) -> ClusterFailed:
        rules = self._thread.rules
        why = rules.failure
        if why is None:
            return ClusterFailed(f"cluster {self.name} was stopped before it was up", generation=rules.generation)
        text = why.text if isinstance(why, Why) else str(why)
        when = "its first start" if rules.exit_code == BOOT_FAILED else "a crash loop"
        error = ClusterFailed(
            f"cluster {self.name} has failed in {when}, and is stopped: a worker {text}",
            worker_id=getattr(why, "worker_id", None),
            generation=rules.generation,
        )
        error.__cause__ = why.error if isinstance(why, Why) else None
        return error

    def stop(self, timeout: float | None = None, *, kill: bool = False) -> None:
        """Drain all workers, and wait until they are gone, for at most `timeout` seconds. Idempotent; blocks.

        Those that have not finished after `grace` are killed; with `kill`, all are at once.

        Raises:
            TimeoutError: it goes on stopping.
        """
        seconds = checks.wait_seconds("timeout", timeout)
        if os.getpid() != self._pid:
            return
        with self._lock:
            was_begun, self._has_begun = self._has_begun, True
        if not was_begun:
            self._thread.give_up()
            return
        self._thread.post(lambda: self._thread.rules.stop(monotonic(), kill=kill))
        if threading.get_ident() != self._thread.thread.ident and not self._ends_within(seconds):
            msg = f"cluster {self.name} has not stopped within {seconds:g} s"
            raise TimeoutError(msg)

    def _ends_within(self, seconds: float | None) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return self._thread.is_over.wait(seconds)
        # A signal handler may be here, for which no lock is safe: its own thread may have just that, or be in `start`.
        began, pause = monotonic(), 1.0
        while not self._thread.has_ended and (seconds is None or monotonic() < began + seconds):
            if self._thread.thread.ident is None and monotonic() > began + _START_WITHIN:
                return True  # as soon as that goes on
            poll().poll(pause)
            pause = min(2 * pause, _LOOK)
        return self._thread.has_ended

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped, for at most `timeout` seconds; return whether it has. Blocks."""
        self._check_process()
        return until(self._thread.is_over.wait, checks.wait_seconds("timeout", timeout))

    def reload(self, timeout: float | None = None) -> int:
        """Replace all workers by new ones, which import all code anew; return the number of that generation. Blocks.

        The old ones serve until all new ones are ready, and then drain. During a reload there is one more after it.

        Args:
            timeout: seconds until all new workers have to be ready; None: `boot_timeout`.

        Raises:
            ReloadFailed: one has failed, or was too late; the old generation goes on.
            PoolClosed: the cluster does not run.
        """
        seconds = None if timeout is None else _seconds("timeout", timeout)
        self._check_runs("reload")
        return self._reloaded(*get(self._thread.reload(seconds)))

    def _reloaded(self, generation: int, why: Any) -> int:
        if why is None:
            return generation
        raise self._thread.reload_error(generation, why)

    def resize(self, workers: int) -> None:
        """Have so many workers, from now on; those that are too many drain. Does not wait for that."""
        size = checks.whole("workers", workers)
        self._check_runs("resize")
        self._thread.post(lambda: self._thread.resize(size))

    async def start_async(self, timeout: float | None = None) -> None:
        """Do the same as `start` without blocking the event loop."""
        seconds = checks.wait_seconds("timeout", timeout)
        self._begin()
        await waiting.run_in_thread(self._come_up, seconds, name=f"poolkit-{self.name}-start")

    async def stop_async(self, timeout: float | None = None, *, kill: bool = False) -> None:
        """Do the same as `stop` without blocking the event loop."""
        await waiting.run_in_thread(lambda: self.stop(timeout, kill=kill), name=f"poolkit-{self.name}-stop")

    async def reload_async(self, timeout: float | None = None) -> int:
        """Do the same as `reload` without blocking the event loop."""
        return await waiting.run_in_thread(self.reload, timeout, name=f"poolkit-{self.name}-reload")

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop it; kill its workers where the block was interrupted."""
        self.stop(kill=waiting.is_interruption(exc))

    async def __aenter__(self) -> Self:
        """Start it."""
        self._begin()  # not in what follows: one that was started before is not to be stopped for that
        try:
            await waiting.run_in_thread(self._come_up, None, name=f"poolkit-{self.name}-start")
        except BaseException:
            with waiting.shield():
                await self.stop_async(kill=True)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop it; kill its workers where the block was interrupted."""
        with waiting.shield():
            await self.stop_async(kill=waiting.is_interruption(exc))

    # ===== run =====

    def run(self) -> int:
        """Start it, handle signals, and return the exit code when it has stopped. In the main thread; blocks.

        TERM and INT stop it, a second one or QUIT kills; HUP reloads; TTIN and TTOU add and remove a worker; USR1 logs
        the table of workers.

        Returns:
            0: it was stopped; 3: the first start failed; 4: workers died again and again.

        Raises:
            RuntimeError: this is not the main thread, or it was started before.
        """
        if threading.current_thread() is not threading.main_thread():
            name = threading.current_thread().name
            msg = f"Cluster.run() handles signals, so it is for the main thread; use start() in thread {name!r}"
            raise RuntimeError(msg)
        self._check_process()
        with self._lock:
            self._refuse_second_start()  # before it would be stopped for that
        with handling(self._thread), Waking() as waking:
            self._thread.at_end = waking.end.set
            try:
                self._begin()
                while not self._thread.is_over.is_set():
                    waking.wait()
            finally:
                if self._has_begun and not self._thread.is_over.is_set():
                    self.stop(kill=True)
        rules = self._thread.rules
        if rules.exit_code:
            log.error("%s", self._failure())
        return rules.exit_code

    # ===== messages, events, snapshots =====

    def send(self, message: object, worker_id: int | None = None) -> None:
        """Send a message to the worker in this slot, for its `ClusterContext.recv`; None: to all.

        Blocks while they have too many. A worker that ends just now may not get it.

        Raises:
            SerializationError: it cannot be pickled.
            ValueError: there is no such slot.
            PoolClosed: the cluster does not run.
        """
        self._check_runs("send")
        if worker_id is not None and checks.whole("worker_id", worker_id, least=0) >= self._thread.rules.size:
            msg = f"there is no worker {worker_id} in cluster {self.name}: it has {self._thread.rules.size}, from 0"
            raise ValueError(msg)
        self._thread.send(message, worker_id)

    def on_message(self, callback: Callable[[int, Any], object]) -> None:
        """Call `callback(worker_id, message)` for what workers send. On the callback thread, so be quick.

        One that raises is logged, and called again. Without one a worker that goes on sending waits in `send`.

        Raises:
            TypeError: it cannot be called.
            RuntimeError: there is one already.
        """
        _check_callback(callback)
        self._check_process()
        self._thread.ask(lambda: self._thread.listen(callback))

    @overload
    def on(
        self, event: Literal["worker_started", "worker_ready"], callback: Callable[[ClusterWorkerInfo], object]
    ) -> None: ...
    @overload
    def on(self, event: Literal["worker_exited"], callback: Callable[[WorkerExited], object]) -> None: ...
    @overload
    def on(self, event: Literal["reload_failed"], callback: Callable[[ReloadFailed], object]) -> None: ...
    @overload
    def on(self, event: Literal["reloaded", "stopped"], callback: Callable[[int], object]) -> None: ...
    @overload
    def on(self, event: str, callback: Callable[[Any], object]) -> None: ...
    def on(self, event: str, callback: Callable[[Any], object]) -> None:
        """Call `callback` at each event of that name, on the callback thread, so be quick.

        "worker_started" and "worker_ready" come with a `ClusterWorkerInfo`, "worker_exited" with a `WorkerExited`,
        "reloaded" with the generation, "reload_failed" with the `ReloadFailed`, "stopped" with the exit code.
        Does not block.

        Raises:
            ValueError: there is no such event.
            TypeError: `callback` cannot be called.
        """
        _check_event(event)
        _check_callback(callback)
        self._thread.listeners.append((event, callback))

    def off(self, event: str, callback: Callable[[Any], object]) -> None:
        """Call it no more. Does not block. Raises ValueError: it was not called."""
        _check_event(event)
        try:
            self._thread.listeners.remove((event, callback))
        except ValueError:
            msg = f"{callback!r} was not registered for {event!r}"
            raise ValueError(msg) from None

    def workers(self) -> list[ClusterWorkerInfo]:
        """What each worker does now. Does not wait for workers."""
        self._check_process()
        return self._thread.ask(self._thread.infos)

    def stats(self) -> ClusterStats:
        """What the cluster does now, and did so far. Does not wait for workers."""
        self._check_process()
        return self._thread.ask(self._thread.stats)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            msg = f"cluster {self.name} belongs to process {self._pid}, which forked this one ({os.getpid()})"
            raise PoolClosed(msg)

    def _check_runs(self, what: str) -> None:
        self._check_process()
        if not self._has_begun or self._thread.rules.state in {STOPPING, STOPPED} or self._thread.is_over.is_set():
            state = "is not started" if not self._has_begun else "is stopped"
            msg = f"cannot {what}: cluster {self.name} {state}"
            raise PoolClosed(msg)

    def __del__(self) -> None:
        """Warn about a cluster that runs, and kill its workers; let go of the addresses of one that never ran."""
        thread = getattr(self, "_thread", None)
        if thread is None or thread.is_over.is_set() or os.getpid() != self._pid:  # the last may be gone at the end
            return
        if not self._has_begun:
            thread.give_up()
            return
        thread.post(lambda: thread.rules.stop(monotonic(), kill=True))
        warnings.warn(
            f"{self!r} was dropped while it ran; use `with`, or stop()", ResourceWarning, stacklevel=2, source=self
        )

    def __repr__(self) -> str:
        """Show name, address and state."""
        return f"<poolkit.Cluster {self.name!r} {self.url or self.address} {self._thread.rules.state}>"

    def __reduce__(self) -> NoReturn:
        """Refuse: a cluster belongs to the process that made it."""
        msg = f"{self!r} cannot be pickled: it belongs to the process that made it"
        raise TypeError(msg)


def _seconds(name: str, value: object, *, may_be_zero: bool = False) -> float:
    found = checks.wait_seconds(name, value) if may_be_zero else checks.seconds(name, value)
    if found is None or math.isinf(found):
        msg = f"{name} must be a number of seconds, was {value!r}"
        raise TypeError(msg)
    return found


def _check_callback(callback: object) -> None:
    if not callable(callback):
        msg = f"callback must be something to call, was {callback!r}"
        raise TypeError(msg)


def _check_event(event: object) -> None:
    if event not in EVENTS:
        msg = f"event must be one of {', '.join(map(repr, EVENTS))}, was {event!r}"
        raise ValueError(msg)


def _end_all() -> None:
    """At the end of the interpreter: kill what runs, and let the addresses go."""
    for cluster in [*_live]:
        with contextlib.suppress(Exception):
            cluster.stop(AT_EXIT, kill=True)


def _in_forked_child() -> None:
    for cluster in [*_live]:
        cluster._thread.in_forked_child()  # noqa: SLF001 -- a function of the class
    _live.clear()


lifetime.first.append(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
