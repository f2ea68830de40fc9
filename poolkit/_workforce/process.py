"""Process workforce: workers that are processes, each behind a private link, forked by the nursery.

    submit, any thread ── send ──> FrameWriter ── pipe ──> worker      under the pool's lock, never blocking
    whoever reads      <── read ── Links       <── pipe ── worker      see `_workforce/reader.py`
    supervisor thread  <── act ─── the nursery's notices, and stacks

Guarantees: whatever a worker wrote before it died is read before its death is reported; nothing two processes share
can be held by a killed one; a worker is killed through the nursery, which alone knows that its number is still its own.
Guarded by: the pool's one lock: `_members`, each member's writer and tokens. By the reader's lock: the links.
Owner: the supervisor thread: the nursery, the selector, each member's evidence. `_orders` is appended to by anybody,
before the wake-up is set; `act` clears the wake-up before it looks.
Longer than most, since starting, sending and ending a worker share all of that.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import select
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit import _os, _os_processes
from poolkit._clock import monotonic
from poolkit._core.workforce import AnyTask, BootFailed, Died, Glance, Report
from poolkit._os_memory import OutOfMemory
from poolkit._select import poll
from poolkit._wire import codec, messages
from poolkit._wire.link import FrameWriter
from poolkit._wire.manifests import Inherited, Sent, inheritance
from poolkit._wire.messages import call_parts
from poolkit._wire.plans import Manifest
from poolkit._wire.regions import Region
from poolkit._workforce import descriptors, evidence, templates
from poolkit._workforce.driven import DrivenWorkforce
from poolkit._workforce.freight import Freight
from poolkit._workforce.links import Links, drain
from poolkit._workforce.member import Member
from poolkit._workforce.nursery import Nursery
from poolkit._workforce.settings import PoolSettings

MAX_BATCH = 64 if "batches" not in _os.SWITCHED_OFF else 1
STACK_GRACE = 0.2  # seconds a worker gets to write its stack before it is killed without; most take one thousandth

Reports = list[Report]


class ProcessWorkforce(DrivenWorkforce):
    """Processes behind the Workforce protocol."""

    max_batch = MAX_BATCH
    why_not_weighed = None if _os.own_bytes(os.getpid()) else "this system does not tell the memory of other processes"

    def __init__(
        self,
        lock: threading.RLock,
        settings: PoolSettings,
        *,
        boot: Callable[[Member], tuple[bytes, list[Region]]],
        inherited_fds: Sequence[int],
        freight: Freight,
    ) -> None:
        self._lock = lock
        self._settings = settings
        self._boot = boot  # what a worker is told first, as things are now
        self._inherited_fds = tuple(inherited_fds)
        self._members: dict[int, Member] = {}
        self._orders: deque[tuple[Callable[..., None], Any]] = deque()  # for the supervisor thread to carry out
        self._reports: Reports = []  # read, and not handed on; owner: whoever holds the reader's lock
        self._wakeup = _os.Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup.fileno(), selectors.EVENT_READ, _nothing_yet)
        self.links: Links = Links()
        self._both: select.poll | None = None  # what the selector and the links wait for; None where they are one
        if self.links.fileno is not None:
            self._both = poll()
            self._both.register(self._selector.fileno(), select.POLLIN)
            self._both.register(self.links.fileno, select.POLLIN)
        self._nursery: Nursery | None = None
        self._out_of_memory: OutOfMemory | None = None  # made with the first worker; owner: the supervisor thread
        self.freight = freight
        self.pack = freight.pack
        self.freight.gone, self.freight.wake = self._region_gone, self.wake
        self._inherited: Inherited | None = None  # what workers have of the script that are forks of this process
        self.freight.lend_tracker = functools.partial(self._order, self._lend_tracker)
        self.notes: list[str] = []  # owner: the supervisor thread
        self._closed_bytes = [0, 0]  # sent and received on links that are closed
        if settings.start_method == "fork":  # while the caller's thread is the only one that could hold a lock
            try:
                self._start_nursery()
            except BaseException:
                self._close_own()
                raise

    # ===== orders, given under the pool's lock =====

    def start(self, worker_id: int) -> None:
        """Have the supervisor thread order a process. What is in `_members` is ordered."""
        if worker_id not in self._members:
            member = Member(worker_id)
            self._orders.append((self._spawn, member))
            self._members[worker_id] = member
            self._wakeup.set()

    def send(self, worker_id: int, tasks: Sequence[AnyTask], *, announce: bool) -> None:
        """Add the tokens, then write the calls as far as the pipe takes them; the supervisor thread writes the rest."""
        member = self._members[worker_id]
        parts: list[bytes] = [b""]
        sent = member.sent
        usual = messages.FLAG_ANNOUNCE if announce else 0
        for place, task in enumerate(tasks, 1):
            fn, body, manifest = task.call
            flags = usual
            number = 0
            if manifest is not None:
                number = manifest.number
                if number not in sent.manifests:
                    self._define(member, manifest)
            if type(body) is not bytes:
                body, more = self.freight.load(member, place, task, body)
                flags |= more
            parts += call_parts(task.id, task.attempts + 1, task.name, task.options.timeout, fn, body, flags, number)
        member.waybill.sent += len(tasks)
        nbytes = sum(map(len, parts))
        parts[0] = messages.FRAME_TO_WORKER.pack(messages.CALLS, len(tasks), nbytes)
        assert member.tokens is not None  # noqa: S101 -- only a worker that is ready is sent something
        member.tokens.add(len(tasks))
        if member.writer is not None and not member.writer.send(parts, nbytes + messages.FRAME_TO_WORKER.size):
            self._order(self._watch_writing, member)

    def _define(self, member: Member, manifest: Manifest) -> None:
        """Write what the worker lacks of the script, before the frame with the call that needs it."""
        payload, regions = member.sent.lacking(manifest)
        if regions:
            self.freight.hand_over(member, regions)
        self._write(member, [messages.FRAME_TO_WORKER.pack(messages.DEFINE, 0, len(payload)), payload])
        member.sent.commit()

    def reclaim(self, worker_id: int) -> int:
        """Take the tokens that the worker has not taken; tell it where what they stood for ends."""
        member = self._members.get(worker_id)
        if member is None or member.tokens is None:
            return 0
        count = member.tokens.take_all()
        if count:
            member.waybill.take_back(count)
            self._write(member, [messages.FRAME_TO_WORKER.pack(messages.DROP, 0, 0)])
        return count

    def glance(self, worker_id: int) -> Glance:
        """Read the worker's board."""
        member = self._members.get(worker_id)
        if member is None or member.board is None:
            return Glance()
        return Glance(*member.board.read())

    def memory(self, worker_id: int) -> int | None:
        """What the worker's process has resident for itself."""
        member = self._members.get(worker_id)
        return None if member is None or member.pid is None else _os.own_bytes(member.pid)

    def stop(self, worker_id: int) -> None:
        """Tell the worker to leave."""
        self._write(self._members[worker_id], [messages.FRAME_TO_WORKER.pack(messages.STOP, 0, 0)])

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """Have the supervisor thread kill the worker's process group, after its stack was taken."""
        self._members[worker_id].is_condemned = True
        self._order(self._ask_stack if want_stack else self._kill, self._members[worker_id])

    def forget(self, worker_id: int) -> None:
        """Close what is left of a worker that died. On the supervisor thread, which reports deaths."""
        member = self._members.pop(worker_id, None)
        if member is None:
            return
        self.links.remove(member)
        for fd in (member.outcomes_fd, member.calls_fd, member.evidence_fd):
            self._unregister(fd)
        if member.writer is not None and member.reader is not None:
            self._closed_bytes[0] += member.writer.sent
            self._closed_bytes[1] += member.reader.received
        if member.is_reaped or member.pid is None:
            self.freight.died(worker_id)
        else:
            self.freight.dies(member)
        member.close()

    def link_bytes(self) -> tuple[int, int]:
        """Bytes sent to and received from workers, over the links, so far."""
        sent, received = self._closed_bytes
        for member in self._members.values():
            if member.writer is not None and member.reader is not None:
                sent += member.writer.sent
                received += member.reader.received
        return sent, received

    def memory_use(self) -> tuple[int, int, int, int, int]:
        """See `Freight.use`."""
        return self.freight.use(self._members.values())

    def resident_bytes(self, worker_id: int) -> int | None:
        """Resident memory of a worker."""
        member = self._members.get(worker_id)
        return None if member is None or member.pid is None else _os.resident_bytes(member.pid)

    def wake(self) -> None:
        """Make `wait` return. From any thread."""
        self._wakeup.set()

    def _region_gone(self, number: int) -> None:
        """Have workers let go of it. From a finalizer, in any thread."""
        self._order(self._forget_region, number)

    def _order(self, what: Callable[..., None], member: Any) -> None:
        self._orders.append((what, member))
        self._wakeup.set()

    def _write(self, member: Member, parts: list[bytes], nbytes: int | None = None) -> None:
        if member.writer is not None and not member.writer.send(parts, nbytes):
            self._order(self._watch_writing, member)

    # ===== the supervisor thread =====

    def wait(self, timeout: float, *, links: bool) -> bool:
        """Wait until there is something to do, for at most `timeout` seconds; without `links`, not for them."""
        due = [member.kill_at or 0.0 for member in self._dying()]
        if self._nursery is not None and (answer_due := self._nursery.answer_due()) is not None:
            due.append(answer_due)
        if (tend_at := self.freight.due()) is not None:
            due.append(tend_at)
        if due:
            timeout = min(timeout, max(0.0, min(due) - monotonic()))
        if links and self._both is not None:
            return bool(self._both.poll(math.ceil(timeout * 1000)) or due)
        return bool(self._selector.select(timeout) or due)

    def prepare(self) -> None:
        """Start the template process while nobody waits for the reader's lock. Where it fails, `_spawn` tells why."""
        if self._nursery is None and any(what == self._spawn for what, _ in list(self._orders)):
            with contextlib.suppress(Exception):
                self._start_nursery()

    def act(self) -> Reports:
        """Carry out the orders and take in what happened. Does not block, but where `prepare` was in vain."""
        reports = self._reports
        self._wakeup.clear()  # before the orders: one that comes now must not be left for the next time
        while self._orders:
            what, member = self._orders.popleft()
            what(member, reports)
        self._watch_orders(reports)
        for key, events in self._selector.select(0):
            key.data(events, reports)
        if self._nursery is not None:
            self._nursery.kill_if_it_hangs()
        with self._lock:
            self.freight.tend(self._members.values())
        self.read()
        for member in self._dying():
            if (member.kill_at or 0.0) <= monotonic() or evidence.is_complete(member.stack or ""):
                self._kill(member, reports)
        return reports

    def read(self, ready: Sequence[tuple[int, int]] | None = None) -> Reports:
        """Read what is on the links, or on those that were found `ready`. Does not block."""
        links = self.links
        if links.broken:  # since a read that was torn
            self._cut_off()
        links.read(self._reports, links.poll(0.0) if ready is None else ready)
        if links.broken:
            self._cut_off()
        return self._reports

    def _cut_off(self) -> None:
        """End the workers whose links are of no use any more."""
        while self.links.broken:
            member = self.links.broken[0]
            self.links.remove(member)
            if self._both is None:
                self._unregister(member.outcomes_fd)
            self._order(self._kill_cut_off, member)
            self.links.broken.popleft()

    def close(self) -> None:
        """Leave the nursery, which ends every worker that is left, and close everything. Blocks for that."""
        if self._nursery is not None:
            self._unregister(self._nursery.fileno())
            self._nursery.close()
            self._nursery = None
        else:
            templates.forgo(self._settings)
        with self._lock:
            members = list(self._members.values())
            self._members.clear()
        for member in members:
            member.close()
        self.freight.close()
        self._close_own()

    def close_in_forked_child(self) -> None:
        """Close the copies of descriptors that a forked child of the owner has; touch nothing that is shared."""
        if self._nursery is not None:
            self._nursery.close_in_forked_child()
        for member in self._members.values():
            member.close()
        self.freight.arena.close()
        self._close_own()

    def _close_own(self) -> None:
        self.links.close()
        self._selector.close()
        self._wakeup.close()
        for fd in self._inherited_fds:
            _os.close_fd(fd)
        self._inherited_fds = ()

    def _dying(self) -> list[Member]:
        return [member for member in list(self._members.values()) if member.kill_at is not None]

    def _unregister(self, fd: int) -> None:
        if fd >= 0:
            try:
                self._selector.unregister(fd)
            except (KeyError, ValueError):
                return

    # ----- starting -----

    def _start_nursery(self) -> Nursery:
        if self._settings.start_method == "fork":
            self._inherited = inheritance()
        with self._lock:  # a fork takes it too: see the header of `_workforce/nursery.py`
            nursery = self._nursery = Nursery()
        try:
            nursery.start(self._settings)
        except BaseException:
            self._nursery = None
            raise
        self._selector.register(nursery.fileno(), selectors.EVENT_READ, self._noticed)
        return nursery

    def _watch_orders(self, reports: Reports) -> None:
        """Wait for room on the control socket while orders are left to be sent; report those that it refuses."""
        if self._nursery is not None:
            events = selectors.EVENT_READ if self._nursery.flush() else selectors.EVENT_READ | selectors.EVENT_WRITE
            if self._selector.get_key(self._nursery.fileno()).events != events:
                self._selector.modify(self._nursery.fileno(), events, self._noticed)
            for worker_id, error in self._nursery.refused:
                reports.append(Died(worker_id, hint=f"the order to start it could not be sent: {error}"))
            self._nursery.refused.clear()

    def _spawn(self, member: Member, reports: Reports) -> None:
        if self._members.get(member.id) is not member:  # the order was torn, and given again
            return
        try:
            try:
                nursery, theirs = self._nursery or self._start_nursery(), self._connect(member)
            except OSError as exc:
                if not self._finds_room(exc):
                    raise
                member.close()
                nursery, theirs = self._nursery or self._start_nursery(), self._connect(member)
        except Exception as exc:  # noqa: BLE001 -- no descriptors, no memory, no interpreter: the tasks are told
            if isinstance(exc, OSError) and exc.errno == errno.EMFILE:
                exc = self.lacks = OSError(errno.EMFILE, descriptors.lack(self._wanted()))
            what = str(exc) if isinstance(exc, RuntimeError) else repr(exc)  # which are our own words
            reports.append(Died(member.id, hint=f"it could not be started: {what}"))
            return
        nursery.fork(member.id, theirs)
        if self._out_of_memory is None:
            self._out_of_memory = OutOfMemory()
        self._out_of_memory.look()

    def _wanted(self) -> int:
        return max(self._settings.size, len(self._members))  # a pool may have grown

    def _finds_room(self, error: OSError) -> bool:
        """Whether a start that failed is worth another try, as the limit on open files was raised."""
        from poolkit._workforce import snapshots  # noqa: F401, PLC0415 -- `stats()` might find no descriptor for that

        missing = self._wanted() - sum(member.calls_fd >= 0 for member in self._members.values())
        return error.errno == errno.EMFILE and descriptors.raise_limit(max(1, missing), self.notes)

    def _connect(self, member: Member) -> list[int]:
        """Open a worker's ends and send the first frame; returns the descriptors for the other side."""
        member.sent = Sent(self._inherited)
        member.freight = self.freight
        theirs = member.open(self._inherited_fds)
        try:
            told, regions = self._boot(member)
            self.links.add(member)
            if self._both is None:
                self._selector.register(member.outcomes_fd, selectors.EVENT_READ, _nothing_yet)
            with self._lock:
                member.writer = FrameWriter(member.calls_fd)
                if regions:
                    self.freight.hand_over(member, regions)
                self._write(member, [messages.FRAME_TO_WORKER.pack(messages.BOOT, 0, len(told)), told])
                member.sent.commit()
        except BaseException:
            for fd in theirs:
                _os.close_fd(fd)
            raise
        return theirs

    # ----- links -----

    def _watch_writing(self, member: Member, _reports: Reports) -> None:
        """Some of what was sent did not fit the pipe: write on as it empties."""
        if member.calls_fd >= 0 and self._selector.get_map().get(member.calls_fd) is None:
            self._selector.register(member.calls_fd, selectors.EVENT_WRITE, functools.partial(self._writable, member))

    def _forget_region(self, number: int, _reports: Reports) -> None:
        """A region is gone here: workers that were told of it are to let go of it."""
        with self._lock:
            if not self.freight.is_gone(number):
                return
            for member in self._members.values():
                if member.passage is not None and member.passage.forget(number):
                    payload = number.to_bytes(8, "little")
                    self._write(member, [messages.FRAME_TO_WORKER.pack(messages.FORGET, 0, 8), payload])

    def _lend_tracker(self, asked: Region, _reports: Reports) -> None:
        """Send the resource tracker of this process to a worker, which waits for it, or for the end of the socket."""
        from multiprocessing import resource_tracker  # noqa: PLC0415 -- few need it

        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(asked.fd)) as there:
            tracker: Any = resource_tracker.getfd()
            socket.send_fds(there, [b"t"], [tracker])

    def _writable(self, member: Member, _events: int, _reports: Reports) -> None:
        with self._lock:
            written = member.writer is None or member.writer.flush()
        if written:
            self._unregister(member.calls_fd)

    # ----- ends -----

    def _ask_stack(self, member: Member, reports: Reports) -> None:
        if self._nursery is None or member.evidence_fd < 0:
            self._kill(member, reports)
            return
        evidence.read_available(member.evidence_fd)  # what is there already is not of this task
        member.stack = ""
        member.kill_at = monotonic() + STACK_GRACE
        self._selector.register(member.evidence_fd, selectors.EVENT_READ, functools.partial(self._stack_came, member))
        self._nursery.signal(member.id, _os.STACK_SIGNAL, group=False)

    def _stack_came(self, member: Member, _events: int, _reports: Reports) -> None:
        text = evidence.read_available(member.evidence_fd)
        if not text:
            self._unregister(member.evidence_fd)
        member.stack = (member.stack or "") + text

    def _kill_cut_off(self, member: Member, reports: Reports) -> None:
        """End a worker whose link is of no use. Mostly it has ended by itself, which is why."""
        if member.pid is not None and not _os.is_ending(member.pid):
            member.hint = (
                "poolkit had to end it: the task closed or wrote to descriptors that are not its own, or replaced its "
                "process by exec"
            )
        self._kill(member, reports)

    def _kill(self, member: Member, reports: Reports) -> None:
        member.kill_at = None
        if self._nursery is not None:
            self._nursery.signal(member.id, signal.SIGKILL, group=True, up=member.pid is not None)
            if self._nursery.is_importing():  # it may never be forked, and is killed when it is
                reports.append(Died(member.id, signal="SIGKILL"))

    def _noticed(self, _events: int, reports: Reports) -> None:
        """The nursery has something to say, or is gone."""
        assert self._nursery is not None  # noqa: S101 -- its socket is registered while it is there
        try:
            notices = self._nursery.receive()
        except EOFError:
            self._nursery_died(self._nursery, reports)
            return
        for (kind, status, worker_id, pid, peak, _), payload in notices:
            member = self._members.get(worker_id)
            if kind == messages.PRELOAD_FAILED:
                error = codec.load_error(payload)
                reports += [BootFailed(each, error) for each in list(self._members)[:1]]
            elif kind == messages.THREADED:
                self._nursery.warn_of_threads(payload.decode(), is_forked=self._settings.start_method == "fork")
            elif member is None:
                continue
            elif kind == messages.EXITED:
                self._ended(member, reports, status=status, pid=pid, peak=peak)
            elif kind == messages.FORK_FAILED:
                hint = f"its process could not be forked: {os.strerror(status)}"
                reports.append(Died(worker_id, hint=hint))

    def _ended(self, member: Member, reports: Reports, *, status: int, pid: int, peak: int) -> None:
        member.is_reaped = True
        code = os.waitstatus_to_exitcode(status)
        name = _os.signal_name(-code) if code < 0 else None
        hint, watch = member.hint, self._out_of_memory
        if watch is not None and code == -signal.SIGKILL and not (hint or member.is_condemned):
            hint = watch.explain()
        elif watch is not None:
            watch.look()
        self._died(member, reports, name, exitcode=code if code >= 0 else None, pid=pid, peak_rss=peak, hint=hint)

    def _died(self, member: Member, reports: Reports, name: str | None, **facts: Any) -> None:
        """Report a death by that signal, after what the worker left: outcomes that it sent, stack and output."""
        drain(member, reports)
        rest = evidence.read_available(member.evidence_fd) if member.evidence_fd >= 0 else ""
        stack = evidence.of_death(name, member.stack, rest)
        output = member.board.output() if member.board is not None else ""
        reports.append(Died(member.id, signal=name, stack=stack, output=output, **facts))

    def _nursery_died(self, nursery: Nursery, reports: Reports) -> None:
        """Every worker dies with the template: the kernel kills them. What their tasks started, we kill here."""
        self._nursery = None
        self._unregister(nursery.fileno())
        how = nursery.bury()
        for member in list(self._members.values()):
            if member.reader is None:  # not ordered yet: the order stands, for the next nursery
                continue
            if member.pid is not None:
                # Its number was its own a moment ago, and numbers go round before they come again.
                _os_processes.kill_group(member.pid, signal.SIGKILL)
            hint = f"the workers ended with the template process that forks them, which {how}"
            self._died(member, reports, None if member.pid is None else "SIGKILL", pid=member.pid, hint=hint)


def _nothing_yet(_events: int, _reports: Reports) -> None:
    """A link has something, or somebody woke us: `act` looks at all of that by itself."""
