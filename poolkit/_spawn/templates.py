"""Templates: the owner's ends of template processes, and of each process that they fork.

    Template   one template process: `spawn` has it fork a worker, with a control socket of that worker's own
    Child      the owner's end of that: signals, and how the worker ended; closed, it kills the worker

No socket here may have copies: the end of a root socket ends the template, that of a control socket the worker, and the
other ends tell of the template's death. So they are made while FORKING is held, which every fork takes, and are known
before that is let go of: a forked child closes its copies.
Guarded by: FORKING: each template's `users`, what is sent on a root socket, and what is added to `living` and
`children`. By a template's `_lock`: whether it was waited for, as only until then its process id is its own; its page.
Owner: a Child belongs to one thread. Lock order: FORKING, a template's `_lock`.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import array
import contextlib
import errno
import math
import os
import select
import signal
import weakref
from collections import deque, namedtuple
from collections.abc import Callable, Mapping, Sequence

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._locks import RLock
from poolkit._select import poll
from poolkit._spawn import descriptors, launch
from poolkit._spawn.key import ADVICE, Key, is_open
from poolkit._spawn.launch import FORKING
from poolkit._wire import messages

PREPARE_GRACE = 10.0  # seconds one gets to import what it is to preload, before a later user has another one started
ANSWER_GRACE = 2.0  # seconds one gets to carry out a signal; one that is stopped or hangs cannot stop a task
FORK_GRACE = 10.0  # seconds one gets for a fork, which takes the longer the more it has preloaded
END_GRACE = 5.0  # seconds one gets to kill workers whose control sockets are closed
GONE = (BrokenPipeError, ConnectionResetError)  # what `spawn` raises where the template has ended
_MOST_PRINTED = 2000  # bytes of what a program printed that an error has
_NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE, which ends programs that left it at its default

# How a process ended: its wait status, or the errno for which there was none, and its peak resident memory.
Exit = namedtuple("Exit", "status error peak_rss")  # noqa: PYI024 -- importing typing takes every start 6 ms

living: set[Template] = set()  # all that have not been ended; those that the registry has not any more, too
children: set[Child] = set()


class Template:
    """One template process."""

    def __init__(self, user: object, data: bytes, env: Mapping[str, str], key: Key = (), program: str = "") -> None:
        """Make its sockets and its page, with this on it, for a process that is started with `start`."""
        self.pid = -1  # until it is started
        self.key = key
        self.env = env  # what it is started with
        self.open_files = descriptors.soft_limit()  # the same
        self.users: weakref.WeakSet[object] = weakref.WeakSet((user,))
        self.answered_at = -math.inf  # when it carried out an order last
        self.is_retired = False  # set where it is to have no other users, and is to end with the last that it has
        with FORKING:
            self._root, self._theirs = launch.socket_pair()
            self._page, self._printed_from = launch.page_with(data), len(data)
            living.add(self)
        self._program = program
        self._word: bytes | None = None  # what it said of its imports, once it has
        self._report = b""  # and more of that
        self._started = monotonic()
        self._lock = RLock()
        self._ending = ""  # how it ended, in words, once it was waited for

    def start(self, launcher: Callable[[_socket.socket, int, int], int]) -> None:
        """Have it started by this, which takes its end of the root socket, the number of ours, and its page.

        Raises:
            Exception: it could not be started.
        """
        try:
            self.pid = launcher(self._theirs, self._root.fileno(), self._page)
        except BaseException:
            living.discard(self)
            self._root.close()
            self._close_page()
            raise
        finally:
            self._theirs.close()

    def spawn(self, fds: Sequence[int], flags: int = 0, streams: tuple[int, int] = (1, 2)) -> Child:
        """Have a process forked that gets these descriptors, which stay the caller's, and these for its prints.

        Raises:
            BrokenPipeError, ConnectionResetError: it has ended.
            OSError: there are no descriptors left for that, or too many under way.
        """
        with FORKING:
            ours, theirs = launch.socket_pair()
            try:
                attached = [theirs.fileno()]
                for fd, flag in zip(streams, (messages.HAS_OUTPUT, messages.HAS_ERRORS)):  # noqa: B905
                    if fd > 2 or is_open(fd):  # noqa: PLR2004 -- the last of our own
                        attached.append(fd)
                        flags |= flag
                attached += fds
                rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", attached))
                self._root.sendmsg([messages.FORK.pack(flags, len(attached))], [rights], _NO_SIGNAL)
                return Child(self, ours)
            except BaseException as exc:
                ours.close()
                if isinstance(exc, OSError) and exc.errno == errno.EBADF:  # another user of it has ended it
                    raise BrokenPipeError from exc
                raise
            finally:
                theirs.close()

    def has_room(self) -> bool:
        """Return True if an order can be given now; False while it has not taken earlier ones."""
        poller = poll()
        with contextlib.suppress(ValueError):  # it is closed, as `spawn` tells
            poller.register(self._root, select.POLLOUT)
            return bool(poller.poll(0))
        return True

    def word(self) -> bytes | None:
        """What it says of its imports: PREPARED, UNPREPARED; None: nothing yet; empty: nothing, as it is gone."""
        if self._word is None:
            try:
                word: bytes = self._root.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError:
                word = b""
            with self._lock:
                if word and self._page >= 0:
                    self._report = os.pread(self._page, os.fstat(self._page).st_size, 0)
                    self._close_page()
            self._word = word
        return self._word

    def failure(self) -> bytes | None:
        """The packed exception that its imports raised."""
        return self._report if self.word() == messages.UNPREPARED else None

    def modules_with_threads(self) -> str:
        """Which preloaded modules have started threads there that stay; once, to whoever asks first."""
        if self.word() != messages.PREPARED:
            return ""
        with self._lock:
            names, self._report = self._report, b""
        return names.decode()

    def is_used(self) -> bool:
        """Return True if somebody wants it, or processes that it has forked are there. FORKING is held."""
        return bool(self.users) or any(child.template is self for child in [*children])

    def is_fit(self) -> bool:
        """Return True if it can have one more user: it is neither dead nor stopped, nor failed to import.

        Nor is it too long about that: whatever it waits for, a new one may not have to.
        """
        with self._lock:
            try:
                if self._ending or self.is_retired or self._has_changed(os.WEXITED | os.WSTOPPED):
                    return False
            except ChildProcessError:  # somebody else waited for it
                return False
        word = self.word()
        return word == messages.PREPARED or (word is None and monotonic() < self._started + PREPARE_GRACE)

    def end(self, *, hangs: bool = False) -> str:
        """Kill it, if it still runs, and its workers with it; how it ended, in words. Blocks until it has."""
        living.discard(self)
        never_began = self.word() == b""
        self.close_root()
        with self._lock:
            if not self._ending:
                self._ending = self._kill(hangs=hangs)
                if never_began and self._program and not hangs:
                    self._ending += self._last_words()
            self._close_page()
            return self._ending

    def _kill(self, *, hangs: bool) -> str:
        try:
            self._has_changed(os.WEXITED)  # if it is not our child, that is no process id of ours
            os.kill(self.pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except (ChildProcessError, ProcessLookupError):  # somebody else waited for it
            return "ended"
        except PermissionError:  # we have become somebody else; it ends by itself, and its workers with it
            return f"must not be killed by user {os.geteuid()} and was told to end"
        if hangs:
            return f"did not answer for {ANSWER_GRACE:g} s and was killed"
        return f"was killed by {_os.signal_name(-code)}" if code < 0 else f"exited with code {code}"

    def _has_changed(self, changes: int) -> bool:
        """Whether any of this has become of our child, which is not reaped by that."""
        return os.waitid(os.P_PID, self.pid, changes | os.WNOHANG | os.WNOWAIT) is not None

    def _last_words(self) -> str:
        """What it printed before it ran our code, if that is what it was to do; and what to do about it."""
        size = os.fstat(self._page).st_size
        printed = os.pread(self._page, _MOST_PRINTED, max(self._printed_from, size - _MOST_PRINTED))
        text = printed.decode(errors="replace").strip()
        what = f"the last that it printed: {text!r}" if printed else "it printed nothing"
        return (
            f" before it was ready; {self._program!r} was started for it, and {what}; "
            f"if that is no Python interpreter, {ADVICE}"
        )

    def _close_page(self) -> None:
        _os.close_fd(self._page)
        self._page = -1

    def close_root(self) -> None:
        """Close our end, so that it ends; a forked child closes its copy."""
        with contextlib.suppress(OSError):
            self._root.close()


class Child:
    """The owner's end of one process that a template has forked. Closed, it kills that, with all that it started."""

    def __init__(self, template: Template, control: _socket.socket) -> None:
        """Take the control socket, which has just been ordered. FORKING is held."""
        self.template = template
        self.pid: int | None = None  # once it is known
        # When each signal was ordered that was not carried out yet, behind the order to fork, which may take longer.
        # Nothing is expected of a template that imports.
        self.unanswered = deque((self._asked() + FORK_GRACE - ANSWER_GRACE,))
        self._control = control
        children.add(self)

    def _asked(self) -> float:
        return monotonic() if self.template.word() else math.inf

    def fileno(self) -> int:
        """The control socket's descriptor, to wait for notices."""
        return self._control.fileno()

    def signal(self, number: int, *, waits: bool = True) -> None:
        """Order a signal to the process; KILL: SIGKILL to it, its process group, and all that it started.

        A template that carries it out late hangs, if somebody `waits` for it.
        """
        # One that is gone is told by its end-of-file; one that takes no more orders has not answered earlier ones.
        with contextlib.suppress(OSError):
            self._control.send(bytes((number,)), _NO_SIGNAL)
        self.unanswered.append(self._asked() if waits else math.inf)

    def receive(self) -> Exit | None:
        """Take in the notices that are here; how the process ended, if that was among them.

        Raises:
            EOFError: the template has ended, and so has the process.
        """
        while True:
            try:
                data = self._control.recv(messages.NOTICE.size)
            except BlockingIOError:
                return None
            except OSError as exc:
                raise EOFError from exc
            if len(data) < messages.NOTICE.size:
                raise EOFError
            kind, status, pid, peak_rss = messages.NOTICE.unpack(data)
            if kind == messages.EXITED:
                return Exit(status, 0, peak_rss)
            if kind == messages.FORK_FAILED:
                return Exit(0, status, 0)
            self.pid = pid or self.pid
            self.unanswered.popleft()
            self.template.answered_at = monotonic()

    def answer_due(self) -> float:
        """When the template must have carried out what it was told first; infinity: nothing is due.

        It carries out one order after another, so as long as it answers others it does not hang.
        """
        return max(min(self.unanswered, default=math.inf), self.template.answered_at) + ANSWER_GRACE

    def end_template_if_it_hangs(self) -> None:
        """End the template if an answer is overdue; all its workers end with it. Call when all notices were read."""
        if self.answer_due() <= monotonic():
            self.template.end(hangs=True)

    def close(self) -> None:
        """Close it: the template kills the process, if that still runs, with all that it started. Idempotent."""
        children.discard(self)
        with contextlib.suppress(OSError):
            self._control.close()


def end_children(children: Sequence[Child], seconds: float) -> bool:
    """Have these killed and wait until they are gone; False if some are not after so many seconds. All are closed.

    Those that a template is to fork which still imports are not waited for: it finds that they are not wanted.
    """
    for child in children:
        with contextlib.suppress(OSError):
            child._control.shutdown(_socket.SHUT_WR)  # noqa: SLF001 -- a function of the class, for many at once
    until = monotonic() + seconds
    try:
        for child in children:
            with contextlib.suppress(ConnectionError):
                child._control.settimeout(max(0.001, until - monotonic()))  # noqa: SLF001
                while child.template.word() is not None and child._control.recv(4096):  # noqa: SLF001
                    pass
    except TimeoutError:
        return False
    finally:
        for child in children:
            child.close()
    return True
