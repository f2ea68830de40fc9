"""Templates: the template processes of this process, and the owner's end of each process that they fork.

    Template   one template process: `spawn` has it fork a worker, with a control socket of that worker's own
    Child      the owner's end of that: signals, and how the worker ended; closed, it kills the worker
    acquire    a user, such as a pool, gets the template that fits, or a new one; one that is there already is shared
    release    the user is done; the template stays for the next one, until this process ends

What fits is told by `key.py`. A template that is dead, stopped, or could not import what it was to preload, or not in
time, is replaced when it is acquired next, and ends with the last user that has it. Of those that have no user, the
MOST_IDLE that were released last stay. One that is forked from this process has its memory and initializer, so it is
of one user alone, and no part of the registry.

No socket here may have copies: the end of a root socket is what ends a template, that of a control socket what ends a
worker, and their other ends tell of the template's death. So they are made while FORKING is held, which every fork
takes, and are known before that is let go of: a forked child closes its copies and begins with an empty registry.
Guarded by: FORKING: `_templates`, `_living`, `_owner`, each template's `users`, `_children`, and what is sent on a root.
By a template's `_lock`: whether it was killed or waited for, as only until then its number is its own, and its page.
Owner: a Child belongs to one thread, which is also the one that closes it. Lock order: FORKING, a template's `_lock`.
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
import threading
import weakref
from collections import deque, namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._select import poll
from poolkit._spawn import descriptors, launch
from poolkit._spawn.key import ADVICE, Key, Start, is_open
from poolkit._spawn.launch import FORKING
from poolkit._wire import messages

MOST_IDLE = 2  # templates without a user: two kinds of pools may take turns
PREPARE_GRACE = 10.0  # seconds it gets to import what it is to preload, before a later user has another one started
ANSWER_GRACE = 2.0  # seconds one gets to carry out an order; one that is stopped or hangs cannot stop a task
SECOND_LOOK = 0.5  # seconds more, lest a pause of the whole machine is taken for its own
END_GRACE = 5.0  # seconds it gets to kill workers whose control sockets are closed
GONE = (BrokenPipeError, ConnectionResetError)  # what `spawn` raises where the template has ended
_MOST_PRINTED = 2000  # bytes of what a program printed that an error has
_NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)  # no SIGPIPE, which ends programs that left it at its default

# How a process ended: its wait status, or the errno for which there was none, and its peak resident memory.
Exit = namedtuple("Exit", "status error peak_rss")  # noqa: PYI024 -- importing typing takes every start 6 ms


class Template:
    """One template process."""

    def __init__(
        self,
        root: _socket.socket,
        page: int,
        nbytes: int,
        env: Mapping[str, str],
        key: Key = (),
        program: str = "",
    ) -> None:
        """Take its root socket, and its page, of which so much is what it was told. FORKING is held.

        Without a key it is of one user alone.
        """
        self.pid = -1  # until it is started
        self.key = key
        self.env = env  # what it was started with
        self.open_files = descriptors.soft_limit()  # the same
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.heard_at = -math.inf  # when it answered last, to whoever that was
        self.is_suspect = False  # an answer was overdue, and is waited for a little longer
        self._root = root
        self._page, self._printed_from = page, nbytes
        self._program = program
        self._word: bytes | None = None  # what it said of its imports, once it has
        self._report = b""  # and more of that
        self._started = monotonic()
        self._lock = threading.Lock()
        self._ending = ""  # how it ended, in words, once it was waited for
        self._hangs = False  # so it was killed by us
        _living.add(self)

    def spawn(self, fds: Sequence[int]) -> Child:
        """Have a process forked that gets these descriptors, which stay the caller's, and the present standard streams.

        Raises:
            BrokenPipeError, ConnectionResetError: it has ended.
            OSError: there are no descriptors left for that, or too many under way.
        """
        with FORKING:
            ours, theirs = launch.socket_pair()
            try:
                flags, attached = 0, [theirs.fileno()]
                for fd, flag in ((1, messages.HAS_OUTPUT), (2, messages.HAS_ERRORS)):
                    if is_open(fd):
                        attached.append(fd)
                        flags |= flag
                attached += fds
                order = messages.FORK.pack(flags, len(attached))
                rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", attached))
                self._root.sendmsg([order], [rights], _NO_SIGNAL)
                return Child(self, ours)
            except BaseException as exc:
                ours.close()
                if isinstance(exc, OSError) and exc.errno == errno.EBADF:  # another user of it has closed our end
                    raise BrokenPipeError from exc
                raise
            finally:
                theirs.close()

    def has_room(self) -> bool:
        """Return True if an order can be given now; False while it has not taken earlier ones."""
        poller = poll()
        try:
            poller.register(self._root, select.POLLOUT)
        except ValueError:  # it is closed, as `spawn` tells
            return True
        return bool(poller.poll(0))

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

    def is_fit(self) -> bool:
        """Return True if it can have one more user: it is neither dead nor stopped, nor failed to import.

        Nor is it too long about that: whatever it waits for, a new one may not have to.
        """
        with self._lock:
            if self._hangs or not self._is_unchanged(os.WEXITED | os.WSTOPPED):
                return False
        word = self.word()
        return word == messages.PREPARED or (word is None and monotonic() < self._started + PREPARE_GRACE)

    def kill(self, *, hangs: bool = False) -> None:
        """Kill it, if it still runs; its workers die with it. Call `end` afterwards."""
        with self._lock:
            if self._is_unchanged(os.WEXITED):
                self._hangs = self._hangs or hangs
                try:
                    os.kill(self.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                except PermissionError:  # we have become somebody else; it ends by itself, and its workers with it
                    self._ending = f"must not be killed by user {os.geteuid()} and was told to end"
                    with contextlib.suppress(OSError):
                        self._root.shutdown(_socket.SHUT_RDWR)

    def end(self) -> str:
        """Kill it, if it still runs; how it ended, in words. Blocks until it has, and holds no lock meanwhile."""
        never_began = self.word() == b""
        self.close_root()
        self.kill()
        if not self._ending:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            if not self._ending:
                self._ending = self._reap()
                if never_began and not self._hangs:
                    self._ending += self._last_words()
            self._close_page()
            return self._ending

    def end_with_workers(self, seconds: float) -> None:
        """End one that may have workers: it kills them first, and is killed itself if that takes too long."""
        with contextlib.suppress(OSError):
            self._root.shutdown(_socket.SHUT_WR)
            self._root.settimeout(seconds)
            while self._root.recv(8):
                pass
        self.end()

    def close_root(self) -> None:
        """Close our end; a forked child closes its copy."""
        with contextlib.suppress(OSError):
            self._root.close()

    def _close_page(self) -> None:
        _os.close_fd(self._page)
        self._page = -1

    def _is_unchanged(self, changes: int) -> bool:
        """Whether it is our child, so that its number cannot mean anybody else, and none of this has become of it.

        It is not reaped by that. Where somebody else has done so, that is noted as its end.
        """
        if self._ending:
            return False
        try:
            return os.waitid(os.P_PID, self.pid, changes | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            self._ending = "ended"
            return False

    def _reap(self) -> str:
        """Whoever comes first."""
        try:
            code: int | None = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # somebody else waited for it
            code = None
        if self._hangs:
            return f"did not answer for {ANSWER_GRACE:g} s and was killed"
        if code is None:
            return "ended"
        return f"was killed by {_os.signal_name(-code)}" if code < 0 else f"exited with code {code}"

    def _last_words(self) -> str:
        """What it printed before it ran our code, if that is what it was to do; and what to do about it."""
        printed = b""
        with contextlib.suppress(OSError):
            size = os.fstat(self._page).st_size
            printed = os.pread(self._page, _MOST_PRINTED, max(self._printed_from, size - _MOST_PRINTED))
        what = (
            f"the last that it printed: {printed.decode(errors='replace').strip()!r}"
            if printed
            else "it printed nothing"
        )
        return (
            f" before it was ready; {self._program!r} was started for it, and {what}; "
            f"if that is no Python interpreter, {ADVICE}"
        )


class Child:
    """The owner's end of one process that a template has forked. Closed, it kills that, with all that it started."""

    def __init__(self, template: Template, control: _socket.socket) -> None:
        """Take the control socket, which has just been ordered. FORKING is held."""
        self.template = template
        self.pid: int | None = None  # once it is known
        self._control = control
        # When each order was given that was not carried out yet. One that still imports takes its time.
        self._asked = deque((monotonic() if template.word() else math.inf,))
        _children.add(self)

    def fileno(self) -> int:
        """The control socket's descriptor, to wait for notices."""
        return self._control.fileno()

    def signal(self, number: int) -> None:
        """Order a signal to the process; KILL: SIGKILL to it, its process group, and all that it started."""
        # One that is gone is told by its end-of-file; one that takes no more orders has not answered earlier ones.
        with contextlib.suppress(OSError):
            self._control.send(bytes((number,)), _NO_SIGNAL)
        self._asked.append(monotonic() if self.template.word() else math.inf)

    def kill(self) -> None:
        """Order its end, and that of all that it started."""
        self.signal(messages.KILL)

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
            self._asked.popleft()
            self.template.heard_at = monotonic()
            self.template.is_suspect = False

    def answer_due(self) -> float:
        """When the template must have carried out what it was told first; infinity: nothing is due.

        It carries out one order after another, so as long as it answers others it does not hang.
        """
        return max(min(self._asked, default=math.inf), self.template.heard_at) + ANSWER_GRACE

    def is_answered(self) -> bool:
        """Return True if all orders were carried out."""
        return not self._asked

    def kill_template_if_it_hangs(self) -> None:
        """Kill the template if an answer is overdue; all its workers die with it. Call when all notices were read."""
        template, now = self.template, monotonic()
        if self.answer_due() > now:
            return
        if not template.is_suspect:
            template.is_suspect = True
            template.heard_at = now - ANSWER_GRACE + SECOND_LOOK
        else:
            self._asked.clear()
            template.kill(hangs=True)

    def release(self) -> None:
        """Have it killed, without waiting for that; `end_all_of` does."""
        with contextlib.suppress(OSError):
            self._control.shutdown(_socket.SHUT_WR)

    def wait(self, until: float) -> bool:
        """Wait until it is gone, after `release`; False when it is not at that time."""
        try:
            self._control.settimeout(max(0.001, until - monotonic()))
            while self._control.recv(4096):
                pass
        except OSError:  # a timeout too
            return False
        return True

    def close(self) -> None:
        """Close it: the template kills the process, if that still runs, with all that it started. Idempotent."""
        _children.discard(self)
        with contextlib.suppress(OSError):
            self._control.close()


def end_all_of(children: Sequence[Child], seconds: float) -> bool:
    """Kill these and close them; False when some are not gone after so many seconds.

    Those that a template is to fork which still imports are not waited for: it finds that they are not wanted.
    """
    for child in children:
        child.release()
    until = monotonic() + seconds
    gone = [child.template.word() is None or child.wait(until) for child in children]
    for child in children:
        child.close()
    return all(gone)


_templates: dict[Key, Template] = {}  # those that were released last stand last
_living: weakref.WeakSet[Template] = weakref.WeakSet()  # of those taken out, too
_children: set[Child] = set()
_owner = os.getpid()


def acquire(start: Start, user: object, *, waits: bool = True) -> Template | None:
    """Find the template that this user is to have, or start it. Blocks while one is started.

    Another one that was acquired for the same user, and is still in the registry, is released. Where it must not wait,
    as the thread may hold FORKING and be in a finalizer, there may be none.

    Raises:
        Exception: none could be started.
    """
    over: list[Template] = []
    if not _enter(waits=waits):
        return None
    try:
        _forget_parents()
        for other in _templates.values():
            other.users.discard(user)
        template = _templates.get(start.key)
        if template is not None and not template.is_fit():
            over += _take_out((template,))
            template = None
        if template is None:
            template = _templates[start.key] = _start(start)
        template.users.add(user)
        over += _take_out_idle()
        return template
    finally:
        FORKING.release()
        for one in over:
            one.end()


def fork(
    user: object, preload: Sequence[str], env: Mapping[str, str], initializer: Callable[[], object] | None
) -> Template:
    """Fork this process into a template process, for this user alone. FORKING is not held.

    Raises:
        OSError: there are no more processes, or descriptors.
    """
    page = launch.page_with(b"")
    theirs = template = None
    try:
        with FORKING:
            ours, theirs = launch.socket_pair()
            template = Template(ours, page, 0, {**os.environ, **env})
        template.pid = launch.fork(theirs, page, preload, env, initializer)
    except BaseException:
        if template is None:
            os.close(page)
        else:
            template.close_root()
        raise
    finally:
        if theirs is not None:
            theirs.close()
    template.users.add(user)
    return template


def release(user: object, *, waits: bool = True) -> None:
    """A user has no children any more, and wants none. May block until processes have ended."""
    over: list[Template] = []
    if not _enter(waits=waits):  # it is forgotten soon, and with it that it was a user
        return
    try:
        for template in [one for one in list(_living) if user in one.users]:
            template.users.discard(user)
            if template.users:
                continue
            # One that was released while it imported may do so for ever.
            if _templates.get(template.key) is template and template.is_fit() and template.word() is not None:
                _templates[template.key] = _templates.pop(template.key)
            else:
                over += _take_out((template,))
        over += _take_out_idle()
    finally:
        FORKING.release()
        for one in over:
            one.end()


def retire(template: Template) -> None:
    """Give a template to no other user: it ends with the last that has it."""
    with FORKING:
        over = _take_out((template,))
    for one in over:
        one.end()


def end_all(seconds: float) -> None:
    """The interpreter ends: end them all, after the pools."""
    with FORKING:
        _forget_parents()
        over = list(_templates.values())
        _templates.clear()
    for template in over:
        if template.users:
            template.end_with_workers(seconds)
        else:
            template.end()


def after_fork_in_child() -> None:
    """In a forked child of the owner, where nobody else runs: close the copies, and begin anew."""
    global _owner  # noqa: PLW0603 -- guarded by FORKING
    for template in _living:
        template.close_root()
    for child in [*_children]:
        child.close()
    _living.clear()
    _templates.clear()
    _owner = os.getpid()


# ===== under FORKING =====


def _enter(*, waits: bool) -> bool:
    """Take FORKING; False where it is held, and must not be waited for: this thread may hold it."""
    is_held: bool = FORKING._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 -- as `threading.Condition` does
    return (waits or not is_held) and FORKING.acquire(blocking=waits)


def _forget_parents() -> None:
    """After a fork that Python did not see."""
    if os.getpid() != _owner:
        after_fork_in_child()


def _take_out(those: Iterable[Template]) -> list[Template]:
    """Give these to no other user. Returned are those that have none, so that they are to be ended."""
    over = []
    for template in those:
        if _templates.get(template.key) is template:
            del _templates[template.key]
        if not template.users:
            over.append(template)
    return over


def _take_out_idle() -> list[Template]:
    """Those that have no user, and that are too many."""
    return _take_out([one for one in _templates.values() if not one.users][:-MOST_IDLE])


def _start(start: Start) -> Template:
    data = launch.told(start)
    page = launch.page_with(data)
    ours = theirs = None
    try:
        ours, theirs = launch.socket_pair()
        pid = launch.execute(theirs, ours, page, len(data), start)
    except BaseException:
        os.close(page)
        if ours is not None:
            ours.close()
        raise
    finally:
        if theirs is not None:
            theirs.close()
    template = Template(ours, page, len(data), start.env, start.key, start.command[0])
    template.pid = pid
    return template
