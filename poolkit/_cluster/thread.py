"""Thread: the one thread of a cluster, which carries out what its rules decide (`_core/cluster.py`).

    anybody ── ask, post ──> inbox ──> rules ──> orders: workers start, drain, stop, are killed; generations; events
    a worker ── its page, and a ring of the bell: it is ready, or has served enough

Guarantees: rules and members belong to this thread alone, so no lock is held while anything is done.
Owner: the thread; `_inbox` takes one atomic operation at a time, from anywhere.
"""

from __future__ import annotations

import random
import select
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from poolkit import _os, errors
from poolkit._clock import monotonic
from poolkit._cluster.acceptor import Acceptor
from poolkit._cluster.generations import Generations
from poolkit._cluster.logger import log
from poolkit._cluster.member import Running, Why
from poolkit._cluster.plan import Plan
from poolkit._cluster.records import ClusterStats, ClusterWorkerInfo
from poolkit._cluster.snapshots import info_of, log_table, reload_error, stats_of, waiting_places
from poolkit._core.cluster import (
    CRASH_LOOP,
    DRAINING,
    KILLED,
    READY,
    STARTING,
    STOPPED,
    STOPPING,
    Member,
    Rules,
)
from poolkit._engine.services import OwnThread, services
from poolkit._select import poll
from poolkit._waits import get

T = TypeVar("T")

EVENTS = ("worker_started", "worker_ready", "worker_exited", "reloaded", "reload_failed", "stopped")
LOOK_AT_MEMORY = 2.0  # seconds between two looks
CLOSE_AFTER = 1.1  # seconds in which workers that accept by themselves close their copies, lest that fails in a server


class ClusterThread:
    """See the file's header; it carries out the rules' orders (`Acts`)."""

    def __init__(self, plan: Plan) -> None:
        """Raises OSError: there are no descriptors."""
        self.plan = plan
        self.listeners: list[tuple[str, Callable[[Any], object]]] = []
        self.on_message: Callable[[int, Any], object] | None = None
        self.is_up = threading.Event()  # all were ready once, or that has failed
        self.is_over = threading.Event()
        self.has_ended = False  # the same; to be looked at without a lock
        self.began = 0.0
        self._rng = random.Random()
        self.rules = Rules(plan.size, self, grace=plan.grace, boot_timeout=plan.boot_timeout, rng=self._rng)
        self._running: dict[int, Running] = {}
        self._generations = Generations(plan.settings)
        self._orders: deque[tuple[Callable[..., object], Any]] = deque()
        self._inbox: deque[Callable[[], object]] = deque()
        self._wakeup, self._bell = _os.Wakeup(), _os.Wakeup()
        self._acceptor: Acceptor | None = None
        self._fds = [bound.socket.fileno() for bound in plan.bound]
        if plan.schedule != "kernel" and plan.bound:
            sockets = [bound.socket for bound in plan.bound]
            self._acceptor = Acceptor(plan.name, sockets, plan.schedule, plan.size)
            self._acceptor.at_failure = lambda: self.post(self._accepting_has_failed)
        self._waiting: list[tuple[int, SimpleQueue[tuple[int, Any]]]] = []  # who waits for a reload
        self._served_before = 0  # by workers that are gone
        self._most: dict[int, tuple[int | None, int | None]] = {}  # of members: requests, bytes
        self._look_at = 0.0
        self._is_closed = False
        self.at_end: Callable[[], object] = _nothing  # called when it is over
        self._close_at: float | None = None  # when addresses are to refuse whoever comes
        self.thread = OwnThread(target=self._run, name=f"poolkit-cluster-{plan.name}", daemon=True)

    def launch(self) -> None:
        """Start it. Raises RuntimeError where there is no thread to be had."""
        # Here, as start_method="fork" looks at which threads run.
        self._generations.env_of(self.rules.generation, self.plan.size)
        services.enter()
        try:
            self.began = monotonic()
            self.post(self._begin)
            if self._acceptor is not None:
                self._acceptor.begin()
            self.thread.start()
        except BaseException:
            if self.thread.ident is None:  # else it leaves by itself
                services.leave()
            raise

    def _begin(self) -> None:
        if self.rules.state == STARTING:  # a signal may have stopped it before
            self.rules.start(monotonic())

    def _accepting_has_failed(self) -> None:
        why = Why(-1, None, "gets no more connections, as the thread that passes them on has failed", raised=False)
        self.rules.fail(why, CRASH_LOOP, monotonic())

    def give_up(self) -> None:
        """Let go of what it has, where it was not begun."""
        if self.thread.ident is not None:
            return
        if self._acceptor is not None:
            self._acceptor.give_up()
        self._generations.drop_all()
        self.close()
        self._wakeup.close()
        self._bell.close()
        self.has_ended = True
        self.is_over.set()
        self.is_up.set()

    # ===== for anybody =====

    def post(self, step: Callable[[], object]) -> None:
        """Have the thread do this. From anywhere, signal handlers too; does not block."""
        self._inbox.append(step)
        self._wakeup.set()
        if self.is_over.is_set():
            self._take_inbox()

    def ask(self, step: Callable[[], T]) -> T:
        """Have the thread do this, and return what that gives. Blocks for a moment."""
        if self.thread.ident is None or threading.get_ident() == self.thread.ident:
            return step()
        answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                answer.put((step(), None))
            except BaseException as exc:  # noqa: BLE001 -- raised below
                answer.put((None, exc))

        self.post(run)
        found, error = get(answer)
        if error is not None:
            raise error
        return found  # type: ignore[return-value]

    def reload(self, timeout: float | None) -> SimpleQueue[tuple[int, Any]]:
        """Begin a reload, or one after that which runs; what it returns gets the generation, and why it failed."""
        answer: SimpleQueue[tuple[int, Any]] = SimpleQueue()

        def step() -> None:
            if self.rules.state in {STOPPING, STOPPED}:
                answer.put((self.rules.generation, "the cluster was stopped"))
                return
            number = self.rules.reload(monotonic(), timeout)
            self._waiting.append((number, answer))

        self.post(step)
        return answer

    def send(self, message: object, slot: int | None) -> None:
        """Send a message to those in this slot, or to all. Blocks while they have too many."""

        def find() -> list[Running]:
            return [
                each
                for each in self._running.values()
                if (slot is None or each.worker_id == slot) and each.member.state in {STARTING, READY}
            ]

        for running in self.ask(find):
            try:
                running.worker.send(message)
            except errors.SerializationError:
                raise
            except (errors.PoolkitError, EOFError) as exc:
                log.info("worker=%d did not get a message, as it has ended: %s", running.worker_id, exc)

    # ===== the thread =====

    def _run(self) -> None:
        try:
            while not (self.rules.state == STOPPED and not self._orders):
                self._take_inbox()
                self._look_at_members()  # first: what is ready must not be taken for what is not
                self.rules.tick(monotonic())
                if self._close_at is not None and self._close_at <= monotonic():
                    self._close_bound()
                while self._orders:
                    order, subject = self._orders.popleft()
                    order(subject)
                if self._inbox or self.rules.state == STOPPED:
                    continue
                self._sleep()
        except BaseException:
            log.exception("the thread of cluster %s has failed; all its workers are killed", self.plan.name)
            self.rules.exit_code = CRASH_LOOP
        finally:
            self._end()

    def _take_inbox(self) -> None:
        while True:
            try:
                step = self._inbox.popleft()
            except IndexError:
                return
            step()

    def _sleep(self) -> None:
        deadline = self.rules.next_deadline()
        if self._needs_looks():
            deadline = self._look_at if deadline is None else min(deadline, self._look_at)
        if self._close_at is not None:
            deadline = self._close_at if deadline is None else min(deadline, self._close_at)
        poller = poll()
        for each in (self._wakeup, self._bell):
            poller.register(each.fileno(), select.POLLIN)
        poller.poll(None if deadline is None else max(0.0, deadline - monotonic()) * 1000 + 1)
        self._wakeup.clear()
        self._bell.clear()

    def _end(self) -> None:
        """Nobody is left."""
        for running in [*self._running.values()]:  # after an error of our own
            running.kill(None)
            running.close()
        self._generations.drop_all()
        self.close()
        self._close_bound()
        self.has_ended = True
        self.is_over.set()
        self.is_up.set()
        for _, answer in self._waiting:
            answer.put((self.rules.generation, "the cluster was stopped"))
        self._waiting.clear()
        self._take_inbox()
        self._wakeup.close()
        self._bell.close()
        services.leave()
        self.at_end()

    def _needs_looks(self) -> bool:
        return self.plan.liveness is not None or self.plan.max_memory is not None

    def _look_at_members(self) -> None:
        """Look at the pages: who is ready, gives signs of life, and has served enough."""
        now = monotonic()
        is_time = self._needs_looks() and now >= self._look_at
        if is_time:
            self._look_at = now + min(LOOK_AT_MEMORY, (self.plan.liveness or LOOK_AT_MEMORY * 4) / 4)
        for number, running in [*self._running.items()]:
            member, slate = running.member, running.slate
            self._note_ready(running)
            if member.state != READY:
                continue
            most_served, most_bytes = self._most[number]
            if (most_served is not None and slate.served >= most_served) or (
                is_time and most_bytes is not None and running.memory() > most_bytes
            ):
                self.rules.due(number, "recycled", now)
            if is_time and self.plan.liveness is not None:
                last = max(slate.alive, member.ready_at or now)
                if last + self.plan.liveness <= now:
                    self.rules.hung(number, now)

    def _note_ready(self, running: Running) -> None:
        """Tell the rules, if it has become so, also of one that is to end: it may have accepted something."""
        member = running.member
        if member.ready_at is None and member.state != KILLED and running.slate.ready:
            self.rules.ready(member.number, monotonic())

    # ===== orders of the rules =====

    def start(self, member: Member) -> None:
        """Start a member."""
        self._orders.append((self._start, member))

    def _start(self, member: Member) -> None:
        if member.state != STARTING:  # it was to end before; and the addresses may be closed by now
            why = Why(member.slot, None, "was stopped", raised=False)
            self._inbox.append(lambda: self.rules.gone(member.number, why, monotonic()))
            return
        plan = self.plan
        self._most[member.number] = served, _ = self._ages()
        setup = {
            "name": plan.name,
            "workers": self.rules.size,
            "grace": plan.grace,
            "liveness": plan.liveness,
            "schedule": plan.schedule if isinstance(plan.schedule, str) else "custom",
            "bell": None,
            "most_served": served,
        }
        try:
            running = self._made(member, setup, self._generations.env_of(member.generation, self.rules.size))
        except Exception as exc:
            log.exception("worker=%d gen=%d could not be started", member.slot, member.generation)
            why = Why(member.slot, exc, f"could not be started: {exc!r}", raised=not isinstance(exc, OSError))
            self._inbox.append(lambda: self.rules.gone(member.number, why, monotonic()))
            return
        self._running[member.number] = running
        self._tell("worker_started", self._info(member))
        running.at_end(lambda: self.post(lambda: self._gone(member.number)))

    def _made(self, member: Member, setup: dict[str, Any], env: dict[str, str]) -> Running:
        from poolkit._child.serving import Handed  # noqa: PLC0415 -- beside `Setup`

        settings = self.plan.settings
        options: dict[str, Any] = {"kind": settings.kind, "name": f"{self.plan.name}-{member.slot}"}
        if settings.kind == "process":
            options |= {"preload": settings.preload, "env": env, "start_method": settings.start_method}
        setup["bell"] = Handed(self._bell.writing_end())
        bell = None if self._acceptor is None else self._acceptor.bell
        running = Running(member, setup, self.plan.target, options, self._fds, passes=bell)
        if self.on_message is not None:
            self._listen(running)
        return running

    def _listen(self, running: Running) -> None:
        callback = self.on_message
        assert callback is not None  # noqa: S101 -- asked before

        def tell(message: object) -> None:
            try:
                callback(running.worker_id, message)
            except BaseException:  # let out, it would be called with no other message of this worker
                log.exception("the callback for messages raised for one of worker=%d", running.worker_id)

        running.worker.on_message(tell)

    def listen(self, callback: Callable[[int, Any], object]) -> None:
        """Have this called with the messages of those that run, and that come. Raises RuntimeError: one is already."""
        if self.on_message is not None:
            msg = f"cluster {self.plan.name} has a callback for messages already"
            raise RuntimeError(msg)
        self.on_message = callback
        for running in self._running.values():
            self._listen(running)

    def _ages(self) -> tuple[int | None, int | None]:
        """How many requests and bytes one may have: up to a tenth fewer than asked for, lest all leave at once."""
        given = self.plan.max_requests, self.plan.max_memory
        served, size = (None if most is None else most - int(most * self._rng.random() / 10) for most in given)
        return served, size

    def drain(self, member: Member) -> None:
        """Give a member no more connections."""
        if member.number in self._running:
            self._running[member.number].slate.no_more = True  # at once: the time until it is told to stop runs
        self._orders.append((self._drain, member))

    def _drain(self, member: Member) -> None:
        running = self._running.get(member.number)
        if running is not None:
            running.slate.no_more = True
            self._unlist(running)

    def _unlist(self, running: Running) -> None:
        if self._acceptor is not None and running.is_listed and running.hand is not None:
            self._acceptor.leave(running.hand)
            running.hand = None
            running.is_listed = False

    def stop(self, member: Member) -> None:
        """Tell a member to stop."""
        self._orders.append((self._stop, member))

    def _stop(self, member: Member) -> None:
        running = self._running.get(member.number)
        if running is not None:
            running.stop()

    def kill(self, member: Member, *, want_stack: bool) -> None:
        """Kill a member."""
        self._orders.append((self._kill_with_stack if want_stack else self._kill, member))

    def _kill(self, member: Member) -> None:
        running = self._running.get(member.number)
        if running is not None:
            running.kill(None)

    def _kill_with_stack(self, member: Member) -> None:
        running = self._running.get(member.number)
        if running is not None:
            limits = {"hung": self.plan.liveness, "unresponsive": round(monotonic() - running.began, 2)}
            seconds = limits.get(member.cause, self.plan.grace) or self.plan.grace
            what = {"hung": "gave no sign of life", "unresponsive": "was not ready"}.get(member.cause, "did not stop")
            log.error("%s %s for %g s, and is killed", self._who(member), what, seconds)
            running.kill(max(seconds, 0.001))

    def begin(self, generation: int) -> None:
        """Have the code of a new generation imported anew."""
        # Its first member does that, and tells what is wrong.

    def drop(self, generation: int) -> None:
        """Let go of a generation."""
        self._orders.append((self._generations.drop, generation))

    def close(self) -> None:
        """Take no more connections, and let the addresses go."""
        if self._is_closed:
            return
        self._is_closed = True
        for running in self._running.values():
            running.slate.no_more = True
        if self._acceptor is not None:
            self._acceptor.end()
        for bound in self.plan.bound:
            bound.remove()
        if self._acceptor is None and self._running:
            self._close_at = monotonic() + CLOSE_AFTER
        else:
            self._close_bound()

    def _close_bound(self) -> None:
        self._close_at = None
        for bound in self.plan.bound:
            bound.close()

    def tell(self, event: str, subject: Any) -> None:
        """Something has happened, as the rules see it."""
        self._orders.append((getattr(self, f"_told_{event}"), subject))

    def _told_ready(self, member: Member) -> None:
        running = self._running.get(member.number)
        if running is None:
            return
        took = monotonic() - running.began
        log.info("%s ready after %.2f s", self._who(member), took)
        slot = self.rules.slots.get(member.slot)
        if running.hand is not None and member.state == READY and slot is not None and slot.current is member:
            self._list(running)
        self._tell("worker_ready", self._info(member))

    def _list(self, running: Running) -> None:
        assert self._acceptor is not None  # noqa: S101 -- asked before
        assert running.hand is not None  # noqa: S101 -- it passes
        running.is_listed = True
        self._acceptor.enter(running.hand)

    def _told_started(self, _: None) -> None:
        self.is_up.set()

    def _told_reloaded(self, generation: int) -> None:
        log.info("gen=%d serves, with %d workers", generation, self.rules.size)
        for running in self._running.values():
            if running.hand is not None and not running.is_listed and running.member.state == READY:
                self._list(running)
        self._answer(generation, None)
        self._tell("reloaded", generation)

    def _told_undone(self, what: tuple[int, Any]) -> None:
        generation, why = what
        text = getattr(why, "text", str(why)) if why is not None else "the cluster was stopped"
        log.error("gen=%d is given up, and gen=%d goes on: %s", generation, self.rules.generation, text)
        self._answer(generation, why if why is not None else text)
        self._tell("reload_failed", self.reload_error(generation, why if why is not None else text))

    def _answer(self, generation: int, why: Any) -> None:
        for entry in [entry for entry in self._waiting if entry[0] <= generation]:
            self._waiting.remove(entry)
            entry[1].put((generation, why))

    def reload_error(self, generation: int, why: Any) -> errors.ReloadFailed:
        """What a reload that failed is told with."""
        return reload_error(self.plan.name, generation, self.rules.generation, why)

    def _told_stopped(self, _: None) -> None:
        self._tell("stopped", self.rules.exit_code)

    # ===== ends =====

    def _gone(self, number: int) -> None:
        running = self._running.get(number)
        if running is None:
            return
        self._note_ready(running)
        del self._running[number]
        member = running.member
        why = running.why()
        self._served_before += running.slate.served
        self._most.pop(number, None)
        self._unlist(running)
        running.close()
        is_planned = member.state in {DRAINING, KILLED}
        cause = member.cause if is_planned else "failed" if why.raised else "crashed"
        has_failed = why.error is not None and not (is_planned and isinstance(why.error, SystemExit))
        if member.state == KILLED and cause != "unresponsive" and why.error is not None:
            log.error("%s (%s) %s", self._who(member, running), cause, why.text)
        elif cause == "unresponsive" or has_failed or (not is_planned and self.rules.state != STOPPED):
            log.error("%s %s%s", self._who(member, running), f"({cause}) " if is_planned else "", why.text)
        else:
            log.info("%s has ended (%s)", self._who(member, running), cause or "stopped")
        # Also one that served, and failed to end well; of those that did not come up one is enough.
        if has_failed and why.raised and (member.ready_at is not None or not is_planned):
            log.error("%s: what its target raised", self._who(member, running), exc_info=why.error)
        self._tell("worker_exited", running.exited(cause or "stopped"))
        self.rules.gone(number, why, monotonic())

    # ===== told to others =====

    def _who(self, member: Member, running: Running | None = None) -> str:
        running = running or self._running.get(member.number)
        return f"worker={member.slot} gen={member.generation} pid={running.pid if running is not None else None}"

    def _tell(self, event: str, what: object) -> None:
        for name, callback in [*self.listeners]:
            if name == event:
                services.call(_called, (event, callback, what))

    def _info(self, member: Member) -> ClusterWorkerInfo:
        return info_of(member, self._running.get(member.number), self.rules, is_passed=self._acceptor is not None)

    def infos(self) -> list[ClusterWorkerInfo]:
        """What each worker does; and the places that have none."""
        return sorted(
            [*map(self._info, self.rules.members.values()), *waiting_places(self.rules)],
            key=lambda info: (info.worker_id, info.generation),
        )

    def stats(self) -> ClusterStats:
        """What it does, and did."""
        served = self._served_before + sum(each.slate.served for each in [*self._running.values()])
        uptime = monotonic() - self.began if self.began else 0.0
        return stats_of(self.rules, self._acceptor, self.plan.bound, served=served, uptime=uptime)

    def log_table(self) -> None:
        """Log what each worker does."""
        log_table(self.infos())

    def resize(self, size: int) -> None:
        """Have another number of workers."""
        self.rules.resize(size, monotonic())
        if self._acceptor is not None and not self._is_closed:
            self._acceptor.resize(size)

    def in_forked_child(self) -> None:
        """Close the copies that a forked child has."""
        if self._acceptor is not None:
            self._acceptor.in_forked_child()
        for running in [*self._running.values()]:
            running.in_forked_child()
        self._wakeup.close()
        self._bell.close()
        for bound in self.plan.bound:
            bound.socket.close()


def _nothing() -> None:
    pass


def _called(what: tuple[str, Callable[[Any], object], object]) -> None:
    event, callback, subject = what
    try:
        callback(subject)
    except BaseException:
        log.exception("a callback for %r raised", event)
