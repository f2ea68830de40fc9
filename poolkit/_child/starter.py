"""Starter: the process that starts the programs of all commands, is their parent, and reaps each when it is told to.

A bare interpreter runs this file by its source (`_spawn/starters.py`): it imports nothing of poolkit, nor of the user.
Until a program is to be buried its number is its own, so the owner may signal it and its group by itself. One thread;
while an exec hangs, as on a network drive that is gone, it does nothing else, and the owner starts another one.

    owner -> starter    EXEC number, nbytes, with descriptors of input, output and errors; then so many bytes: what to
                        start, or none where that is in memory, a fourth descriptor
                        BURY number, once it has ended; from then on: SIGNAL number, its number
    starter -> owner    READY · STARTED number, pid, when · FAILED number, errno, step · ENDED number, code, when
                        BURIED number, nanoseconds of CPU time, peak memory; times in nanoseconds

Its socket's end is that of the owner: every program is killed, with its group.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants
import array
import contextlib
import errno
import marshal
import os
import select
import signal
import struct
import time

ORDER, NOTE = struct.Struct("<cQI"), struct.Struct("<cQqq")
EXEC, BURY, SIGNAL = b"x", b"b", b"k"
READY, STARTED, FAILED, ENDED, BURIED = b"r", b"s", b"f", b"e", b"g"
DIRECTORY, PROGRAM, OUTPUT, ERRORS = range(4)  # the step that failed
_FDS = 4
_LOOKS, _LOOK = 10, 0.001  # how often it is looked whether a group is gone, and seconds between that
_OWNERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP")]
_IGNORED: list[int] = []  # what programs would inherit as such


def main(fd: int) -> None:
    """Serve the owner at the other end of this socket, until that ends."""
    try:
        numbers = [*map(int, os.listdir("/dev/fd"))]  # noqa: PTH208 -- pathlib is a large import
    except OSError:  # which needs a /proc
        numbers = []
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))  # there may be a thousand million
    for number in numbers:
        if number not in {0, 1, 2, fd}:
            with contextlib.suppress(OSError):
                os.close(number)
    sock = _socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    ended, wakes = os.pipe()
    for end in (ended, wakes):
        os.set_blocking(end, False)
    for name in _OWNERS:
        signal.signal(name, signal.SIG_IGN)
    _IGNORED.extend(name for name in signal.valid_signals() if signal.getsignal(name) == signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    os.chdir("/")
    running: dict[int, int] = {}
    over: dict[int, int] = {}
    drained: set[int] = set()  # to be buried as soon as they have ended
    with contextlib.suppress(OSError):  # the owner is gone
        sock.sendall(NOTE.pack(READY, 0, 0, 0))
        while True:
            ready, _, _ = select.select([fd, ended], [], [])
            if ended in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(ended, 4096)
                _look(sock, running, over, drained)
            if fd in ready and not _obey(sock, running, over, drained):
                break
    for pid in (*running.values(), *over.values()):
        _kill(pid)
    os._exit(0)


def _obey(sock: _socket.socket, running: dict[int, int], over: dict[int, int], drained: set[int]) -> bool:
    order, attached, _, _ = sock.recvmsg(ORDER.size, _socket.CMSG_LEN(_FDS * 4))
    if len(order) < ORDER.size:
        return False
    kind, number, nbytes = ORDER.unpack(order)
    if kind == EXEC:
        packed = sock.recv(nbytes, _socket.MSG_WAITALL) if nbytes else b""
        _start(sock, number, packed, attached, running)
    elif kind == SIGNAL and number in running:
        _kill(running[number], nbytes)
    elif kind == BURY and number in running:
        drained.add(number)
    elif kind == BURY:
        _bury(sock, number, over)
    return True


def _start(
    sock: _socket.socket, number: int, packed: bytes, attached: list[tuple[int, int, bytes]], running: dict[int, int]
) -> None:
    fds = array.array("i")
    for _, _, content in attached:
        fds.frombytes(content)
    for fd in fds:
        os.set_inheritable(fd, False)
    try:
        if not packed:
            packed = os.pread(fds[3], os.fstat(fds[3]).st_size, 0)
        note = _try(number, marshal.loads(packed), fds, running)  # noqa: S302 -- the owner's
        os.chdir("/")
    finally:
        for fd in fds:
            os.close(fd)
    sock.sendall(note)


def _try(number: int, what: tuple, fds: array.array[int], running: dict[int, int]) -> bytes:  # type: ignore[type-arg]
    """Start a program; adds to `fds` what is opened for that. Returns what to say of it."""
    argv, env, directory, mask, paths, is_joined = what
    streams = fds[:3]
    step = DIRECTORY
    try:
        os.chdir(directory)
        if mask is not None:
            os.umask(mask)
        for step, path in enumerate(paths, OUTPUT):
            if path is not None:
                fds.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
                streams[step - 1] = fds[-1]
        if is_joined:
            streams[2] = streams[1]
        step = PROGRAM
        began = time.monotonic_ns()
        pid = running[number] = _spawn(argv, env, streams)
    except OSError as exc:
        return NOTE.pack(FAILED, number, exc.errno or 0, step)
    except ValueError:  # no environment
        return NOTE.pack(FAILED, number, errno.EINVAL, step)
    return NOTE.pack(STARTED, number, pid, began)


def _spawn(argv: list[bytes], env: dict[bytes, bytes], streams: array.array[int]) -> int:
    """Start a program, which is looked up in the PATH that it will have. Leads a session."""
    # Once above those of the standard streams, no number is taken before it was copied.
    actions = [(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(streams)]
    folders = [b""] if b"/" in argv[0] else env.get(b"PATH", os.fsencode(os.defpath)).split(b":")
    error = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for folder in folders:
        path = os.path.join(folder, argv[0])  # noqa: PTH118 -- of bytes
        if len(folders) > 1 and not os.access(path, os.F_OK):
            continue
        try:
            return os.posix_spawn(path, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_IGNORED)
        except OSError as exc:
            if exc.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EACCES}:
                raise
            if error.errno != errno.EACCES:
                error = exc
    raise error


def _look(sock: _socket.socket, running: dict[int, int], over: dict[int, int], drained: set[int]) -> None:
    """Tell which programs have ended. They stay zombies until they are buried."""
    for number, pid in list(running.items()):
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is not None:
            over[number] = running.pop(number)
            code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
            sock.sendall(NOTE.pack(ENDED, number, code, time.monotonic_ns()))
            if number in drained:
                drained.discard(number)
                _bury(sock, number, over)


def _bury(sock: _socket.socket, number: int, over: dict[int, int]) -> None:
    pid = over.pop(number, None)
    if pid is not None:
        _kill(pid)
        usage = os.wait4(pid, 0)[2]
        _await_end(pid)
        sock.sendall(NOTE.pack(BURIED, number, int((usage.ru_utime + usage.ru_stime) * 1e9), usage.ru_maxrss))


def _await_end(group: int) -> None:
    """Wait a moment until a group that was killed is gone: nobody is left then, when that is told."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for _ in range(_LOOKS):
            os.killpg(group, 0)
            time.sleep(_LOOK)  # noqa: TID251 -- of others than its children, no event tells


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a program's group, or what is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
