"""What other pools do in the situations of these tests: prints a table. Nothing is tested, and nothing fails.

Usage: PYTHONPATH=. python tests/pains/compare.py [SITUATION ...]     Those that are not installed do not take part.

Each cell is a process of its own, which is given some seconds and then ended with all that it left behind. Every pool
has two workers and its own defaults, but where the situation asks for more.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from pains.peers import PEERS, Peer  # found by the line above
from pains.situations import SITUATIONS, runs

SECONDS = 12.0  # after so long, a cell hangs
LIBRARIES = ("poolkit", "futures", "multiprocessing", "pebble", "loky", "mpire")
NAMES = {"futures": "concurrent.futures"}
POSTING_REPORTS = {
    "crash",
    "bad-exception",
    "bad-result",
    "bad-argument",
    "recycle",
    "after-main",
}  # how it exits is looked at


def family(mark: str) -> list[int]:
    """The processes that carry a mark in their environment."""
    found = []
    for path in list(Path("/proc").iterdir()):  # not `glob`: a process that ends just now breaks it
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.name)
            if mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    return [pid for pid in found if runs(pid)]


def _semaphores() -> set[Path]:
    return set(Path("/dev/shm").glob("sem.loky-*"))  # noqa: S108 -- where the system has them


def run_cell(library: str, situation: str) -> str:
    """Start the process of a cell; what it says, and what it leaves behind."""
    mark = f"PEERS_CELL={os.getpid()}-{library}-{situation}"
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    env = {**os.environ, "PYTHONPATH": path, "PEERS_CELL": mark.partition("=")[2]}
    semaphores = _semaphores()
    process = subprocess.Popen(
        [sys.executable, __file__, "--cell", library, situation],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()))
    complaints: list[str] = []
    listener = threading.Thread(target=lambda: complaints.extend(process.stderr or ()))
    reader.start()
    listener.start()
    hung = False
    try:
        process.wait(SECONDS if situation != "interrupt" else SECONDS / 2)
    except subprocess.TimeoutExpired:
        hung = True
    time.sleep(1.5 if situation in {"owner-leaves", "interrupt"} else 0)
    left = family(mark)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for path in _semaphores() - semaphores:  # those of a pool of loky that was killed
        path.unlink(missing_ok=True)
    reader.join()
    listener.join()
    words = " ".join(line.strip() for line in said if line.strip())
    if situation == "owner-leaves":
        return f"{len(left)} processes left" if not hung else "hangs"
    if situation == "interrupt":
        shown = sum(line.startswith("Traceback") for line in complaints)
        return f"{shown} tracebacks, " + ("does not end" if hung else "ends soon")
    if words == "-":
        return words
    return (words or "no answer") + ("; does not exit" if hung else "")


def be_cell(library: str, situation: str) -> None:
    """In the process of a cell."""

    def make(workers: int = 2, **options: Any) -> Peer:
        return PEERS.get(library, Peer)(library, workers, **options)

    try:
        print(SITUATIONS[situation](make), flush=True)
    except NotImplementedError:
        print("-", flush=True)
        os._exit(0)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(0)
    if situation not in POSTING_REPORTS:
        os._exit(0)


def main() -> None:
    installed = [library for library in LIBRARIES if library == "futures" or importlib.util.find_spec(library)]
    versions = [f"CPython {platform.python_version()}"]
    for library in installed:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{library} {importlib.metadata.version(library)}")
    print(f"{time.strftime('%Y-%m-%d')}; {', '.join(versions)}; {platform.system()} {platform.release()}")
    for situation in sys.argv[1:] or SITUATIONS:
        print(f"\n{situation}")
        for library in installed:
            print(f"  {NAMES.get(library, library):20} {run_cell(library, situation)}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        be_cell(*sys.argv[2:4])
    else:
        main()
