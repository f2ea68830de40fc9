"""The situations in which `compare.py` looks at other pools: each is a function that says what was seen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pains import functions
from pains.peers import PATIENCE, MpirePeer, MultiprocessingPeer, Peer, later, outcome


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return False


def crash(make: Callable[..., Peer]) -> str:
    peer = make(4)
    slow = [peer.submit(functions.sleep, 1.5) for _ in range(3)]
    time.sleep(0.5)
    own = outcome(peer, lambda: peer.submit(functions.kill_itself))
    others = [outcome(peer, lambda handle=handle: handle) for handle in slow]
    return f"it: {own}; others: {others.count('ok')} of 3; later: {later(peer)}"


def timeout(make: Callable[..., Peer], function: Callable[..., Any] = functions.spin_into) -> str:
    peer = make()
    path = Path(f"/tmp/peers-{os.getpid()}")  # noqa: S108 -- for the moment
    try:
        own = outcome(peer, lambda: peer.limited(1, function, str(path)))
        time.sleep(0.5)
        pid = int(path.read_text())
    finally:
        path.unlink(missing_ok=True)
    work = "runs on" if runs(pid) else "stopped"
    return f"it: {own}; the work {work}"


def timeout_gil(make: Callable[..., Peer]) -> str:
    return timeout(make, functions.hold_the_gil_into)


def timeout_program(make: Callable[..., Peer]) -> str:
    return timeout(make, functions.run_command)


def held_lock(make: Callable[..., Peer]) -> str:
    """A thread holds a lock of a module when the pool is made."""
    held = threading.Event()

    def hold() -> None:
        with functions.LOCK:
            held.set()
            time.sleep(3600)

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    peer = make()
    return outcome(peer, lambda: peer.submit(functions.take_lock))


def bad_exception(make: Callable[..., Peer]) -> str:
    peer = make()
    return f"it: {outcome(peer, lambda: peer.submit(functions.raise_unbuildable))}; later: {later(peer)}"


def bad_result(make: Callable[..., Peer]) -> str:
    peer = make()
    return f"it: {outcome(peer, lambda: peer.submit(functions.make_lock))}; later: {later(peer)}"


def bad_argument(make: Callable[..., Peer]) -> str:
    peer = make()
    lock = threading.Lock()
    return f"it: {outcome(peer, lambda: peer.submit(functions.add_one, lock))}; later: {later(peer)}"


def owner_leaves(make: Callable[..., Peer]) -> str:
    """By os._exit, with one worker idle and one at work; the parent looks for what is left."""
    peer = make()
    peer.value(peer.submit(functions.add_one, 1))
    busy = peer.submit(functions.sleep, 3600)
    time.sleep(0.5)
    print(flush=True)
    os._exit(0 if busy is not None else 1)


def interrupt(make: Callable[..., Peer]) -> str:
    """A SIGINT to the whole process group; the parent counts the tracebacks."""
    peer = make()
    with peer.pool:
        handles = [peer.submit(functions.sleep, 2) for _ in range(20)]
        time.sleep(1)
        threading.Timer(0.1, os.killpg, (os.getpgrp(), signal.SIGINT)).start()
        for handle in handles:
            peer.value(handle)
    return "no interrupt"


def recycle(make: Callable[..., Peer]) -> str:
    peer = make(1, tasks=2)
    handles = [peer.submit(functions.add_one, number) for number in range(12)]
    came = list(itertools.takewhile(lambda handle: outcome(peer, lambda: handle) == "ok", handles))
    return f"{len(came)} of 12 results"


def endless_map(make: Callable[..., Peer]) -> str:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    peer = make()
    try:
        return f"the first result: {next(peer.map(functions.add_one, itertools.count()))}"
    except MemoryError:
        return "takes all memory"


def cancelled_queue(make: Callable[..., Peer]) -> str:
    """A hundred that are queued behind a running one."""
    peer = make(1)
    path = Path(f"/tmp/peers-{os.getpid()}")  # noqa: S108 -- for the moment
    try:
        holder = peer.submit(functions.sleep, 1)
        time.sleep(0.3)
        handles = [peer.submit(functions.write_line, str(path)) for _ in range(100)]
        time.sleep(0.3)
        refused = sum(not peer.cancel(handle) for handle in handles)
        outcome(peer, lambda: holder)
        later(peer)
        ran = len(path.read_text().splitlines()) if path.is_file() else 0
    finally:
        path.unlink(missing_ok=True)
    return f"{ran} of 100 ran ({refused} cancels refused)"


def cancelled_await(make: Callable[..., Peer]) -> str:
    peer = make(1)
    if isinstance(peer, (MultiprocessingPeer, MpirePeer)):
        raise NotImplementedError

    async def main() -> str:
        handle = peer.submit(functions.sleep, 3600)
        await asyncio.sleep(0.5)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(handle), 0.2)
        free = await asyncio.to_thread(outcome, peer, lambda: peer.submit(functions.add_one, 1))
        return "the worker serves again" if free == "ok" else "the work runs on"

    return asyncio.run(main())


def chain(make: Callable[..., Peer]) -> str:
    peer = make()
    try:
        peer.value(peer.submit(functions.raise_from))
    except BaseException as error:
        cause = type(error.__cause__).__name__
        notes = getattr(error, "__notes__", [])
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        frames = "frames" if "raise_from" in names else "no frames"
        kept = "cause kept" if cause == "KeyError" else f"cause: {cause}"
        return f"{type(error).__name__}, {kept}, {'notes' if notes else 'no notes'}, {frames}"
    return "no error"


def nested(make: Callable[..., Peer]) -> str:
    peer = make()
    return outcome(peer, lambda: peer.submit(functions.open_pool, peer.library))


def threads(make: Callable[..., Peer]) -> str:
    peer = make()
    return f"OMP_NUM_THREADS={peer.value(peer.submit(functions.environment, 'OMP_NUM_THREADS'))}"


def after_main(make: Callable[..., Peer]) -> str:
    """A thread that is no daemon submits when main has ended."""
    peer = make()
    later(peer)

    def submit() -> None:
        threading.main_thread().join()
        try:
            print(f"it: {outcome(peer, lambda: peer.submit(functions.add_one, 1))}", flush=True)
        except BaseException as error:
            print(type(error).__name__)

    threading.Thread(target=submit).start()
    return ""


SPAWNING = {  # pools whose workers are new interpreters
    "poolkit": "import poolkit; pool = poolkit.Pool(1, start_method='spawn')",
    "futures": "import multiprocessing, concurrent.futures\n"
    "pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))",
    "multiprocessing": "import multiprocessing; pool = multiprocessing.get_context('spawn').Pool(1)",
    "pebble": "import multiprocessing, pebble\n"
    "pool = pebble.ProcessPool(1, context=multiprocessing.get_context('spawn'))",
    "loky": "import loky; pool = loky.ProcessPoolExecutor(1)",
    "mpire": "import mpire; pool = mpire.WorkerPool(1, start_method='spawn')",
}


def spawning_script(library: str) -> str:
    """A script with a function of its own, without a guard; it prints what came of a call."""
    return (
        f"{SPAWNING[library]}\nimport os\ndef mine(x): return x + 1\nfrom pains.peers import PEERS, Peer, outcome\n"
        f"kind = PEERS.get({library!r}, Peer); peer = kind.__new__(kind); peer.pool = pool\n"
        "print('it:', outcome(peer, lambda: peer.submit(mine, 1)), flush=True)\nos._exit(0)"
    )


def session(make: Callable[..., Peer]) -> str:
    """A function of a script on standard input."""
    subprocess.run([sys.executable, "-"], input=spawning_script(make(1).library), text=True, check=False)
    return ""


def no_guard(make: Callable[..., Peer]) -> str:
    """The same in a file; how often it is run is counted."""
    path = Path(f"/tmp/peers-{os.getpid()}.py")  # noqa: S108 -- for the moment
    path.write_text(f"open(__file__ + '.runs', 'a').write('x')\n{spawning_script(make(1).library)}")
    runs_of_it = Path(f"{path}.runs")
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, str(path)], stderr=subprocess.DEVNULL, timeout=PATIENCE + 2, check=False)
        return f"the script was run {len(runs_of_it.read_text())} times"
    finally:
        path.unlink()
        runs_of_it.unlink(missing_ok=True)


SITUATIONS: dict[str, Callable[[Callable[..., Peer]], str]] = {
    "crash": crash,
    "timeout": timeout,
    "timeout-gil": timeout_gil,
    "held-lock": held_lock,
    "bad-exception": bad_exception,
    "bad-argument": bad_argument,
    "bad-result": bad_result,
    "owner-leaves": owner_leaves,
    "interrupt": interrupt,
    "recycle": recycle,
    "session": session,
    "no-guard": no_guard,
    "timeout-program": timeout_program,
    "endless-map": endless_map,
    "cancelled-queue": cancelled_queue,
    "cancelled-await": cancelled_await,
    "chain": chain,
    "nested": nested,
    "threads": threads,
    "after-main": after_main,
}
