"""Key: how a new template process is started, and when one template will do for two users.

It will where an interpreter that is started now would be the same, as far as it reads its surroundings when it starts:
program and flags, some of the environment, who it is and on which CPUs. Where the template imports more than poolkit,
what is imported there reads the rest of the environment, the search path and the directory. All else each worker is
told by itself, or is not told apart.
Keeps no state.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence

Key = tuple[object, ...]

# Beginnings of what interpreters, loaders, C libraries and measurements of coverage read when a program starts.
_READ_AT_START = ("PYTHON", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "TZ", "COV", "POOLKIT_")


class Start:
    """What a new template process is told, and how it is started. Two users with the same `key` may share one."""

    def __init__(
        self,
        start_method: str,
        preload: Sequence[str],
        shares: Mapping[str, str],
        env: Mapping[str, str],
        lease_fd: int | None = None,
    ) -> None:
        """Look at this process, too. `shares` are set where modules are preloaded, `env` in any case.

        What has a lease is for nobody else, whose workers would end with it.

        Raises:
            RuntimeError: there is no interpreter to be started.
        """
        self.command = interpreter()
        self.start_method = start_method
        # With "spawn" each worker has imports of its own.
        self.preload = () if start_method == "spawn" else tuple(preload)
        # What is imported in the template reads the shares there. Else pools of different sizes may have one in common.
        self.env = {**os.environ, **(shares if self.preload else {}), **env}
        self.paths = _search_path()
        self.directory = _directory()
        # With "spawn", the interpreters of the workers start there, too.
        reads_all = bool(self.preload) or start_method == "spawn"
        read = {name for name in self.env if reads_all or name.startswith(_READ_AT_START)}
        self.key: Key = (
            self.command,
            start_method,
            self.preload,
            frozenset((name, self.env[name]) for name in read),
            (self.paths, self.directory, tuple(map(_files_of, self.preload))) if self.preload else (),
            (os.getuid(), os.geteuid(), os.getgid(), os.getegid()),
            frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (),
            tuple((is_open(fd), os.isatty(fd)) for fd in (1, 2)),
            lease_fd,
        )


def _directory() -> str:
    """The current directory; empty if it is gone."""
    with contextlib.suppress(OSError):
        return os.getcwd()  # noqa: PTH109 -- importing pathlib takes 6 ms
    return ""


def own_path() -> list[str]:
    """Where this interpreter looks for modules."""
    entries: list[object] = [*sys.path]
    return [str(path) for path in entries if isinstance(path, str)]  # marshal takes no subclasses


def _search_path() -> tuple[str, ...]:
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
    # What `multiprocessing` would start, where it was told or has been loaded; else this interpreter.
    given = getattr(sys.modules.get("multiprocessing.spawn"), "_python_exe", None)
    program = os.fsdecode(given) if given else sys.executable or ""
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


def is_open(fd: int) -> bool:
    """Return True if programs have this standard stream; where it was closed, its number may be of something else."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False
