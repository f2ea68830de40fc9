"""The owner forks: the child gets PoolClosed, and the parent does not notice."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

HELPERS = """
import os, sys, threading, time, traceback, warnings
import poolkit

warnings.simplefilter("ignore", DeprecationWarning)  # CPython 3.12 says that forking with threads is a danger

def in_child(work):
    "What `work` prints in a forked child; the child leaves as the interpreter does."
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        sys.exit(0)
    assert os.wait()[1] == 0

def refused(call):
    try:
        call()
    except poolkit.PoolClosed as exc:
        print("closed", "belongs to process" in str(exc))
    else:
        print("accepted")
    sys.stdout.flush()
"""


def forked(source: str) -> list[str]:
    return run(HELPERS + source)


def test_a_child_gets_pool_closed_and_the_parent_goes_on() -> None:
    lines = forked(
        """
pool = poolkit.Pool(2)
tasks = [pool.submit(abs, -number) for number in range(1000)]

def child():
    refused(lambda: pool.submit(abs, -1))
    refused(pool.warm_up)
    refused(pool.cancel_all)
    refused(lambda: list(pool.map(abs, [1])))
    pool.shutdown()
    print(pool, flush=True)

in_child(child)
print(sum(task.result() for task in tasks))
print(pool.submit(abs, -2).result())
pool.shutdown()
"""
    )
    assert lines[:4] == ["closed True"] * 4
    assert lines[4].endswith("closed>")
    assert lines[5:] == ["499500", "2"]


def test_a_pending_task_is_closed_in_the_child_and_its_callbacks_run_in_the_parent_alone() -> None:
    lines = forked(
        """
pool = poolkit.Pool(1)
task = pool.submit(time.sleep, 3600)
behind = pool.submit(abs, -3)
called = []
behind.add_done_callback(lambda task: called.append(task.result()))
while task.state != "running":
    pass
in_child(lambda: (refused(task.result), refused(behind.result), print(task.cancel(), called)))
print(task.cancel(), behind.result())
pool.shutdown()
print("callback", called)
"""
    )
    assert lines == ["closed True", "closed True", "False []", "True 3", "callback [3]"]


@pytest.mark.parametrize("used", [False, True])
def test_a_child_may_make_a_pool_of_its_own(used: bool) -> None:
    lines = forked(
        f"""
pool = poolkit.Pool(1)
if {used}:
    pool.warm_up()

def child():
    refused(lambda: pool.submit(abs, -1))
    with poolkit.Pool(1) as own:
        print(own.submit(abs, -4).result())

in_child(child)
print(pool.submit(abs, -5).result())
pool.shutdown()
"""
    )
    assert lines == ["closed True", "4", "5"]


def test_many_forks_while_tasks_come_and_go() -> None:
    """Also from two threads at once; every child ends, and no task is lost."""
    lines = forked(
        """
pools = [poolkit.Pool(2), poolkit.Pool(1, kind="thread"), poolkit.Pool(1)]
over = threading.Event()
counts = [0] * len(pools)

def work(index):
    while not over.is_set():
        tasks = [pools[index].submit(abs, -1) for _ in range(20)]
        counts[index] += sum(task.result() for task in tasks) == 20 or sys.exit("lost")

def fork():
    for _ in range(15):
        pid = os.fork()
        if pid == 0:
            try:
                pools[0].submit(abs, -1)
            except poolkit.PoolClosed:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0

workers = [threading.Thread(target=work, args=(index,)) for index in range(len(pools))]
forkers = [threading.Thread(target=fork) for _ in range(2)]
for thread in workers + forkers:
    thread.start()
for thread in forkers:
    thread.join()
over.set()
for thread in workers:
    thread.join()
print(all(counts))
for pool in pools:
    pool.shutdown()
"""
    )
    assert lines == ["True"]


def test_a_fork_while_the_template_process_starts_holds_nothing_up() -> None:
    """A child that lives on has copies of whatever was open; the pool must not wait for it."""
    lines = forked(
        """
starting = threading.Event()
real = os.posix_spawnp

def slow(*args, **kwargs):
    "Have the fork come as soon as the sockets are there."
    starting.set()
    return real(*args, **kwargs)

os.posix_spawnp = slow
made = []
thread = threading.Thread(target=lambda: made.append(poolkit.Pool(1)))
thread.start()
starting.wait()
block_in, block_out = os.pipe()
child = os.fork()
if child == 0:
    os.close(block_out)
    os.read(block_in, 1)
    os._exit(0)
thread.join()
(pool,) = made
print(pool.submit(abs, -1).result())
pool.shutdown()
os.write(block_out, b"x")
os.waitpid(child, 0)
"""
    )
    assert lines == ["1"]


def test_a_fork_while_a_pool_imports_multiprocessing_leaves_the_child_a_whole_module() -> None:
    """The pool does so on a thread of its own, of which a program that forks knows nothing."""
    lines = forked(
        """
from importlib.machinery import PathFinder

class Finder:
    "Have the import take until the fork had its time."
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "multiprocessing.process":
            spec = PathFinder.find_spec(name, path, target)
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (importing.set(), is_forked.wait(0.3), execute(module))
            return spec

importing, is_forked = threading.Event(), threading.Event()
sys.meta_path.insert(0, Finder)
pool = poolkit.Pool(1)
task = pool.submit(abs, -2)
importing.wait()

def child():
    with poolkit.Pool(1) as own:
        print(own.submit(abs, -1).result())

in_child(child)
is_forked.set()
print(task.result())
pool.shutdown()
"""
    )
    assert lines == ["1", "2"]


def test_a_pool_handed_to_a_forked_multiprocessing_process() -> None:
    lines = forked(
        """
import multiprocessing
context = multiprocessing.get_context("fork")
pool = poolkit.Pool(1)
print(pool.submit(abs, -1).result())
sys.stdout.flush()
process = context.Process(target=refused, args=(lambda: pool.submit(abs, -1),))
process.start()
process.join()
print(process.exitcode, pool.submit(abs, -2).result())
pool.shutdown()
"""
    )
    assert lines == ["1", "closed True", "0 2"]


def test_a_report_that_a_worker_thread_left_at_the_moment_of_the_fork_is_the_parents() -> None:
    lines = forked(
        """
at_fork = None
os.register_at_fork(before=lambda: at_fork and at_fork())
import poolkit.pool  # whose own hooks run before this one, so that the pool's lock is held
pool = poolkit.Pool(1, kind="thread")
began, go_on = threading.Event(), threading.Event()

def run():
    began.set()
    go_on.wait()
    return 1

task = pool.submit(run)
began.wait()

def at_fork():
    go_on.set()
    while not pool._supervisor._posted_reports:
        time.sleep(0.001)

def child():
    refused(lambda: task.result(timeout=30))

in_child(child)
at_fork = None
print(task.result())
pool.shutdown()
"""
    )
    assert lines == ["closed True", "1"]


@pytest.mark.long
def test_a_pool_of_forks_is_made_while_another_starts() -> None:
    """The supervisor of that one may hold any lock at that moment, but none that its copy in the fork would want."""
    lines = run(
        """
        import poolkit

        for _ in range(15):
            with poolkit.Pool(1) as one:
                first = one.submit(abs, -1)
                with poolkit.Pool(1, start_method="fork") as other:
                    assert other.submit(abs, -2).result(10) == 2
                assert first.result() == 1
        print("whole")
        """
    )
    assert lines == ["whole"]
