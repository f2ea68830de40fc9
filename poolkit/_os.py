"""Every call that only Linux has, with its POSIX fallback beside it, behind one seam.

`Wakeup` and `Tokens` are counters in the kernel (eventfd; a pipe elsewhere), `shared_page` is memory that two
processes see (memfd; an unlinked file elsewhere), `shared_memory` is the same in any size. `POOLKIT_PORTABLE=1` in the
environment forces the fallbacks, so that the tests can run on them. Nothing in here holds a lock or state of a pool.
Longer than most, as it is many small things that have nothing in common but that.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import array
import contextlib
import errno
import math
import mmap
import os
import select
import signal
import sys
from collections import deque
from functools import partial

from poolkit._select import poll

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PORTABLE = os.environ.get("POOLKIT_PORTABLE") == "1"
# Tricks that the fast path is to do without, so that the tests can run without each:
# "leading,spinning,batches,posting-tasks,posting-reports,watching".
SWITCHED_OFF = frozenset(os.environ.get("POOLKIT_WITHOUT", "").split(","))
LINUX = sys.platform == "linux" and not PORTABLE
CGROUPS = "/sys/fs/cgroup"

# Asks a worker for its stack. A real-time signal, as programs use SIGUSR1 and SIGUSR2 themselves.
STACK_SIGNAL: int = (signal.SIGRTMIN + 11) if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
LOOK_SIGNAL: int = signal.SIGXFSZ  # the same, of one that goes on: see `_child/looks.py`

_MOST_DIGITS = 9  # of a share that makes sense
_LOOKS, _LOOK = 1000, 0.001  # how often it is looked whether somebody sets a wake-up, and seconds between that

_HAS_EVENTFD = LINUX and hasattr(os, "eventfd")


class _Counter:
    """A counter in the kernel: an eventfd, or a pipe with a byte for each that is added."""

    __slots__ = ("_read", "_write")

    def __init__(self, flags: int = 0) -> None:
        """Make one; an eventfd with these flags."""
        if _HAS_EVENTFD:
            self._read = self._write = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | flags)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """The descriptor that is readable while there is something in it."""
        return self._read

    def both(self) -> set[int]:
        """Its descriptors."""
        return {self._read, self._write}

    def writing_end(self) -> int:
        """The descriptor that another process makes it readable by, with eight bytes that are a one."""
        return self._write

    def close(self) -> None:
        """Close it. Idempotent. Forgets the numbers first: who comes late must not write to whoever gets them next."""
        fds = {self._read, self._write}
        self._read = self._write = -1
        for fd in fds:
            close_fd(fd)


class Wakeup(_Counter):
    """Wakes one thread that polls `fileno()`. Thread-safe, signal-safe; `set` never blocks.

    A thread may be held up between looking at the number of the descriptor and writing to it, and the number be
    somebody else's by then. So who sets says so before he looks, and who closes waits for him, for a second at most.
    """

    __slots__ = ("_pid", "_setting")

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._setting: deque[None] = deque()  # one for each who sets it just now

    def set(self) -> None:
        """Wake the poller; once is enough for many calls. A closed one is ignored."""
        setting = self._setting
        try:
            setting.append(None)
            os.write(self._write, b"\1\0\0\0\0\0\0\0")
        except (BlockingIOError, OSError):
            return
        finally:
            with contextlib.suppress(IndexError):  # an interrupt came before
                setting.pop()

    def close(self) -> None:
        """Close it. Idempotent."""
        fds = {self._read, self._write}
        self._read = self._write = -1
        if os.getpid() == self._pid:  # else those who set it are not here
            for _ in range(_LOOKS):
                if not self._setting:
                    break
                select.select([], [], [], _LOOK)
        for fd in fds:
            close_fd(fd)

    def clear(self) -> None:
        """Make it unreadable again."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 4096)) == 4096:  # noqa: PLR2004
                pass


class Tokens(_Counter):
    """A worker's claim counter: the owner adds tokens, and each goes to the one process that takes it.

    The kernel hands out each token once, without a lock that a killed process could hold: an eventfd in semaphore
    mode, or a pipe with one byte a token. The worker's side has `fd` only, and takes.
    """

    __slots__ = ("_unit", "one", "write_fd")

    def __init__(self, fd: int | None = None) -> None:
        self._unit = 8 if _HAS_EVENTFD else 1  # bytes that one token reads as
        self.one = self.of(1)
        if fd is None:
            super().__init__(os.EFD_SEMAPHORE if _HAS_EVENTFD else 0)
        else:
            self._read, self._write = fd, -1
        self.write_fd = self._write  # until it is closed

    def of(self, count: int) -> bytes:
        """What adds `count` tokens when it is written to `write_fd`."""
        return count.to_bytes(8, sys.byteorder) if self._unit == 8 else b"\1" * count  # noqa: PLR2004

    def take(self) -> bool:
        """Take one token; False when there is none.

        Raises:
            EOFError: the owner has closed the counter, so there is nobody to work for (pipes only).
        """
        try:
            if not os.read(self._read, self._unit):
                raise EOFError
        except BlockingIOError:
            return False
        return True

    def take_all(self, taken: list[Any]) -> None:
        """Take all tokens there are, and add something to `taken` for each, with no exception in between."""
        with contextlib.suppress(BlockingIOError):
            taken += iter(partial(os.read, self._read, self._unit), b"")


def close_fd(fd: int) -> None:
    """Close a descriptor; -1 and a closed one are ignored."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.close(fd)


def receive_fds(sock: _socket.socket, nbytes: int, most: int) -> tuple[bytes, list[int]]:
    """Receive bytes, and the descriptors that were sent with them; programs that this process starts do not get those.

    Raises:
        OSError: as `recv`.
    """
    data, attached, _, _ = sock.recvmsg(nbytes, _socket.CMSG_LEN(most * 4), _CLOEXEC)
    return data, fds_of(attached)


def fds_of(attached: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors among what `recvmsg` says was attached to a message."""
    fds = array.array("i")
    for level, kind, content in attached:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return list(fds)


_CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)


def fill_standard_streams() -> None:
    """Open the null device where a standard stream is closed, lest the next descriptor opened is printed to."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 -- the lowest number that is free
        os.set_inheritable(fd, True)
    os.close(fd)


def umask() -> int | None:
    """The file mode mask of this process; None where that cannot be known without changing it."""
    for line in read_text("/proc/self/status").splitlines():
        if line.startswith("Umask:"):
            return int(line[6:], 8)
    return None


def shared_page(nbytes: int) -> int:
    """A descriptor of `nbytes` of zeroed memory, to be mapped by several processes. It has no name anywhere."""
    if LINUX and hasattr(os, "memfd_create"):
        fd = os.memfd_create("poolkit-board", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
        return fd
    return file_memory(nbytes)


def file_memory(nbytes: int) -> int:
    """A descriptor of `nbytes` of a file without a name, where there is no memory for it. Raises OSError."""
    import tempfile  # noqa: PLC0415 -- the fallback only; a worker half should not pay for it

    with tempfile.TemporaryFile() as file:
        disk = os.fstatvfs(file.fileno())
        if nbytes > (free := disk.f_bavail * disk.f_frsize):  # else all of it would be taken first, until there is none
            raise OSError(errno.ENOSPC, f"there are {free} bytes free in {tempfile.gettempdir()}")
        os.ftruncate(file.fileno(), nbytes)
        return os.dup(file.fileno())


def shared_memory(nbytes: int) -> int:
    """A descriptor of `nbytes` of memory to be mapped by several processes: without a name, and none of it taken yet.

    What is written to must be `reserve`d before. Raises OSError.
    """
    if LINUX and hasattr(os, "memfd_create"):
        fd = os.memfd_create("poolkit-memory", os.MFD_CLOEXEC)
    else:
        import _posixshmem  # noqa: PLC0415 -- the fallback only

        name = f"/poolkit-{os.urandom(8).hex()}"
        fd = _posixshmem.shm_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
        _posixshmem.shm_unlink(name)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


# For `mmap.mmap`: it need not keep a copy of the descriptor, where it can do without (Python 3.13).
UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def reserve(fd: int, offset: int, nbytes: int) -> None:
    """Take the memory for a part of `shared_memory`, so that writing there cannot fail; it would be by SIGBUS.

    Raises OSError when there is not enough. Without such a call, the memory is taken by writing.
    """
    if hasattr(os, "posix_fallocate"):
        for start in range(offset, offset + nbytes, _AT_ONCE):  # each signal makes a call begin anew
            os.posix_fallocate(fd, start, min(_AT_ONCE, offset + nbytes - start))


_AT_ONCE = 2 << 20  # bytes; a millisecond's work


def give_back(mapping: mmap.mmap, offset: int, nbytes: int) -> bool:
    """Free the memory of a part of `shared_memory`, for every process; false where a part cannot be freed."""
    if not LINUX or not hasattr(mmap, "MADV_REMOVE"):
        return False
    try:
        mapping.madvise(mmap.MADV_REMOVE, offset, nbytes)
    except (OSError, ValueError):  # a kernel without it; or it is closed
        return False
    return True


class LinkPoller:
    """A set of descriptors that are waited on for reading, by several threads at once.

    `fileno` is a descriptor that is readable when one of them is, so that a set can be part of another; None where
    there is no such thing. `poll(seconds)` returns pairs, of which the first is a descriptor that has something to
    read, or is closed on the other side. It blocks for at most `seconds`; None: for ever.
    """

    __slots__ = ("_poller", "fileno", "poll")

    def __init__(self) -> None:
        if LINUX and hasattr(select, "epoll"):
            self._poller: Any = select.epoll()
            self.fileno: int | None = self._poller.fileno()
            self.poll: Callable[[float | None], list[tuple[int, int]]] = self._poller.poll
        else:
            self._poller = poll()
            self.fileno = None
            self.poll = self._poll_for

    def register(self, fd: int, *, writes: bool = False) -> None:
        """Add a descriptor, to be waited on for reading, or for writing."""
        self._poller.register(fd, 4 if writes else 1)  # EPOLLOUT and POLLOUT, EPOLLIN and POLLIN

    def unregister(self, fd: int) -> None:
        """Take one out."""
        self._poller.unregister(fd)

    def _poll_for(self, seconds: float | None) -> list[tuple[int, int]]:
        return list(self._poller.poll(None if seconds is None else math.ceil(seconds * 1000)))

    def close(self) -> None:
        """Close it; registers and unregisters nothing, so a forked child may. Idempotent."""
        if self.fileno is not None:
            self._poller.close()


# Lets others run on this CPU, if any wait for it.
yield_cpu: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


def usable_cpus() -> int:
    """How many CPUs this process may really use: by affinity and the control group's quota, at least 1.

    In a worker of a cluster, its share of them. What `max_workers` of a `Pool` is when it is not given. Thread-safe;
    does not block.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        cpus = os.cpu_count() or 1
    quota = _cgroup_quota()
    if quota is not None:
        cpus = min(cpus, max(1, round(quota)))
    return max(1, cpus // cpu_share())


def cpu_share() -> int:
    """With how many processes this one has its CPUs, as a cluster tells its workers."""
    share = os.environ.get("POOLKIT_SHARE", "")
    return max(1, int(share)) if share.isascii() and share.isdecimal() and len(share) <= _MOST_DIGITS else 1


def _cgroup_quota(root: str = CGROUPS, proc: str = "/proc") -> float | None:
    """CPUs' worth of run time that the control groups of this process allow; None without a limit.

    A group's limit holds for all below it, so the least one on the way up counts.
    """
    # The root's, too, should this process be in none that is listed: what imitates a kernel does not list all.
    hierarchies = [*control_groups("cpu", root, proc), [root], [f"{root}/cpu"]]
    folders = {folder: None for hierarchy in hierarchies for folder in hierarchy}
    quotas = [_quota_in(read_text(f"{folder}/cpu.max")) for folder in folders]
    quotas += [
        _quota_in(" ".join(read_text(f"{folder}/cpu.cfs_{it}_us") for it in ("quota", "period"))) for folder in folders
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_in(text: str) -> float | None:
    try:
        quota, period = map(float, text.split())
    except ValueError:  # not there, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def control_groups(controller: str, root: str, proc: str) -> list[list[str]]:
    """The folders of the control groups that this process is in, by hierarchy, the innermost first."""
    hierarchies = []
    for line in (read_text(f"{proc}/self/cgroup") or f"0::/\n1:{controller}:/").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        base = f"{root}/{controller}" if controllers else root  # version 1, version 2
        parts = ["", *filter(None, path.split("/"))]
        folders = (base + "/".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        # In a container the path may not be there, but its end is the root.
        hierarchies.append([folder for folder in folders if os.path.isdir(folder)])  # noqa: PTH112 -- see `read_text`
    return hierarchies


def read_text(path: str) -> str:
    """What the kernel tells in a file; "" where it is not there, or not for us."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- pathlib costs a worker half an import
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def has_proc() -> bool:
    """Return True if /proc tells of processes by the numbers that they have here.

    In a pid namespace it may still be that of another one, where a number means somebody else.
    """
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115 -- see `read_text`
    except OSError:
        return False


def resident_bytes(pid: int | None = None) -> int | None:
    """Resident memory of a process (None: this one) in bytes; None when it cannot be known."""
    words = read_text(f"/proc/{pid or 'self'}/statm").split() if pid is None or has_proc() else []
    if words:
        return int(words[1]) * _PAGE
    if pid is not None:
        return None
    import resource  # noqa: PLC0415 -- the fallback: the peak, as the present size is not to be had

    return peak_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def own_bytes(pid: int) -> int | None:
    """Resident memory that a process shares with no file or block; None when it cannot be known. Never waits."""
    words = read_text(f"/proc/{pid}/statm").split() if has_proc() else []
    return (int(words[1]) - int(words[2])) * _PAGE if words else None


_PAGE = os.sysconf("SC_PAGE_SIZE")


def is_ending(pid: int) -> bool:
    """Whether a process is on its way out, or gone; True also where that cannot be known."""
    pf_exiting = 4
    words = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split() if has_proc() else []
    return not words or bool(int(words[6]) & pf_exiting)


def own_resident_bytes() -> int:
    """Resident memory of this process without shared memory; 0 when it cannot be known."""
    lines = read_text("/proc/self/status").splitlines()
    shared = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssShmem:")), 0)
    return max(0, (resident_bytes() or 0) - shared)


def peak_bytes(maxrss: int) -> int:
    """`ru_maxrss` in bytes: macOS counts bytes, everybody else kibibytes."""
    return maxrss if sys.platform == "darwin" else maxrss * 1024


def signal_name(number: int) -> str:
    """The name of a signal, for example "SIGSEGV"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
