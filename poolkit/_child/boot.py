"""Boot: turns a freshly forked or executed process into a worker.

The settings come as the first frame (BOOT), a pickled dict:
    sys_path, argv, cwd   as the owner has them         env        variables to set, or to remove (None)
    authkey               multiprocessing's key         measure_rss  whether outcomes carry the resident memory
    owner, owner_name     its process id, and what it is called there
    shm_threshold         see `_wire/buffers.py`
    number                the worker's
    main, is_copy         the owner's `__main__`, and whether this process has it as a copy
    habits                settings of the owner's process and thread, see `_wire/habits.py`
    definitions           what the initializer needs of the script, or None; see `_wire/plans.py`
    initializer           packed call, or None          preload    names of modules to import
    open_files, umask     the soft limit and the file mode mask to have, or None: those that it has
    log_levels, log_disabled   see `_child/logs.py`
Owner: the worker's main thread, before it serves.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence

from poolkit import _child, _os, _os_processes, context
from poolkit._child import chunk, logs, looks, output, script, standard  # noqa: F401 -- chunk: for `map`
from poolkit._child.imported import when_imported
from poolkit._child.loop import Loop
from poolkit._memory.worker import WorkerTransport
from poolkit._os import own_resident_bytes
from poolkit._typing import Any
from poolkit._wire import codec, habits, inherit, messages, reseed
from poolkit._wire.board import Board
from poolkit._wire.remote import describe_error, is_of_handler


def run_worker(
    fds: list[int],
    parent: int,
    initializer: Callable[[], object] | None = None,
    generators: Sequence[Any] | None = None,
) -> int:
    """Be a worker until told to stop; returns the exit code. Called in a process of its own.

    Args:
        fds: descriptors, as `Peer.open` has them.
        parent: process id of the template.
        initializer: what was inherited, with start_method="fork".
        generators: those of random numbers that the template's imports have made; None: this is a new interpreter.
    """
    _child.is_here = codec.in_worker = True
    if generators is not None:
        standard.forget_exit_handlers()
    _os_processes.die_with_parent(parent)
    _os_processes.adopt_orphans()
    with contextlib.suppress(OSError):  # the parent does it too
        os.setpgid(0, 0)
    own_signals(signal.SIGINT)  # the owner alone decides what a Ctrl-C means
    refuse_to_stop()
    for fd in fds:  # a new interpreter had to inherit them; programs that a task starts are not to
        os.set_inheritable(fd, False)
    calls, outcomes, tokens, page, channel, *initializers_fds = fds  # as `Peer.open` has them
    faulthandler.enable(file=page, all_threads=False)  # behind what is mapped as the board: see there
    faulthandler.register(_os.STACK_SIGNAL, file=page, all_threads=False, chain=False)
    os.register_at_fork(after_in_child=faulthandler.disable)  # the crash of a task's child is not the worker's
    os.register_at_fork(after_in_child=lambda: faulthandler.unregister(_os.STACK_SIGNAL))
    board = Board(page)
    looks.answer_looks(board, page)
    output.keep_output(board)
    loop = context.WORKER = Loop(calls, outcomes, _os.Tokens(tokens), board, WorkerTransport(channel))
    try:
        return _work(loop, outcomes, initializers_fds, initializer, generators)
    finally:
        with contextlib.suppress(OSError):  # a task has closed it
            loop.transport.channel.close()  # else it warns that it was not


def _work(  # noqa: C901, PLR0912 -- one step after another
    loop: Loop,
    outcomes: int,
    initializers_fds: list[int],
    inherited_initializer: Callable[[], object] | None,
    generators: Sequence[Any] | None,
) -> int:
    try:
        settings: dict[str, Any] = pickle.loads(loop.receive_boot())
    except EOFError:  # the owner is gone already
        return 0
    _settle_in(settings, outcomes)
    before = set(sys.modules)
    loop.measure_rss = settings["measure_rss"]
    if settings["is_copy"]:
        loop.inherited = own_resident_bytes()
    loop.transport.begin(settings["shm_threshold"])
    install = logs.installer(loop.outbox, settings["log_levels"], settings["log_disabled"])
    when_imported("logging", install)
    if not settings["is_copy"]:
        habits.settle(settings["habits"], when_imported)
    script.begin(settings["number"], settings["main"], is_copy=settings["is_copy"])
    standard.share_tracker(loop.transport.channel, loop.outbox)
    try:
        for name in settings["preload"]:  # the template process has done it, unless workers are not forked from it
            importlib.import_module(name)
        if settings["preload"] and "logging" in sys.modules:  # which they may have configured, as in the template
            install(sys.modules["logging"])
        if generators is None and settings["preload"]:  # what a new interpreter has imported by itself
            generators = reseed.generators_in(set(sys.modules) - before)
        for generator in generators or ():
            reseed.reseeded(generator, settings["number"])
        inherit.arrived(initializers_fds)
        if settings["definitions"] is not None:
            number, definitions = settings["definitions"]
            script.define(definitions, loop.transport.channel)
            script.prepare(number)
        if inherited_initializer is not None:
            inherited_initializer()
        elif settings["initializer"] is not None:
            fn, args = codec.load_value(settings["initializer"])
            fn(*args)
    except BaseException as exc:  # noqa: BLE001 -- whatever it raises is what the pool is told
        with contextlib.suppress(BrokenPipeError):
            loop.say(messages.BOOT_FAILED, payload=codec.pack_error(exc))
        return 1
    with contextlib.suppress(BrokenPipeError):  # the pool is gone by now, or has given this worker up
        loop.say(messages.READY, os.getpid())
        try:
            loop.serve()
        except BaseException as exc:
            if not is_of_handler(exc):
                raise
            what = f"a signal handler that a task left raised {describe_error(exc)}"
            print(f"poolkit: worker {os.getpid()} ends, as between two tasks {what}", file=sys.stderr)  # noqa: T201
            return 1
    return 0


def leave(code: int) -> None:
    """End this process as a program ends: the tasks' threads, the exit handlers that they registered, the streams."""
    try:
        if code == 0:
            standard.run_exit_handlers()
        flush_streams()
    finally:
        os._exit(code)


def flush_streams() -> None:
    """Write what is buffered, lest a fork of this process writes it, too."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
    output.flush()


def own_signals(*left_alone: int) -> None:
    """Take back every handler that the forked process had set, block no signal, and do nothing at these."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    while _outlived:
        signal.signal(_outlived.pop(), signal.SIG_DFL)
    for each in left_alone:  # by a handler, not SIG_IGN: programs that a task starts would inherit that one
        signal.signal(each, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def refuse_to_stop() -> None:
    """Have the terminal refuse what a process in the background may not do with it, which is not stopped then."""
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)


def outlive_signals() -> None:
    """Ignore all signals that programs send each other, but for faults; `own_signals` takes that back in a worker."""
    left = {getattr(signal, f"SIG{name}", None) for name in _LEFT_ALONE}
    for number in signal.valid_signals() - left:
        if signal.getsignal(number) not in {signal.SIG_IGN, None}:
            signal.signal(number, signal.SIG_IGN)  # many handlers at once would need much of the alternate stack
            _outlived.append(number)


_outlived: list[int] = []  # what is ignored for that alone
# They cannot be ignored, are of this process's own making, or do nothing by default.
_LEFT_ALONE = ("KILL", "STOP", "SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "CHLD", "CONT", "URG", "WINCH")


def _settle_in(settings: dict[str, Any], outcomes: int) -> None:
    """Take over the owner's settings."""
    sys.path[:] = settings["sys_path"]
    sys.argv[:] = settings["argv"]
    for name, value in settings["env"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if settings["umask"] is not None:
        os.umask(settings["umask"])
    with contextlib.suppress(OSError):  # a directory that is gone is no reason to fail
        os.chdir(settings["cwd"])
    standard.assume(
        settings["number"],
        parent=settings["owner"],
        parent_name=settings["owner_name"],
        sentinel=outcomes,  # it breaks when the owner is gone
        authkey=settings["authkey"],
    )
    if settings["open_files"] is not None:  # the owner has another one than the template, or has raised its own
        from resource import RLIMIT_NOFILE, getrlimit, setrlimit  # noqa: PLC0415 -- there only

        setrlimit(RLIMIT_NOFILE, (settings["open_files"], getrlimit(RLIMIT_NOFILE)[1]))
    if "numpy.random" in sys.modules:  # preloaded: every fork would draw the same numbers
        sys.modules["numpy.random"].seed()
