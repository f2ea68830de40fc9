"""Loop: what a process worker does all its life: claim, run, reply. And `run_call`, which every kind shares.

Guarantees: a task is begun only with a token taken for it, so never after it was reclaimed; its outcome is sent at
once; nothing of it is kept afterwards. Only a write to the link can block here, and the owner always reads.
Owner: the worker's main thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from os import getpid
from types import CoroutineType

from poolkit._child import output, script
from poolkit._child.coroutines import RUNS, Coroutines, Ended, Running, run_coroutine
from poolkit._child.missing import explain, explain_keyword
from poolkit._clock import monotonic
from poolkit._memory.worker import WorkerTransport
from poolkit._os import Tokens, own_resident_bytes
from poolkit._os_processes import children, reap_adopted
from poolkit._select import poll
from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire import codec, messages
from poolkit._wire.board import Board
from poolkit._wire.codec import NONE, load_call
from poolkit._wire.link import Frame, FrameReader, Outbox
from poolkit._wire.spin import Spin
from poolkit.context import CURRENT, Cell, TaskContext
from poolkit.errors import SerializationError

if TYPE_CHECKING:
    from poolkit._child.mail import Mail
    from poolkit._child.outgoing import Outgoing

_ANNOUNCE, _OUT_OF_BAND = messages.FLAG_ANNOUNCE, messages.FLAG_OUT_OF_BAND
_pack_header = messages.FRAME_TO_OWNER.pack
REAP_EVERY = 256  # waits for calls; a task may leave a few programs behind, and no system has room for a million


def run_call(
    context: TaskContext, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, Any]:
    """Run one call in its context; (True, value) or (False, exception). Lets no exception of the call out."""
    token = CURRENT.set(context)
    try:
        return run_here(fn, args, kwargs)
    finally:
        CURRENT.reset(token)


def run_here(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    """Run one call in the context that is current; a coroutine is run to its end."""
    try:
        value = fn(*args, **kwargs)
        if type(value) is CoroutineType:
            value = run_coroutine(value)
    except BaseException as exc:  # noqa: BLE001 -- SystemExit and KeyboardInterrupt are the task's exceptions too
        if kwargs:
            explain_keyword(exc, kwargs)
        return False, exc
    else:
        return True, value


class Loop:
    """The loop of one process worker."""

    def __init__(
        self, calls_fd: int, outcomes_fd: int, tokens: Tokens, board: Board, transport: WorkerTransport
    ) -> None:
        self._reader = FrameReader(calls_fd, messages.FRAME_TO_WORKER)
        self.outbox = Outbox(outcomes_fd)
        self._tokens = tokens
        self.board = board
        self.transport = transport
        self._inbox: deque[messages.Call | int] = deque()  # calls not yet claimed, and DROP and STOP between them
        os.set_blocking(calls_fd, False)
        self._poller = poll()
        self._poller.register(calls_fd, select.POLLIN)
        self._spin = Spin()
        self.home = os.getpid(), get_ident()  # the process and thread that run tasks
        self.calls_fd = calls_fd
        self._mail: Mail | None = None
        self.running: Outgoing | Running | None = None  # the stream that runs, or the coroutine
        self.closed: Ended | None = None  # the task that runs was told to, and has ended its coroutine
        self._watching: Any = None  # the event loop that reads here, too, while coroutines run
        self._wakers: list[Callable[[], object]] = []  # of coroutines that wait for what the owner says
        self._waits = 0  # how often there was nothing to read
        self._cells: list[Any] = []  # once a task has reported its progress: the first counts, if threads make two
        self._reported: dict[float, Cell] = {}  # what was reported, by when the run began that did
        self.measure_rss = False
        self.inherited = 0  # bytes of memory that a fork of the owner had from the beginning, as the next one will

    def receive_boot(self) -> bytes | bytearray:
        """Return the payload of the first frame. Blocks until it is here."""
        while True:
            for fields, payload in self._frames():
                if fields[0] == messages.BOOT:
                    return payload

    # ===== the end of what a task sends while it runs; see `context.py` =====

    def begin_stream(self, task_id: int, most: int, most_bytes: float) -> Outgoing:
        """What runs now is a stream."""
        from poolkit._child.outgoing import Outgoing  # noqa: PLC0415 -- only for those who stream

        self.running = stream = Outgoing(self, task_id, most, most_bytes)
        return stream

    def begin_coroutine(self, running: Running) -> Running | None:
        """What runs now is a coroutine; None where it cannot be told to end, or as a stream, which it is a part of."""
        if self.running is not None or self.home != (getpid(), get_ident()):
            return None
        if self._watching is not running.loop:
            try:
                running.loop.add_reader(self.calls_fd, self._readable, running.loop)
            except NotImplementedError:  # a loop of the user's
                return None
            self._watching = running.loop
        running.children = children()
        self.running = running
        self.board.stamp_made(RUNS)
        return running

    def end_coroutine(self, running: Running) -> None:
        """Note that it has ended. One that was told to, and has left programs or threads, ends with this process."""
        if getpid() != self.home[0]:
            return
        while running.is_to_end and (running.leaves_programs() or running.leaves_threads()):
            self.receive(0.01)  # until the owner has waited for long enough, and kills it
        self.board.stamp_made(0.0)
        self.running = None

    def mail(self) -> Mail:
        """Return what messages go through; made at its first use, in the main thread or not."""
        if self._mail is None:
            from poolkit._child.mail import Mail  # noqa: PLC0415 -- only for those who send

            self._mail = Mail(self)
        return self._mail

    def is_told_to_end(self, task_id: int) -> bool:
        """Whether the task that runs was told to end."""
        running = self.running
        if running is None or running.task_id != task_id or getpid() != self.home[0]:
            return False
        if get_ident() == self.home[1]:
            self.look()
        return running.is_to_end

    def say(self, kind: int, task_id: int = 0, payload: bytes = b"") -> None:
        """Send a frame without times. Blocks while the link is full."""
        self.outbox.send(messages.FRAME_TO_OWNER.pack(kind, task_id, 0.0, 0.0, 0, len(payload)), payload)

    def cell(self, since: float, done: float, total: float) -> Cell:
        """Return where the run that began then reports its progress. For any thread, and for forked children."""
        if getpid() != self.home[0]:
            return Cell(done, total)
        if not self._cells:
            from poolkit._child.cells import Cells  # noqa: PLC0415 -- few tasks report

            self._cells.append(Cells(self.board, self._reported))
        return self._cells[0].of_run(since, done, total)  # type: ignore[no-any-return]

    def serve(self) -> None:
        """Run calls until STOP, or until the owner is gone."""
        inbox = self._inbox
        coroutines = Coroutines(self)
        coroutines.keep()
        try:
            while True:
                while not inbox:
                    self.receive()
                item = inbox.popleft()
                if isinstance(item, int):
                    if item == messages.STOP:
                        return
                elif self._tokens.take():
                    self._run(item)
                    item = messages.DROP  # a call is not kept alive while the worker waits for the next
                else:
                    self._drop()
        except (EOFError, BrokenPipeError, ConnectionResetError) as exc:  # the owner is gone
            if self.transport.channel.is_broken and exc.args:
                print(f"poolkit: worker {os.getpid()} ends, as {exc}", file=sys.__stderr__)
            return
        finally:
            coroutines.close()

    def _frames(self, seconds: float | None = None) -> list[Frame]:
        """Return what is on the link, after waiting: a poll that finds something costs less than a read in vain."""
        self._waits += 1
        if not self._waits % REAP_EVERY:
            reap_adopted()
        arena, channel = self.transport.arena, self.transport.channel
        if arena.trim_at is None:
            self._spin.wait(self._poller, seconds)
        else:
            left = max(0.0, arena.trim_at - monotonic())
            self._spin.wait(self._poller, left if seconds is None else min(left, seconds))
            arena.trim()
            self.board.stamp_memory(arena.reserved)
        while channel.gone and channel.forget():
            self.say(messages.FORGOTTEN)
        try:
            return self._reader.receive()
        except BlockingIOError:
            return []

    def receive(self, seconds: float | None = None) -> None:
        """Take in what the owner says, after waiting for it, for about so many seconds."""
        self._take_in(self._frames(seconds))

    def look(self) -> None:
        """Take in what is there, without waiting."""
        if self._poller.poll(0):
            with contextlib.suppress(BlockingIOError):
                self._take_in(self._reader.receive())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Take in what the owner says until that is so, in a coroutine, without blocking its event loop."""
        import asyncio  # noqa: PLC0415 -- only for `async def` functions

        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._wakers.append(woken.set)
        if loop is not self._watching:
            loop.add_reader(self.calls_fd, self._readable, loop)
        try:
            self.look()
            while not condition():
                await woken.wait()
                woken.clear()
                self.look()
        finally:
            self._wakers.remove(woken.set)
            if loop is not self._watching and not self._wakers:
                loop.remove_reader(self.calls_fd)

    def _readable(self, loop: Any) -> None:
        """An event loop has found something to read."""
        if getpid() != self.home[0]:
            return  # the task forked: what came is not for this process
        try:
            self.look()
        except (EOFError, OSError):  # the owner is gone, as `serve` finds out
            loop.remove_reader(self.calls_fd)
            if self.running is not None:
                self.running.end()
        for wake in self._wakers:
            wake()

    def _take_in(self, frames: list[Frame]) -> None:
        for (kind, count, _), payload in frames:
            if kind == messages.CALLS:
                self._inbox.extend(messages.unpack_calls(payload, count))
            elif kind == messages.DEFINE:
                script.define(payload, self.transport.channel)
            elif kind == messages.FORGET:
                self.transport.channel.forget_theirs()
            elif kind == messages.MAIL:
                self.mail().came(payload)
            elif kind in {messages.CREDIT, messages.END}:
                task_id, taken = messages.SIGNAL.unpack(payload)
                running = self.running
                if running is None or running.task_id != task_id:
                    continue  # it has ended meanwhile
                if kind == messages.END:
                    running.end()
                elif not isinstance(running, Running):
                    running.credit(taken)
            else:
                self._inbox.append(kind)

    def _drop(self) -> None:
        """A claim failed, so all that was sent before the next DROP was reclaimed."""
        while True:
            while not self._inbox:
                self.receive()
            if self._inbox.popleft() == messages.DROP:
                break
        self.say(messages.DRAINED)

    def _run(self, call: messages.Call) -> None:
        task_id = call[0]
        started = monotonic()
        self.board.begin(task_id, started)
        if call[2] & _ANNOUNCE:
            self.say(messages.BEGUN, task_id)
        kind, payload = self._outcome(call, started)
        output.flush()
        if getpid() != self.home[0]:
            os._exit(0)  # the task forked, and this is its child, which came back: it has no business here
        rss = max(0, own_resident_bytes() - self.inherited) if self.measure_rss else 0
        header = _pack_header(kind, task_id, started, monotonic(), rss, len(payload))
        if self._reported:
            header = self._last_report(task_id, started) + header
        self.outbox.send(header, payload)
        self.board.done(task_id)

    def _last_report(self, task_id: int, started: float) -> bytes:
        """Return the frame with the progress of the run that is over, if it reported any; and forget all others."""
        cell = self._reported.get(started)
        self._reported.clear()
        return b"" if cell is None else _pack_header(messages.PROGRESS, task_id, *cell.values, 0, 0)

    def _outcome(self, call: messages.Call, started: float) -> tuple[int, bytes]:  # noqa: C901, PLR0911, PLR0912 -- step by step
        """Unpickle, run and pickle; whatever goes wrong on the way is the task's own failure."""
        task_id, attempt, flags, name, timeout, manifest, fn_bytes, body = call
        try:
            if manifest and manifest not in script.ready:
                script.prepare(manifest)
            if flags & _OUT_OF_BAND:
                fn, args, kwargs = self.transport.load_call(fn_bytes, body, flags)
            else:
                fn, args, kwargs = load_call(fn_bytes, body)
        except BaseException as exc:  # unpickling runs the user's code
            if self.transport.channel.is_broken:
                raise  # this worker is of no use any more
            explain(exc, is_loading=True)
            return messages.ERROR, codec.pack_error(exc)
        token = CURRENT.set((task_id, name, attempt, started + timeout if timeout else None, started))
        try:
            value = fn(*args, **kwargs)
            if type(value) is CoroutineType:
                value = run_coroutine(value)
            failure = None
        except BaseException as exc:  # noqa: BLE001 -- SystemExit and KeyboardInterrupt are the task's exceptions too
            failure = exc
            if kwargs:
                explain_keyword(exc, kwargs)
        finally:
            CURRENT.reset(token)
        if self.closed is not None:  # whatever became of the error that says so
            failure, self.closed = self.closed, None
        if failure is not None:
            if type(failure) is Ended:
                return messages.CLOSED, failure.stack.encode("utf-8", "replace")
            try:
                explain(failure)
                return messages.ERROR, codec.pack_error(failure)
            finally:
                del failure  # its traceback holds this frame
        if value is None:
            return messages.VALUE, NONE
        del fn, args, kwargs  # shared memory that only they refer to is free for what comes next
        try:
            payload = self.transport.pack_value(value)
        except SerializationError as exc:
            exc.args = (f"task {task_id} ({messages.decode_name(name)}, attempt {attempt}): {exc}",)
            return messages.ERROR, codec.pack_error(exc)
        if type(payload) is bytes:
            return messages.VALUE, payload
        self.board.stamp_memory(self.transport.arena.reserved)
        return messages.OUT_OF_BAND, payload.body  # type: ignore[union-attr]
