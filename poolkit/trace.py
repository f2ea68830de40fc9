"""Trace: what a pool did, run by run, as Chrome trace events and as a picture.

    scheduler   tells what happens as it happens: one call of `take`, which appends to `_taken` (see `Recorder`)
    thread      every half second moves that to what is kept, and to the file: formatting costs ten times the telling
    stop        does the rest; by whoever calls it, or the pool at its end

In a burst of small tasks the thread would take the interpreter's lock from the threads that submit and read, so it does
a part of it only, as long as what is left to do is bounded.
A pool on a virtual clock has no thread, and its file is written by `stop`.
Guarded by: `_lock`: all but `_taken`, which the scheduler appends to under the pool's lock. The pool's lock is never
taken under it. In a forked child a trace does nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from io import FileIO
from json import dumps
from pathlib import Path
from types import TracebackType
from typing import Any

from poolkit._clock import monotonic
from poolkit._core.workforce import Recorder
from poolkit._engine.interface import PoolEngine
from poolkit._engine.listeners import TraceThread
from poolkit._kinds.loggers import log
from poolkit._wire.remote import full_name, packed_name
from poolkit.errors import PoolkitError
from poolkit.picture import Happening, Load, Run, draw, outcome_of

EVERY = 0.5  # seconds between two writes
AT_A_TIME = 2_000  # records that are written then, in a burst
MOST_TAKEN = 200_000  # records that may be left for later
PIECE = 1_000  # records that are formatted and written at once
COUNTED_EVERY = 0.001  # seconds between two counts that are kept
NAMES = 1024  # that are remembered, as they are written

Record = tuple[Any, ...]  # see `Recorder`: told apart by their lengths
RUN, HAPPENING, LOAD = len(Run._fields), len(Happening._fields), len(Load._fields)


class Trace:
    """The timeline of a pool, made by `poolkit.Pool.trace`. Thread-safe; a context manager that stops it.

    In a notebook it shows its picture.
    """

    def __init__(self, engine: PoolEngine, pool: str, path: str | os.PathLike[str] | None, most: int) -> None:
        self._engine = engine
        self._pool = pool
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._taken: deque[Record] = deque()
        self.take: Recorder = self._taken.append
        self._runs: deque[Record] = deque(maxlen=most)
        self._happenings: deque[Record] = deque(maxlen=most)
        self._loads: deque[Record] = deque(maxlen=most)
        self._path = None if path is None else _checked(path, ".json")
        self._file: FileIO | None = None
        self._whole = 0  # bytes of it that make whole events
        self._last: dict[int, tuple[int, int]] = {}  # by worker, the task of its last run, and which of its runs
        self._events = _Events(pool, self._pid)
        self._began = engine.traces.clock()
        self._ended: float | None = None
        self._stopping = threading.Event()
        self._thread = TraceThread(target=self._run, name=f"poolkit-{pool}-trace", daemon=True)
        engine.traces.add(self)
        try:
            if self._path is not None:
                self._file = FileIO(self._path, "w")  # without a buffer, of which a forked child would write a copy
                self._write(self._events.head())
            if engine.clock is monotonic:
                self._thread.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Take down nothing more; the file is complete when this returns. Idempotent. Blocks while it writes."""
        if os.getpid() != self._pid:
            return
        self._engine.traces.remove(self)
        with self._lock:
            self._sort(math.inf)
            if self._ended is None:
                self._ended = self._engine.traces.clock()
            self._write("\n]\n")
            file, self._file = self._file, None
            if file is not None:
                file.close()
        self._stopping.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was taken down so far: a picture if `path` ends with ".svg", for ".json" Chrome trace events.

        Of a trace that goes on, too. Blocks while it writes.

        Raises:
            ValueError: `path` ends otherwise, or this trace writes to it just now.
            OSError: it cannot be written.
        """
        target = _checked(path, ".svg", ".json")
        if target.suffix == ".svg":
            target.write_text(self._repr_svg_(), encoding="utf-8")
            return
        with self._own_lock():
            if self._file is not None and self._path is not None and target.exists() and target.samefile(self._path):
                msg = f"{target} is being written by this trace; stop() completes it"
                raise ValueError(msg)
            self._sort(math.inf)
            records = [*self._happenings, *self._loads, *self._runs]
        events = _Events(self._pool, self._pid)
        with target.open("w", encoding="ascii") as file:
            file.write(events.head())
            for start in range(0, len(records), PIECE):
                file.write(events.lines(records[start : start + PIECE]))
            file.write("\n]\n")

    def _repr_svg_(self) -> str:
        with self._own_lock():
            self._sort(math.inf)
            ended = self._engine.traces.clock() if self._ended is None else self._ended
            runs, happenings, loads = list(self._runs), list(self._happenings), list(self._loads)
        found = [Run(*run) for run in runs], [Happening(*each) for each in happenings], [Load(*load) for load in loads]
        return draw(self._pool, (self._began, ended), *found)

    def __enter__(self) -> Trace:  # noqa: PYI034 -- it is not subclassed
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        """Show the pool, and where to it is written."""
        state = "running" if self._ended is None else "stopped"
        return f"<poolkit.Trace of {self._pool!r} {'in memory' if self._path is None else self._path} {state}>"

    # ===== the rest is the thread's, and whoever stops or looks =====

    def _run(self) -> None:
        try:
            while not self._stopping.wait(EVERY):
                if self not in self._engine.traces.all:  # the pool was dropped unused
                    self.stop()
                    return
                with self._lock:
                    self._sort(max(AT_A_TIME, len(self._taken) - MOST_TAKEN))
        except Exception:  # such as a MemoryError: nothing may pile up that nobody takes
            log.exception("the trace of pool %s failed; it takes down nothing more", self._pool)
            self._engine.traces.remove(self)

    def _own_lock(self) -> AbstractContextManager[object]:
        if os.getpid() != self._pid:
            msg = f"{self!r} belongs to process {self._pid}, from which this one was forked"
            raise PoolkitError(msg)
        return self._lock

    def _sort(self, most: float) -> None:
        """Move at most so many records to what is kept, and to the file. Under the lock."""
        taken, runs, last = self._taken, self._runs, self._last
        while taken and most > 0:
            piece, loads = [], []
            for record in [taken.popleft() for _ in range(min(PIECE, len(taken)))]:
                if len(record) == RUN:
                    worker, task, _, attempt, _, began, ended, how = record
                    if last.get(worker) == (task, attempt):  # where a step was interrupted, and done again
                        continue
                    last[worker] = task, attempt
                    known = record if how is None and began <= ended < math.inf else _checked_run(record)
                    runs.append(known)
                    piece.append(known)
                elif len(record) == LOAD:
                    loads.append(record)
                else:
                    self._happenings.append(record)
                    last.pop(record[1], None)  # it starts or is gone
                    piece.append(record)
            kept = [*_thinned(loads)]
            self._loads += kept
            most -= PIECE
            if self._file is not None:
                self._write(self._events.lines(piece + kept))

    def _write(self, text: str) -> None:
        """Write to the file, if there is one; the first failure is logged, and is the last."""
        file, left = self._file, memoryview(text.encode("ascii"))
        if file is None:
            return
        try:
            while left:
                left = left[file.write(left) or 0 :]
            self._whole += len(text)
        except OSError as exc:
            log.error("the trace of pool %s is no longer written to %s: %s", self._pool, self._path, exc)  # noqa: TRY400 -- it says all
            self._file = None
            with contextlib.suppress(OSError), file:
                file.truncate(self._whole)


def _checked(path: str | os.PathLike[str], *endings: str) -> Path:
    found = Path(path)
    if found.suffix not in endings:
        msg = f"path must end with {' or '.join(endings)}, was {os.fspath(path)!r}"
        raise ValueError(msg)
    return found


def _checked_run(record: Record) -> Record:
    *known, began, ended, how = record
    if not began <= ended < math.inf:  # a worker's own word
        began = ended = began if math.isfinite(began) else known[-1]
    if how is not None:
        how = full_name(how) if isinstance(how, type) else packed_name(how)
    return (*known, began, ended, how)


def _thinned(loads: list[Record]) -> Iterator[Record]:
    """Leave out what followed closely on one and was followed closely by another."""
    last = -math.inf
    for load, after in zip(loads, [*loads[1:], (math.inf,)], strict=False):
        if max(load[0] - last, after[0] - load[0]) >= COUNTED_EVERY:
            last = load[0]
            yield load


class _Events:
    """Writes records as Chrome trace events: an array whose end may be missing. A track for each worker."""

    def __init__(self, pool: str, pid: int) -> None:
        self._pool = pool
        self._pid = pid
        self._workers: set[int] = set()  # whose tracks have a name
        self._strings: dict[str, str] = {}  # as they are written
        self._run = (
            f',\n{{"name":%s,"ph":"X","ts":%.3f,"dur":%.3f,"pid":{pid},"tid":%d,"args":{{"task":%d,"attempt":%d,'
        )
        self._run += '"wait":%.6f,"outcome":%s}}'

    def head(self) -> str:
        args = dumps({"name": f"poolkit pool {self._pool}"})
        return f'[\n{{"name":"process_name","ph":"M","pid":{self._pid},"args":{args}}}'

    def lines(self, records: Iterable[Record]) -> str:
        out: list[str] = []
        strings, workers, run = self._strings, self._workers, self._run
        for record in records:
            worker = record[0] if len(record) == RUN else record[1]
            if worker not in workers and len(record) != LOAD:
                workers.add(worker)
                out.append(self._event("thread_name", "M", None, worker, {"name": f"worker {worker}"}))
            if len(record) == RUN:
                _, task, name, attempt, submitted, began, ended, error = record
                text = strings.get(name) or self._string(name)
                how = '"succeeded"' if error is None else f'"{outcome_of(error)}","error":{self._string(error)}'
                wait = began - submitted if began > submitted else 0.0
                out.append(run % (text, began * 1e6, (ended - began) * 1e6, worker, task, attempt, wait, how))
            elif len(record) == HAPPENING:
                time, _, what, more = record
                out.append(self._event(what, "i", time, worker, {"pid" if what == "started" else "how": more}))
            else:
                load = Load(*record)
                out.append(self._event("load", "C", load.time, 0, {"queued": load.queued, "busy": load.busy}))
        return "".join(out)

    def _event(self, name: str, phase: str, time: float | None, worker: int, args: dict[str, Any]) -> str:
        when = "" if time is None else f'"ts":{time * 1e6:.3f},'
        scope = '"s":"t",' if phase == "i" else ""
        what = f'"name":{dumps(name)},"ph":"{phase}",{when}{scope}"pid":{self._pid},"tid":{worker}'
        return f',\n{{{what},"args":{dumps(args)}}}'

    def _string(self, words: str) -> str:
        if words in self._strings:
            return self._strings[words]
        if len(self._strings) >= NAMES:
            self._strings.clear()
        self._strings[words] = dumps(words)
        return self._strings[words]
