"""The ledger of one round: what was handed in, how it may end, how it ended, and whether the tokens agree.

Guarantees, checked for every task: it was told of exactly once, with an outcome that is allowed, and its own right
value; its function left no more tokens than it had attempts, and it had no more attempts than were asked for; what was
cancelled before it began left none. Thread-safe: an entry is one thread's until it is closed, counters have the lock.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import poolkit
from soak.calls import Call
from support import wait_until
from support_gates import Journal

MOST_SHOWN = 20


@dataclass(eq=False)
class Entry:
    """One task and what is known of it."""

    token: int
    call: Call
    runs: int  # attempts it may have
    task: poolkit.Task[Any] | None = None  # None once closed
    may_be_cancelled: bool = False
    cancel_said: set[bool] = field(default_factory=set)
    told: int = 0  # calls of its callback
    attempts: int = 0
    outcome: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it was accepted and is not closed, or not told of."""
        return self.task is not None or (bool(self.outcome) and not self.told)

    def cancel(self) -> None:
        """Cancel it, and remember the answer."""
        self.may_be_cancelled = True
        task = self.task
        if task is not None:
            self.cancel_said.add(task.cancel())

    def count(self, _task: object) -> None:
        """Its callback."""
        self.told += 1


class Ledger:
    """All entries of a round."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.entries: list[Entry] = []
        self.items: dict[int, int] = {}  # token of a map's item -> runs it may have
        self.came: set[int] = set()  # items whose value came
        self.excused: frozenset[str] = frozenset()  # errors that any task may end in: somebody kills workers
        self.all_cancelled = False
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.innocent_crashes = 0
        self._tokens = itertools.count(1)
        self._lock = threading.Lock()

    def new_token(self) -> int:
        return next(self._tokens)

    def enter(self, entry: Entry) -> None:
        """Before it is handed in: what came of it when `task` stays None is told by whoever did so."""
        with self._lock:
            self.entries.append(entry)

    def blame(self, what: str) -> None:
        """Note a violation."""
        with self._lock:
            self.violations.append(what)

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def close(self, entry: Entry) -> None:
        """Wait for an entry's outcome and check it; drops the value. For the thread that owns the entry."""
        task = entry.task
        if task is None:
            return
        wait_until_done(task, entry)
        outcome, wrong = self._judge(entry, task)
        entry.outcome, entry.attempts, entry.task = outcome, task.attempts, None
        self.count(outcome)
        self.count(f"call {entry.call.name}")
        if wrong:
            self.blame(f"{describe(entry)}: {wrong}")

    def _judge(self, entry: Entry, task: poolkit.Task[Any]) -> tuple[str, str]:
        """How a task ended, and what is wrong about that."""
        if task.cancelled():
            return "cancelled", "" if entry.may_be_cancelled or self.all_cancelled else "nobody cancelled it"
        error = task.exception()
        name = "value" if error is None else type(error).__name__
        call = entry.call
        if True in entry.cancel_said:
            wrong = f"cancel() returned True, and it ended with {error!r}"
        elif error is None:
            is_right = call.is_right is not None and call.is_right(task.result())
            wrong = "" if is_right else f"wrong value {str(task.result())[:100]}"
        elif name in call.errors:
            wrong = "" if call.is_right_error(error) else f"not its own error: {error!r}"
        elif name in call.limits:
            wrong = ""
        elif name in self.excused:
            wrong = ""
            with self._lock:
                self.innocent_crashes += 1
        else:
            wrong = f"ended with {error!r} {getattr(error, '__notes__', '')} {getattr(error, 'stack', '')}"
        return name, wrong

    def close_all(self) -> None:
        """Close what is open, and what callbacks hand in meanwhile, until all have been called."""
        while open_ones := [entry for entry in list(self.entries) if entry.is_open]:
            for entry in open_ones:
                self.close(entry)
                wait_until(lambda entry=entry: not entry.is_open, f"the callback of {describe(entry)}")

    def check_tokens(self) -> None:
        """Close what is open, and compare with the tokens."""
        self.close_all()
        left = Counter(int(line) for line in self.journal.lines())
        for entry in self.entries:
            wrong = self._compare(entry, left.pop(entry.token, 0))
            if wrong:
                self.blame(f"{describe(entry)}: {wrong}")
        for token, runs in self.items.items():
            found = left.pop(token, 0)
            if found > runs or (token in self.came and not found):
                self.blame(f"item {token} of a map left {found} tokens, {runs} allowed, came: {token in self.came}")
        if left:
            self.blame(f"tokens of nobody: {left}")

    def _compare(self, entry: Entry, tokens: int) -> str:
        if not entry.outcome:  # was not accepted
            return f"refused, and left {tokens} tokens" if tokens else ""
        if entry.told != 1:
            return f"told {entry.told} times"
        if not tokens <= entry.attempts <= entry.runs:
            return f"{tokens} tokens, {entry.attempts} attempts, {entry.runs} allowed"
        if entry.outcome == "value" and entry.call.leaves_token and not tokens:
            return "a value without a token"
        return ""


def wait_until_done(task: poolkit.Task[Any], entry: Entry) -> None:
    """Wait for a task, with a limit that finds hangs."""
    try:
        task.exception(timeout=60)
    except poolkit.PoolkitError:  # cancelled
        return
    except TimeoutError:
        wait_until(task.done, f"the end of {describe(entry)}, {task.state}")


def describe(entry: Entry) -> str:
    """An entry in words."""
    said = f", cancel() said {entry.cancel_said}" if entry.cancel_said else ""
    return f"token {entry.token} ({entry.call.name}, {entry.call.options}, {entry.attempts} attempts{said})"


def shown(violations: list[str]) -> list[str]:
    """The first violations, and how many more there are."""
    more = len(violations) - MOST_SHOWN
    return [*violations[:MOST_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
