"""Templates: the template processes of this process. All pools that want the same one share it.

    prepare  a pool was made: one that fits is started, lest its first worker waits for that
    join     a pool's control socket goes to the one that fits, over that one's root socket; else to a new one
    leave    the pool is done with it; the template stays for later pools, until this process ends

What fits is told by `likeness.py`: all that a program inherits when it is started, or is told then. A template that is
dead, stopped, or could not import what it was to preload, or not in time, is replaced when the next pool wants it, and
ends with the last pool that has it. Of those that no pool has or waits for, the MOST_IDLE that were left last stay.
One that is forked from this process has its memory and initializer, so it is of one pool alone, and no part of the
registry.

The root socket must have no copies, as its end is what ends a template: it is made while FORKING is held, which every
fork takes, and is in the registry before that is let go of. A forked child closes its copies and begins with an empty
registry: the templates of its parent are none of its business.
Guarded by: FORKING: `_templates`, `_living`, `_owner`; of each template `users`, `awaited_by` and the root.
Several supervisor threads ask at once: the first one starts what the others then find. By a template's `_lock`: whether
it was killed or waited for, as only until then its number is its own. Lock order: FORKING, a template's `_lock`.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import contextlib
import os
import signal
import threading
import weakref

from poolkit import _child, _os
from poolkit._clock import monotonic
from poolkit._wire import messages
from poolkit._workforce import launch
from poolkit._workforce.interrupts import deciding, let_come, put_off
from poolkit._workforce.launch import FORKING
from poolkit._workforce.likeness import ADVICE, Key, Start, is_open

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from poolkit._workforce.settings import PoolSettings

MOST_IDLE = 2  # templates that no pool has: two kinds of pools may take turns
PREPARE_GRACE = 10.0  # seconds it gets to import what it is to preload, before a later pool has another one started
_MOST_SAID = 2000  # bytes of what a program printed that are told
ANSWER_GRACE = 2.0  # seconds one gets to carry out a signal; one that is stopped or hangs cannot stop a task


class Template:
    """One template process. `users`, `awaited_by`: guarded by FORKING."""

    def __init__(
        self, pid: int, root: _socket.socket | None = None, key: Key = (), program: str = "", said: int = -1
    ) -> None:
        """Take a process that was just started; without a root it has one pool, and no other gets it.

        `program` is what was started, and `said` a descriptor of what it printed until it ran our code.
        """
        self.pid = pid
        self.key = key  # frozen
        self._program = program  # frozen
        self._said = said  # guarded by: _lock
        self._warned = False  # of threads; guarded by: _lock
        self.users = 0  # pools that have it
        self.awaited_by: weakref.WeakSet[PoolSettings] = weakref.WeakSet()  # pools that are there, and will want it
        self._root = root
        self._started = monotonic()  # frozen
        self._lock = threading.Lock()
        self._ending = ""  # how it ended, in words, once it was waited for
        self._hangs = False  # so it was killed by us

    @property
    def is_private(self) -> bool:
        """Whether no other pool gets it: it is none of the registry's."""
        return self._root is None

    def open(self, control: _socket.socket) -> bool:
        """Hand it a pool's control socket, with the present standard streams. FORKING is held.

        False when it is gone, or so far behind that it takes nothing more.

        Raises:
            OSError: no more descriptors may be under way.
        """
        assert self._root is not None  # noqa: S101 -- only those of the registry are asked
        fds, flags = [control.fileno()], 0
        for fd, flag in ((1, messages.HAS_OUTPUT), (2, messages.HAS_ERRORS)):
            if is_open(fd):
                fds.append(fd)
                flags |= flag
        order = messages.ORDER.pack(messages.OPEN, flags, len(fds), 0, 0)
        try:
            launch.send_order(self._root, order, fds)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def is_fit(self) -> bool:
        """Whether one more pool can have it: it is neither dead nor stopped, nor failed to import. FORKING is held.

        Nor is it too long about that: whatever it waits for, a new one may not have to.
        """
        with self._lock:
            if self._hangs or not self._is_unchanged(os.WEXITED | os.WSTOPPED):
                return False
        word = self._word()
        return word == messages.PREPARED or (word is None and monotonic() < self._started + PREPARE_GRACE)

    def is_importing(self) -> bool:
        """Whether it has not said how its imports went. A private one never says."""
        return self._word() is None

    def _word(self) -> bytes | None:
        """What it says of its imports, see `messages`; None: nothing yet; empty: nothing, as it is gone."""
        try:
            word = None if self._root is None else self._root.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        if word:
            self._close_said()
        return word

    def _close_said(self) -> None:
        """Nobody will ask any more what was printed before it ran our code."""
        with self._lock:
            _os.close_fd(self._said)
            self._said = -1

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
                    if self._root is not None:
                        with contextlib.suppress(OSError):
                            self._root.shutdown(_socket.SHUT_RDWR)

    def is_first_warning(self) -> bool:
        """Return True once: to the pool that is to tell of its threads."""
        with self._lock:
            first, self._warned = not self._warned, True
            return first

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

    def end(self) -> str:
        """End one that the registry has no more, if it still runs; how it ended, in words.

        Blocks until it has, and holds no lock meanwhile.
        """
        never_began = self._root is not None and self._word() == b""
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
            ending = self._ending
        self._close_said()
        return ending

    def _last_words(self) -> str:
        """What it printed before it ran our code, if that is what it was to do; and what to do about it."""
        said = b""
        with contextlib.suppress(OSError):
            size = os.fstat(self._said).st_size
            said = os.pread(self._said, _MOST_SAID, max(0, size - _MOST_SAID))
        printed = (
            f"the last that it printed: {said.decode(errors='replace').strip()!r}" if said else "it printed nothing"
        )
        return (
            f" before it was ready; {self._program!r} was started for it, and {printed}; "
            f"if that is no Python interpreter, {ADVICE}"
        )

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

    def end_with_workers(self, seconds: float) -> None:
        """End one that may have workers: it kills them first, and is killed itself if that takes too long."""
        if self._root is not None:
            with contextlib.suppress(OSError):
                self._root.shutdown(_socket.SHUT_WR)
                self._root.settimeout(seconds)
                while self._root.recv(8):
                    pass
        self.end()

    def close_root(self) -> None:
        """Close our end; a forked child closes its copy."""
        if self._root is not None:
            with contextlib.suppress(OSError):
                self._root.close()


_templates: dict[Key, Template] = {}  # those that were left last stand last
_living: weakref.WeakSet[Template] = weakref.WeakSet()  # all that have a root: of those taken out, too
_owner = os.getpid()


def join(control: _socket.socket, settings: PoolSettings) -> Template:
    """Have a template process serve a pool on this socket. Blocks while one is started.

    Raises:
        Exception: none could be started.
    """
    start = Start(settings)
    over: list[Template] = []
    try:
        with FORKING:
            _await_no_more(settings)
            for _ in range(2):  # one that was there may go at this moment
                template = _find_or_start(start, over)
                if template.open(control):
                    template.users += 1
                    return template
                over += _take_out(template)
    finally:
        for one in over:
            how = one.end()
    msg = f"the template process that forks the workers {how}"  # at once; it is the last of these
    raise RuntimeError(msg)


@deciding
def prepare(settings: PoolSettings) -> None:
    """Start the template process that a pool will want, so that it is up when the pool is.

    Where that cannot be done now it is left to `join`, which tells what is wrong. Not in a worker or a template
    process: modules that make a pool are imported there, mostly for their functions, and a template might import such
    a module without end, each one in the next.
    """
    if settings.start_method == "fork" or _child.is_here:
        return
    before = put_off()  # a handler that forks would wait for FORKING for ever
    try:
        with contextlib.suppress(Exception):
            _prepare(Start(settings), settings)
    finally:
        let_come(before)


def _prepare(start: Start, pool: PoolSettings) -> None:
    if not FORKING.acquire(blocking=False):  # this thread may have it: a finalizer makes pools, too
        return
    over: list[Template] = []
    try:
        _find_or_start(start, over).awaited_by.add(pool)
        over += _take_out_idle()
    finally:
        FORKING.release()
        for one in over:
            one.end()


def forgo(settings: PoolSettings) -> None:
    """A pool that never joined ends."""
    if not FORKING.acquire(blocking=False):  # see above; the pool is forgotten soon, and with it that it was waited for
        return
    try:
        _await_no_more(settings)
        over = _take_out_idle()
    finally:
        FORKING.release()
    for one in over:
        one.end()


def leave(template: Template, *, is_over: bool = False) -> None:
    """A pool is done with it, and its control socket is closed; no other pool gets it if it is over.

    May block until a process has ended.
    """
    if template.is_private:  # also by a finalizer, which may run while its thread holds FORKING
        template.end()
        return
    with FORKING:
        template.users -= 1
        over: list[Template] = []
        # One that was left while it imported may do so for ever.
        is_of_use = not is_over and template.is_fit() and (template.users or not template.is_importing())
        if not is_of_use or _templates.get(template.key) is not template:
            over = _take_out(template)
        elif not template.users:
            _templates[template.key] = _templates.pop(template.key)
            over = _take_out_idle()
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
    _living.clear()
    _templates.clear()
    _owner = os.getpid()


# ===== under FORKING =====


def _forget_parents() -> None:
    """After a fork that Python did not see."""
    if os.getpid() != _owner:
        after_fork_in_child()


def _find_or_start(start: Start, over: list[Template]) -> Template:
    """One that can be had for this; what stood in its place is to be ended if it is put into `over`."""
    _forget_parents()
    template = _templates.get(start.key)
    if template is not None:
        if template.is_fit():
            return template
        over += _take_out(template)
    template = _templates[start.key] = _start(start)
    return template


def _take_out(template: Template) -> list[Template]:
    """Give it to no other pool. Returned if no pool has it, so that it is to be ended."""
    if _templates.get(template.key) is template:
        del _templates[template.key]
    return [] if template.users else [template]


def _await_no_more(settings: PoolSettings) -> None:
    for template in _templates.values():
        template.awaited_by.discard(settings)


def _take_out_idle() -> list[Template]:
    """Those that no pool has, and that are too many."""
    over = [one for one in _templates.values() if not one.users and not one.awaited_by][:-MOST_IDLE]
    for one in over:
        _take_out(one)
    return over


def _start(start: Start) -> Template:
    ours, theirs = launch.socket_pair()
    try:
        pid, said = launch.execute(theirs, ours, start)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    template = Template(pid, ours, start.key, start.program, said)
    _living.add(template)
    return template
