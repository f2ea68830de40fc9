"""Process workforce: workers that are processes, each behind a private link, forked by a template process.

    submit, any thread ── send ──> FrameWriter ── pipe ──> worker      under the pool's lock, never blocking
    whoever reads      <── read ── Links       <── pipe ── worker      see `_workforce/reader.py`
    supervisor thread  <── act ─── the template's notices, and stacks

Guarantees: whatever a worker wrote before it died is read before its death is reported; nothing two processes share
can be held by a killed one; a worker is killed through its template, which alone knows that its process id is still its
own.
Guarded by: the pool's one lock: `_members`, each member's writer and tokens. By the reader's lock: the links.
Owner: the supervisor thread: the template, the selector, each member's child and evidence. `_orders` is appended to by
anybody, before the wake-up is set; `act` clears the wake-up before it looks.
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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit import _os, _os_processes
from poolkit._clock import monotonic
from poolkit._core.workforce import AnyTask, BootFailed, Died, Glance, Report
from poolkit._locks import RLock
from poolkit._memory.memory import Memory
from poolkit._memory.owner import OwnerTransport
from poolkit._os_memory import OutOfMemory
from poolkit._select import poll
from poolkit._spawn import descriptors, templates
from poolkit._spawn.key import Start
from poolkit._spawn.templates import Child, Template
from poolkit._wire import codec, messages
from poolkit._wire.link import FrameWriter
from poolkit._wire.manifests import Inherited, Sent, inheritance
from poolkit._wire.messages import call_parts
from poolkit._wire.plans import Manifest
from poolkit._workforce import evidence
from poolkit._workforce.driven import DrivenWorkforce
from poolkit._workforce.links import Links, drain
from poolkit._workforce.logs import log
from poolkit._workforce.member import Member
from poolkit._workforce.settings import PoolSettings

MAX_BATCH = 64 if "batches" not in _os.SWITCHED_OFF else 1
STACK_GRACE = 0.2  # seconds a worker gets to write its stack before it is killed without; most take one thousandth
STACK_LOOK = 0.001  # seconds between two looks whether it has
ROOM_LOOK = 0.005  # seconds between two looks whether the template has taken earlier orders

Reports = list[Report]


class ProcessWorkforce(DrivenWorkforce):
    """Processes behind the Workforce protocol."""

    max_batch = MAX_BATCH
    why_not_weighed = None if _os.own_bytes(os.getpid()) else "this system does not tell the memory of other processes"

    def __init__(
        self,
        lock: RLock,
        settings: PoolSettings,
        *,
        boot: Callable[[Member], tuple[bytes, list[Memory]]],
        inherited_fds: Sequence[int],
        transport: OwnerTransport,
    ) -> None:
        self._lock = lock
        self._settings = settings
        self._boot = boot  # what a worker is told first, as things are now
        self._inherited_fds = tuple(inherited_fds)
        self._members: dict[int, Member] = {}
        self._orders: deque[tuple[Callable[..., None], Any]] = deque()  # for the supervisor thread to carry out
        self._wakeup = _os.Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup.fileno(), selectors.EVENT_READ, _nothing_yet)
        self.links: Links = Links(self._cut_off)
        self._both: select.poll | None = None  # what the selector and the links wait for; None where they are one
        if self.links.fileno is not None:
            self._both = poll()
            self._both.register(self._selector.fileno(), select.POLLIN)
            self._both.register(self.links.fileno, select.POLLIN)
        self._template: Template | None = None
        self._shares_templates = False  # once one was acquired that other pools may have
        self._asked: set[Child] = set()  # those whose template has not carried out all that it was told
        self._out_of_memory: OutOfMemory | None = None  # made with the first worker; owner: the supervisor thread
        self.transport = transport
        self.pack = transport.pack
        self.transport.wake, self.transport.warn = self.wake, log.warning
        self._inherited: Inherited | None = None  # what workers have of the script that are forks of this process
        self.transport.lend_tracker = functools.partial(self._order, self._lend_tracker)
        self.notes: list[str] = []  # owner: the supervisor thread
        self._closed_bytes = [0, 0]  # sent and received on links that are closed
        if settings.start_method == "fork":  # while the caller's thread is the only one that could hold a lock
            try:
                self._acquire_template()
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
        for task in tasks:
            fn, body, manifest = task.call
            flags = usual
            number = 0
            if manifest is not None:
                number = manifest.number
                if number not in sent.manifests:
                    self._define(member, manifest)
            if type(body) is not bytes:
                assert member.channel is not None  # noqa: S101 -- as its writer
                body, more = self.transport.send(
                    member.channel, task.id, body, may_run_again=bool(task.options.retries)
                )
                flags |= more
            parts += call_parts(task.id, task.attempts + 1, task.name, task.options.timeout, fn, body, flags, number)
        nbytes = sum(map(len, parts))
        parts[0] = messages.FRAME_TO_WORKER.pack(messages.CALLS, len(tasks), nbytes)
        assert member.tokens is not None  # noqa: S101 -- only a worker that is ready is sent something
        member.tokens.add(len(tasks))
        if member.writer is not None and not member.writer.send(parts, nbytes + messages.FRAME_TO_WORKER.size):
            self._order(self._watch_writing, member)

    def _define(self, member: Member, manifest: Manifest) -> None:
        """Write what the worker lacks of the script, before the frame with the call that needs it."""
        payload, memories = member.sent.lacking(manifest)
        if memories:
            assert member.channel is not None  # noqa: S101 -- as its writer
            self.transport.hand_over(member.channel, memories)
        self._write(member, [messages.FRAME_TO_WORKER.pack(messages.DEFINE, 0, len(payload)), payload])
        member.sent.commit()

    def reclaim(self, worker_id: int) -> int:
        """Take the tokens that the worker has not taken; tell it where what they stood for ends."""
        member = self._members.get(worker_id)
        if member is None or member.tokens is None:
            return 0
        count = member.tokens.take_all()
        if count:
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
        self._let_go(member)
        if member.writer is not None and member.reader is not None:
            self._closed_bytes[0] += member.writer.sent
            self._closed_bytes[1] += member.reader.received
        if member.channel is not None:
            if member.is_reaped or member.pid is None:
                self.transport.died(member.channel)
            else:
                self.transport.dies(member.channel, member.outcomes_fd)
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
        """See `OwnerTransport.use`."""
        members = self._members.values()
        return self.transport.use(
            [(each.channel, each.board.memory()) for each in members if each.channel and each.board]
        )

    def resident_bytes(self, worker_id: int) -> int | None:
        """Resident memory of a worker."""
        member = self._members.get(worker_id)
        return None if member is None or member.pid is None else _os.resident_bytes(member.pid)

    def wake(self) -> None:
        """Make `wait` return. From any thread."""
        self._wakeup.set()

    def _order(self, what: Callable[..., None], member: Any) -> None:
        self._orders.append((what, member))
        self._wakeup.set()

    def _write(self, member: Member, parts: list[bytes], nbytes: int | None = None) -> None:
        if member.writer is not None and not member.writer.send(parts, nbytes):
            self._order(self._watch_writing, member)

    # ===== the supervisor thread =====

    def wait(self, timeout: float, *, links: bool) -> bool:
        """Wait until there is something to do, for at most `timeout` seconds; without `links`, not for them."""
        due = [at for at in (child.answer_due() for child in self._asked) if at < math.inf]
        if self._dying():
            due.append(monotonic() + STACK_LOOK)
        if self._orders:  # those for which the template had no room, or else the wake-up is set
            due.append(monotonic() + ROOM_LOOK)
        if (tend_at := self.transport.due()) is not None:
            due.append(tend_at)
        if due:
            timeout = min(timeout, max(0.0, min(due) - monotonic()))
        if links and self._both is not None:
            return bool(self._both.poll(math.ceil(timeout * 1000)) or due)
        return bool(self._selector.select(timeout) or due)

    def prepare(self) -> None:
        """Start the template process while nobody waits for the reader's lock. Where it fails, `_spawn` tells why."""
        if self._template is None and any(what == self._spawn for what, _ in list(self._orders)):
            with contextlib.suppress(Exception):
                self._acquire_template()

    def act(self) -> Reports:
        """Carry out the orders and take in what happened. Does not block, but where `prepare` was in vain."""
        reports = self.links.reports
        self._wakeup.clear()  # before the orders: one that comes now must not be left for the next time
        for _ in range(len(self._orders)):
            what, member = self._orders.popleft()
            what(member, reports)
        for key, events in self._selector.select(0):
            key.data(events, reports)
        for child in self._asked:
            child.end_template_if_it_hangs()
        with self._lock:
            self.transport.tend([member.channel for member in self._members.values()])
        self.links.read()
        for member in self._dying():
            if member.board is not None:
                member.stack = (member.stack or "") + member.board.evidence()
            if (member.kill_at or 0.0) <= monotonic() or evidence.is_complete(member.stack or ""):
                self._kill(member, reports)
        return reports

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
        """End every worker that is left, and close everything. Blocks for that."""
        children = [member.child for member in self._members.values() if member.child]
        for child in children:
            self._unregister(child.fileno())
        if not templates.end_children(children, templates.END_GRACE):
            for child in children:
                child.template.is_retired = True
        template, self._template = self._template, None
        if template is not None and not template.key:
            template.end()
        # Where none was acquired this may be a finalizer, whose thread may hold FORKING, or any other lock.
        templates.release(self._settings, waits=self._shares_templates)
        with self._lock:
            members = list(self._members.values())
            self._members.clear()
        for member in members:
            member.close()
        self.transport.close()
        self._close_own()

    def close_in_forked_child(self) -> None:
        """Close the copies of descriptors that a forked child of the owner has; touch nothing that is shared."""
        for member in self._members.values():
            member.close()
        self.transport.arena.close()
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

    def _acquire_template(self) -> Template:
        settings = self._settings
        if settings.start_method == "fork":
            self._inherited = inheritance()
            env = {**settings.shares, **settings.env}
            self._template = templates.fork(settings, settings.preload, env, settings.bound_initializer())
        else:
            self._shares_templates = True
            start = Start(settings.start_method, settings.preload, settings.shares, settings.env)
            self._template = templates.acquire(start, settings)
        assert self._template is not None  # noqa: S101 -- it was waited for
        return self._template

    def _spawn(self, member: Member, reports: Reports) -> None:
        if self._members.get(member.id) is not member:  # the order was torn, and given again
            return
        if self._template is not None and not self._template.has_room():
            self._orders.append((self._spawn, member))  # without a wake-up: see `wait`
            return
        try:
            try:
                self._start(member)
            except OSError as exc:
                self._close_ends(member)
                if not self._finds_room(exc):
                    raise
                self._start(member)
        except templates.GONE:
            assert self._template is not None  # noqa: S101 -- it was to fork the worker
            self._lost(member, self._template, None, reports)
            return
        except Exception as exc:  # noqa: BLE001 -- no descriptors, no memory, no interpreter: the tasks are told
            self._close_ends(member)
            if isinstance(exc, OSError) and exc.errno == errno.EMFILE:
                exc = self.lacks = OSError(errno.EMFILE, descriptors.lack(self._wanted()))
            what = str(exc) if isinstance(exc, RuntimeError) else repr(exc)  # which are our own words
            reports.append(Died(member.id, hint=f"it could not be started: {what}"))
            return
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

    def _start(self, member: Member) -> None:
        """Have a worker forked, and send its first frame."""
        template = self._template or self._acquire_template()
        theirs = member.open(self._inherited_fds)
        try:
            child = member.child = template.spawn(theirs)
        finally:
            for fd in theirs:
                os.close(fd)
        self._asked.add(child)
        self._selector.register(child.fileno(), selectors.EVENT_READ, functools.partial(self._noticed, member))
        member.sent = Sent(self._inherited)
        member.transport = self.transport
        told, memories = self._boot(member)
        assert member.channel is not None  # noqa: S101 -- it is open
        member.channel.wake = functools.partial(self._order, self._forget, member)  # by finalizers, in any thread
        self.links.add(member)
        if self._both is None:
            self._selector.register(member.outcomes_fd, selectors.EVENT_READ, _nothing_yet)
        with self._lock:
            member.writer = FrameWriter(member.calls_fd)
            if memories:
                self.transport.hand_over(member.channel, memories)
            self._write(member, [messages.FRAME_TO_WORKER.pack(messages.BOOT, 0, len(told)), told])
            member.sent.commit()

    # ----- links -----

    def _watch_writing(self, member: Member, _reports: Reports) -> None:
        """Some of what was sent did not fit the pipe: write on as it empties."""
        if member.calls_fd >= 0 and self._selector.get_map().get(member.calls_fd) is None:
            self._selector.register(member.calls_fd, selectors.EVENT_WRITE, functools.partial(self._writable, member))

    def _forget(self, member: Member, _reports: Reports) -> None:
        """Memory is gone here that a worker was told of: it is to let go of it."""
        with self._lock:
            while member.channel is not None and member.channel.forget():
                self._write(member, [messages.FRAME_TO_WORKER.pack(messages.FORGET, 0, 0)])
                self.transport.flush(member.channel)

    def _lend_tracker(self, asked: Memory, _reports: Reports) -> None:
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
        if member.child is None or member.board is None:
            self._kill(member, reports)
            return
        member.board.evidence()  # what is there already is not of this task
        member.stack = ""
        member.kill_at = monotonic() + STACK_GRACE
        self._signal(member.child, _os.STACK_SIGNAL)

    def _kill_cut_off(self, member: Member, reports: Reports) -> None:
        """End a worker whose link is of no use. Mostly it has ended by itself, which is why."""
        if not member.hint and member.pid is not None and not _os.is_ending(member.pid):
            member.hint = (
                "poolkit had to end it: the task closed or wrote to descriptors that are not its own, or replaced its "
                "process by exec"
            )
        self._kill(member, reports)

    def _kill(self, member: Member, reports: Reports) -> None:
        member.kill_at = None
        child = member.child
        if child is not None and child.template.word() is not None:
            self._signal(child, messages.KILL)
        elif child is not None or member.calls_fd < 0:  # the template imports, or has no room: it may never be forked
            self._let_go(member)
            reports.append(Died(member.id, signal="SIGKILL"))

    def _signal(self, child: Child, number: int) -> None:
        child.signal(number)
        self._asked.add(child)

    def _let_go(self, member: Member) -> None:
        """Watch no descriptor of a worker any more, and close its control socket, so that it ends if it has not."""
        self.links.remove(member)
        self._unregister(member.outcomes_fd)
        self._unregister(member.calls_fd)
        child, member.child = member.child, None
        if child is not None:
            self._asked.discard(child)
            self._unregister(child.fileno())
            child.close()

    def _close_ends(self, member: Member) -> None:
        self._let_go(member)
        member.close()

    def _noticed(self, member: Member, _events: int, reports: Reports) -> None:
        """The template has something to say of a worker, or is gone."""
        child = member.child
        if child is None:
            return
        try:
            ended = child.receive()
        except EOFError:
            self._let_go(member)
            self._lost(member, child.template, child.pid, reports)
            return
        if not child.unanswered:
            self._asked.discard(child)
        if names := child.template.modules_with_threads():
            self._warn_of_threads(names)
        if ended is None:
            return
        self._let_go(member)
        if ended.error:
            if ended.error == errno.EMFILE and child.template is self._template and child.template.key:
                child.template.is_retired, self._template = True, None  # it is full; the next one is not
            hint = f"its process could not be forked: {os.strerror(ended.error)}"
            reports.append(Died(member.id, hint=hint))
        else:
            self._ended(member, reports, status=ended.status, pid=child.pid, peak=ended.peak_rss)

    def _warn_of_threads(self, names: str) -> None:
        log.warning(
            "preload: threads run since %s was imported, and a forked worker has none of them, while what they "
            "hold stays locked there; %s; best leave that out of `preload`",
            names,
            "with start_method='fork' workers are forked all the same"
            if self._settings.start_method == "fork"
            else "so each worker is a new interpreter, which imports it by itself",
        )

    def _ended(self, member: Member, reports: Reports, *, status: int, pid: int | None, peak: int) -> None:
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
        board = member.board
        stack = evidence.of_death(name, member.stack, "" if board is None else board.evidence())
        output = "" if board is None else board.output()
        reports.append(Died(member.id, signal=name, stack=stack, output=output, **facts))

    def _lost(self, member: Member, template: Template, pid: int | None, reports: Reports) -> None:
        """A worker dies with its template: the kernel kills it. What its tasks started, we kill here."""
        how = template.end()
        if self._template is template:
            self._template = None
        if (error := template.failure()) is not None:
            reports.append(BootFailed(member.id, codec.load_error(error)))
            return
        hint = f"the workers ended with the template process that forks them, which {how}"
        if pid is None:
            reports.append(Died(member.id, hint=hint))
        else:  # its number was its own a moment ago, and numbers go round before they come again
            _os_processes.kill_group(pid, signal.SIGKILL)
            self._died(member, reports, "SIGKILL", pid=pid, hint=hint)


def _nothing_yet(_events: int, _reports: Reports) -> None:
    """A link has something, or somebody woke us: `act` looks at all of that by itself."""
