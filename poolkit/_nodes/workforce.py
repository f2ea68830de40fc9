"""Node workforce: workers that are slots on other machines, behind the Workforce protocol.

    pool's lock         send, kill ... ──> the outbox of a node ── take ──> its channel      never blocking
    provider's thread   on_message ──> reports ──> the engine; on_end, leaving, joined
    supervisor thread   act ──> nodes that are silent, and the deaths that are certain by now

A slot that is started is placed on the emptiest node with room, and is ready when a worker has come up there for it;
where no node has room it waits. See `slots.py`.

Guarantees: a task is taken back or written to the channel, never both (each has one `claim`, which one of them gets);
from then on it counts as begun. Nothing of it is told as lost before its run has certainly ended: a second (`AFTER`)
after its channel was ended, or when the lease of a silent node is over (`lease.py`), also where the channel timed out.
So no two runs of a task overlap.
Guarded by: the pool's lock: `_nodes`, `_slots`, `_waiting`, `_offers`, each node's slots; `outbox` is appended to
under it.
By the provider's thread: `begun`, `done` and `progress` of a slot, which are single stores that others only look at.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from poolkit import errors
from poolkit._clock import monotonic
from poolkit._core.workforce import (
    AnyTask,
    Begun,
    BootFailed,
    Died,
    Drained,
    Finished,
    Logged,
    Progressed,
    Ready,
    Report,
    Returned,
    Status,
)
from poolkit._kinds.driven import DrivenWorkforce
from poolkit._locks import RLock
from poolkit._memory.memory import Memory
from poolkit._nodes import messages
from poolkit._nodes.interfaces import Channel, Message, NodeFacts, NodeProvider
from poolkit._nodes.lease import D as AFTER
from poolkit._nodes.prints import CHUNK, PATIENCE, standard_printers
from poolkit._nodes.slots import Claim, Node, Order, Slot
from poolkit._wire import codec
from poolkit._wire.buffers import Found, found_from
from poolkit._wire.plans import Manifest
from poolkit.errors import SerializationError
from poolkit.exchange import Exchange
from poolkit.incoming import Packed
from poolkit.task import Progress

MOST_ENTRIES = 256  # of one message
LOOK = 0.5  # seconds between two looks at the nodes
UNUSED = 0.5  # seconds after which a node that runs nothing may be taken away
_offers = itertools.count(1)
_REASONS = {
    "closed": "its connection was closed: its process has died, or was restarted",
    "silent": "it was not heard of for longer than its lease",
    "retired": "it was taken away by the cluster",
    "scheduler": "the cluster's scheduler is gone, and ended it",
}

# Errors with which a worker of a node ends, and for which of its limits it was killed.
_KILLS = {errors.WorkerCrashed: None, errors.TaskTimeout: "timeout", errors.MemoryLimitExceeded: "memory"}


class NodeWorkforce(DrivenWorkforce):
    """Slots on nodes; see the file's header.

    Attributes:
        changed: called, on any thread and without locks, when there are more nodes, or fewer.
        looked: called on the supervisor thread now and then.
        may_pause: whether a task may have to wait for who reads its messages.
        resized: called when there are more places, or fewer.
        warn: of the engine: logs a warning.
        dismiss: of the engine: slots that are to be sent nothing more, and to go when they have nothing to do.
        post_all, leave, log_now: of the engine: reports to be taken in; one to be taken in soon; records to be logged.
    """

    max_batch = 1
    ends_coroutines = False
    runs_only_calls = True
    keeps_limits = True

    post_all: Callable[[Iterable[Report]], object]
    leave: Callable[[Report], object]
    log_now: Callable[[deque[Logged]], object]
    changed: Callable[[Node, str], object]
    looked: Callable[[], object]
    may_pause: Callable[[], bool]
    resized: Callable[[], object]
    dismiss: Callable[[Collection[int]], object]
    warn: Callable[[str], object]

    def __init__(self, lock: RLock, provider: NodeProvider, *, lease: float, shm_threshold: float) -> None:
        self._lock = lock
        self._provider = provider
        self._lease = lease
        self._threshold = shm_threshold
        self._found = found_from(shm_threshold)
        self._nodes: dict[str, Node] = {}
        self._slots: dict[int, Slot] = {}
        self._waiting: dict[int, Slot] = {}  # for room on a node
        self._offers: list[tuple[bool, float, int, Node]] = []  # a heap; of a node, the one with its number counts
        self._broadcasts: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
        self._watched: set[int] = set()  # memory that some node has
        self._gone: deque[int] = deque()  # memory that is gone here; appended to by finalizers
        self._left: deque[tuple[Node, str]] = deque()  # nodes that are gone, and why
        self.nodeless_since: float | None = monotonic()  # None while one is up
        self._wakeup = allocate_lock()  # free: somebody has woken us
        self._look_at = math.inf  # when to look at the leases; owner: the supervisor thread
        self._scale_at = 0.0
        self._is_uneven = False  # owner: the provider's thread
        self._is_closed = False
        self.network = [0, 0, 0]  # bytes sent and received, messages
        self._items = [0, 0]
        self._printers = standard_printers()
        self._talking: dict[int, Exchange] = {}  # slots that were paused for messages, and of what

    # ===== calls, on the caller's thread =====

    def pack(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
        """Pickle a call; what is large is copied beside it, as it is now. Raises SerializationError."""
        found = self._found()
        found.look(args)
        if kwargs:
            found.look(kwargs.values())
        with found:
            fn_bytes, body, manifest = codec.pack_call(fn, args, kwargs, found)
        memories = self._known(found)
        buffers: list[Any] = [bytearray(buffer.raw()) for buffer in found]
        if type(body) is not bytes:
            body = b"".join(body)
        if len(body) >= self._threshold:
            body, buffers = b"", [body, *buffers]
        return (fn_bytes, body, manifest, memories, buffers), len(fn_bytes) + len(body) + sum(map(len, buffers))

    def _known(self, found: Found) -> tuple[Memory, ...]:
        """The memory that a call refers to, all of it of broadcasts."""
        for memory in found.memories:
            if memory.id not in self._broadcasts:
                msg = (
                    "cannot send shared memory or a descriptor to another machine: pass the array itself, or what "
                    "broadcast() of this pool returns for it"
                )
                raise SerializationError(msg)
        return found.memories

    def broadcast(self, memory: Memory) -> None:
        """Take note of memory that calls may refer to, and that each of their nodes gets once."""
        self._broadcasts[memory.id] = memory

    @staticmethod
    def pack_mail(message: object) -> Any:
        """Refuse: nothing is sent to a task that runs on another machine."""
        del message
        msg = "task.send() is for tasks on this machine; pass what the task needs as arguments"
        raise RuntimeError(msg)

    # ===== orders, given under the pool's lock =====

    def start(self, worker_id: int) -> None:
        """Place a slot on a node; or have it wait for one. Goes on where an exception interrupted it."""
        slot = self._slots.get(worker_id)
        if slot is None:
            slot = self._slots[worker_id] = Slot(worker_id)
        if slot.node is None:
            self._waiting[worker_id] = slot
            self._place()
        else:
            self._settle_down(slot, slot.node)

    def _place(self) -> None:
        """Place slots that wait, as far as there is room: where a worker is free first, then on the emptiest node."""
        while self._waiting and self._offers:
            *_, offer, node = self._offers[0]
            is_spare = node.room(spare=False) <= 0
            if offer < node.offer or (is_spare and node.room(spare=True) <= 0):
                heapq.heappop(self._offers)
                continue
            slot = next(iter(self._waiting.values()))
            slot.is_spare = is_spare
            slot.node = node
            self._settle_down(slot, node)

    def _offer(self, node: Node) -> None:
        """Have its room be known, as it is now; to be done after each change of it."""
        node.offer = offer = next(_offers)
        if len(self._offers) > 2 * len(self._nodes) + 64:  # most of them out of date, or of nodes that are gone
            self._offers = [each for each in self._offers if each[2] == each[3].offer and each[3].state == "up"]
            heapq.heapify(self._offers)
        if node.state == "up":
            load = len(node.slots) / node.facts.workers
            heapq.heappush(self._offers, (node.room(spare=False) <= 0, load, offer, node))

    def _settle_down(self, slot: Slot, node: Node) -> None:
        """Have the slot be one of this node's; each step may be done again."""
        node.slots[slot.id] = slot
        self._waiting.pop(slot.id, None)
        node.count_slots()
        self._offer(node)
        self._let_begin(node)

    def _let_begin(self, node: Node) -> None:
        """Report slots as ready, as far as the node's workers are up. Under the lock."""
        if node.broken is None and not node.may_begin():
            return
        for slot in list(node.slots.values()):
            if slot.is_ready or slot.is_closed:
                continue
            if node.broken is not None:
                self.leave(BootFailed(slot.id, node.broken))
            elif slot.is_spare or node.ready < node.warm:
                slot.is_ready = True
                node.count_slots()
                self.leave(Ready(slot.id, None, slot.is_spare))

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        """Put a call into the outbox of the slot's node, behind what the node lacks for it."""
        slot = self._slots[worker_id]
        node = slot.node
        assert node is not None  # noqa: S101 -- only a slot that is ready is sent something
        if tasks:
            task = tasks[0]
            fn, body, manifest, memories, buffers = task.call
            number = 0
            entries: list[Order] = []
            if manifest is not None:
                number = manifest.number
                if number not in node.sent.manifests:
                    entries += self._define(node, manifest)
            entries += self._lacking(node, memories)
            options = task.options
            limits = options.timeout, options.memory_limit, options.priority
            ids = tuple(memory.id for memory in memories)
            order = (messages.RUN, slot.id, task.id, task.attempt, task.name, *limits, announce)
            claim: Claim = deque((None,))
            entries.append(((slot, claim), (*order, fn, body, number, ids, len(buffers)), buffers))
            slot.progress = None
            slot.done = slot.begun = 0
            slot.task, slot.claim, slot.last = task, claim, weakref.ref(task)
            task.node = node.facts.address
            written += map(node.outbox.extend, (entries,))
            node.sent.commit()
            node.memories.update(entry[1] for _, entry, _ in entries if entry[0] == messages.MEMORY)
        if not node.used:
            self._provider.hold(node.facts.number, True)
            node.used = True
        node.channel.wake()

    def _define(self, node: Node, manifest: Manifest) -> Iterable[Any]:
        payload, regions = node.sent.lacking(manifest)
        yield from self._lacking(node, regions)
        yield None, (messages.DEFINE, payload, [region.id for region in regions]), ()

    def _lacking(self, node: Node, memories: Iterable[Memory]) -> Iterable[Any]:
        """What the node lacks of these."""
        for memory in memories:
            if memory.id not in node.memories:
                if memory.id not in self._watched:
                    self._watched.add(memory.id)
                    weakref.finalize(memory, self._gone.append, memory.id).atexit = False
                yield None, (messages.MEMORY, memory.id, 1), (memory.mapping(),)

    def _forget_memories(self) -> None:
        """Tell nodes which memory is gone here."""
        while self._gone:
            number = self._gone[0]
            for node in self._nodes.values():
                if number in node.memories:
                    node.outbox.append((None, (messages.FORGET, number), ()))
                    node.memories.discard(number)
                    node.channel.wake()
            self._watched.discard(number)
            self._gone.popleft()

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        """Take back what was not yet written to the channel."""
        slot = self._slots.get(worker_id)
        if slot is None:
            return
        while slot.claim:
            try:
                taken += map(deque.pop, (slot.claim,))
            except IndexError:
                break
        if taken and not told:
            slot.task = None
            told += map(self.leave, (Drained(worker_id),))

    def status(self, worker_id: int) -> Status:
        """What is known of the slot's task: it counts as begun once it was written to the channel."""
        slot = self._slots.get(worker_id)
        return Status() if slot is None else Status(slot.begun, slot.since, slot.done)

    def progress(self, worker_id: int, task: AnyTask) -> Progress | None:
        """What the node has told last."""
        slot = self._slots.get(worker_id)
        found = None if slot is None else slot.progress
        return found[1] if found is not None and found[0] == task.id else None

    def memory(self, _worker_id: int) -> None:
        """The node looks at the limits."""

    def resident_bytes(self, worker_id: int) -> int | None:
        """What the node has said last, of a task that takes long."""
        slot = self._slots.get(worker_id)
        return None if slot is None else slot.rss

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """Have the node stop what the slot runs; it answers when it has."""
        slot = self._slots.get(worker_id)
        if slot is None:
            return
        task = slot.task  # the provider's thread may take it away
        if slot.node is None or task is None:
            self.leave(Died(worker_id))
        else:
            slot.node.outbox.append((None, (messages.KILL, slot.id, task.id, want_stack), ()))
            slot.node.channel.wake()

    def stop(self, worker_id: int) -> None:
        """Let go of a slot that has nothing to do."""
        self.leave(Died(worker_id))

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        """There are no streams."""

    def mail(self, worker_id: int, task_id: int, mail: deque[Any]) -> None:
        """There is none, see `pack_mail`."""

    def end(self, worker_id: int, task: AnyTask) -> None:
        """There is nothing that ends by itself."""

    # ===== while too much is logged: as `Links` has it =====

    def pause(self, worker_id: int) -> bool:
        """Have the node not read what a slot's worker says, until `resume`. False if there is no such slot."""
        return self._pace(worker_id, reads=False)

    def resume(self, worker_id: int) -> None:
        """Have it read again."""
        self._pace(worker_id, reads=True)

    def let_talk(self) -> None:
        """Have all read again that were paused for messages. From any thread."""
        while self._talking:
            _, exchange = self._talking.popitem()
            exchange.go_on()

    def _pace(self, worker_id: int, *, reads: bool) -> bool:
        slot = self._slots.get(worker_id)
        if slot is None or slot.node is None:
            return False
        slot.node.outbox.append((None, (messages.PACE, worker_id, reads), ()))
        slot.node.channel.wake()
        return True

    def forget(self, worker_id: int) -> None:
        """Let go of a slot, and give its place to one that waits."""
        slot = self._slots.pop(worker_id, None)
        self._waiting.pop(worker_id, None)
        self._talking.pop(worker_id, None)
        if slot is None or slot.node is None:
            return
        node = slot.node
        node.slots.pop(worker_id, None)
        node.count_slots()
        self._offer(node)
        self._let_begin(node)
        if not node.slots:
            self._let_go_if_over(node)
        self._place()

    def _let_go_if_over(self, node: Node) -> None:
        """Nothing runs on a node: it may be taken away; one that was leaving is told that it may go."""
        if node.state == "leaving":
            node.outbox.append((None, (messages.BYE,), ()))
            node.channel.wake()
        elif node.state == "lost" and self._nodes.pop(node.facts.number, None) is not None:
            self._left.append((node, node.reason))
            self.wake()

    # ===== the provider's thread =====

    def joined(self, facts: NodeFacts, channel: Channel) -> None:
        """A node is up."""
        node = Node(facts, channel, self._lease, monotonic())
        channel.take = functools.partial(self._take, node)
        channel.on_message = functools.partial(self._came, node)
        channel.on_end = functools.partial(self._ended, node)
        with self._lock:
            if self._is_closed:
                channel.abort()
                return
            self._nodes[facts.number] = node
            self._offer(node)
            self.nodeless_since = None
        channel.start()
        self.changed(node, "")
        with self._lock:
            self._place()
        self.wake()

    def leaving(self, number: str, reason: str) -> None:
        """A node is to be sent nothing more; what it runs may finish."""
        with self._lock:
            node = self._nodes.get(number)
            if node is None or node.state != "up":
                return
            node.state, node.reason = "leaving", reason
            self._count_nodes()
            slots = list(node.slots)
            if not slots:
                self._let_go_if_over(node)
        self.dismiss(slots)

    def _count_nodes(self) -> None:
        if self.nodeless_since is None and all(node.state != "up" for node in self._nodes.values()):
            self.nodeless_since = monotonic()

    def _take(self, node: Node) -> Message | None:
        """The next message to the node: everything that has to be said by now."""
        entries: list[tuple[Any, ...]] = []
        parts: list[Any] = []
        nbytes = 0
        while len(entries) < MOST_ENTRIES and nbytes < messages.MOST_BYTES:
            try:
                order, entry, buffers = node.outbox.popleft()
            except IndexError:
                break
            if order is not None:
                slot, claim = order
                if slot.is_closed:
                    continue
                try:
                    claim.pop()
                except IndexError:  # it was taken back
                    continue
                slot.is_alone = node.running < node.facts.workers
                node.running += 1
                slot.since = monotonic()
                slot.begun = entry[2]
            entries.append(entry)
            parts += buffers
            nbytes += sum(map(len, buffers))
        if not entries:
            return None
        head = messages.pack(entries)
        self.network[0] += len(head) + nbytes
        self.network[2] += 1
        return head, parts

    def _came(self, node: Node, head: bytes, parts: list[Any]) -> None:  # noqa: C901 -- one branch for each
        """Take in what a node says."""
        now = node.heard = monotonic()
        self.network[1] += len(head) + sum(map(len, parts))
        self.network[2] += 1
        at = 0
        reports: list[Report] = []
        logged: deque[Logged] = deque()
        back: list[int] = []  # slots that the node has no worker for
        for entry in messages.unpack(head):
            kind = entry[0]
            count = entry[-1] if kind in (messages.DONE, messages.TOLD) else 0
            buffers, at = parts[at : at + count], at + count
            if kind == messages.ASK:
                if node.landlord.asked(now):
                    node.outbox.append((None, (messages.LEASED, entry[1]), ()))
                    node.channel.wake()
            elif kind == messages.LEAVING:
                self.leaving(node.facts.number, entry[1])
            elif kind in (messages.UP, messages.BROKEN):
                self._booted(node, kind, entry[1])
            elif kind == messages.PRINTED:
                self._printed(node, *entry[1:])
            elif kind == messages.LOGGED:
                logged.append(Logged(entry[1], entry[2], entry[3]))
            elif (slot := self._slots.get(entry[1])) is not None and slot.node is node:
                self._say(node, slot, entry, buffers, reports, now)
                if kind == messages.BACK:
                    back.append(slot.id)
        if logged:
            self.log_now(logged)
        if self._is_uneven or back:  # before a task that was given back is sent to this node again
            self._is_uneven = False
            self._even_out(node, back)
        if reports:
            self.post_all(reports)

    def _printed(self, node: Node, stream: int, data: bytes, lost: int) -> None:
        """Tasks have printed something."""
        if lost:
            self.warn(
                f"{lost} bytes that tasks printed on node {node.facts.address} were dropped, as the standard output or "
                f"errors of this process, or the network, took nothing more for {PATIENCE:g} s"
            )
        self._printers[stream].write(1 + stream, data, functools.partial(self._shown, node))

    def _shown(self, node: Node, count: int) -> None:
        """So much of that is written, of which the node is told now and then."""
        with self._lock:
            node.shown += count
            if node.shown >= CHUNK:
                node.outbox.append((None, (messages.SHOWN, node.shown), ()))
                node.shown = 0
                node.channel.wake()

    def _even_out(self, node: Node, back: Sequence[int]) -> None:
        """The node is to have another count of spare slots, and is not to have those at all."""
        with self._lock:
            self._offer(node)
            self._place()
            spare = [slot.id for slot in node.slots.values() if slot.is_spare]
        self.dismiss({*spare[max(0, node.extra * node.facts.workers) :], *back})
        self.resized()

    def _booted(self, node: Node, kind: int, what: Any) -> None:
        """Workers of a node have come up, or never will."""
        error = codec.load_error(what) if kind == messages.BROKEN else None
        errors.InitializerFailed  # noqa: B018 -- made at its first use, which is not to be under the lock
        with self._lock:
            if error is not None:
                node.broken = error.__cause__ or error
            else:
                node.warm = max(node.warm, what)
            self._let_begin(node)
        self.wake()

    def _say(  # noqa: C901 -- one branch for each
        self,
        node: Node,
        slot: Slot,
        entry: tuple[Any, ...],
        buffers: list[Any],
        reports: list[Report],
        now: float,
    ) -> None:
        """Turn what is said of a slot's task into reports."""
        kind, slot_id, task_id, *rest = entry
        task = slot.task
        if task is None or task.id != task_id:
            if kind == messages.CANCELLED:  # it had ended before the order came
                reports.append(Died(slot_id))
            return
        if kind == messages.BEGUN:
            reports.append(Begun(slot_id, task_id))
        elif kind == messages.AT:
            slot.pid, slot.rss = rest
        elif kind == messages.PROGRESS:
            done, total, is_last = rest
            progress = Progress.reported(done, total)
            slot.progress = task_id, progress
            if is_last:
                reports.append(Progressed(slot_id, task_id, progress))
        elif kind == messages.BACK:
            slot.task, slot.begun = None, 0
            node.running -= 1
            node.samples = node.extra = 0  # what runs there takes longer than what ran before
            reports.append(Returned(slot_id, task_id))
        elif kind == messages.TOLD:
            self._told(slot, task, rest[0], rest[1], buffers)
        else:
            node.tasks_done += 1
            node.busy_at = now
            slot.task = None
            if kind == messages.DONE:
                self._is_uneven |= node.ran(slot, rest[2], now)
            else:
                node.running -= 1
            report = self._outcome(kind, slot, task_id, rest, buffers, now)
            if type(report) is not Died:
                slot.done = task_id
            reports.append(report)

    @staticmethod
    def _outcome(kind: int, slot: Slot, task_id: int, rest: list[Any], buffers: list[Any], now: float) -> Report:
        if kind == messages.CANCELLED:
            return Died(slot.id, stack=rest[0])
        if kind == messages.FAILED:
            packed, run_time = rest
            error = codec.load_error(packed)
            if isinstance(error, tuple(_KILLS)):
                return _death(slot, error)
            return Finished(slot.id, task_id, max(slot.since, now - run_time), now, 0, error, False)
        ok, body, run_time, rss, pid, _ = rest
        slot.pid = pid or slot.pid
        started = max(slot.since, now - run_time)
        if not ok:
            return Finished(slot.id, task_id, started, now, rss, body, False, codec.load_error)
        payload: Any = body
        load: Callable[[Any], Any] = codec.load_value
        if buffers:
            payload, load = (body, buffers), _load_with_buffers
        return Finished(slot.id, task_id, started, now, rss, payload, True, load)

    def _told(self, slot: Slot, task: AnyTask, nbytes: int, body: bytes, buffers: list[Any]) -> None:
        """A task has sent a message."""
        exchange = task.open_exchange()
        if exchange.note(nbytes) and self.may_pause() and exchange.resume is None and self.pause(slot.id):
            exchange.resume = functools.partial(self.resume, slot.id)
            self._talking[slot.id] = exchange
        incoming, exchange.worker_id = exchange.incoming, slot.id
        incoming.come += 1
        incoming.plain = False
        if buffers:
            incoming.items.append(Packed((body, buffers), _load_with_buffers, nbytes))
        else:
            incoming.items.append(Packed(body, codec.load_value, nbytes))
        incoming.count(self._items)
        incoming.ring()

    def _ended(self, node: Node, reason: str) -> None:
        """The channel of a node has ended: what was not written goes elsewhere, at once."""
        dead_at = monotonic() + AFTER
        if reason == "silent":  # the node may not know it yet
            dead_at = max(dead_at, node.landlord.ends_at())
        self._lose(node, node.reason or reason, dead_at)

    def _lose(self, node: Node, reason: str, dead_at: float) -> None:
        with self._lock:
            if node.state == "lost":
                return
            node.state, node.reason, node.dead_at = "lost", reason, dead_at
            self._count_nodes()
            for slot in [slot for slot in node.slots.values() if not (slot.is_ready or slot.is_closed)]:
                del node.slots[slot.id]  # it waits for another node: its end would be told as that of a bad boot
                slot.node = None
                self._waiting[slot.id] = slot
            node.count_slots()
            self._place()
            at_once = [slot for slot in node.slots.values() if slot.task is None or slot.withhold()]
            for slot in at_once:
                slot.is_closed = True
            if not node.slots:
                self._let_go_if_over(node)
        # With an error all the same: what one had done may not have been told yet.
        self.post_all([Died(slot.id, error=self._node_lost(node, slot)) for slot in at_once])
        self.wake()

    # ===== the supervisor thread =====

    def wait(self, timeout: float, *, links: bool) -> bool:  # noqa: ARG002 -- there are none
        """Wait to be woken, or until a lease is to be looked at, or the end of a lost node is certain."""
        now = monotonic()
        nodes = list(self._nodes.values())
        self._look_at = min(
            [now + min(LOOK, self._lease / 10), *(node.dead_at for node in nodes if node.state == "lost")]
        )
        return self._wakeup.acquire(timeout=max(0.0, min(timeout, self._look_at - now))) or self._look_at <= monotonic()

    def act(self) -> deque[Report]:
        """Take note of nodes that are silent, and report what ran on nodes whose end is certain."""
        now = monotonic()
        reports: deque[Report] = deque()
        for node in list(self._nodes.values()):
            if node.state != "lost" and node.landlord.ends_at() <= now:
                node.landlord.give_up()
                self._lose(node, "silent", max(now, node.landlord.ends_at()))  # a question may just have been answered
                node.channel.abort()
            if node.state == "lost" and node.dead_at <= now:
                with self._lock:
                    left = [slot for slot in node.slots.values() if not slot.is_closed]
                    for slot in left:
                        slot.is_closed = True
                reports += [Died(slot.id, error=self._node_lost(node, slot)) for slot in left]
            elif node.used and now >= node.busy_at + UNUSED:
                with self._lock:
                    if not node.is_busy():
                        node.used = False
                        self._provider.hold(node.facts.number, False)
        if self._gone:
            with self._lock:
                self._forget_memories()
        if self._left:
            self._tell_who_left()
        if now >= self._scale_at:
            self._scale_at = now + LOOK
            self.looked()
        return reports

    def _tell_who_left(self) -> None:
        self.resized()
        while self._left:
            self.changed(*self._left.popleft())

    @staticmethod
    def _node_lost(node: Node, slot: Slot) -> BaseException | None:
        """The error of what a lost node ran."""
        task = slot.last()
        if task is None:
            return None
        text = (
            f"node {node} was lost ({_REASONS.get(node.reason, node.reason)}) while it ran task {task.id} "
            f"({task.name}), attempt {task.attempt}"
        )
        return errors.NodeLost(
            text,
            node=node.facts.address,
            host=node.facts.host,
            reason=node.reason,
            begun=None if slot.is_spare or node.extra or not slot.is_alone else True,
            worker_id=slot.id,
        )

    def wake(self) -> None:
        """Make `wait` return. From any thread."""
        try:
            self._wakeup.release()
        except RuntimeError:  # it is free
            return

    def close(self) -> None:
        """End all connections, and what the nodes still run."""
        with self._lock:
            self._is_closed = True
            nodes = list(self._nodes.values())
            for node in nodes:
                node.outbox.append((None, (messages.BYE,), ()))
                node.channel.wake()
        self._provider.close()
        for printer in self._printers:
            printer.close(PATIENCE)

    # ===== looking =====

    def nodes(self) -> list[Node]:
        """The nodes that there are."""
        with self._lock:
            return list(self._nodes.values())

    def places(self, *, spare: bool = False) -> int:
        """How many workers the nodes have that take work; with the spare slots, how many tasks they may be sent."""
        with self._lock:
            nodes = [node for node in self._nodes.values() if node.state == "up"]
            return sum(node.facts.workers * (1 + node.extra * spare) for node in nodes)

    def place_of(self, worker_id: int) -> tuple[str | None, int | None]:
        """The address of the node that a slot is on; the process there that ran its last task, as far as was told."""
        slot = self._slots.get(worker_id)
        return (None, None) if slot is None or slot.node is None else (slot.node.facts.address, slot.pid)

    def received(self) -> Sequence[int]:
        """Items, of which there are none, and messages."""
        return self._items

    def link_bytes(self) -> tuple[int, int]:
        """Bytes sent to and received from the nodes."""
        return self.network[0], self.network[1]


def _death(slot: Slot, error: BaseException) -> Died:
    """The end of a slot whose task ended with its worker: that is how the node tells a crash, or what it killed for."""
    cause = next(cause for kind, cause in _KILLS.items() if isinstance(error, kind))
    if not isinstance(error, errors.WorkerCrashed):
        return Died(slot.id, signal="SIGKILL", error=error, cause=cause)
    error.worker_id = slot.id
    return Died(slot.id, error.exitcode, error.signal, error.pid, error.peak_rss, error=error)


def _load_with_buffers(packed: tuple[bytes, list[Any]]) -> Any:
    """Unpickle what came with buffers beside it, each writable, and its own."""
    body, buffers = packed
    return codec.load_value(body, buffers) if body else codec.load_value(buffers[0], buffers[1:])
