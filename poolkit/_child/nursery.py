"""Nursery: the template process. It imports the worker half and `preload` once, then forks workers on request.

    root socket      the owner hands in the control socket of each pool that is to be served; its end is the owner's
    control socket   one pool's orders and notices; its end is the pool's

Guarantees: no thread of its own but one; nothing that one pool does or leaves undone keeps another waiting; it reaps
every worker and reports how it ended; before it reaps one it kills what is left of the worker's process group, and then
all that it adopted from it (`_os_processes.py`), so that no program of a task outlives it; while the dead leader is
unreaped its number cannot mean anybody else. When a pool lets go of it, the nursery kills that pool's workers with all
that they started, reaps them, and then closes its side of the control socket. When the owner is gone, in whatever way,
it does so with all of them and ends. When the nursery is killed, the kernel kills the workers (`die_with_parent`).
No signal that can be ignored ends it.
A preloaded module that has started threads makes it unfit to be copied: what those hold stays locked in the copies. So
its workers are new interpreters then, as with "spawn", and the pools are told.
What came for one pool no worker of another one has; nor does the nursery keep the owner's standard streams, which may
be pipes whose end somebody waits for, beyond the pool that it got them for.
It never imports or runs the user's `__main__`.
Owner: its one thread.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import contextlib
import errno
import gc
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator

from poolkit import _child, _os, _os_processes
from poolkit._child import boot, identity
from poolkit._child.session import MOST_FDS, Session
from poolkit._select import poll
from poolkit._wire import codec, messages, reseed

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

_DECIDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FDS_OF_A_POOL = 3  # its control socket, its standard output and errors
FDS_OF_A_WORKER = 8  # while it is forked: its link's six, and a few

SPAWN_CODE = """\
import sys, os, marshal
fd = int(sys.argv[1])
sys.path[:], fds, parent, number = marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0))
os.close(fd)
from poolkit._child import boot
boot.leave(boot.run_worker(fds, parent, number))
"""


def main(root_fd: int, output: int, errors: int, start_method: str, preload: tuple[str, ...]) -> None:
    """Serve the owner until it is gone. Called in a process of its own; never returns.

    `output` and `errors` are the owner's streams, -1 where they are closed, to take the place of ours.
    """
    with contextlib.suppress(OSError):  # it leads one, unless CPython 3.10 has started it by way of subprocess
        os.setpgid(0, 0)
    os.set_inheritable(root_fd, False)  # a program started by a preloaded module would hide the owner's end
    _take_streams({1: output, 2: errors})
    nursery = Nursery(_socket.socket(fileno=root_fd), start_method)
    nursery.prepare(preload, root_fd)
    nursery.serve()
    os._exit(0)


def _take_streams(streams: dict[int, int]) -> None:
    """Take the owner's standard streams; what was printed so far, which the owner has kept, is printed there."""
    said = b""
    for fd, stream in streams.items():
        if stream >= 0:
            said = said or os.pread(fd, os.fstat(fd).st_size, 0)
            os.dup2(stream, fd)
            os.close(stream)
    if said:
        os.write(max(fd for fd, stream in streams.items() if stream >= 0), said)
    if streams[1] >= 0 and os.isatty(1):  # as an interpreter does that has found it so
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


class Nursery:
    """The template process."""

    def __init__(
        self, root: _socket.socket | None, start_method: str, initializer: Callable[[], object] | None = None
    ) -> None:
        """Take the root socket; without one, serve the pools that are opened by hand, until the last is gone."""
        _os.fill_standard_streams()
        self._root = root
        self._start_method = start_method
        self._initializer = initializer  # inherited, with start_method="fork"
        self._failure: bytes | None = None  # why there will be no workers, packed
        self._helpers: set[int] = set()  # processes that the imports have started
        self._threaded: list[str] = []  # modules whose import has started threads that stay
        self._generators: list[Any] = []  # of random numbers, that the imports have made
        self._sessions: dict[int, Session] = {}  # descriptor of the control socket -> session
        self._wakeup_read, self._wakeup_write = os.pipe()
        self._poller = poll()
        self._poller.register(self._wakeup_read, select.POLLIN)
        self._spares: list[int] = []  # descriptors to be given up for those of one more pool
        if root is not None:
            self._poller.register(root, select.POLLIN)
            self._set_aside()

    def prepare(self, preload: tuple[str, ...], sentinel: int) -> None:
        """Set up signals and import what the workers need; each pool is told if that fails. In its own process only.

        `sentinel` is a descriptor that is readable when the owner is gone.
        """
        _child.is_here = True
        _os_processes.adopt_orphans()
        identity.assume(None, parent=os.getppid(), sentinel=sentinel)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        # The owner decides what the first three mean; the last has the wake-up written to.
        boot.own_signals(*(each for each in _DECIDED if signal.getsignal(each) is not signal.SIG_IGN), signal.SIGCHLD)
        boot.refuse_to_stop()
        for fd in (self._wakeup_read, self._wakeup_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

        try:
            self._import(preload)
        except BaseException as exc:  # noqa: BLE001 -- reported to the pools, whatever it is
            self._failure = codec.pack_error(exc)
        self._helpers = _os_processes.children()
        boot.outlive_signals()  # not before: the helpers are not to ignore them
        boot.flush_streams()
        gc.collect()
        gc.freeze()  # what is here lives for ever: no collection in a worker needs to touch, and so copy, its pages
        if self._root is not None:
            with contextlib.suppress(OSError):  # the owner is gone, as `serve` finds
                self._root.send(messages.PREPARED if self._failure is None else messages.UNPREPARED)
            for fd in (1, 2):  # each pool brings the streams that its workers are to have
                os.dup2(self._spares[0], fd)

    def _import(self, preload: tuple[str, ...]) -> None:
        """Import what there is to preload; note who starts threads, and the generators of random numbers."""
        before = set(sys.modules) - set(preload)
        threads = 1
        for name in preload:
            importlib.import_module(name)
            if (count := _os_processes.count_lasting_threads()) > threads:
                self._threaded.append(name)
                threads = count
        self._generators = reseed.generators_in([name for name in sys.modules if name not in before] if preload else ())
        if self._threaded:
            import subprocess  # noqa: F401, PLC0415 -- what `_exec_worker` needs: a copy must import nothing
            import warnings  # noqa: PLC0415 -- there only

            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)  # it is known
            if self._root is not None:
                self._start_method = "spawn"

    def serve(self) -> None:
        """Carry out orders and report exits until the owner is gone."""
        try:
            while self._root is not None or self._sessions:
                for fd, events in self._poller.poll():
                    if fd == self._wakeup_read:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wakeup_read, 4096)
                        self._reap()
                    elif self._root is not None and fd == self._root.fileno():
                        if not self._admit(self._root):
                            return
                    elif fd in self._sessions:
                        self._attend(self._sessions[fd], events)
        except BaseException:
            for session in self._sessions.values():  # somebody is to see it
                for fd, stream in session.streams.items():
                    os.dup2(stream, fd)
            raise
        finally:
            self._kill_all()

    # ===== pools =====

    def _admit(self, root: _socket.socket) -> bool:
        """Take in a pool; False when the owner is gone."""
        self._give_up_spares()
        try:
            data, fds = _os.receive_fds(root, messages.ORDER.size, MOST_FDS)
        except ConnectionResetError:
            return False
        if not data:
            return False
        _, flags, count, _, _ = messages.ORDER.unpack(data)
        names = [fd for fd, flag in ((1, messages.HAS_OUTPUT), (2, messages.HAS_ERRORS)) if flags & flag]
        if fds:  # else there is nobody to be told
            self.open(_socket.socket(fileno=fds[0]), dict(zip(names, fds[1:])), is_cut_off=len(fds) != count)  # noqa: B905
        self._set_aside()
        return True

    def _set_aside(self) -> bool:
        """Have spare descriptors for one more pool; false when there are too few for that and for a worker's."""
        try:
            while len(self._spares) < FDS_OF_A_POOL + FDS_OF_A_WORKER:
                self._spares.append(os.open(os.devnull, os.O_RDWR))
        except OSError:
            return False
        finally:
            while len(self._spares) > FDS_OF_A_POOL:
                os.close(self._spares.pop())
        return True

    def _give_up_spares(self) -> None:
        for fd in self._spares:
            os.close(fd)
        self._spares.clear()

    def open(self, control: _socket.socket, streams: dict[int, int] | None = None, *, is_cut_off: bool = False) -> None:
        """Serve one more pool, whose workers get these standard streams; but not with the last descriptors."""
        session = Session(control, streams or {})
        self._sessions[control.fileno()] = session
        if self._failure is not None:
            self._refuse(session, messages.PRELOAD_FAILED, self._failure)
            return
        if is_cut_off or (self._root is not None and not self._set_aside()):
            self._refuse(session, messages.REFUSED, b"")
            return
        self._poller.register(control, select.POLLIN)
        self._notice(session, messages.OPENED, 0, status=0)
        if self._threaded:
            self._notice(session, messages.THREADED, 0, status=0, payload=", ".join(self._threaded).encode())

    def _refuse(self, session: Session, kind: int, payload: bytes) -> None:
        """Tell a pool why it is not served, as fast as it reads, then close its session."""
        session.is_over = True
        self._poller.register(session.control, select.POLLOUT)
        if session.send(messages.NOTICE.pack(kind, 0, 0, 0, 0, len(payload)) + payload):
            self._end(session)

    def _attend(self, session: Session, events: int) -> None:
        """A control socket has an order, room, or an end."""
        if session.is_over:  # one that is refused: the others are waited on no more
            if session.send(b""):
                self._end(session)
            return
        if events & select.POLLOUT and session.send(b""):
            self._poller.modify(session.control, select.POLLIN)
        if events & ~select.POLLOUT:
            if not session.receive():
                self._end(session)
            elif len(session.inbox) == messages.ORDER.size:
                self._order(session)

    def _end(self, session: Session) -> None:
        """Nobody has this pool any more: kill its workers. Once they are reaped it is closed.

        Where the kernel keeps one, the owner waits for that as long as it likes.
        """
        self._poller.unregister(session.control)
        _os_processes.kill_trees(session.pids.values())
        session.is_over = True
        if not session.pids:
            self._close(session)

    def _close(self, session: Session) -> None:
        del self._sessions[session.control.fileno()]
        session.close()

    # ===== orders =====

    def _order(self, session: Session) -> None:
        """Carry out one order."""
        kind, flags, count, number, worker_id = messages.ORDER.unpack(session.inbox)
        fds, session.inbox, session.fds = session.fds, b"", []
        if kind == messages.FORK:
            if len(fds) == count:
                self._fork(session, worker_id, fds)
            else:  # some did not find room here
                self._notice(session, messages.FORK_FAILED, worker_id, status=errno.EMFILE)
            for fd in fds:
                os.close(fd)
            return
        pid = session.pids.get(worker_id)
        if pid is not None:  # else it has ended, and the owner will hear
            if flags & messages.GROUP:
                _os_processes.kill_trees([pid])
            else:
                os.kill(pid, number)
        self._notice(session, messages.SIGNALLED, worker_id, status=0)

    def _fork(self, session: Session, worker_id: int, fds: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as exc:
            self._notice(session, messages.FORK_FAILED, worker_id, status=exc.errno or 0)
            pid = -1
        if pid == 0:
            self._become_worker(session, fds, parent, worker_id)
        if pid > 0:
            with contextlib.suppress(OSError):  # the worker does it too, whoever comes first
                os.setpgid(pid, pid)
            session.pids[worker_id] = pid

    def _become_worker(self, session: Session, fds: list[int], parent: int, number: int) -> None:
        """The rest of a forked child's life."""
        code = 1
        try:
            for fd, stream in session.streams.items():
                os.dup2(stream, fd)
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup_read)
            os.close(self._wakeup_write)
            self._give_up_spares()
            if self._root is not None:
                self._root.close()
            for each in self._sessions.values():
                each.close()
            if self._start_method == "spawn":
                self._exec_worker(fds, parent, number)
            code = boot.run_worker(fds, parent, number, self._initializer, self._generators)
        except BaseException:  # noqa: BLE001 -- nothing may return into the template's code
            sys.excepthook(*sys.exc_info())
        finally:
            boot.leave(code)

    @staticmethod
    def _exec_worker(fds: list[int], parent: int, number: int) -> None:
        """Become a new interpreter, which takes the same descriptors."""
        import marshal  # noqa: PLC0415 -- start_method="spawn" only
        import subprocess  # noqa: PLC0415

        boot.own_signals()  # what is ignored stays so
        entries: list[object] = [*sys.path]
        data = marshal.dumps(([str(path) for path in entries if isinstance(path, str)], fds, parent, number))
        fd = _os.shared_page(len(data))
        os.pwrite(fd, data, 0)
        for each in (*fds, fd):
            os.set_inheritable(each, True)
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
        os.execv(sys.executable, [sys.executable, *flags, "-c", SPAWN_CODE, str(fd)])  # noqa: S606

    # ===== ends =====

    def _reap(self) -> None:
        """Report every worker that ended. Its group is killed while its number is still its own."""
        ended: list[tuple[Session, int, int, int, int]] = []
        with contextlib.suppress(ChildProcessError):  # nobody is left
            while (one := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                pid = one.si_pid
                found = next(((each, number) for each, number, of in self._workers() if of == pid), None)
                if found is not None:
                    _os_processes.kill_group(pid, signal.SIGKILL)
                _, status, usage = os.wait4(pid, 0)
                self._helpers.discard(pid)
                if found is not None:
                    session, worker_id = found
                    del session.pids[worker_id]
                    ended.append((session, worker_id, pid, status, _os.peak_bytes(usage.ru_maxrss)))
        if ended:
            self._kill_adopted()
        for session, worker_id, pid, status, peak in ended:
            if not session.is_over:
                self._notice(session, messages.EXITED, worker_id, status=status, pid=pid, peak=peak)
            elif not session.pids and session.control.fileno() in self._sessions:
                self._close(session)

    def _kill_adopted(self) -> None:
        """Kill what dead workers have left. Threads that run here may have started programs of their own."""
        if not self._threaded:
            _os_processes.kill_adopted({*self._helpers, *(pid for *_, pid in self._workers())})

    def _notice(  # noqa: PLR0913 -- a message record
        self,
        session: Session,
        kind: int,
        worker_id: int,
        *,
        status: int,
        pid: int = 0,
        peak: int = 0,
        payload: bytes = b"",
    ) -> None:
        if not session.send(messages.NOTICE.pack(kind, status, worker_id, pid, peak, len(payload)) + payload):
            self._poller.modify(session.control, select.POLLIN | select.POLLOUT)

    def _workers(self) -> Iterator[tuple[Session, int, int]]:
        """Whose, id and process id of each that is not reaped: until then its pool's session stays."""
        for session in self._sessions.values():
            for worker_id, pid in session.pids.items():
                yield session, worker_id, pid

    def _kill_all(self) -> None:
        pids = [pid for *_, pid in self._workers()]
        _os_processes.kill_trees(pids)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if pids:
            self._kill_adopted()
