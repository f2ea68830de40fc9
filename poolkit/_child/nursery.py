"""Nursery: the template process. It imports the worker half and `preload` once, then forks workers on request.

Guarantees: single-threaded; it reaps every worker and reports how it ended; before it reaps one it kills what is left
of the worker's process group, so that no program of a task outlives it, and while the dead leader is unreaped its
number cannot mean anybody else. When the owner is gone, in whatever way, its control socket closes: the nursery kills
every group and ends. When the nursery is killed, the kernel kills the workers (`_os.die_with_parent`).
It never imports or runs the user's `__main__`.
Owner: its one thread.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import types
from collections.abc import Callable

from poolkit import _os
from poolkit._child import boot
from poolkit._wire import codec, messages

MOST_FDS = 64  # descriptors with one order: the link's six and those of `initargs`

SPAWN_CODE = """\
import sys, os, marshal
with os.fdopen(int(sys.argv[1]), 'rb') as file:
    sys.path[:], fds, parent = marshal.load(file)
from poolkit._child import boot
boot.leave(boot.run_worker(fds, parent))
"""


def main(control_fd: int, start_method: str, preload: list[str]) -> None:
    """Serve the owner until it is gone. Called in a process of its own; never returns."""
    os.set_inheritable(control_fd, False)  # a program started by a preloaded module would hide the owner's end
    nursery = Nursery(socket.socket(fileno=control_fd), start_method)
    if nursery.prepare(preload):
        nursery.serve()
    os._exit(0)


class Nursery:
    """The template process."""

    def __init__(
        self, control: socket.socket, start_method: str, initializer: Callable[[], object] | None = None
    ) -> None:
        _os.fill_standard_streams()
        self._control = control
        self._start_method = start_method
        self._initializer = initializer  # inherited, with start_method="fork"
        self._workers: dict[int, int] = {}  # process id -> worker id
        self._pids: dict[int, int] = {}  # worker id -> process id
        self._wakeup_read, self._wakeup_write = os.pipe()

    def prepare(self, preload: list[str]) -> bool:
        """Set up signals and import what the workers need; False when a module to preload cannot be imported."""
        boot.reset_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the owner decides what they mean
            signal.signal(number, _no_op)  # not SIG_IGN, which programs that a task starts would inherit
        for fd in (self._wakeup_read, self._wakeup_write):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, _no_op)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        import ctypes  # noqa: F401, PLC0415 -- every worker needs it at once, and it takes 4 ms: imported once, here
        import multiprocessing.process  # noqa: F401, PLC0415 -- the same, for its key

        try:
            for name in preload:
                importlib.import_module(name)
        except BaseException as exc:  # noqa: BLE001 -- reported to the pool, whatever it is
            payload = codec.pack_error(exc)
            self._control.sendall(messages.NOTICE.pack(messages.PRELOAD_FAILED, 0, 0, 0, 0, len(payload)) + payload)
            return False
        gc.collect()
        gc.freeze()  # what is here lives for ever: no collection in a worker needs to touch, and so copy, its pages
        return True

    def serve(self) -> None:
        """Carry out orders and report exits until the owner is gone."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wakeup_read, select.POLLIN)
        try:
            while True:
                for fd, _ in poller.poll():
                    if fd == self._wakeup_read:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wakeup_read, 4096)
                        self._reap()
                    elif not self._order():
                        return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            self._kill_all()

    # ===== orders =====

    def _order(self) -> bool:
        """Carry out one order; False when the owner is gone."""
        data, fds, _, _ = socket.recv_fds(self._control, messages.ORDER.size, MOST_FDS)
        if not data:
            return False
        while len(data) < messages.ORDER.size:
            more = self._control.recv(messages.ORDER.size - len(data))
            if not more:
                return False
            data += more
        kind, group, _, number, worker_id = messages.ORDER.unpack(data)
        if kind == messages.FORK:
            self._fork(worker_id, fds)
        else:
            if worker_id in self._pids:  # else it has ended, and the owner will hear
                pid = self._pids[worker_id]
                if group:
                    _os.kill_group(pid, number)
                else:
                    os.kill(pid, number)
            self._notice(messages.SIGNALLED, worker_id, status=0)
        return True

    def _fork(self, worker_id: int, fds: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as exc:
            self._notice(messages.FORK_FAILED, worker_id, status=exc.errno or 0)
            pid = -1
        if pid == 0:
            self._become_worker(fds, parent)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            with contextlib.suppress(OSError):  # the worker does it too, whoever comes first
                os.setpgid(pid, pid)
            self._workers[pid] = worker_id
            self._pids[worker_id] = pid

    def _become_worker(self, fds: list[int], parent: int) -> None:
        """The rest of a forked child's life."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup_read)
            os.close(self._wakeup_write)
            self._control.close()
            if self._start_method == "spawn":
                self._exec_worker(fds, parent)
            code = boot.run_worker(fds, parent, self._initializer)
        except BaseException:  # noqa: BLE001 -- nothing may return into the template's code
            sys.excepthook(*sys.exc_info())
        finally:
            boot.leave(code)

    @staticmethod
    def _exec_worker(fds: list[int], parent: int) -> None:
        """Become a new interpreter, which takes the same descriptors."""
        import marshal  # noqa: PLC0415 -- start_method="spawn" only
        import subprocess  # noqa: PLC0415
        import tempfile  # noqa: PLC0415

        for fd in fds:
            os.set_inheritable(fd, True)
        with tempfile.TemporaryFile() as file:
            entries: list[object] = [*sys.path]
            paths = [path for path in entries if isinstance(path, str)]
            marshal.dump((paths, fds, parent), file)
            file.flush()
            file.seek(0)
            fd = os.dup(file.fileno())
        os.set_inheritable(fd, True)
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
        os.execv(sys.executable, [sys.executable, *flags, "-c", SPAWN_CODE, str(fd)])  # noqa: S606

    # ===== ends =====

    def _reap(self) -> None:
        """Report every worker that ended. Its group is killed while its number is still its own."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            worker_id = self._workers.pop(pid, None)
            if worker_id is not None:
                del self._pids[worker_id]
                _os.kill_group(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            if worker_id is not None:
                peak = _os.peak_bytes(usage.ru_maxrss)
                self._notice(messages.EXITED, worker_id, status=status, pid=pid, peak=peak)

    def _notice(self, kind: int, worker_id: int, *, status: int, pid: int = 0, peak: int = 0) -> None:
        self._control.sendall(messages.NOTICE.pack(kind, status, worker_id, pid, peak, 0))

    def _kill_all(self) -> None:
        for pid in self._workers:
            _os.kill_group(pid, signal.SIGKILL)
        for pid in self._workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _no_op(_number: int, _frame: types.FrameType | None) -> None:
    return
