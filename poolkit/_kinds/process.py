"""Process workforce: workers that are processes, each behind a private link, forked by a template process.

    submit, any thread ── send ──> FrameWriter ── pipe ──> worker      under the pool's lock, never blocking
    whoever reads      <── read ── Links       <── pipe ── worker      see `_engine/reader.py`
    supervisor thread  <── act ─── the template's notices, and stacks

Guarantees: whatever a worker wrote before it died is read before its death is reported; nothing two processes share
can be held by a killed one; a worker is killed through its template, which alone knows that its process id is still its
own.
Guarded by: the pool's one lock: `_workers`, each peer's writer and tokens. By the reader's lock: the links.
Owner: the supervisor thread: the template, the selector, each peer's child and evidence. `_orders` is appended to by
anybody, before the wake-up is set; `act` clears the wake-up before it looks.
"""

from __future__ import annotations

import contextlib
import math
import os
from _thread import allocate_lock
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._core.workforce import AnyTask, Status
from poolkit._kinds import evidence
from poolkit._kinds.looking import Look
from poolkit._kinds.peer import Peer
from poolkit._kinds.processes import Processes, Reports
from poolkit._spawn import registry, templates
from poolkit._wire import codec, messages
from poolkit._wire.link import JOIN_UP_TO
from poolkit._wire.plans import Manifest
from poolkit.task import Progress

MOST_ATTEMPTS = 0xFFFF  # that a call can say
MAX_BATCH = 64 if "batches" not in _os.SWITCHED_OFF else 1
_DROP = messages.FRAME_TO_WORKER.pack(messages.DROP, 0, 0)
STACK_LOOK = 0.001  # seconds between two looks whether it has
PATIENCE = 0.4  # of the time for an answer, until faulthandler is asked for it
ROOM_LOOK = 0.005  # seconds between two looks whether the template has taken earlier orders


def _given(message: object) -> object:
    """What a message is packed as an argument of."""
    return message


class ProcessWorkforce(Processes):
    """Processes behind the Workforce protocol."""

    max_batch = MAX_BATCH
    ends_coroutines = True
    why_memory_unknown = (
        None if _os.own_bytes(os.getpid()) else "this system does not tell the memory of other processes"
    )

    # ===== orders, given under the pool's lock =====

    def start(self, worker_id: int) -> None:
        """Have the supervisor thread order a process. What is in `_workers` is ordered."""
        if worker_id not in self._workers:
            peer = Peer(worker_id)
            self._orders.append((self._spawn, peer))
            self._workers[worker_id] = peer
            self._wakeup.set()

    def send(  # noqa: C901 -- on the way of every task
        self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool
    ) -> None:
        """Add the tokens, then write the calls as far as the pipe takes them; the supervisor thread writes the rest."""
        peer = self._workers[worker_id]
        writer, tokens, sent = peer.writer, peer.tokens, peer.sent
        assert writer is not None  # noqa: S101 -- only a worker that is ready is sent something
        assert tokens is not None  # noqa: S101 -- see above
        if not tasks:
            if not writer.flush():
                self._order(self._watch_writing, peer)
            return
        parts: list[bytes] = [b""]
        pack_call = messages.CALL.pack
        usual = messages.FLAG_ANNOUNCE if announce else 0
        for task in tasks:
            fn, body, manifest = task.call
            flags = usual
            number = 0
            if manifest is not None:
                number = manifest.number
                if number not in sent.manifests:
                    self._define(peer, manifest)
            if type(body) is not bytes:
                assert peer.channel is not None  # noqa: S101 -- as its writer
                body, more = self.transport.send(peer.channel, task.id, body, may_run_again=bool(task.options.retries))
                flags |= more
            name = task.name.encode("utf-8", "surrogatepass")
            attempt, timeout = min(task.attempts + 1, MOST_ATTEMPTS), task.options.timeout or 0.0
            parts += pack_call(task.id, attempt, flags, len(name), timeout, number, len(fn), len(body)), name, fn, body
        nbytes = sum(map(len, parts))
        parts[0] = messages.FRAME_TO_WORKER.pack(messages.CALLS, len(tasks), nbytes)
        token = tokens.one if len(tasks) == 1 else tokens.of(len(tasks))
        pending = writer.pending
        is_small = nbytes < JOIN_UP_TO and not pending
        frames = [(b"".join(parts), [])] if is_small else writer.frames(parts)
        # One instruction: no exception comes between the tokens, the calls and the note of both.
        written += chain(map(os.write, (tokens.write_fd,), (token,)), map(pending.extend, (frames,)))
        if is_small:  # as `writer.flush` would do it, in three calls
            frame, taken = frames[0]
            writer.sent += len(frame)
            try:
                taken += map(os.write, (writer.fd,), (frame,))
            except OSError:
                taken.append(0)
            if taken[0] == len(frame):
                pending.clear()
                return
        if not writer.flush():
            self._order(self._watch_writing, peer)

    def _define(self, peer: Peer, manifest: Manifest) -> None:
        """Write what the worker lacks of the script, before the frame with the call that needs it."""
        payload, memories = peer.sent.lacking(manifest)
        if memories:
            assert peer.channel is not None  # noqa: S101 -- as its writer
            self.transport.hand_over(peer.channel, memories)
        self._write(peer, [messages.FRAME_TO_WORKER.pack(messages.DEFINE, 0, len(payload)), payload])
        peer.sent.commit()

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        """Take the tokens that the worker has not taken; tell it where what they stood for ends."""
        peer = self._workers.get(worker_id)
        if peer is None or peer.tokens is None or peer.writer is None:
            return
        peer.tokens.take_all(taken)
        if taken and not told:
            told += map(peer.writer.pending.extend, (peer.writer.frames([_DROP]),))
        if told and not peer.writer.flush():
            self._order(self._watch_writing, peer)

    def status(self, worker_id: int) -> Status:
        """Read the worker's board."""
        peer = self._workers.get(worker_id)
        if peer is None or peer.board is None:
            return Status()
        return Status(*peer.board.read())

    def progress(self, worker_id: int, task: AnyTask) -> Progress | None:
        """Read it from the board: not of a run that was taken into account, if the worker has not begun the next."""
        peer = self._workers.get(worker_id)
        found = None if peer is None or peer.board is None else peer.board.progress(task.id)
        return None if found is None or found[0] == task.started_at else Progress.reported(*found[1:])

    def memory(self, worker_id: int) -> int | None:
        """What the worker's process has resident for itself."""
        peer = self._workers.get(worker_id)
        return None if peer is None or peer.pid is None else _os.own_bytes(peer.pid)

    def stop(self, worker_id: int) -> None:
        """Tell the worker to leave."""
        self._write(self._workers[worker_id], [messages.FRAME_TO_WORKER.pack(messages.STOP, 0, 0)])

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        """Tell the worker how many items were taken."""
        self._tell(messages.CREDIT, worker_id, task_id, taken)

    def mail(self, worker_id: int, task_id: int, mail: deque[Any]) -> None:
        """Send the worker what is for its task."""
        peer = self._workers[worker_id]
        while mail:
            fn, body, manifest = mail[0]
            if manifest is not None and manifest.number not in peer.sent.manifests:
                self._define(peer, manifest)
            head = messages.MAIL_HEAD.pack(task_id, manifest.number if manifest is not None else 0, len(fn))
            parts = [head, fn, body]
            self._write(peer, [messages.FRAME_TO_WORKER.pack(messages.MAIL, 0, sum(map(len, parts))), *parts])
            mail.popleft()

    @staticmethod
    def pack_mail(message: object) -> tuple[bytes, Any, Manifest | None]:
        """Pack a message to a task, as the one argument of a call."""
        return codec.pack_call(_given, (message,), {})

    def end(self, worker_id: int, task: AnyTask) -> None:
        """Tell the worker that its task is to end by itself."""
        self._tell(messages.END, worker_id, task.id)

    def _tell(self, kind: int, worker_id: int, task_id: int, number: int = 0) -> None:
        signal = messages.SIGNAL.pack(task_id, number)
        self._write(self._workers[worker_id], [messages.FRAME_TO_WORKER.pack(kind, 0, len(signal)), signal])

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """Have the supervisor thread kill the worker's process group, after its stack was taken."""
        peer = self._workers.get(worker_id)
        if peer is not None:  # else its end is being noted
            peer.is_being_killed = True
            self._order(self._ask_stack if want_stack else self._kill, peer)

    def signal(self, worker_id: int, number: int) -> None:
        """Have the supervisor thread send a worker's process a signal."""
        peer = self._workers.get(worker_id)
        if peer is not None:
            self._order(self._send_signal, (peer, number))

    def forget(self, worker_id: int) -> None:
        """Close what is left of a worker that died. On the supervisor thread, which reports deaths."""
        peer = self._workers.pop(worker_id, None)
        if peer is None:
            return
        self._let_go(peer)
        if peer.writer is not None and peer.reader is not None:
            self._closed_bytes[0] += peer.writer.sent
            self._closed_bytes[1] += peer.reader.received
        if peer.channel is not None:
            if peer.is_reaped or peer.pid is None:
                self.transport.died(peer.channel)
            else:
                self.transport.dies(peer.channel, peer.outcomes_fd)
        peer.close()

    def link_bytes(self) -> tuple[int, int]:
        """Bytes sent to and received from workers, over the links, so far."""
        sent, received = self._closed_bytes
        for peer in self._workers.values():
            if peer.writer is not None and peer.reader is not None:
                sent += peer.writer.sent
                received += peer.reader.received
        return sent, received

    def memory_use(self) -> tuple[int, int, int, int, int]:
        """See `OwnerTransport.use`."""
        peers = self._workers.values()
        return self.transport.use(
            [(each.channel, each.board.memory()) for each in peers if each.channel and each.board]
        )

    def resident_bytes(self, worker_id: int) -> int | None:
        """Resident memory of a worker."""
        peer = self._workers.get(worker_id)
        return None if peer is None or peer.pid is None else _os.resident_bytes(peer.pid)

    def stacks(self, worker_ids: Sequence[int], timeout: float) -> dict[int, str]:
        """Ask each, and look at its board, as nothing tells of an answer there; see `looking.py`."""
        found = dict.fromkeys(worker_ids, "")
        give_up = (now := monotonic()) + timeout
        insist_at = now + min(timeout, 1.0) * PATIENCE
        workers, looks, never = self._workers, {}, allocate_lock()
        with self._lock:
            for peer in filter(None, map(workers.get, worker_ids)):
                if peer.board is not None and not peer.is_being_killed:
                    looks[peer.id] = Look(peer, peer.board)
                    self._order(self._look, looks[peer.id])
        never.acquire()
        while looks and now < give_up:
            never.acquire(timeout=min(STACK_LOOK, give_up - now))
            now = monotonic()
            with self._lock:
                for worker_id, look in list(looks.items()):
                    text = look.answer() if workers.get(worker_id) is look.peer else ""
                    if text is not None:
                        found[worker_id] = text
                        del looks[worker_id]
                    elif now >= insist_at and look.insist():
                        self._order(self._look, look)
        return found

    def wake(self) -> None:
        """Make `wait` return. From any thread."""
        self._wakeup.set()

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
            what, peer = self._orders.popleft()
            what(peer, reports)
        for key, events in self._selector.select(0):
            key.data(events, reports)
        for child in self._asked:
            child.end_template_if_it_hangs()
        with self._lock:
            self.transport.tend([peer.channel for peer in self._workers.values()])
        self.links.read()
        for peer in self._dying():
            if peer.board is not None:
                peer.stack = (peer.stack or "") + peer.board.evidence()
                if not evidence.is_complete(peer.stack):  # a look may be answered meanwhile, which makes room
                    peer.stack = peer.board.answered(peer.answers) or peer.stack
            if (peer.kill_at or 0.0) <= monotonic() or evidence.is_complete(peer.stack or ""):
                self._kill(peer, reports)
        return reports

    def close(self) -> None:
        """End every worker that is left, and close everything. Blocks for that."""
        children = [peer.child for peer in self._workers.values() if peer.child]
        for child in children:
            self._unregister(child.fileno())
        if not templates.end_children(children, templates.END_GRACE):
            for child in children:
                child.template.is_retired = True
        template, self._template = self._template, None
        if template is not None and not template.key:
            template.end()
        # Where none was acquired this may be a finalizer, whose thread may hold FORKING, or any other lock.
        registry.release(self._settings, waits=self._shares_templates)
        with self._lock:
            peers = list(self._workers.values())
            self._workers.clear()
        for peer in peers:
            peer.close()
        self.transport.close()
        self._close_own()

    def close_in_forked_child(self) -> None:
        """Close the copies of descriptors that a forked child of the owner has; touch nothing that is shared."""
        for peer in self._workers.values():
            peer.close()
        self.transport.arena.close()
        self._close_own()

    def begin_anew(self) -> None:
        """Make anew what it would share with the parent, so that neither wakes the other, nor writes to its memory.

        What workers inherit of the initializer's arguments stays: they do so in all processes.
        """
        self._close_wakers()
        self.transport.begin_anew()
        self._template = None  # of one that was forked when the pool was made, with that process's memory
        self._open_own()

    def _dying(self) -> list[Peer]:
        return [peer for peer in list(self._workers.values()) if peer.kill_at is not None]
