"""Fake and real pools go by the same rules: random programs have the same outcomes on both.

A program holds the workers, hands in calls of every sort, cancels some, changes the size, lets go, and shuts down in
one of the ways there are. What can be told from outside is compared: each task's state, value or error, attempts, the
order in which one worker ran them, and the pool's counts.
POOLKIT_PROGRAMS says how many; the default is a slice that fits a build.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
from hypothesis import strategies as st

import poolkit
import support_functions as work
from chaos import faults
from poolkit.testing import FakePool, WhenCommand
from support import wait_until
from support_gates import Gate

pytestmark = pytest.mark.slow

PROGRAMS = int(os.environ.get("POOLKIT_PROGRAMS", "60"))
LIMIT = 0.03  # seconds; what has a limit hangs, so no ordinary task meets it
MOMENT = 0.01  # seconds that a wait in vain lasts
HELD = 1000.0  # virtual seconds, of which no program waits as many in vain


def value(number: int) -> int:
    return number


def hang(number: int) -> NoReturn:
    faults.sleep_forever()


def crash(number: int) -> None:
    work.die()


def leave(number: int) -> None:
    os._exit(3)


def fail(number: int) -> None:
    raise LookupError(number)


def return_what_cannot_travel(number: int) -> object:
    return (number for _ in ())


def take_anything(argument: object) -> object:
    return argument


SORTS: dict[str, Callable[..., object]] = {
    "value": value,
    "crash": crash,
    "leave": leave,
    "fail": fail,
    "hang": hang,
    "unpicklable result": return_what_cannot_travel,
    "unpicklable argument": take_anything,
}
CALLS = st.fixed_dictionaries(
    {"sort": st.sampled_from(["value", "value", "value", *SORTS]), "priority": st.integers(-1, 1)},
    optional={
        "retries": st.integers(0, 1),
        "retry_on": st.sampled_from([(LookupError,), (poolkit.TaskTimeout,), (poolkit.WorkerCrashed,)]),
    },
)
# While all workers are held, so that both pools are asked in the same state. What lets tasks begin comes at the end.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), CALLS),
        st.tuples(st.just("submit"), CALLS),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("shrink"), st.just(1)),
        st.tuples(st.just("wait"), st.sampled_from([FIRST_COMPLETED, ALL_COMPLETED])),
        st.tuples(st.just("as_completed"), st.none()),
        st.tuples(st.just("map"), st.booleans()),
    ),
    min_size=1,
    max_size=10,
)
ENDS = st.sampled_from(["wait", "wait", "wait", "grow", "cancel held", "cancel_all", "cancel_futures", "kill"])


class Real:
    """A pool of processes, all held until they are let go."""

    def __init__(self, size: int, gates: Callable[[], Gate], **limits: int | None) -> None:
        self.pool = faults.new_pool(size, preload=["property.test_differential"], **limits)
        arrived, self._release = gates(), gates()
        self.held = [self.pool.submit(work.arrive_and_wait, arrived, self._release) for _ in range(size)]
        arrived.wait(size)

    def let_go(self) -> None:
        self._release.signal(len(self.held))


def hold() -> None:
    """Stands for a task that is held."""


class Fake:
    """The same in the books; what would end or keep a process is scripted."""

    def __init__(self, size: int, seed: int, **limits: int | None) -> None:
        self.pool = FakePool("manual", max_workers=size, seed=seed, **limits)
        for fn in SORTS.values():  # a moment, so that one can tell which began earlier
            self.pool.when(fn).takes(0.0001)
        self.pool.when(crash).crashes("SIGKILL").takes(0.0001)
        self.pool.when(leave).crashes(exitcode=3).takes(0.0001)
        self.pool.when(hang).hangs()
        self.pool.when(hold).takes(HELD)
        self.held = [self.pool.submit(hold) for _ in range(size)]
        for _ in range(size):
            self.pool.run_next()

    def let_go(self) -> None:
        self.pool.advance(HELD)


def describe(task: poolkit.Task[Any]) -> tuple[Any, ...]:
    """What can be told of a settled task."""
    if task.cancelled():
        return ("cancelled", task.attempts)
    error = task.exception()
    if error is None:
        return ("succeeded", task.result(), task.attempts)
    facts: tuple[object, ...] = ()
    if isinstance(error, poolkit.WorkerCrashed):
        facts = (error.signal, error.exitcode, None if error.signal else error.hint)  # of a kill, the kernel knows more
    elif isinstance(error, LookupError):
        facts = error.args
    elif isinstance(error, poolkit.TaskTimeout):
        facts = (error.timeout,)  # a worker that is short of time dies without a stack
    return (type(error).__name__, *facts, task.attempts)


def known(tasks: list[poolkit.Task[Any] | None]) -> list[poolkit.Task[Any]]:
    return [task for task in tasks if task is not None]


def those_completed(tasks: list[poolkit.Task[Any]]) -> list[poolkit.Task[Any]]:
    done = []
    with contextlib.suppress(concurrent.futures.TimeoutError):
        for task in concurrent.futures.as_completed(tasks, timeout=MOMENT):
            done.append(task)  # noqa: PERF402 -- what came before the error counts
    return done


def mapped(pool: poolkit.Pool, *, ordered: bool) -> object:
    """What comes of a `map` while all workers are held."""
    try:
        return list(pool.options(block=False).map(value, range(3), timeout=MOMENT, chunksize=1, ordered=ordered))
    except (poolkit.QueueFull, TimeoutError) as exc:
        return type(exc).__name__


def submit(pool: poolkit.Pool, options: dict[str, Any], number: int) -> poolkit.Task[Any] | None:
    options = dict(options)
    sort = options.pop("sort")
    if sort == "hang":
        options["timeout"] = LIMIT
    argument = (None for _ in ()) if sort == "unpicklable argument" else number
    try:
        return pool.options(block=False, **options).submit(SORTS[sort], argument)
    except poolkit.QueueFull:
        return None


def take(pool: poolkit.Pool, tasks: list[poolkit.Task[Any] | None], what: str, given: Any) -> object:
    """Take one step of a program; returns what comes of it at once."""
    if what == "submit":
        tasks.append(submit(pool, given, len(tasks)))
    elif what == "cancel":
        victim = tasks[given % len(tasks)] if tasks else None
        return victim is not None and victim.cancel()
    elif what == "wait":
        done, _ = concurrent.futures.wait(known(tasks), timeout=MOMENT, return_when=given)
        return sorted(map(tasks.index, done))
    elif what == "as_completed":
        return sorted(map(tasks.index, those_completed(known(tasks))))
    elif what == "map":
        return mapped(pool, ordered=given)
    else:
        pool.resize(given)
    return None


def run(side: Real | Fake, steps: list[tuple[str, Any]], end: str) -> dict[str, Any]:
    """Run a program; returns what was seen."""
    pool = side.pool
    tasks: list[poolkit.Task[Any] | None] = []
    answers = [take(pool, tasks, what, given) for what, given in steps]
    if end == "grow":
        pool.resize(3)
    elif end == "cancel held":
        answers += [task.cancel() for task in side.held]
    elif end == "cancel_all":
        pool.cancel_all()
    elif end != "wait":
        pool.shutdown(wait=False, cancel_futures=True, kill=end == "kill")
    side.let_go()
    pool.shutdown()
    stats = pool.stats()
    began = [task for task in tasks if task is not None and task.started_at is not None]
    one_by_one = (
        len(side.held) == 1
        and end != "grow"
        and not any(call.get("retries") for _, call in steps if type(call) is dict)
    )
    counts = ("submitted", "succeeded", "failed", "cancelled", "timed_out", "crashed", "retried")
    return {
        "answers": answers,
        "held": [task.cancelled() for task in side.held],
        "tasks": [None if task is None else describe(task) for task in tasks],
        "order": [tasks.index(task) for task in sorted(began, key=lambda task: task.started_at or 0.0)]
        if one_by_one
        else [],
        "counts": {name: getattr(stats, name) for name in counts},
    }


@pytest.mark.long
@hypothesis.settings(max_examples=PROGRAMS)
@hypothesis.given(
    size=st.integers(1, 2),
    max_queue=st.sampled_from([None, None, 2, 4]),
    max_tasks_per_child=st.sampled_from([None, None, 1, 2]),
    seed=st.integers(0, 3),
    steps=STEPS,
    end=ENDS,
)
def test_programs_have_the_same_outcomes_on_fake_and_real_pools(
    size: int,
    max_queue: int | None,
    max_tasks_per_child: int | None,
    seed: int,
    steps: list[tuple[str, Any]],
    end: str,
) -> None:
    limits = {"max_queue": max_queue, "max_tasks_per_child": max_tasks_per_child}
    numbers = itertools.count()
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:

        def gates() -> Gate:
            gate = Gate.create(Path(folder) / f"gate-{next(numbers)}")
            stack.callback(gate.close)
            return gate

        real = run(Real(size, gates, **limits), steps, end)
        fake = run(Fake(size, seed, **limits), steps, end)
    assert fake == real


# ===== commands =====

# For each sort what is really run, what a fake is told of it, and with which options.
Told = Callable[[WhenCommand], object]
SCRIPTS: dict[str, tuple[str, Told, dict[str, Any]]] = {
    "prints": ("echo out; echo err >&2", lambda when: when.prints("out").prints("err", to="stderr"), {}),
    "code": ("echo out; echo bad >&2; exit 3", lambda when: when.prints("out").exits(3, stderr="bad\n"), {}),
    "signal": ("kill -KILL $$", lambda when: when.killed("SIGKILL"), {}),
    "floods": ("exec yes", lambda when: when.prints(*["y"] * 1000).hangs(), {"max_output": 1000, "stdout": "capture"}),
    "hangs": ("exec sleep 99", lambda when: when.hangs(), {"timeout": LIMIT}),
    "ignores": (
        "trap '' TERM; while :; do sleep 9; done",
        lambda when: when.hangs(ignores_stop=True),
        {"timeout": LIMIT, "grace": LIMIT},
    ),
    "reads": ("cat", lambda when: when.returns(stdout="in"), {"input": "in", "text": True}),
    "missing": ("", lambda when: when.not_found(), {}),
}
ENDLESS = "echo ready; exec sleep 99"
ASKED = st.fixed_dictionaries(
    {"sort": st.sampled_from(sorted(SCRIPTS))},
    optional={
        "check": st.sampled_from([False, [3]]),
        "stdout": st.sampled_from(["lines", "null"]),
        "stderr": st.sampled_from(["stdout", "null"]),
        "retry_on": st.sampled_from([(poolkit.CommandFailed,), (poolkit.TaskTimeout,), (OSError,)]),
        "text": st.booleans(),
    },
)
ORDERS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), ASKED),
        st.tuples(st.just("run"), ASKED),
        st.tuples(st.just("spawn"), ASKED),
        st.tuples(st.sampled_from(["cancel", "stop"]), st.integers(0, 20)),
        st.tuples(st.sampled_from(["spawn and cancel", "spawn and stop"]), st.none()),
        st.tuples(st.just("shrink"), st.none()),
    ),
    min_size=1,
    max_size=8,
)
LEAVES = st.sampled_from(["end", "end", "stop", "cancel", "cancel_all", "cancel_futures", "kill"])


def started(
    pool: poolkit.Pool, options: dict[str, Any], start: Callable[..., poolkit.Command[Any]] | None = None
) -> Any:
    """Start a command of a sort, in a queue or by `start`."""
    options = dict(options)
    script, _, own = SCRIPTS[options.pop("sort")]
    argv = ["sh", "-c", script] if script else ["no-such-program"]
    retry_on = options.pop("retry_on", None)
    if start is None:
        start = pool.run if retry_on is None else pool.options(retries=1, retry_on=retry_on).run
    return start(argv, **{**options, **own})


def described(command: poolkit.Command[Any]) -> tuple[Any, ...]:
    """What can be told of a settled command."""
    if command.cancelled():
        return ("cancelled", command.attempts)
    error = command.exception()
    if error is None:
        done = command.result()
        return ("succeeded", done.returncode, done.signal, done.stdout, done.stderr, command.attempts)
    facts: tuple[object, ...] = ()
    if isinstance(error, poolkit.CommandFailed):
        facts = (error.returncode, error.signal, error.stdout, error.stderr)
    elif isinstance(error, FileNotFoundError):
        facts = (error.errno, error.filename, error.strerror)
    elif isinstance(error, poolkit.TaskTimeout):
        assert error.completed is not None
        facts = (error.timeout, error.completed.stdout)
    return (type(error).__name__, *facts, command.attempts)


def obey(pool: poolkit.Pool, held: list[Any], orders: list[tuple[str, Any]], leave: str) -> dict[str, Any]:
    """Give these orders while all places are held; returns what comes of it."""
    queued: list[poolkit.Command[Any]] = []
    spawned: list[poolkit.Command[Any]] = []
    answers: list[object] = []
    for what, given in orders:
        if what == "run":
            queued.append(started(pool, given))
        elif what == "spawn":
            spawned.append(started(pool, given, poolkit.spawn))
        elif what == "shrink":
            pool.resize(1)
        elif what.startswith("spawn and "):
            endless = poolkit.spawn(["sh", "-c", ENDLESS])
            spawned.append(endless)
            answers.append(next(endless.lines()))  # it has begun
            answers.append(getattr(endless, what.removeprefix("spawn and "))())
        elif queued:
            answers.append(getattr(queued[given % len(queued)], what)())
    if leave == "cancel_all":
        pool.cancel_all()
    elif leave in {"cancel_futures", "kill"}:
        pool.shutdown(wait=False, cancel_futures=True, kill=leave == "kill")
    for command in held:
        {"stop": command.stop, "cancel": command.cancel}.get(leave, command.close_stdin)()
    pool.shutdown()
    stats = pool.stats()
    counts = ("submitted", "succeeded", "failed", "cancelled", "timed_out", "retried")
    began = [command for command in queued if command.started_at is not None]
    return {
        "answers": answers,
        "held": [described(command) for command in held],
        "queued": [described(command) for command in queued],
        "spawned": [described(command) for command in spawned if concurrent.futures.wait([command])],
        "order": sorted(range(len(began)), key=lambda place: began[place].started_at or 0.0)
        if len(held) == 1 and not stats.retried
        else [],
        "counts": {name: getattr(stats, name) for name in counts},
    }


@hypothesis.settings(max_examples=int(os.environ.get("POOLKIT_PROGRAMS", "10")))
@hypothesis.given(
    size=st.integers(1, 2),
    mode=st.sampled_from(["eager", "manual"]),
    seed=st.integers(0, 3),
    orders=ORDERS,
    leave=LEAVES,
)
def test_commands_have_the_same_outcomes_on_fake_and_real_pools(
    size: int, mode: str, seed: int, orders: list[tuple[str, Any]], leave: str
) -> None:
    with poolkit.Pool(size, kind="thread") as pool, poolkit.use_pool(pool):
        held = [pool.run(["cat"], stdin="pipe") for _ in range(size)]
        wait_until(lambda: all(command.pid for command in held), "their starts")
        real = obey(pool, held, orders, leave)
    with FakePool(mode, max_workers=size, seed=seed) as pretended, poolkit.use_pool(pretended):
        pretended.when_command("cat")
        pretended.when_command("sh", "-c", ENDLESS).prints("ready").hangs()
        for script, tell, _ in SCRIPTS.values():
            tell(pretended.when_command("sh", "-c", script) if script else pretended.when_command("no-such-program"))
        held = [pretended.run(["cat"], stdin="pipe") for _ in range(size)]
        while pretended.run_next():
            pass
        fake = obey(pretended, held, orders, leave)
    assert fake == real
