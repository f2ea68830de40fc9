"""Agent: a node's half: an ordinary pool of processes, which runs what the owner's slots are sent.

    provider's thread    orders from the channel ──> runs, kills
    the pool's threads   outcomes, records, messages ──> the outbox ──> the channel
    agent's thread       asks for the lease, tells of progress; ends everything when the lease is over

Calls and outcomes pass as they are packed: no code of the user runs in this process.
Guarantees: it begins no task before the owner has answered its first question, and none twice; when its channel ends or
its lease is over, all that it runs is killed, and it is of no more use (its provider makes another). The lease is kept
by the pool's template process too, whatever this process does.
Guarded by: `_lock`: `_runs`, `_paced`. Owner: the provider's thread: the script, the memories, `_held`.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit._clock import monotonic
from poolkit._core.options import CallOptions
from poolkit._core.stats import WorkerInfo
from poolkit._core.workforce import Logged, TaskStarted, WorkerStarted
from poolkit._kinds.links import Links
from poolkit._kinds.loggers import log
from poolkit._memory.memory import Memory
from poolkit._memory.out_of_band import Received, pack
from poolkit._memory.owner import OwnerTransport
from poolkit._nodes import messages
from poolkit._nodes.interfaces import AgentSettings, Channel, Message, NodeFacts
from poolkit._nodes.lease import Tenant
from poolkit._nodes.prints import Prints
from poolkit._nodes.runs import Came, Run, build, memory_of
from poolkit._nodes.script import NodeScript
from poolkit._wire import codec, lease_page
from poolkit.context import UNKNOWN
from poolkit.errors import InitializerFailed, PoolClosed, SerializationError
from poolkit.incoming import Packed
from poolkit.outcome import Outcome

_PLAIN = CallOptions()
PATIENCE = 0.02  # seconds that a task may wait for a worker of the node, before it is given back
BYE_GRACE = 1.0  # seconds that what is cancelled has to end, where the owner ends in peace
LOOK = 0.25  # seconds between two looks at the progress of what runs
MOST_ENTRIES = 256  # of one message


class Agent:
    """One node's half; see the file's header.

    `ended` is called, on any thread, when it has stopped its work for good.
    """

    def __init__(
        self, settings: AgentSettings, *, address: str, host: str, workers: int, ended: Callable[[], object]
    ) -> None:
        """Start the node's pool. Blocks until its template process is up."""
        self._address = address
        self._lease = settings.lease
        self._when_ended = ended
        self._script = NodeScript()
        content = pickle.loads(settings.content)
        self._channel: Channel | None = None
        count = settings.workers or workers
        with contextlib.ExitStack() as undo:
            self._lease_fd = lease_page.page()
            undo.callback(os.close, self._lease_fd)
            self._page = lease_page.LeasePage(self._lease_fd, writes=True)
            undo.callback(self._page.close)
            self._page.until = monotonic() + self._lease
            self._prints = Prints(self._wake)
            undo.callback(self._prints.close)
            self.engine = build(content, count, settings.name, self._script, self._lease_fd, self._prints.streams)
            undo.pop_all()
        self.engine.records.send = self.logged
        self._transport: OwnerTransport = self.engine.workforce.transport  # type: ignore[attr-defined]
        number = os.urandom(8).hex()
        versions = {"python": settings.python, "wire": str(settings.wire)}
        self.facts = NodeFacts(number, address, host, os.getpid(), count, versions)
        self._memories: dict[int, Memory] = {}
        self._runs: dict[int, Run] = {}
        self._links: Links = self.engine.workforce.links  # type: ignore[assignment]
        self._paced: dict[int, int] = {}  # slots that log too much; the worker that is not read, 0 before it is paused
        self._lock = threading.Lock()
        self._held: list[Run] = []  # until the first question was answered
        self._tenant: Tenant | None = None  # from then on
        self._asked: float | None = None  # with which stamp it was asked last, until then
        self._outbox: deque[tuple[tuple[Any, ...], Sequence[Any]]] = deque()
        self._listens = False
        self._is_over = threading.Event()  # to end
        self._grace = 0.0  # seconds for that
        self._woken = threading.Event()  # the agent's thread is to look
        self._is_crowded = False  # there are more tasks than workers; owner: the agent's thread
        self._has_ended = threading.Event()
        self.engine.listen("worker_started", self._up)
        threading.Thread(target=self._warm_up, name=f"poolkit-warm-{settings.name}", daemon=True).start()
        self._thread = threading.Thread(target=self._tend, name=f"poolkit-node-{settings.name}", daemon=True)
        self._thread.start()

    def _warm_up(self) -> None:
        """Have all workers started, and tell when they cannot be. On a thread of its own."""
        try:
            self.engine.warm_up(None)
        except InitializerFailed as exc:
            self._post((messages.BROKEN, codec.pack_error(exc)))
        except PoolClosed:
            return
        except Exception:
            log.exception("the workers of node %s cannot be started in advance; its tasks will tell", self._address)
            self._post((messages.UP, self.facts.workers))

    def _up(self, _event: WorkerStarted) -> None:
        """A worker has come up."""
        self._post((messages.UP, self.engine.ready_count()))

    # ===== the connection =====

    def attach(self, channel: Channel) -> None:
        """The owner has connected. Once."""
        self._channel = channel
        channel.take, channel.on_message, channel.on_end = self._take, self._came, self._cut
        channel.start()
        self._ask_first()

    def _post(self, entry: tuple[Any, ...], buffers: Sequence[Any] = ()) -> None:
        self._outbox.append((entry, buffers))
        self._wake()

    def _wake(self) -> None:
        if self._channel is not None:
            self._channel.wake()

    def _take(self) -> Message | None:
        entries: list[tuple[Any, ...]] = []
        parts: list[Any] = []
        nbytes = 0
        while len(entries) < MOST_ENTRIES and nbytes < messages.MOST_BYTES:
            try:
                entry, buffers = self._outbox.popleft()
            except IndexError:
                break
            entries.append(entry)
            parts += buffers
            nbytes += sum(memoryview(buffer).nbytes for buffer in buffers)
        if entries or self._prints.kept:  # what was printed before those ended stands before them
            entries[:0] = [(messages.PRINTED, *each) for each in self._prints.take()]
        return (messages.pack(entries), parts) if entries else None

    def _came(self, head: bytes, parts: list[Any]) -> None:  # noqa: C901 -- one branch for each
        """Carry out what the owner orders."""
        if self._is_over.is_set() or self._is_lease_over():
            return  # it was stopped meanwhile, and what came is done elsewhere
        at = 0
        runs: list[Run] = []
        for entry in messages.unpack(head):
            kind = entry[0]
            if kind == messages.RUN:
                count = entry[-1]
                run = self._run(entry, parts[at : at + count])
                at += count
                if run is not None:
                    runs.append(run)
            elif kind == messages.MEMORY:
                self._memories[entry[1]] = memory_of(entry[1], parts[at])
                at += 1
            elif kind == messages.DEFINE:
                self._script.define(entry[1], self._memories)
            elif kind == messages.FORGET:
                self._memories.pop(entry[1], None)
            elif kind == messages.LEASED:
                self._leased(entry[1])
            elif kind == messages.SHOWN:
                self._prints.shown(entry[1])
            elif kind == messages.PACE:
                self._pace(*entry[1:])
            elif kind == messages.KILL:
                self._begin(runs)
                runs = []
                self._stop(*entry[1:])
            elif kind == messages.BYE:
                self._grace = BYE_GRACE
                self._is_over.set()
                self._woken.set()
        self._begin(runs)

    def _run(self, entry: tuple[Any, ...], buffers: list[Any]) -> Run | None:
        """Make a task of an order; None where it fails at once."""
        _, slot, task_id, attempt, name, timeout, memory_limit, priority, announces, fn, body, number, ids, _ = entry
        nbytes = len(body) + sum(map(len, buffers))
        options = _PLAIN
        if timeout is not None or memory_limit is not None or priority:
            options = options.changed(timeout=timeout, memory_limit=memory_limit, priority=priority)
        run = Run(self, slot, name, None, options, nbytes)
        run.id, run.attempts, run.announces = task_id, attempt - 1, announces
        if buffers or ids:
            if not body:
                body, *buffers = buffers
            found = Came(self._transport.threshold)
            found.extend(map(pickle.PickleBuffer, buffers))
            found.memories = tuple(self._memories[each] for each in ids)
            body = pack(bytes(body), found, self._transport.arena)
        run.call = fn, body, self._script.manifests[number] if number else None
        if announces and not self._listens:
            self._listens = True
            self.engine.listen("task_started", self._begun)
        with self._lock:
            self._runs[slot] = run
        return run

    def _begin(self, runs: list[Run]) -> None:
        if self._tenant is None:
            self._held += runs
        elif runs and not (self._is_over.is_set() or self._tenant.is_over(monotonic())):
            try:
                self.engine.run(runs)
                if len(self._runs) > self.facts.workers and not self._is_crowded:
                    self._woken.set()
            except InitializerFailed as exc:
                for run in runs:
                    self.ended(run, Outcome.failure(exc))
            except PoolClosed:  # it is ending, as the channel tells
                return

    def _pace(self, slot: int, reads: bool) -> None:
        """The owner has too much of what a slot's worker has logged or sent, or no more."""
        with self._lock:
            if not reads:
                self._paced.setdefault(slot, 0)
                return
            worker_id = self._paced.pop(slot, 0)
        if worker_id:
            self._links.resume_soon(worker_id)

    def _hold_up(self, slot: int, worker_id: int) -> None:
        """Have a worker not read any more, if that is to be. By whoever reads it, under the lock."""
        if self._paced.get(slot, 1) == 0 and self._links.pause(worker_id):
            self._paced[slot] = worker_id

    def _stop(self, slot: int, task_id: int, want_stack: bool) -> None:
        with self._lock:  # whoever ends it meanwhile either finds it so, or has taken it out
            run = self._runs.get(slot)
            if run is not None and run.id == task_id:
                run.is_to_stop = True
        if run is None or run.id != task_id:
            self._post((messages.CANCELLED, slot, task_id, ""))
            return
        if run in self._held:
            self._held.remove(run)
            run.publish(Outcome(None, ok=False, cancelled=True))
        else:
            self.engine.stop(run, want_stack=want_stack)

    def _is_lease_over(self) -> bool:
        """Whether the template process has killed what ran, or is about to."""
        return self._tenant is not None and self._tenant.is_over(monotonic())

    def _leased(self, stamp: float) -> None:
        now = monotonic()
        if self._tenant is None:
            if stamp == self._asked:  # for which the page stands
                self._tenant = Tenant(self._lease, stamp)
                held, self._held = self._held, []
                self._begin(held)
        elif not self._tenant.is_over(now):
            self._tenant.answered(stamp)
            self._page.until = self._tenant.until

    def _cut(self, reason: str) -> None:
        """The connection has ended: whoever made it may count on it that nothing runs on."""
        del reason
        self._is_over.set()
        self._woken.set()

    # ===== what the pool says =====

    def ended(self, run: Run, outcome: Outcome) -> None:  # noqa: C901 -- one way to end after another
        """Send an outcome. Called again with one that was sent, it does nothing."""
        with self._lock:
            if self._runs.get(run.slot) is not run:
                return
            del self._runs[run.slot]
            is_to_stop = run.is_to_stop
            if run.started_at is not None:
                self._say_begun(run)
        which = run.slot, run.id
        seconds = run.run_time or 0.0
        payload = outcome.payload
        if outcome.cancelled and not is_to_stop and (run.is_given_back or self._is_over.is_set()):
            if run.is_given_back:  # else it is ending, as the channel tells
                self._post((messages.BACK, *which))
            return
        if is_to_stop or outcome.cancelled:
            stack = payload if type(payload) is str else getattr(payload, "stack", "")
            self._post((messages.CANCELLED, *which, stack))
            return
        if run.reported is not None:
            self._say_progress(run, is_last=True)
        if outcome.ok or outcome.load is not None:
            rss = getattr(outcome, "rss", 0)
            body, buffers = payload, []
            if type(payload) is Received:
                body, buffers = bytes(payload.pickle), payload.buffers()
                if payload.memories:
                    body, buffers, outcome = codec.pack_error(_not_here(run)), [], Outcome(None, ok=False)
            elif len(body) >= self._transport.threshold and outcome.ok:
                body, buffers = b"", [body]
            pid = self.engine.pid_of(run.worker_id)
            self._post((messages.DONE, *which, outcome.ok, body, seconds, rss, pid, len(buffers)), buffers)
        elif not (isinstance(payload, PoolClosed) or self._is_lease_over()):  # else it is ending, as the channel tells
            if isinstance(payload, InitializerFailed):
                self._post((messages.BROKEN, codec.pack_error(payload)))
            self._post((messages.FAILED, *which, codec.pack_error(payload), seconds))

    def told(self, run: Run, entry: Any) -> None:
        """Send a message of a task."""
        with self._lock:
            self._hold_up(run.slot, run.worker_id or 0)
        payload: Any = entry
        nbytes = len(entry)
        if type(entry) is Packed:
            payload, nbytes = entry.payload, entry.nbytes
        buffers: list[Any] = []
        if type(payload) is Received:
            payload, buffers = bytes(payload.pickle), payload.buffers()
        self._post((messages.TOLD, run.slot, run.id, nbytes, payload, len(buffers)), buffers)

    def logged(self, record: Logged) -> None:
        """Send a record of a worker."""
        with self._lock:
            runs = self._runs.values()
            slot = next((run.slot for run in runs if record.task_id == run.id), 0) or next(
                (run.slot for run in runs if run.worker_id == record.worker_id), 0
            )  # by a thread of its own
            self._hold_up(slot, record.worker_id)
        fields = {**marshal.loads(record.payload), "poolkit_node": self._address}  # noqa: S302 -- of our own worker
        self._post((messages.LOGGED, slot, record.task_id, marshal.dumps(fields)))

    def _begun(self, event: TaskStarted) -> None:
        run = event.task
        if isinstance(run, Run):
            with self._lock:
                if self._runs.get(run.slot) == run:
                    self._say_begun(run)

    def _say_begun(self, run: Run) -> None:
        """Tell that a run has begun, once, where that is asked for, and before its outcome. Under the lock."""
        if run.announces:
            run.announces = False
            self._post((messages.BEGUN, run.slot, run.id))

    def _say_progress(self, run: Run, *, is_last: bool = False) -> None:
        reported = run.reported
        if reported is not None and (is_last or reported != run.told_progress):
            run.told_progress = reported
            total = UNKNOWN if reported.total is None else reported.total
            self._post((messages.PROGRESS, run.slot, run.id, reported.done, total, is_last))

    # ===== the agent's thread =====

    def _tend(self) -> None:
        try:
            self._tend_until_over()
        finally:  # also where that raises: a node that nobody tends is of no use
            self._end()

    def _tend_until_over(self) -> None:  # noqa: C901 -- one duty after another
        """Ask for the lease, tell of progress, give back what has to wait, until it is to end."""
        pause, look_at = min(LOOK, self._lease / 10), 0.0
        while not self._is_over.is_set():
            self._is_crowded = len(self._runs) > self.facts.workers
            if self._woken.wait(PATIENCE if self._is_crowded else pause):
                self._woken.clear()
            now, tenant = monotonic(), self._tenant
            if tenant is not None:
                if tenant.is_over(now):
                    break
                if (stamp := tenant.ask(now)) is not None:
                    self._post((messages.ASK, stamp))
            elif self._asked is None:  # nobody has connected
                self._page.until = now + self._lease
            elif now >= self._asked + self._lease:
                self._ask_first()
            with self._lock:
                late = [run for run in self._runs.values() if run.came < now - PATIENCE]
            if len(late) > self.facts.workers:
                self.engine.give_back(late)
            if now < look_at:
                continue
            look_at = now + pause
            if self._runs:
                for info in self.engine.workers():
                    self._look(info)

    def _look(self, info: WorkerInfo) -> None:
        """Tell what a worker is doing, as far as that is news."""
        run = info.task
        if not isinstance(run, Run) or self._runs.get(run.slot) != run:
            return
        self._say_progress(run)
        pid, rss = info.pid or 0, info.rss or 0
        if pid != run.told_at[0] or abs(rss - run.told_at[1]) > rss / 8:
            run.told_at = pid, rss
            self._post((messages.AT, run.slot, run.id, info.pid, info.rss))

    def _ask_first(self) -> None:
        """Ask, before which the page is moved on: what is answered then is what the template process goes by."""
        self._asked = now = monotonic()
        self._page.until = now + self._lease
        self._post((messages.ASK, now))

    def _end(self) -> None:
        """Kill everything, then tell that it is over. On the agent's thread."""
        self._is_over.set()
        try:
            grace = self._grace  # all is settled at the owner's, but what was cancelled may be in its `finally`
            self.engine.shutdown(wait=True, cancel_queued=True, kill=not grace, timeout=grace or None)
        except Exception:
            log.exception("the pool of node %s could not be ended", self._address)
        os.close(self._lease_fd)
        self._prints.close()
        if self._channel is not None:
            self._channel.abort()
        self._has_ended.set()
        self._when_ended()

    # ===== its end =====

    def leave(self, reason: str) -> None:
        """Have the owner send nothing more: the node is to be taken away. What runs may finish. From any thread."""
        self._post((messages.LEAVING, reason))

    def wait(self, timeout: float | None) -> bool:
        """Wait until it has ended, for at most `timeout` seconds; false if it has not. Blocks."""
        return self._has_ended.wait(timeout)

    def close(self) -> None:
        """Kill all work and end the channel. Blocks for a moment. Idempotent."""
        self._is_over.set()
        self._woken.set()
        self._thread.join()


def _not_here(run: Run) -> SerializationError:
    return SerializationError(
        f"the result of task {run.id} ({run.name}) has shared memory or a descriptor in it, which stay on their "
        "machine: return the array itself"
    )
