"""Likeness: when two template processes would be the same, so that one will do.

They are when all that a program inherits when it is started, or is told then, is the same. What is not, and nothing
reads that early, each worker is told by itself.
Keeps no state.
"""

from __future__ import annotations

import contextlib
import os
import sys

from poolkit._workforce import descriptors

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from typing import Any

    from poolkit._workforce.settings import PoolSettings

Key = tuple[object, ...]

# What changes all the time and nothing reads at its start: each worker is told by itself.
_VOLATILE = ("PYTEST_CURRENT_TEST",)


class Start:
    """What a new template process is told, and how it is started. Two pools with the same `key` may share one."""

    def __init__(self, settings: PoolSettings) -> None:
        """Look at this process, too.

        Raises:
            RuntimeError: there is no interpreter to be started.
        """
        self.command = interpreter()
        self.paths = search_path()
        self.start_method = settings.start_method
        # With "spawn" each worker has imports of its own.
        self.preload = () if settings.start_method == "spawn" else settings.preload
        # What is imported in the template reads the shares there. Else pools of different sizes may have one in common.
        self.env = {**os.environ, **(settings.shares if self.preload else {}), **settings.env}
        for name in _VOLATILE:
            self.env.pop(name, None)
        self.directory = _directory()
        files = tuple(map(_files_of, self.preload))
        told = self.command, self.paths, self.start_method, self.preload, files
        streams = map(_stream_kind, (1, 2))
        self.program = self.command[0]
        self.key = (*told, frozenset(self.env.items()), self.directory, _surroundings(), *streams)


def own_path() -> list[str]:
    """Where this interpreter looks for modules."""
    entries: list[object] = [*sys.path]
    return [str(path) for path in entries if isinstance(path, str)]  # marshal takes no subclasses


def search_path() -> tuple[str, ...]:
    """Where a new interpreter is to look for modules, this package included."""
    paths = own_path()
    home = os.path.realpath(os.path.join(__file__, "..", "..", ".."))  # noqa: PTH118 -- importing pathlib takes 6 ms
    if home not in paths:
        paths.append(home)
    return tuple(paths)


GUARD = "POOLKIT_TEMPLATE"  # in the environment of what is started as a template, until that runs our code
ADVICE = (
    "name a Python interpreter by multiprocessing.set_executable(), or use start_method='fork', which starts no program"
)


def interpreter() -> tuple[str, ...]:
    """The interpreter and its flags.

    Raises:
        RuntimeError: there is none.
    """
    program = _program()
    why = ""
    if (started := os.environ.get(GUARD)) is not None:
        # Whoever started us took us for an interpreter. If we did the same, it would never end.
        why = f"this process is itself what was started as a template process, and {started!r} is no Python interpreter"
    elif not program:
        why = "sys.executable is empty, as in an embedded interpreter"
    elif program == sys.executable and getattr(sys, "frozen", False):
        why = f"this is a frozen application: {program!r} would start all of it once more"
    elif program == sys.executable and not sys.orig_argv and "python" not in os.path.basename(program).lower():  # noqa: PTH119
        why = f"this interpreter is embedded in another program, and {program!r} is no Python interpreter"
    if why:
        msg = f"poolkit cannot start worker processes: {why}; {ADVICE}"
        raise RuntimeError(msg)
    flags: list[str] = []
    if len(sys.orig_argv) > 1 and sys.orig_argv[1].startswith("-") and sys.orig_argv[1] not in {"-c", "-m"}:
        import subprocess  # noqa: PLC0415 -- what was set by variables comes with the environment

        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return (program, *flags)


def _program() -> str:
    """What `multiprocessing` would start, where it was told or has been loaded; else this interpreter."""
    told = getattr(sys.modules.get("multiprocessing.spawn"), "_python_exe", None)
    return os.fsdecode(told) if told else sys.executable or ""


def volatile_env() -> dict[str, str]:
    """What each worker is told by itself of the owner's environment."""
    return {name: os.environ[name] for name in _VOLATILE if name in os.environ}


def _files_of(name: str) -> tuple[object, ...]:
    """The files of a module and of the packages that it is in, as they are now; as far as they are found unimported."""
    import importlib.machinery  # noqa: PLC0415 -- for preload alone
    import importlib.util  # noqa: PLC0415

    found: list[object] = []
    whole, _, rest = name.partition(".")
    with contextlib.suppress(Exception):  # finders are anybody's; whatever is wrong, importing it will tell
        spec = importlib.util.find_spec(whole)
        while spec is not None:
            if spec.has_location and spec.origin is not None:
                file = os.stat(spec.origin)  # noqa: PTH116 -- importing pathlib takes 6 ms
                found.append((spec.origin, file.st_mtime_ns, file.st_size))
            if not rest:
                break
            part, _, rest = rest.partition(".")
            whole = f"{whole}.{part}"
            spec = importlib.machinery.PathFinder.find_spec(whole, spec.submodule_search_locations)
    return tuple(found)


def _directory() -> tuple[Any, ...]:
    """This directory, empty if it is gone; another one of the same name is not the same."""
    try:
        found = os.stat(".")  # noqa: PTH116 -- importing pathlib takes 6 ms
        return (os.getcwd(), found.st_dev, found.st_ino)  # noqa: PTH109
    except OSError:
        return ()


def is_open(fd: int) -> bool:
    """Return True if programs have this standard stream; where it was closed, its number may be of something else."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _stream_kind(fd: int) -> tuple[bool, bool]:
    """What an interpreter makes of a standard stream when it starts: whether to have it, and how to buffer it."""
    return is_open(fd), os.isatty(fd)


def _surroundings() -> tuple[object, ...]:
    """What a program that this thread starts inherits of it, beside environment, directory and descriptors.

    Who it is and what it may, limits, CPUs, ignored signals, control groups, namespaces. Two of these are equal when
    one program cannot be told from the other by them. Elsewhere than on Linux the file mode mask is missed.
    """
    found: list[object] = [os.getuid(), os.geteuid(), os.getgid(), os.getegid(), tuple(os.getgroups())]
    found.append(os.getsid(0))  # and so its terminal
    with contextlib.suppress(OSError, AttributeError):  # not on macOS
        found.append(frozenset(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError):
        found += [os.getpriority(os.PRIO_PROCESS, 0), _identity("/")]
    try:
        with open("/proc/thread-self/status", "rb") as file:  # noqa: PTH123 -- importing pathlib takes 6 ms
            for line in file:
                if line.startswith(b"SigIgn:"):
                    found.append(int(line[7:], 16) & ~_OF_THREADS)
                elif line.startswith(_INHERITED):
                    found.append(line)
        with open("/proc/thread-self/limits", "rb") as file:  # noqa: PTH123
            found += [line for line in file if not line.startswith(b"Max open files")]
        found.append(descriptors.limits_before())
        for name in ("cgroup", "oom_score_adj"):
            with open(f"/proc/thread-self/{name}", "rb") as file:  # noqa: PTH123
                found.append(file.read())
        found += [_identity(f"/proc/thread-self/ns/{name}") for name in sorted(os.listdir("/proc/thread-self/ns"))]  # noqa: PTH208
    except OSError:
        import resource  # noqa: PLC0415 -- the fallback

        names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
        found += [resource.getrlimit(getattr(resource, name)) for name in names if name != "RLIMIT_NOFILE"]
        found.append(descriptors.limits_before())
    return tuple(found)


_OF_THREADS = 0b11 << 31  # the C library's own signals, 32 and 33: it takes them when the first thread starts
_INHERITED = (b"Umask", b"Uid", b"Gid", b"Groups", b"Cap", b"NoNewPrivs", b"Seccomp:", b"Mems_allowed_list")


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 -- importing pathlib takes 6 ms
    return found.st_dev, found.st_ino
