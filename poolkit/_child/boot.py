"""Boot: turns a freshly forked or executed process into a worker: group, signals, evidence, settings, initializer.

The settings come as the first frame (BOOT), a pickled dict:
    sys_path, argv, cwd   as the owner has them         env        variables to set
    authkey               multiprocessing's key         measure_rss  whether outcomes carry the resident memory
    shm_threshold         see `_wire/buffers.py`
    initializer           packed call, or None          preload    names of modules to import
    open_files            the soft limit to have, or None: the one that it has
    log_levels, log_disabled   see `_child/logs.py`
Owner: the worker's main thread, before it serves.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import os
import pickle
import signal
import sys
import types
from collections.abc import Callable

from poolkit import _child, _os
from poolkit._child import chunk, logs  # noqa: F401 -- chunk: what `map` runs here
from poolkit._child.freight import Freight
from poolkit._child.imported import when_imported
from poolkit._child.loop import Loop
from poolkit._child.output import keep_output
from poolkit._wire import codec, inherit, messages
from poolkit._wire.board import Board

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any


def run_worker(fds: list[int], parent: int, inherited_initializer: Callable[[], object] | None = None) -> int:
    """Be a worker until told to stop; returns the exit code. Called in a process of its own."""
    _child.is_here = True
    _os.die_with_parent(parent)
    with contextlib.suppress(OSError):  # the parent does it too, whoever comes first
        os.setpgid(0, 0)
    own_signals(signal.SIGINT)  # the owner alone decides what a Ctrl-C means
    for fd in fds:  # a new interpreter had to inherit them; programs that a task starts are not to
        os.set_inheritable(fd, False)
    calls, outcomes, tokens, page, evidence, passage, *initializers_fds = fds  # as `Member.open` has them
    faulthandler.enable(file=evidence, all_threads=False)
    faulthandler.register(_os.STACK_SIGNAL, file=evidence, all_threads=False, chain=False)
    os.register_at_fork(after_in_child=_give_no_evidence)
    board = Board(page)
    os.close(page)
    keep_output(board)
    loop = Loop(calls, outcomes, _os.Tokens(tokens), board, Freight(passage))
    try:
        return _work(loop, initializers_fds, inherited_initializer)
    finally:
        with contextlib.suppress(OSError):  # a task has closed it
            loop.freight.passage.close()  # else it warns that it was not


def _work(loop: Loop, initializers_fds: list[int], inherited_initializer: Callable[[], object] | None) -> int:
    try:
        settings: dict[str, Any] = pickle.loads(loop.receive_boot())
    except EOFError:  # the owner is gone already
        return 0
    _settle_in(settings)
    loop.measure_rss = settings["measure_rss"]
    loop.freight.begin(settings["shm_threshold"])
    install = logs.installer(loop.outbox, settings["log_levels"], settings["log_disabled"])
    when_imported("logging", install)
    try:
        for name in settings["preload"]:  # the template process has done it, unless workers are not forked from it
            importlib.import_module(name)
        if settings["preload"] and "logging" in sys.modules:  # which they may have configured, as in the template
            install(sys.modules["logging"])
        inherit.arrived(initializers_fds)
        _initialize(settings["initializer"], inherited_initializer)
    except BaseException as exc:  # noqa: BLE001 -- whatever it raises is what the pool is told
        with contextlib.suppress(BrokenPipeError):
            loop.say(messages.BOOT_FAILED, payload=codec.pack_error(exc))
        return 1
    with contextlib.suppress(BrokenPipeError):  # the pool is gone by now, or has given this worker up
        loop.say(messages.READY, os.getpid())
        loop.serve()
    return 0


def _give_no_evidence() -> None:
    """In a child that a task forks: its crash is not the worker's."""
    faulthandler.disable()
    faulthandler.unregister(_os.STACK_SIGNAL)


def leave(code: int) -> None:
    """End this process as a program ends: exit handlers that the tasks registered, then the streams."""
    try:
        if code == 0:
            atexit._run_exitfuncs()  # noqa: SLF001 -- os._exit does not, and a return would run the template's code
        flush_streams()
    finally:
        os._exit(code)


def flush_streams() -> None:
    """Write what is buffered, lest a fork of this process writes it, too."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]


def own_signals(*left_alone: int) -> None:
    """Take back every handler that the forked process had set, block no signal, and do nothing at these."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for each in left_alone:  # by a handler, not SIG_IGN: programs that a task starts would inherit that one
        signal.signal(each, _ignore)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _ignore(_number: int, _frame: types.FrameType | None) -> None:
    return


def _settle_in(settings: dict[str, Any]) -> None:
    sys.path[:] = settings["sys_path"]
    sys.argv[:] = settings["argv"]
    os.environ.update(settings["env"])
    with contextlib.suppress(OSError):  # a directory that is gone is no reason to fail
        os.chdir(settings["cwd"])
    _set_authkey(settings["authkey"])
    if settings["open_files"] is not None:  # the owner has raised its own
        import resource  # noqa: PLC0415 -- there only

        resource.setrlimit(
            resource.RLIMIT_NOFILE, (settings["open_files"], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
    if "numpy.random" in sys.modules:  # preloaded: every fork would draw the same numbers
        sys.modules["numpy.random"].seed()
    # Those of the process this one was forked from are not ours to run; multiprocessing's children avoid them alike.
    atexit._clear()  # noqa: SLF001


def _set_authkey(key: bytes) -> None:
    def set_it(module: Any) -> None:
        module.current_process().authkey = key

    when_imported("multiprocessing.process", set_it)


def _initialize(packed: bytes | None, inherited: Callable[[], object] | None) -> None:
    if inherited is not None:
        inherited()
    elif packed is not None:
        fn, args = pickle.loads(packed)
        fn(*args)
