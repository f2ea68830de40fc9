"""The failure model, row by row: what happens to that task, to the others, and to the pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import poolkit
import support
import support_functions as work
import support_objects as objects
from poolkit import InitializerFailed, SerializationError, TaskCancelled, TaskTimeout, WorkerCrashed
from support import WATCHDOG, parent_of, wait_for_exit


def check_others(pool, before=()):
    """The other tasks have their own results, and the pool goes on at its full size."""
    assert [task.result() for task in before] == [number**2 for number in range(len(before))]
    tasks = [pool.submit(work.square, number) for number in range(5)]
    assert [task.result() for task in tasks] == [0, 1, 4, 9, 16]
    pool.warm_up()
    assert sum(pool.stats().workers[state] for state in ("idle", "busy")) == pool.max_workers


def test_task_raises(pool):
    first = pool.submit(work.none_of_it)
    failing = pool.submit(work.raise_value_error, "no")
    last = pool.submit(work.none_of_it)
    assert [type(task.exception()) for task in (first, failing, last)] == [type(None), ValueError, type(None)]
    assert first.worker_id == failing.worker_id == last.worker_id
    check_others(pool)


@pytest.mark.needs("crash")
@pytest.mark.parametrize(
    ("function", "arguments", "facts"),
    [
        pytest.param(work.die, (signal.SIGKILL,), ("SIGKILL", None), id="SIGKILL"),
        pytest.param(work.die, (signal.SIGTERM,), ("SIGTERM", None), id="SIGTERM"),
        pytest.param(work.segfault, (), ("SIGSEGV", None), id="SIGSEGV"),
        pytest.param(work.leave, (0,), (None, 0), id="exit-0"),
        pytest.param(work.leave, (3,), (None, 3), id="exit-3"),
    ],
)
def test_worker_dies_in_a_task(make_pool, hold, function, arguments, facts):
    pool = make_pool(2)
    held = hold(pool, "kept")
    dying = pool.submit(function, *arguments)
    others = [pool.submit(work.square, number) for number in range(5)]
    error = dying.exception()
    assert type(error) is WorkerCrashed
    assert (error.signal, error.exitcode, dying.attempts) == (*facts, 1)
    check_others(pool, others)
    held.release()
    assert held.task.result() == "kept"
    assert (pool.stats().crashed, pool.stats().respawned) == (1, 1)


@pytest.mark.needs("crash", "recall")
def test_worker_dies_in_a_task_and_what_was_sent_behind_it_runs_elsewhere_once(pool, send_ahead, journal):
    tasks = []
    held = send_ahead(
        pool, lambda quick: tasks.extend(quick.submit(work.write_line, journal, number) for number in range(5))
    )
    (worker,) = pool.workers()
    os.kill(worker.pid, signal.SIGKILL)
    assert type(held.task.exception()) is WorkerCrashed
    assert [task.result() for task in tasks] == list(range(5))
    assert journal.lines() == ["0", "1", "2", "3", "4"]
    assert [task.attempts for task in tasks] == [1] * 5


@pytest.mark.needs("crash", "here")
def test_worker_dies_idle(make_pool, recorder):
    pool = make_pool(2)
    pool.warm_up()
    pool.on("worker_exited", recorder)
    victim = pool.workers()[0]
    os.kill(victim.pid, signal.SIGKILL)
    event = recorder.next()
    assert (event.worker_id, event.pid, event.signal, event.cause) == (victim.id, victim.pid, "SIGKILL", "crashed")
    check_others(pool)
    assert (pool.stats().failed, pool.stats().respawned) == (0, 1)
    assert victim.pid not in {worker.pid for worker in pool.workers()}


@pytest.mark.needs("real_time", "kill_running")
def test_run_time_limit(make_pool, hold):
    pool = make_pool(2, initializer=work.none_of_it)  # so that it does not import within the limit, but spins
    held = hold(pool, "kept")
    stuck = pool.options(timeout=0.3).submit(work.spin)
    others = [pool.submit(work.square, number) for number in range(5)]
    error = stuck.exception()
    assert type(error) is TaskTimeout
    assert "in spin" in error.stack
    check_others(pool, others)
    held.release()
    assert held.task.result() == "kept"


@pytest.mark.needs("kill_running")
def test_cancel(make_pool, hold, new_gate, journal):
    pool, arrived = make_pool(2), new_gate()
    held = hold(pool, "kept")
    running = pool.submit(work.spin, arrived)
    queued = pool.submit(work.write_line, journal, "ran")
    others = [pool.submit(work.square, number) for number in range(5)]
    arrived.wait()
    for task in (queued, running):
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result()
    check_others(pool, others)
    held.release()
    assert held.task.result() == "kept"
    assert journal.lines() == []


@pytest.mark.needs("by_value")
def test_argument_cannot_be_pickled(pool):
    before = [pool.submit(work.square, number) for number in range(5)]
    failing = pool.submit(work.identity, {"part": objects.RaisesOnPickle()})
    error = failing.exception()
    assert type(error) is SerializationError
    assert 'args[0]["part"]' in str(error)
    assert (failing.state, failing.attempts) == ("failed", 0)
    check_others(pool, before)


@pytest.mark.needs("by_value")
def test_argument_cannot_be_unpickled(pool):
    failing = pool.submit(work.identity, objects.RaisesOnUnpickle())
    with pytest.raises(ValueError, match="cannot be unpickled"):
        failing.result()
    check_others(pool)


@pytest.mark.needs("crash")
def test_argument_kills_the_worker_while_it_is_unpickled(pool):
    failing = pool.submit(work.identity, objects.DiesOnUnpickle(os.getpid()))
    others = [pool.submit(work.square, number) for number in range(5)]
    assert type(failing.exception()) is WorkerCrashed
    check_others(pool, others)


@pytest.mark.needs("process", "real_time")
def test_argument_hangs_while_it_is_unpickled(pool):
    failing = pool.options(timeout=0.2).submit(work.identity, objects.HangsOnUnpickle())
    others = [pool.submit(work.square, number) for number in range(5)]
    assert type(failing.exception()) is TaskTimeout
    check_others(pool, others)


@pytest.mark.needs("by_value")
def test_result_cannot_be_pickled(pool):
    failing = pool.submit(objects.make_unpicklable)
    others = [pool.submit(work.square, number) for number in range(5)]
    assert type(failing.exception()) is SerializationError
    check_others(pool, others)


@pytest.mark.needs("by_value")
def test_result_cannot_be_unpickled_here(pool):
    failing = pool.submit(objects.make_bad_here, os.getpid())
    others = [pool.submit(work.square, number) for number in range(5)]
    with pytest.raises(LookupError, match="cannot be unpickled here"):
        failing.result()
    assert failing.state == "failed"
    check_others(pool, others)


@pytest.mark.each_start_method
def test_initializer_raises(make_pool, journal):
    pool = make_pool(2, initializer=work.write_and_raise, initargs=(journal, "run", "not today"))
    tasks = []
    with pytest.raises(InitializerFailed):
        while True:
            tasks.append(pool.submit(work.none_of_it))
    for task in tasks:
        error = task.exception()
        assert type(error) is InitializerFailed
        assert (type(error.__cause__), str(error.__cause__)) == (ValueError, "not today")
    with pytest.raises(InitializerFailed, match="not today"):
        pool.submit(work.none_of_it)
    pool.shutdown()
    assert 1 <= len(journal.lines()) <= 2


@pytest.mark.each_start_method
@pytest.mark.needs("crash")
def test_initializer_dies(make_pool):
    pool = make_pool(initializer=work.die_to_initialize)
    with pytest.raises(WorkerCrashed, match="before they were ready"):
        pool.submit(work.none_of_it).result()


@pytest.mark.each_start_method
@pytest.mark.needs("process", "here")
def test_template_dies(make_pool, hold):
    pool = make_pool(2)
    held = [hold(pool), hold(pool)]
    queued = [pool.submit(work.square, number) for number in range(5)]
    pids = [worker.pid for worker in pool.workers()]
    template = parent_of(pids[0])
    os.kill(template, signal.SIGKILL)
    for one in held:
        assert type(one.task.exception()) is WorkerCrashed
    check_others(pool, queued)
    wait_for_exit(*pids)
    assert parent_of(pool.workers()[0].pid) != template


# ===== the owner: programs of their own =====

PROGRAM = """\
import os, sys
import poolkit, support_gates, support_functions as work
gate, journal = support_gates.Gate(sys.argv[1]), support_gates.Journal(sys.argv[2])
pool = poolkit.Pool(2, **{settings!r})
"""


@pytest.fixture
def start_owner(kind, new_gate, journal):
    """Start a program that owns a pool of this kind; returns it and the gate by which it tells that it is ready."""
    programs = []

    def start(body):
        gate = new_gate()
        paths = [os.path.dirname(support.__file__), *(os.path.dirname(path) for path in poolkit.__path__)]  # noqa: PTH120
        programs.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(settings=kind.settings) + body, gate.path, journal.path],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return programs[-1], gate

    yield start
    for program in programs:
        program.kill()
        program.communicate()


@pytest.mark.each_start_method
@pytest.mark.needs("process")
@pytest.mark.slow
def test_the_owner_is_killed(start_owner):
    program, gate = start_owner("""
for _ in range(2):
    pool.submit(work.hold_the_gil, gate)
pool.submit(work.none_of_it).result()
""")
    gate.wait(2)
    family = support.descendants()
    assert len(family) == 4
    program.kill()
    wait_for_exit(*family)


@pytest.mark.needs("background")
@pytest.mark.slow
def test_the_owner_forks(start_owner):
    program, _ = start_owner("""
before = pool.submit(work.add, 1, 2)
pid = os.fork()
if pid == 0:
    try:
        pool.submit(work.add, 1, 2)
    except poolkit.PoolClosed:
        os._exit(42)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), before.result(), pool.submit(work.add, 3, 4).result())
pool.shutdown()
""")
    out, err = program.communicate(timeout=WATCHDOG)
    assert (out, err, program.returncode) == ("42 3 7\n", "", 0)


@pytest.mark.needs("process")
@pytest.mark.slow
def test_ctrl_c(start_owner):
    program, gate = start_owner("""
with pool:
    pool.submit(work.spin, gate).result()
""")
    gate.wait()
    family = support.descendants()
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=WATCHDOG)
    assert (out, program.returncode) == ("", -signal.SIGINT)
    assert (err.count("Traceback"), err.count("KeyboardInterrupt")) == (1, 1)
    wait_for_exit(*family)


@pytest.mark.each_start_method
@pytest.mark.needs("background")
@pytest.mark.slow
def test_interpreter_exits_without_shutdown(start_owner, journal):
    program, _ = start_owner("""
for number in range(20):
    pool.submit(work.write_line, journal, number)
""")
    out, err = program.communicate(timeout=WATCHDOG)
    assert (out, err, program.returncode) == ("", "", 0)
    assert sorted(map(int, journal.lines())) == list(range(20))
