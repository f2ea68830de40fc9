"""Processes: how worker processes are started, and how they end; the rest of the workforce is in `process.py`.

    supervisor thread  <── act ─── the template's notices, and stacks

Guarantees: whatever a worker wrote before it died is read before its death is reported; a worker is killed through its
template, which alone knows that its process id is still its own.
Owner: the supervisor thread; `_order` is for whoever holds the pool's lock, and for finalizers.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit import _os, _os_processes, errors
from poolkit._clock import monotonic
from poolkit._core.workforce import BootFailed, Died, Report
from poolkit._kinds import evidence
from poolkit._kinds.driven import DrivenWorkforce
from poolkit._kinds.links import Links
from poolkit._kinds.loggers import log
from poolkit._kinds.looking import Look
from poolkit._kinds.peer import Peer
from poolkit._kinds.settings import PoolSettings
from poolkit._locks import RLock
from poolkit._memory.memory import Memory
from poolkit._memory.owner import OwnerTransport
from poolkit._os_memory import OutOfMemory
from poolkit._select import poll
from poolkit._spawn import descriptors, registry, templates
from poolkit._spawn.key import Start
from poolkit._spawn.templates import Child, Template
from poolkit._wire import codec, messages
from poolkit._wire.link import FrameWriter
from poolkit._wire.plans import Inherited, Sent, inheritance

MOST_LOOKS = 8  # orders that a template has not carried out, with which it is given no more for a look
STACK_GRACE = 0.2  # seconds a worker gets to write its stack before it is killed without; most take one thousandth

Reports = deque[Report]


class Processes(DrivenWorkforce):
    """The worker processes of one pool; see the file's header."""

    def __init__(
        self,
        lock: RLock,
        settings: PoolSettings,
        *,
        boot: Callable[[Peer], tuple[bytes, list[Memory]]],
        inherited_fds: Sequence[int],
        transport: OwnerTransport,
    ) -> None:
        self._lock = lock
        self._settings = settings
        self._boot = boot  # what a worker is told first, as things are now
        self._inherited_fds = tuple(inherited_fds)
        self._workers: dict[int, Peer] = {}
        self._orders: deque[tuple[Callable[..., None], Any]] = deque()  # for the supervisor thread to carry out
        self._open_own()
        self._template: Template | None = None
        self._shares_templates = False  # once one was acquired that other pools may have
        self._asked: set[Child] = set()  # those whose template has not carried out all that it was told
        self._out_of_memory: OutOfMemory | None = None  # made with the first worker; owner: the supervisor thread
        self.transport = transport
        self.pack = transport.pack
        self.transport.wake, self.transport.warn = self.wake, log.warning
        self._inherited: Inherited | None = None  # what workers have of the script that are forks of this process
        self.transport.send_tracker = functools.partial(self._order, self._send_tracker)
        self.notes: list[str] = []  # owner: the supervisor thread
        self._closed_bytes = [0, 0]  # sent and received on links that are closed
        if settings.start_method == "fork":  # while the caller's thread is the only one that could hold a lock
            try:
                self._acquire_template()
            except BaseException:
                self._close_own()
                raise

    def _open_own(self) -> None:
        self._wakeup = _os.Wakeup()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup.fileno(), selectors.EVENT_READ, _nothing_yet)
        self.links: Links = Links(self._cut_off)
        self.logged = self.links.logged
        self._both: select.poll | None = None  # what the selector and the links wait for; None where they are one
        if self.links.fileno is not None:
            self._both = poll()
            self._both.register(self._selector.fileno(), select.POLLIN)
            self._both.register(self.links.fileno, select.POLLIN)

    # ----- orders for the supervisor thread -----

    def _order(self, what: Callable[..., None], peer: Any) -> None:
        self._orders.append((what, peer))
        self._wakeup.set()

    def _write(self, peer: Peer, parts: list[bytes]) -> None:
        if peer.writer is not None and not peer.writer.send(parts):
            self._order(self._watch_writing, peer)

    def _unregister(self, fd: int) -> None:
        if fd >= 0:
            try:
                self._selector.unregister(fd)
            except (KeyError, ValueError):
                return

    def _cut_off(self) -> None:
        """End the workers whose links are of no use any more."""
        while self.links.broken:
            peer = self.links.broken[0]
            self.links.remove(peer)
            if self._both is None:
                self._unregister(peer.outcomes_fd)
            self._order(self._kill_cut_off, peer)
            self.links.broken.popleft()

    # ----- starting -----

    def _acquire_template(self) -> Template:
        settings = self._settings
        if settings.start_method == "fork":
            self._inherited = inheritance()
            env = {**settings.shares, **settings.env}
            self._template = registry.fork(settings, settings.preload, env, settings.bound_initializer())
        else:
            self._shares_templates = True
            start = Start(settings.start_method, settings.preload, settings.shares, settings.env, settings.lease_fd)
            self._template = registry.acquire(start, settings)
        assert self._template is not None  # noqa: S101 -- it was waited for
        if settings.lease_fd is not None:
            self._template.is_retired = True  # its workers live under that, and so would those of others
        return self._template

    def _spawn(self, peer: Peer, reports: Reports) -> None:
        if self._workers.get(peer.id) is not peer:  # the order was interrupted, and given again
            return
        if self._template is not None and not self._template.has_room():
            self._orders.append((self._spawn, peer))  # without a wake-up: see `wait`
            return
        try:
            try:
                self._start(peer)
            except OSError as exc:
                self._close_ends(peer)
                if not self._finds_room(exc):
                    raise
                self._start(peer)
        except templates.GONE:
            assert self._template is not None  # noqa: S101 -- it was to fork the worker
            self._lost(peer, self._template, None, reports)
            return
        except Exception as exc:  # noqa: BLE001 -- no descriptors, no memory, no interpreter: the tasks are told
            self._close_ends(peer)
            if isinstance(exc, OSError) and exc.errno == errno.EMFILE:
                exc = self.lacks = OSError(errno.EMFILE, descriptors.lack(self._wanted()))
            what = str(exc) if isinstance(exc, RuntimeError) else repr(exc)  # which are our own words
            reports.append(Died(peer.id, hint=f"it could not be started: {what}"))
            return
        if self._out_of_memory is None:
            self._out_of_memory = OutOfMemory()
        self._out_of_memory.look()

    def _wanted(self) -> int:
        return max(self._settings.size, len(self._workers))  # a pool may have grown

    def _finds_room(self, error: OSError) -> bool:
        """Whether a start that failed is worth another try, as the limit on open files was raised."""
        from poolkit._core import snapshots  # noqa: F401, PLC0415 -- `stats()` might find no descriptor for that

        missing = self._wanted() - sum(peer.calls_fd >= 0 for peer in self._workers.values())
        return error.errno == errno.EMFILE and descriptors.raise_limit(max(1, missing), self.notes)

    def _start(self, peer: Peer) -> None:
        """Have a worker forked, and send its first frame."""
        template = self._template or self._acquire_template()
        theirs, lease = peer.open(self._inherited_fds), self._settings.lease_fd
        flags = self._settings.fork_flags | (0 if lease is None else messages.HAS_LEASE)
        try:
            fds = theirs if lease is None else [*theirs, lease]
            child = peer.child = template.spawn(fds, flags, self._settings.streams)
        finally:
            for fd in theirs:
                os.close(fd)
        self._asked.add(child)
        self._selector.register(child.fileno(), selectors.EVENT_READ, functools.partial(self._noticed, peer))
        peer.sent = Sent(self._inherited)
        peer.transport = self.transport
        told, memories = self._boot(peer)
        assert peer.channel is not None  # noqa: S101 -- it is open
        peer.channel.wake = functools.partial(self._order, self._forget, peer)  # by finalizers, in any thread
        self.links.add(peer)
        if self._both is None:
            self._selector.register(peer.outcomes_fd, selectors.EVENT_READ, _nothing_yet)
        with self._lock:
            peer.writer = FrameWriter(peer.calls_fd)
            if memories:
                self.transport.hand_over(peer.channel, memories)
            self._write(peer, [messages.FRAME_TO_WORKER.pack(messages.BOOT, 0, len(told)), told])
            peer.sent.commit()

    # ----- links -----

    def _watch_writing(self, peer: Peer, _reports: Reports) -> None:
        """Some of what was sent did not fit the pipe: write on as it empties."""
        if peer.calls_fd >= 0 and self._selector.get_map().get(peer.calls_fd) is None:
            self._selector.register(peer.calls_fd, selectors.EVENT_WRITE, functools.partial(self._writable, peer))

    def _writable(self, peer: Peer, _events: int, _reports: Reports) -> None:
        with self._lock:
            written = peer.writer is None or peer.writer.flush()
        if written:
            self._unregister(peer.calls_fd)

    def _forget(self, peer: Peer, _reports: Reports) -> None:
        """Memory is gone here that a worker was told of: it is to let go of it."""
        with self._lock:
            while peer.channel is not None and peer.channel.forget():
                self._write(peer, [messages.FRAME_TO_WORKER.pack(messages.FORGET, 0, 0)])
                self.transport.flush(peer.channel)

    def _send_tracker(self, asked: Memory, _reports: Reports) -> None:
        """Send the resource tracker of this process to a worker, which waits for it, or for the end of the socket."""
        from multiprocessing import resource_tracker  # noqa: PLC0415 -- few need it

        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(asked.fd)) as there:
            tracker: Any = resource_tracker.getfd()
            socket.send_fds(there, [b"t"], [tracker])

    # ----- ends -----

    def _ask_stack(self, peer: Peer, reports: Reports) -> None:
        if peer.child is None or peer.board is None:
            self._kill(peer, reports)
            return
        peer.board.evidence()  # what is there already is not of this task
        peer.answers = peer.board.answers()
        peer.stack = ""
        peer.kill_at = monotonic() + STACK_GRACE
        self._signal(peer.child, _os.STACK_SIGNAL)

    def _kill_cut_off(self, peer: Peer, reports: Reports) -> None:
        """End a worker whose link is of no use. Mostly it has ended by itself, which is why."""
        if not peer.hint and peer.pid is not None and not _os.is_ending(peer.pid):
            peer.hint = (
                "poolkit had to end it: the task closed or wrote to descriptors that are not its own, or replaced its "
                "process by exec"
            )
        self._kill(peer, reports)

    def _kill(self, peer: Peer, reports: Reports) -> None:
        peer.kill_at = None
        child = peer.child
        if child is not None and child.template.word() is not None:
            self._signal(child, messages.KILL)
        elif child is not None or peer.calls_fd < 0:  # the template imports, or has no room: it may never be forked
            self._let_go(peer)
            reports.append(Died(peer.id, signal="SIGKILL"))

    def _send_signal(self, order: tuple[Peer, int], _reports: Reports) -> None:
        peer, number = order
        if peer.child is not None and not peer.is_reaped:
            self._signal(peer.child, number)

    def _signal(self, child: Child, number: int, *, waits: bool = True) -> None:
        child.signal(number, waits=waits)
        self._asked.add(child)

    def _look(self, look: Look, _reports: Reports) -> None:
        """Ask a worker where it is, by the signal that is due; not one whose template has much to do.

        Nor one that would die of it: the task has put back the default, or replaced its process.
        """
        child = look.peer.child
        if child is None or child.pid is None or len(child.unanswered) >= MOST_LOOKS:
            return
        if _os_processes.has_handler(child.pid, look.signal):
            self._signal(child, look.signal, waits=False)

    def _let_go(self, peer: Peer) -> None:
        """Watch no descriptor of a worker any more, and close its control socket, so that it ends if it has not."""
        self.links.remove(peer)
        self._unregister(peer.outcomes_fd)
        self._unregister(peer.calls_fd)
        child, peer.child = peer.child, None
        if child is not None:
            self._asked.discard(child)
            self._unregister(child.fileno())
            child.close()

    def _close_ends(self, peer: Peer) -> None:
        self._let_go(peer)
        peer.close()

    def _noticed(self, peer: Peer, _events: int, reports: Reports) -> None:
        """The template has something to say of a worker, or is gone."""
        child = peer.child
        if child is None:
            return
        try:
            ended = child.receive()
        except EOFError:
            self._let_go(peer)
            self._lost(peer, child.template, child.pid, reports)
            return
        if not child.unanswered:
            self._asked.discard(child)
        if names := child.template.modules_with_threads():
            self._warn_of_threads(names)
        if ended is None:
            return
        self._let_go(peer)
        if ended.error:
            if ended.error == errno.EMFILE and child.template is self._template and child.template.key:
                child.template.is_retired, self._template = True, None  # it is full; the next one is not
            hint = f"its process could not be forked: {os.strerror(ended.error)}"
            reports.append(Died(peer.id, hint=hint))
        else:
            self._ended(peer, reports, status=ended.status, pid=child.pid, peak=ended.peak_rss)

    def _warn_of_threads(self, names: str) -> None:
        log.warning(
            "preload: threads run since %s was imported, and a forked worker has none of them, while what they "
            "hold stays locked there; %s; best leave that out of `preload`",
            names,
            "with start_method='fork' workers are forked all the same"
            if self._settings.start_method == "fork"
            else "so each worker is a new interpreter, which imports it by itself",
        )

    def _ended(self, peer: Peer, reports: Reports, *, status: int, pid: int | None, peak: int) -> None:
        peer.is_reaped = True
        code = os.waitstatus_to_exitcode(status)
        name = _os.signal_name(-code) if code < 0 else None
        hint, watch = peer.hint, self._out_of_memory
        if watch is not None and code == -signal.SIGKILL and not (hint or peer.is_being_killed):
            hint = watch.explain()
        elif watch is not None:
            watch.look()
        self._died(peer, reports, name, exitcode=code if code >= 0 else None, pid=pid, peak_rss=peak, hint=hint)

    def _died(self, peer: Peer, reports: Reports, name: str | None, **facts: Any) -> None:
        """Report a death by that signal, after what the worker left: outcomes that it sent, stack and output."""
        self.links.drain(peer)
        board = peer.board
        stack = evidence.of_death(name, peer.stack, "" if board is None else board.evidence())
        output = "" if board is None else board.output()
        reports.append(Died(peer.id, signal=name, stack=stack, output=output, **facts))

    def _lost(self, peer: Peer, template: Template, pid: int | None, reports: Reports) -> None:
        """A worker dies with its template: the kernel kills it. What its tasks started, we kill here."""
        how = template.end()
        if self._template is template:
            self._template = None
        if (error := template.failure()) is not None:
            errors.InitializerFailed  # noqa: B018 -- as in `links.py`
            reports += BootFailed(peer.id, codec.load_error(error)), Died(peer.id, hint="its template could not import")
            return
        hint = f"the workers ended with the template process that forks them, which {how}"
        if pid is None:
            reports.append(Died(peer.id, hint=hint))
        else:  # its number was its own a moment ago, and numbers go round before they come again
            _os_processes.kill_group(pid, signal.SIGKILL)
            self._died(peer, reports, "SIGKILL", pid=pid, hint=hint)

    def _close_own(self) -> None:
        self._close_wakers()
        for fd in self._inherited_fds:
            _os.close_fd(fd)
        self._inherited_fds = ()

    def _close_wakers(self) -> None:
        self.links.close()
        self._selector.close()
        self._wakeup.close()


def _nothing_yet(_events: int, _reports: Reports) -> None:
    """A link has something, or somebody woke us: `act` looks at all of that by itself."""
