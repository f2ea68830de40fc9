"""Where busy workers are, without harm to what they run."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest

import poolkit
import support_evidence as tasks
import support_functions as work
from poolkit import TaskTimeout, _os
from support import wait_until

pytestmark = pytest.mark.needs("here")


def wait_at(arrived, release):
    arrived.signal()
    release.wait()
    return "on"


def wait_for_mail(arrived):
    arrived.signal()
    return poolkit.current_task().receive()


def tell_and(arrived, function, *args):
    arrived.signal()
    return function(*args)


def compute_with_threads(arrived, release):
    """Sum up in several threads until told to stop; and see that nothing was raised in any."""
    over, sums = threading.Event(), []

    def run():
        total = 0
        while not over.is_set():
            total += sum(number * number for number in range(50)) == 40425
        sums.append(total)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    waiter = threading.Thread(target=lambda: (release.wait(), over.set()))
    waiter.start()
    arrived.signal()
    run()
    for thread in (*threads, waiter):
        thread.join()
    return len(sums)


def find(pool, name):
    """The stack of the only worker, once that function is in it."""
    found = []
    wait_until(lambda: found.append(pool.stacks(20.0).get(1, "")) or f" in {name}" in found[-1])
    return found[-1]


@pytest.mark.each_start_method
@pytest.mark.needs("background")
def test_the_stack_of_each_busy_worker_begins_with_its_innermost_line(make_pool, new_gate):
    pool = make_pool(2)
    assert pool.stacks() == {}
    pool.warm_up()
    arrived, release = new_gate(), new_gate()
    task = pool.submit(wait_at, arrived, release)
    arrived.wait()
    busy = task.worker_id
    stacks = {}
    wait_until(lambda: stacks.update(pool.stacks(20.0)) or "wait_at" in stacks.get(busy, ""))
    assert list(stacks) == [busy]
    lines = stacks[busy].splitlines()
    assert all(line.startswith('  File "') for line in lines)
    assert lines[-1].endswith(" in wait_at")
    assert "/poolkit/" not in stacks[busy]
    release.signal()
    assert task.result() == "on"
    wait_until(lambda: pool.stacks() == {})


@pytest.mark.needs("background")
def test_a_task_that_waits_for_a_message_is_shown_in_its_own_code(pool, new_gate):
    arrived = new_gate()
    task = pool.submit(wait_for_mail, arrived)
    arrived.wait()
    assert find(pool, "wait_for_mail").splitlines()[-1].endswith(" in wait_for_mail")
    task.send("mail")
    assert task.result() == "mail"


@pytest.mark.needs("process")
def test_c_code_that_holds_the_interpreter_is_looked_at_as_often_as_asked(pool, new_gate):
    """And what is kept for a crash, or a limit, is that of the crash and the limit."""
    arrived = new_gate()
    task = pool.submit(tell_and, arrived, tasks.match_for_ever)
    arrived.wait()
    wait_until(lambda: pool.stacks(1.0)[1].partition("\n")[0].endswith(" in match"))  # it has read the expression
    first = find(pool, "match_for_ever")
    board = pool._supervisor.workforce._workers[1].board
    written = board.written_to()
    for _ in range(20):
        assert pool.stacks(20.0) == {1: first}
    assert board.written_to() == written
    os.kill(pool.workers()[0].pid, signal.SIGSEGV)
    assert task.exception().stack == first


@pytest.mark.needs("process")
def test_the_room_for_evidence_is_used_again(pool, new_gate):
    """Each look at a worker in C has faulthandler write; the first that is answered in Python makes room."""
    pool.submit(work.none_of_it).result()
    board = pool._supervisor.workforce._workers[1].board
    beginning = board.written_to()
    for _ in range(3):
        arrived, release = new_gate(), new_gate()
        hidden = pool.submit(tell_and, arrived, hold_until, release.path, arrived)
        arrived.wait()
        wait_until(lambda: pool.stacks(1.0) and board.written_to() > beginning)
        assert "hold_until" in find(pool, "hold_until")
        release.signal()
        arrived.wait()
        find(pool, "wait")
        assert board.written_to() == beginning
        release.signal()
        hidden.result()
    assert pool.submit(tasks.crash).exception().stack.count("\n") == 0


def hold_until(path, arrived):
    """Wait for a gate in C with the interpreter's lock held, tell, and wait once more."""
    import ctypes

    from support_gates import Gate

    libc = ctypes.PyDLL(None)
    fd = libc.open(path.encode(), os.O_RDONLY)
    libc.read(fd, ctypes.create_string_buffer(1), 1)
    os.close(fd)
    arrived.signal()
    Gate(path).wait()


@pytest.mark.each_start_method
@pytest.mark.needs("background", "kill_running")
def test_looks_harm_no_task(pool, new_gate):
    arrived, release = new_gate(), new_gate()
    task = pool.submit(compute_with_threads, arrived, release)
    arrived.wait()
    for _ in range(40):
        assert list(pool.stacks(20.0)) == [1]
    release.signal()
    assert task.result() == 4
    assert pool.stats().respawned == 0


@pytest.mark.needs("process")
def test_a_worker_that_does_not_answer_has_none_and_goes_on(pool, new_gate):
    arrived, release = new_gate(), new_gate()
    task = pool.submit(wait_at, arrived, release)
    arrived.wait()
    pid = pool.workers()[0].pid
    os.kill(pid, signal.SIGSTOP)
    assert pool.stacks(0.05) == {1: ""}
    assert pool.stacks(0) == {1: ""}
    os.kill(pid, signal.SIGCONT)
    assert "wait_at" in find(pool, "wait_at")
    release.signal()
    assert task.result() == "on"


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.needs("kill_running", "real_time")
def test_a_limit_tells_where_its_task_was_whoever_looks_meanwhile(pool):
    pool.submit(work.none_of_it).result()
    over = threading.Event()

    def look():
        while not over.is_set():
            pool.stacks(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        errors = [pool.options(timeout=0.1).submit(work.spin).exception() for _ in range(10)]
    finally:
        over.set()
        thread.join()
    assert {type(error) for error in errors} == {TaskTimeout}
    # At its import, maybe, as each is the first of its worker; and on a busy machine some take too long to tell.
    assert sum(bool(error.stack) for error in errors) >= 8


@pytest.mark.needs("process")
def test_programs_of_a_task_have_the_default_and_its_forks_do_not_answer(pool, tmp_path):
    def look(path):
        os.system(f"cat /proc/self/status >{path}")  # noqa: S605 -- which leaves signals as they are
        masks = dict(line.split(":") for line in path.read_text().splitlines())
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), _os.LOOK_SIGNAL)
            os._exit(3)
        ours = 1 << (_os.LOOK_SIGNAL - 1) | 1 << (_os.STACK_SIGNAL - 1)
        return int(masks["SigBlk"], 16), int(masks["SigIgn"], 16) & ours, os.waitpid(pid, 0)[1]

    pool.submit(work.none_of_it).result()
    board = pool._supervisor.workforce._workers[1].board
    answers = board.answers()
    assert pool.submit(look, tmp_path / "status").result() == (0, 0, 3 << 8)
    assert board.answers() == answers


def wait_with_defaults(arrived, release):
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    return wait_at(arrived, release)


@pytest.mark.needs("process")
def test_a_worker_that_would_die_of_it_is_not_asked(pool, new_gate):
    arrived, release = new_gate(), new_gate()
    task = pool.submit(wait_with_defaults, arrived, release)
    arrived.wait()
    assert pool.stacks(0.1) == {1: ""}
    release.signal()
    assert task.result() == "on"


class Alarmed(TimeoutError):
    pass


def look_while_a_handler_raises(number):
    """Have the handler of another signal raise within the answer to a look."""

    def alarm(*_):
        raise Alarmed

    signal.signal(signal.SIGALRM, alarm)
    caught = 0
    for _ in range(number):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5)
            while True:
                signal.raise_signal(_os.LOOK_SIGNAL)
        except Alarmed:
            caught += 1
    return caught


@pytest.mark.needs("process")
def test_what_other_handlers_raise_meanwhile_is_not_lost(pool, new_gate):
    assert pool.submit(look_while_a_handler_raises, 300).result() == 300
    arrived, release = new_gate(), new_gate()
    task = pool.submit(wait_at, arrived, release)
    arrived.wait()
    find(pool, "wait_at")
    release.signal()
    task.result()


def write_beyond_the_limit(path):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    path.write_bytes(bytes(5000))


@pytest.mark.needs("process")
def test_a_file_that_grows_beyond_its_limit_is_an_error_as_ever(pool, tmp_path):
    error = pool.submit(write_beyond_the_limit, tmp_path / "large").exception()
    assert isinstance(error, OSError)
    assert error.errno == errno.EFBIG


def test_a_pool_without_busy_workers_has_no_stacks(pool):
    pool.submit(work.identity, 1).result()
    wait_until(lambda: pool.stacks() == {})
    pool.shutdown()
    assert pool.stacks() == {}
    with pytest.raises(ValueError, match="timeout must be at least 0 seconds"):
        pool.stacks(-1)


def test_of_a_fake_pool_the_interface_is_there(manual_pool):
    task = manual_pool.submit(work.identity, 1)
    assert manual_pool.stacks() in ({}, {1: ""})
    assert task.result() == 1
