"""The calls that the soak mixes, each with the value or the errors that it must end in."""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import poolkit
import support_functions as work
import support_objects as objects
from chaos import faults
from soak import jobs
from support_gates import Journal

logging.getLogger("soak").addHandler(logging.NullHandler())
logging.getLogger("soak").propagate = False
LONG = 20.0  # seconds: a limit that only what hangs must meet


def _anything(_error: BaseException) -> bool:
    return True


@dataclass
class Call:
    """A call, and how it must end."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    is_right: Callable[[Any], bool] | None = None  # None: no value may come
    errors: tuple[str, ...] = ()
    is_right_error: Callable[[Any], bool] = _anything
    options: dict[str, Any] = field(default_factory=dict)  # what it needs, or was given on top
    leaves_token: bool = True
    limits: tuple[str, ...] = ()  # errors of the limits that it was given on top


Maker = Callable[["Desk", int], Call]


class Desk:
    """Makes calls for one pool. Owner: one thread."""

    def __init__(self, rng: random.Random, journal: Journal, kind: str, shared: list[Any]) -> None:
        self.rng = rng
        self.journal = journal
        self.shared = shared  # broadcast objects and shared arrays of the round
        self.kind = kind

    def new_call(self, token: int, *, in_loop: bool, sort: str = "") -> Call:
        """A call of any sort, or this, with any options; in an event loop without those that would end the loop."""
        table = EVERYWHERE + (IN_PROCESSES if self.kind == "process" else []) + ([] if in_loop else ENDS_LOOPS)
        weights = [weight for weight, _ in table]
        make = EXCHANGES[sort] if sort else self.rng.choices(table, weights)[0][1]
        call = make(self, token)
        self._add_options(call)
        return call

    def act(self, name: str, token: int, deed: Callable[..., Any], *args: Any, **facts: Any) -> Call:
        """A call that leaves its token."""
        return Call(name, jobs.act, (self.journal, token, deed, *args), **facts)

    def _add_options(self, call: Call) -> None:
        rng, more = self.rng, {}
        if rng.random() < 0.2:
            more["priority"] = rng.randint(-3, 3)
        for name, error in LIMITS.items():
            if rng.random() < 0.05:
                more[name] = rng.choice([0.001, 0.02, 0.3, LONG])
                call.limits += (error,)
        if rng.random() < 0.1:
            more["retries"] = rng.randint(1, 2)
            if rng.random() < 0.3:
                more["retry_on"] = (ValueError, poolkit.TaskTimeout)
        if rng.random() < 0.2:
            more["block"] = False
        call.options = more | call.options


LIMITS = {"timeout": "TaskTimeout", "queue_timeout": "QueueTimeout", "deadline": "DeadlineExceeded"}


# ===== values =====


def quick(desk: Desk, token: int) -> Call:
    return desk.act("quick", token, work.identity, token, is_right=lambda value: value == token)


def without_token(desk: Desk, token: int) -> Call:
    """The smallest call; these travel in batches."""
    return Call("add", work.add, (token, 1), is_right=lambda value: value == token + 1, leaves_token=False)


def by_value(desk: Desk, token: int) -> Call:
    journal = desk.journal

    def closure() -> int:
        journal.write(token)
        return token

    return Call("closure", closure, (), is_right=lambda value: value == token)


def nap(desk: Desk, token: int) -> Call:
    seconds = desk.rng.choice([0.001, 0.005, 0.03])
    return desk.act("nap", token, faults.run_for, seconds, token, is_right=lambda value: value == token)


def coroutine(desk: Desk, token: int) -> Call:
    return Call("async", jobs.act_later, (desk.journal, token, token), is_right=lambda value: value == token)


def flaky(desk: Desk, token: int) -> Call:
    times = desk.rng.randint(1, 2)
    return Call(
        "flaky",
        jobs.fail_first_times,
        (desk.journal, token, times, jobs.lose_connection),
        is_right=lambda attempt: attempt > times,
        errors=("ConnectionError",),
        options={"retries": desk.rng.randint(1, 3), "retry_on": (ConnectionError,)},
    )


def large_bytes(desk: Desk, token: int) -> Call:
    data = desk.rng.randbytes(desk.rng.choice([10, 70_000, 300_000, 1_500_000]))
    turned = data[::-1]
    return desk.act("bytes", token, jobs.reverse, data, is_right=lambda value: value == turned)


def array(desk: Desk, token: int) -> Call:
    count = desk.rng.choice([10, 20_000, 200_000])
    data = np.full(count, token, "u4")
    return desk.act("array", token, jobs.reverse, data, is_right=lambda value: bool((value == token).all()))


def broadcast(desk: Desk, token: int) -> Call:
    handle, total = desk.shared[0]
    return desk.act("broadcast", token, jobs.sum_of, handle, is_right=lambda value: value == total)


def shared_array(desk: Desk, token: int) -> Call:
    handle, total = desk.shared[1]
    return desk.act("shared array", token, work.collect, handle, is_right=lambda value: _sum(value) == total)


def own_shared_array(desk: Desk, token: int) -> Call:
    mine = poolkit.SharedArray(1_000, "u4")

    def is_right(value: Any) -> bool:
        return bool(value == token and (mine.array == token).all())

    return desk.act("own shared array", token, jobs.fill, mine, token, is_right=is_right)


def _sum(value: Any) -> int:
    (((handle,), _)) = value
    return int(handle.array.sum())


def logs(desk: Desk, token: int) -> Call:
    return desk.act("log", token, jobs.log, token, is_right=lambda value: value == token)


def stream(desk: Desk, token: int) -> Call:
    rng = desk.rng
    end = rng.choice(["return"] * 6 + ["raise", "die" if desk.kind == "process" else "raise"])
    is_async = rng.random() < 0.3
    return Call(
        "stream",
        jobs.count_up_async if is_async else jobs.count_up,
        (desk.journal, token, rng.choice([0, 1, 5, 40, 300]), rng.choice([0, 0, 80, 200_000]), end),
        is_right=lambda value: end == "return" and value == (None if is_async else token),
        errors={"return": (), "raise": ("LookupError",), "die": ("WorkerCrashed",)}[end],
        options={"buffersize": rng.choice([None, 1, 2, 7])},
    )


def talk(desk: Desk, token: int) -> Call:
    is_answered = desk.rng.random() < 0.7
    count = desk.rng.choice([1, 20, 100] if is_answered else [1, 20, 2_000])
    args = desk.journal, token, count, is_answered
    return Call("talk", jobs.ask, args, is_right=lambda value: value == token)


# ===== errors =====


def raises(desk: Desk, token: int) -> Call:
    return desk.act(
        "raise", token, jobs.raise_numbered, token, errors=("ValueError",), is_right_error=lambda e: e.args == (token,)
    )


def exits(desk: Desk, token: int) -> Call:
    return desk.act("sys.exit", token, work.exit_python, 3, errors=("SystemExit",))


def interrupts(desk: Desk, token: int) -> Call:
    return desk.act("KeyboardInterrupt", token, work.interrupt, errors=("KeyboardInterrupt",))


def endless(desk: Desk, token: int) -> Call:
    limit = desk.rng.choice([0.02, 0.1, 0.3])
    return desk.act("endless", token, jobs.spin_until_asked, errors=("TaskTimeout",), options={"timeout": limit})


# ===== what only processes survive =====


def dies(desk: Desk, token: int) -> Call:
    number = desk.rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])

    def is_right_error(error: poolkit.WorkerCrashed) -> bool:
        return error.signal in {number.name, "SIGKILL"}  # somebody else may have been faster

    return desk.act("die", token, work.die, number, errors=("WorkerCrashed",), is_right_error=is_right_error)


def leaves(desk: Desk, token: int) -> Call:
    return desk.act("_exit", token, work.leave, desk.rng.choice([0, 1, 77]), errors=("WorkerCrashed",))


def segfaults(desk: Desk, token: int) -> Call:
    return desk.act("segfault", token, work.segfault, errors=("WorkerCrashed",))


def dies_first(desk: Desk, token: int) -> Call:
    return Call(
        "die, then not",
        jobs.fail_first_times,
        (desk.journal, token, 1, work.die),
        is_right=lambda attempt: attempt > 1,
        errors=("WorkerCrashed",),
        options={"retries": 2},
    )


def hangs(desk: Desk, token: int) -> Call:
    deed, *args = desk.rng.choice([(work.hold_the_gil,), (faults.sleep_forever,), (faults.do, "stop")])
    limit = desk.rng.choice([0.02, 0.1, 0.3])
    return desk.act("hang", token, deed, *args, errors=("TaskTimeout",), options={"timeout": limit})


def bad_argument(desk: Desk, token: int) -> Call:
    bad, error, limit = desk.rng.choice(
        [
            (objects.RaisesOnPickle(), "SerializationError", LONG),
            (objects.make_unpicklable(), "SerializationError", LONG),
            (objects.RaisesOnUnpickle(), "ValueError", LONG),
            (objects.DiesOnUnpickle(os.getpid()), "WorkerCrashed", LONG),
            (objects.HangsOnUnpickle(), "TaskTimeout", 0.1),
        ]
    )
    return desk.act(
        "bad argument", token, work.none_of_it, bad, errors=(error, "TaskTimeout"), options={"timeout": limit}
    )


def bad_result(desk: Desk, token: int) -> Call:
    make, args, error = desk.rng.choice(
        [
            (objects.make_unpicklable, (), "SerializationError"),
            (objects.make_bad_here, (os.getpid(),), "LookupError"),
            (faults.make_trap, (faults.Trap("pickle", "kill", os.getpid()),), "WorkerCrashed"),
            (work.raise_lost, (), "RemoteError"),
        ]
    )
    return desk.act("bad result", token, make, *args, errors=(error,))


def grows(desk: Desk, token: int) -> Call:
    """So that a worker with a limit on memory is replaced."""
    return desk.act("grow", token, work.grow, 20_000_000, is_right=lambda value: value > 0)


def grows_for_ever(desk: Desk, token: int) -> Call:
    limit = 300_000_000
    return desk.act(
        "grow for ever",
        token,
        jobs.grow_for_ever,
        errors=("MemoryLimitExceeded",),
        is_right_error=lambda error: error.limit == limit < error.used,
        options={"memory_limit": limit},
    )


EXCHANGES: dict[str, Maker] = {"stream": stream, "talk": talk}
EVERYWHERE: list[tuple[float, Maker]] = [
    (30, quick),
    (20, without_token),
    (10, by_value),
    (10, nap),
    (5, coroutine),
    (3, flaky),
    (5, large_bytes),
    (5, array),
    (4, broadcast),
    (4, shared_array),
    (2, own_shared_array),
    (1, logs),
    (8, raises),
    (0.5, endless),
]
IN_PROCESSES: list[tuple[float, Maker]] = [
    (2, dies),
    (1, leaves),
    (0.5, segfaults),
    (1, dies_first),
    (1, hangs),
    (2, bad_argument),
    (2, bad_result),
    (0.5, grows),
    (0.3, grows_for_ever),
]
ENDS_LOOPS: list[tuple[float, Maker]] = [(1, exits), (1, interrupts)]  # asyncio lets these through
