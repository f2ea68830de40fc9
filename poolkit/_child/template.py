"""Template process: imports the worker half and `preload` once, then forks workers on request.

    root socket      FORK orders, each with the control socket of a new worker; its end is the owner's
    control socket   one worker's: signals for it, and how it ended; its end kills that worker

Guarantees: one thread, and nothing in it waits for the owner; it reaps every worker and reports how that ended; before
it reaps one, while the process id cannot mean anybody else, it kills what is left of the worker's process group, and
then all that it adopted from it (`_os_processes.py`). When a control socket closes, it kills that worker with all that
it started, reaps it, and then closes its own end. When the owner is gone, it does so with all of them and ends. When
the template is killed, the kernel kills the workers. No signal that can be ignored ends it.
Where the FORK orders bring a lease page, it kills all workers, those that are forked later included, while the lease is
over; it looks at the page when the time comes that stood there last.
Where a preloaded module has started threads, its workers are new interpreters, as with "spawn": the locks that threads
hold stay locked in copies.
It keeps neither the owner's standard streams, which may be pipes whose end somebody waits for, nor anything that came
for a worker but its control socket. Owner: its one thread.
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
from collections.abc import Callable

from poolkit import _child, _os, _os_processes
from poolkit._child import boot, standard
from poolkit._select import poll
from poolkit._typing import Any
from poolkit._wire import codec, messages, reseed

_LONGEST_POLL = 1e6  # seconds; it takes no more than a C int of milliseconds
_DECIDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SPAWN_CODE = """\
import sys, os, marshal
fd = int(sys.argv[1])
sys.path[:], fds, parent = marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0))
os.close(fd)
from poolkit._child import boot
boot.leave(boot.run_worker(fds, parent))
"""


def main(root_fd: int, output: int, errors: int, start: int, start_method: str, preload: tuple[str, ...]) -> None:
    """Serve the owner until it is gone. Called in a process of its own; never returns.

    `output` and `errors` are the owner's streams, -1 where they are closed, to take the place of ours. The standard
    input is the page that `launch.execute` made: behind `start` is what this process has printed so far.
    """
    _close_inherited({0, 1, 2, root_fd, output, errors})
    os.set_inheritable(root_fd, False)  # a program started by a preloaded module would hide the owner's end
    printed = os.pread(0, os.fstat(0).st_size, start)
    streams = {fd: stream for fd, stream in ((1, output), (2, errors)) if stream >= 0}
    for fd, stream in streams.items():
        os.dup2(stream, fd)
        os.close(stream)
    if printed and streams:
        os.write(max(streams), printed)
    if 1 in streams and os.isatty(1):  # as an interpreter does that has found it so
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    template = TemplateProcess(_socket.socket(fileno=root_fd), start_method)
    if template.prepare(preload, os.dup(0)):
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (1, 2):  # each FORK brings the streams that its worker is to have
            os.dup2(null, fd)
        os.close(null)
        template.serve()
    os._exit(0)


def _close_inherited(kept: set[int]) -> None:
    """Close what was inherited of the owner but these."""
    with contextlib.suppress(OSError):  # there is no such directory
        for name in os.listdir("/proc/self/fd" if _os.LINUX else "/dev/fd"):  # noqa: PTH208 -- pathlib costs an import
            with contextlib.suppress(OSError):  # the one that listed them is closed again
                if int(name) not in kept and os.get_inheritable(int(name)):
                    os.close(int(name))


def _import_channels() -> None:
    """Import what dedicated workers need: once, as in each of them it would take longer than all the rest."""
    for name in ("poolkit._child.socket_channel", "poolkit._child.hosting"):
        with contextlib.suppress(Exception):  # no descriptors, for example: left to the worker
            importlib.import_module(name)


class TemplateProcess:
    """The template process."""

    def __init__(
        self, root: _socket.socket, start_method: str, initializer: Callable[[], object] | None = None
    ) -> None:
        """Take the root socket, and an initializer that was inherited, with start_method="fork"."""
        _os.fill_standard_streams()
        self._root = root
        self._start_method = start_method
        self._initializer = initializer
        self._helpers: set[int] = set()  # processes that the imports have started
        self._threaded: list[str] = []  # modules whose import has started threads that stay
        self._generators: list[Any] = []  # of random numbers, that the imports have made
        self._workers: dict[int, int] = {}  # descriptor of the control socket -> process id
        self._lease: Any = None  # the `LeasePage` that they live under
        self._wakeup_read, self._wakeup_write = os.pipe()
        self._poller = poll()
        self._poller.register(self._wakeup_read, select.POLLIN)
        self._poller.register(root, select.POLLIN)
        self._spare = os.open(os.devnull, os.O_RDWR)  # closed to make room for a control socket, if for nothing else

    def prepare(self, preload: tuple[str, ...], report: int) -> bool:
        """Set up signals and import what the workers need; return False if that failed. In its own process only.

        The owner finds more in `report`, which is closed: the packed exception, or modules that have started threads.
        """
        _child.is_here = True
        _os_processes.adopt_orphans()
        standard.assume(None, parent=os.getppid(), sentinel=self._root.fileno())
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        # The owner decides what the first three mean; the last has the wake-up written to.
        boot.own_signals(*(each for each in _DECIDED if signal.getsignal(each) is not signal.SIG_IGN), signal.SIGCHLD)
        boot.refuse_to_stop()
        for fd in (self._wakeup_read, self._wakeup_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

        word = messages.PREPARED
        try:
            self._import(preload)
            content = ", ".join(self._threaded).encode()
        except BaseException as exc:  # noqa: BLE001 -- reported to the owner, whatever it is
            word, content = messages.UNPREPARED, codec.pack_error(exc)
        self._helpers = _os_processes.children()
        boot.outlive_signals()  # not before: the helpers are not to ignore them
        boot.flush_streams()
        gc.collect()
        gc.freeze()  # what is here lives for ever: no collection in a worker needs to touch, and so copy, its pages
        os.ftruncate(report, 0)
        os.pwrite(report, content, 0)
        os.close(report)
        with contextlib.suppress(OSError):  # the owner is gone, as `serve` finds
            self._root.send(word)
        return word == messages.PREPARED

    def _import(self, preload: tuple[str, ...]) -> None:
        """Import what there is to preload; note who starts threads, and the generators of random numbers."""
        before = set(sys.modules) - set(preload)
        threads = 1
        for name in preload:
            importlib.import_module(name)
            if (count := _os_processes.count_lasting_threads()) > threads:
                self._threaded.append(name)
                threads = count
        self._generators = reseed.generators_in(set(sys.modules) - before if preload else ())
        if self._threaded:
            import subprocess  # noqa: F401, PLC0415 -- what `_exec_worker` needs: a copy must import nothing
            import warnings  # noqa: PLC0415 -- there only

            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)  # it is known
            if self._start_method != "fork":
                self._start_method = "spawn"

    def serve(self) -> None:  # noqa: C901 -- one event after another
        """Carry out orders and report exits until the owner is gone."""
        try:
            while True:
                released: list[int] = []
                for fd, _ in self._poller.poll(None if self._lease is None else self._keep_lease()):
                    if fd == self._wakeup_read:
                        with contextlib.suppress(BlockingIOError):
                            os.read(fd, 4096)
                        self._reap()
                    elif fd == self._root.fileno():
                        if not self._fork():
                            return
                    elif fd in self._workers and not self._signal(fd):
                        released.append(fd)
                for control in released:  # closed once its worker is reaped
                    self._poller.unregister(control)
                if released:
                    _os_processes.kill_trees([self._workers[control] for control in released])
        finally:
            pids = [*self._workers.values()]
            _os_processes.kill_trees(pids)
            for pid in pids:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            if pids:
                self._kill_adopted()

    # ===== orders =====

    def _fork(self) -> bool:
        """Carry out a FORK order; return False if the owner is gone."""
        _os.close_fd(self._spare)
        self._spare = -1
        try:
            order, fds = _os.receive_fds(self._root, messages.FORK.size, messages.MOST_FDS)
        except ConnectionResetError:
            return False
        if not order:
            return False
        flags, count = messages.FORK.unpack(order)
        parent, pid, error = os.getpid(), -1, errno.EMFILE  # where some did not find room here
        if flags & messages.HAS_CHANNEL and self._start_method != "spawn":
            _import_channels()
        if len(fds) == count and (not flags & messages.HAS_LEASE or self._take_lease(fds[-1])):
            try:
                _child.makes_worker = self._start_method != "spawn"  # that one is soon an interpreter of its own
                pid = os.fork()
            except OSError as exc:
                error = exc.errno or 0
            finally:
                _child.makes_worker = False
        if pid == 0:
            self._become_worker(fds, flags, parent)
        for fd in fds[1:]:
            os.close(fd)
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDWR)
        if pid > 0:
            with contextlib.suppress(OSError):  # the worker does it too
                os.setpgid(pid, pid)
            os.set_blocking(fds[0], False)
            self._workers[fds[0]] = pid
            self._poller.register(fds[0], select.POLLIN)
            self._notice(fds[0], messages.FORKED, pid=pid)
        elif fds:
            self._notice(fds[0], messages.FORK_FAILED, status=error)
            os.close(fds[0])
        return True

    def _take_lease(self, page: int) -> bool:
        """Have the workers live under the lease on this page; False where it cannot be mapped. The first one stays."""
        if self._lease is None:
            with contextlib.suppress(Exception):  # no descriptors, for example
                from poolkit._wire.lease_page import LeasePage  # noqa: PLC0415 -- few have one

                self._lease = LeasePage(page)
        return self._lease is not None

    def _become_worker(self, fds: list[int], flags: int, parent: int) -> None:
        """Spend the rest of a forked child's life."""
        code = 1
        try:
            control, *fds = fds
            for fd, flag in ((1, messages.HAS_OUTPUT), (2, messages.HAS_ERRORS)):
                if flags & flag:
                    stream = fds.pop(0)
                    os.dup2(stream, fd)
                    os.close(stream)
            if flags & messages.HAS_LEASE:
                os.close(fds.pop())
                self._lease.close()
            signal.set_wakeup_fd(-1)
            self._root.close()
            for fd in (self._wakeup_read, self._wakeup_write, control, *self._workers):
                os.close(fd)
            if self._start_method == "spawn":
                self._exec_worker(fds, parent)
            code = boot.run_worker(fds, parent, self._initializer, self._generators)
        except BaseException:  # noqa: BLE001 -- nothing may return into the template's code
            sys.excepthook(*sys.exc_info())
        finally:
            boot.leave(code)

    @staticmethod
    def _exec_worker(fds: list[int], parent: int) -> None:
        """Become a new interpreter, which takes the same descriptors."""
        import marshal  # noqa: PLC0415 -- start_method="spawn" only
        import subprocess  # noqa: PLC0415

        boot.own_signals()  # what is ignored stays so
        entries: list[object] = [*sys.path]
        data = marshal.dumps(([str(path) for path in entries if isinstance(path, str)], fds, parent))
        fd = _os.shared_page(len(data))
        os.pwrite(fd, data, 0)
        for each in (*fds, fd):
            os.set_inheritable(each, True)
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
        os.execv(sys.executable, [sys.executable, *flags, "-c", SPAWN_CODE, str(fd)])  # noqa: S606

    def _signal(self, control: int) -> bool:
        """Carry out an order on a control socket; return False if the owner has closed it."""
        try:
            order = os.read(control, 1)
        except BlockingIOError:
            return True
        except ConnectionResetError:  # it left notices unread
            return False
        if not order:
            return False
        pid = self._workers[control]
        if order[0] == messages.KILL:
            _os_processes.kill_trees([pid])
        else:
            os.kill(pid, order[0])
        self._notice(control, messages.SIGNALLED)
        return True

    # ===== ends =====

    def _keep_lease(self) -> float | None:
        """Kill all workers if the lease is over; milliseconds after which to look again, None: not by itself."""
        if not self._workers:
            return None
        left: float = self._lease.left()
        if left > 0.0:
            return min(left, _LONGEST_POLL) * 1000.0
        _os_processes.kill_trees([*self._workers.values()])  # some for the second time, as long as they are not reaped
        return None

    def _reap(self) -> None:
        """Report every worker that ended. Its group is killed while its process id is still its own."""
        ended: list[tuple[int, int, int]] = []
        with contextlib.suppress(ChildProcessError):  # nobody is left
            while (one := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                pid = one.si_pid
                control = next((fd for fd, of in self._workers.items() if of == pid), None)
                if control is not None:
                    _os_processes.kill_group(pid, signal.SIGKILL)
                _, status, usage = os.wait4(pid, 0)
                self._helpers.discard(pid)
                if control is not None:
                    del self._workers[control]
                    ended.append((control, status, _os.peak_bytes(usage.ru_maxrss)))
        if ended:
            self._kill_adopted()
        for control, status, peak in ended:
            self._notice(control, messages.EXITED, status=status, peak=peak)
            with contextlib.suppress(KeyError):  # one that was killed as its control socket was closed
                self._poller.unregister(control)
            os.close(control)

    def _kill_adopted(self) -> None:
        """Kill what dead workers have left. Threads that run here may have started programs of their own."""
        if not self._threaded:
            _os_processes.kill_adopted({*self._helpers, *self._workers.values()})

    @staticmethod
    def _notice(control: int, kind: int, *, status: int = 0, pid: int = 0, peak: int = 0) -> None:
        """Tell the owner. One that reads nothing, or is gone, is not waited for."""
        with contextlib.suppress(OSError):
            os.write(control, messages.NOTICE.pack(kind, status, pid, peak))
