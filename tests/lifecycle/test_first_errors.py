"""What somebody new to poolkit gets wrong: each text says what happened, with which value, and what to do instead."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support_functions as work
from lifecycle.scripts import in_tiny_shared_memory, python, run, without_proc
from poolkit import _os_memory
from poolkit import task as tasks
from poolkit.testing import FakePool
from support import WATCHDOG, wait_until

NOT_CALLABLE = (
    "the first argument must be something to call, was {}; "
    "pass the function and its arguments, as in submit(fn, x), and not what fn(x) has returned"
)
ELSEWHERE = "; make it in the worker, in the function or by an initializer, or use kind='thread', which pickles nothing"
LOCK = "_thread.lock (TypeError: cannot pickle '_thread.lock' object)"
any_lock: Any = threading.Lock()

pytestmark = pytest.mark.every_nth(1)  # each value has a text of its own


def text(call: Callable[[], object], error: type[BaseException] = TypeError) -> str:
    """What is said of a mistake."""
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def count_to(number: int) -> Iterator[int]:
    yield from range(number)


def with_a_lock(lock: Any) -> Any:
    return [1, {"lock": any_lock if lock is None else lock}]


class CallableWithALock:
    """No function, so without a name of its own."""

    def __init__(self) -> None:
        self.lock = any_lock

    def __call__(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_workers": 0}, "max_workers must be at least 1, was 0"),
        ({"max_workers": "4"}, "max_workers must be a whole number, was '4'"),
        ({"max_queue": 0}, "max_queue must be at least 1 or None, was 0"),
        (
            {"max_memory_per_child": 1.5e9},
            "max_memory_per_child must be a whole number of bytes or None, was 1500000000.0",
        ),
        ({"shm_threshold": "64K"}, "shm_threshold must be a whole number of bytes or None, was '64K'"),
        ({"timeout": "5"}, "timeout must be a number of seconds or None, was '5'"),
        ({"timeout": 0}, "timeout must be greater than 0 seconds (None means no limit), was 0"),
        ({"preload": 5}, "preload must be a sequence of module names, as in ('numpy',), was 5"),
        ({"preload": "numpy"}, "preload must be a sequence of module names, as in ('numpy',), was 'numpy'"),
        ({"env": ["TZ"]}, "env must be a mapping of strings to strings, as in {'TZ': 'UTC'}, was ['TZ']"),
        ({"env": {"TZ": 1}}, "env must map strings to strings, had 'TZ': 1"),
        ({"kind": "threads"}, "kind must be one of 'process', 'thread', was 'threads'"),
        (
            {"kind": "interpreter"},
            (
                "kind must be one of 'process', 'thread', was 'interpreter': "
                "this version of poolkit has no workers of that kind"
            ),
        ),
        (
            {"mp_context": "spawn"},
            (
                "mp_context must be a context of multiprocessing or None, was 'spawn'; "
                "a start method goes into start_method=, the names of threads into thread_name_prefix="
            ),
        ),
        (
            {"initializer": work.initialize_positional, "initargs": ("model", any_lock)},
            (
                f"cannot pickle the initializer or its arguments: initargs[1]: {LOCK}; "
                "make it in the initializer, or use kind='thread', which pickles nothing"
            ),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_a_pool_is_made_of_is_named_with_its_value(settings: dict[str, Any], said: str) -> None:
    errors: Any = TypeError, ValueError, poolkit.SerializationError
    assert text(lambda: poolkit.Pool(**settings), errors) == said


def test_locks_of_multiprocessing_are_not_taken_for_what_cannot_be_pickled() -> None:
    import multiprocessing

    lock = multiprocessing.get_context("spawn").Lock()
    with pytest.raises(poolkit.SerializationError, match=r"initargs\[0\]: _thread\.lock "):
        poolkit.Pool(1, initializer=work.initialize_positional, initargs=(any_lock, lock))
    with pytest.raises(poolkit.SerializationError, match=r"initargs\[1\]: _thread\.lock "):
        poolkit.Pool(1, initializer=work.initialize_positional, initargs=(lock, any_lock))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": "2"}, "timeout must be a number of seconds or None, was '2'"),
        ({"memory_limit": "1G"}, "memory_limit must be a whole number of bytes or None, was '1G'"),
        ({"memory_limit": 0}, "memory_limit must be at least 1 or None, was 0"),
        ({"priority": "high"}, "priority must be a whole number (larger runs earlier), was 'high'"),
        ({"retry_on": "ValueError"}, "retry_on must be a tuple of exception types, was 'ValueError'"),
        ({"block": 1}, "block must be True or False, was 1"),
        ({"time_out": 2}, "Pool.options() got an unexpected keyword argument 'time_out'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_are_named_with_their_value(options: dict[str, Any], said: str) -> None:
    with FakePool() as pool:
        found = text(lambda: pool.options(**options), (TypeError, ValueError))  # type: ignore[arg-type]
    assert found.partition(". Did you mean")[0] == said  # from CPython 3.13 on


def test_who_calls_the_function_before_the_pool_can_is_told_to_pass_it() -> None:
    with FakePool() as pool:
        assert text(lambda: pool.submit(work.add(1, 2))) == NOT_CALLABLE.format(3)  # type: ignore[call-overload]
        made = count_to(3)
        assert text(lambda: pool.stream(made)) == NOT_CALLABLE.format(repr(made))  # type: ignore[call-overload]
        assert text(lambda: pool.map([1], work.square)) == NOT_CALLABLE.format([1])  # type: ignore[arg-type]
        assert text(lambda: poolkit.Worker(3)) == NOT_CALLABLE.format(3)  # type: ignore[arg-type]
        later = work.double_later(1)
        assert text(lambda: pool.submit(later)) == NOT_CALLABLE.format(repr(later))  # type: ignore[call-overload]
        later.close()


@pytest.mark.parametrize("kind", ["process", "thread", "fake"])
def test_an_option_that_is_given_to_submit_is_told_where_it_goes(kind: str) -> None:
    with FakePool() if kind == "fake" else poolkit.Pool(1, kind=kind) as pool:
        error = pool.submit(work.add, 1, 2, timeout=5).exception(WATCHDOG)  # type: ignore[call-overload]
        said = f"{error} {getattr(error, '__notes__', '')}"
        assert "add() got an unexpected keyword argument 'timeout'" in said
        assert "each keyword of submit() is the function's; options go through a view: pool.options(timeout=5)" in said
        within = pool.submit(lambda timeout: work.add(1, 2, timeout=timeout), timeout=5).exception(WATCHDOG)  # type: ignore[call-arg]
        assert "view" not in f"{within} {getattr(within, '__notes__', '')}", "the call itself was right"


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("kind", ["process", "thread", "fake"])
def test_an_option_that_cannot_be_shown_fails_its_task_only(kind: str) -> None:
    with FakePool() if kind == "fake" else poolkit.Pool(1, kind=kind) as pool:
        error = pool.submit(work.add, 1, 2, name=Unshowable()).exception(WATCHDOG)  # type: ignore[call-overload]
        assert type(error) is TypeError
        assert str(error) == "add() got an unexpected keyword argument 'name'"
        assert pool.stats().crashed == 0


def test_what_map_is_given_is_told_by_its_place() -> None:
    with FakePool() as pool:
        said = "argument 2 of map() after the function cannot be iterated over: 5"
        assert text(lambda: pool.map(work.add, [1], 5)) == said  # type: ignore[arg-type]
        said = "starmap() needs an iterable of tuples of arguments (map() is for functions of one), which had 5"
        assert text(lambda: list(pool.starmap(work.square, [5]))) == said  # type: ignore[list-item]
        said = "ordered must be True or False, was 'no'"
        assert text(lambda: pool.map(work.square, [5], ordered="no")) == said  # type: ignore[arg-type]
        said = "chunksize must be at least 1 or None, was 0"
        assert text(lambda: pool.map(work.square, [5], chunksize=0), ValueError) == said
        said = "progress() shows tasks, was given 3"
        assert text(lambda: poolkit.progress(3)) == said  # type: ignore[arg-type]


def test_what_cannot_be_pickled_is_told_by_its_place_and_what_to_do() -> None:
    with poolkit.Pool(1) as pool:

        def said(task: poolkit.Task[Any]) -> str:
            return text(lambda: task.result(WATCHDOG), poolkit.SerializationError)

        call = "cannot pickle the call: "
        assert said(pool.submit(print, any_lock)) == f"{call}args[0]: {LOCK}{ELSEWHERE}"
        assert said(pool.submit(print, x={"a": [any_lock]})) == f'{call}kwargs["x"]["a"][0]: {LOCK}{ELSEWHERE}'
        lock = any_lock
        assert said(pool.submit(lambda: lock)) == f'{call}fn closure "lock": {LOCK}{ELSEWHERE}'
        assert said(pool.stream(count_to, any_lock).task) == f"{call}args[0]: {LOCK}{ELSEWHERE}"
        found = text(lambda: list(pool.map(print, [1, any_lock])), poolkit.SerializationError)
        assert found == f"{call}item: {LOCK}{ELSEWHERE}"
        assert said(pool.submit(print, count_to(3))).endswith("; make a list of it first")
        of_result = said(pool.submit(with_a_lock, None))
        assert f'cannot pickle the result: result[1]["lock"]: {LOCK}' in of_result
        assert of_result.endswith(
            "; return something that can be, such as its data, or use kind='thread', which pickles nothing"
        )
        assert "pool.stream() gives the items" in said(pool.submit(count_to, 3))
        assert said(pool.submit(print, pool)).endswith(
            "cannot be copied or pickled: it belongs to the process that made it; "
            "in a task use poolkit.default_pool(), or functions with @poolkit.offload)"
        )
        waiting = pool.submit(work.spin)
        assert said(pool.submit(print, waiting)).endswith(
            "cannot be pickled: pass its result, or submit the follow-up from the process that owns it)"
        )
        found = text(lambda: waiting.send(any_lock), poolkit.SerializationError)
        assert found == f"cannot pickle the message: message: {LOCK}"
        waiting.cancel()


def test_what_a_dedicated_worker_cannot_be_given_is_told_by_its_place() -> None:
    def said(make: Callable[[], object]) -> str:
        return text(make, poolkit.SerializationError)

    target, factory = "cannot pickle the target or its arguments: ", "cannot pickle the factory or its arguments: "
    assert said(lambda: poolkit.Worker(print, 1, any_lock)).startswith(
        f"{target}args[1]: {LOCK}; make it in the worker"
    )
    assert said(lambda: poolkit.Worker.hosting(dict, any_lock)) == f"{factory}args[0]: {LOCK}"
    odd: Any = functools.partial(print, lock=any_lock)
    assert said(lambda: poolkit.Worker(odd)).startswith(f'{target}target.keywords["lock"]: {LOCK}')
    assert said(lambda: poolkit.Worker(CallableWithALock())).startswith(f"{target}target.lock: {LOCK}")
    with poolkit.Worker(work.none_of_it) as worker:
        assert said(lambda: worker.send([any_lock])) == f"cannot pickle the message: message[0]: {LOCK}"


def test_pools_and_views_cannot_be_copied() -> None:
    with FakePool() as pool:
        for each in (pool, pool.options(timeout=1)):
            assert "cannot be copied or pickled: it belongs to the process that made it" in text(
                lambda: copy.copy(each)  # noqa: B023
            )


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_wait_that_is_no_number_of_seconds_is_named(kind: str) -> None:
    release = threading.Event()
    with poolkit.Pool(1, kind=kind) as pool:
        task = pool.submit(release.wait) if kind == "thread" else pool.submit(work.spin)
        for wait in (task.result, task.exception):
            assert text(lambda: wait("5")) == "timeout must be a number of seconds or None, was '5'"  # noqa: B023
        with pytest.raises(TimeoutError, match=r"is not done after 0\.01 s; it goes on \(task\.cancel\(\) stops it\)"):
            task.result(0.01)
        release.set()
        task.cancel()


def test_a_stream_of_what_is_no_iterable_is_told_what_it_was() -> None:
    with FakePool() as pool:
        said = text(lambda: list(pool.stream(work.square, 2)))  # type: ignore[call-overload]
    assert said == (
        "square() was called by stream() and returned 4, which is not iterable: it takes generator functions; "
        "submit() is for one value"
    )


def test_a_task_that_waits_for_its_own_thread_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "SILENT_FOR", 0.05)
    caplog.set_level(logging.WARNING, "poolkit")
    with poolkit.Pool(1, kind="thread", name="alone") as pool:

        def outer() -> int:
            inner = pool.submit(work.square, 3)
            wait_until(lambda: _waits(inner) and caplog.records)
            return inner.cancel()

        assert pool.submit(outer).result(WATCHDOG)
        assert pool.submit(lambda: pool.name).result(WATCHDOG) == "alone"
    [record] = caplog.records
    said = record.getMessage()
    assert "is queued, and a task of the same pool waits for it in one of the threads that are to run it" in said
    assert "use another pool for it, or @poolkit.offload, which runs it in place" in said
    assert "square, pool alone" in said


def _waits(task: poolkit.Task[Any]) -> bool:
    with pytest.raises(TimeoutError):
        task.result(0.2)
    return True


def test_a_name_that_is_not_there_is_compared_with_those_that_are() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import poolkit; poolkit.Pol"], capture_output=True, text=True, check=False
    )
    assert "module 'poolkit' has no attribute 'Pol'" in found.stderr
    assert "Did you mean: 'Pool'?" in found.stderr
    script = "import poolkit; poolkit.dask"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "module 'poolkit' has no attribute 'dask' yet: import poolkit.dask first" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "name"),
    [
        ("*pool.map(double, [1])", "double"),
        ("*pool.map(functools.partial(double, 1), [()])", "double"),
        ("*pool.map(Doubler().double, [1])", "Doubler.double"),
        ("pool.submit(eager.within.triple, 1).result()", "triple"),
    ],
    ids=["function", "partial", "method", "package"],
)
def test_a_module_that_uses_a_pool_while_it_is_imported_does_not_start_one_worker_after_the_other(
    tmp_path: Path, use: str, name: str
) -> None:
    (tmp_path / "eager").mkdir()
    (tmp_path / "eager" / "within.py").write_text("def triple(number):\n    return number * 3\n")
    (tmp_path / "eager" / "__init__.py").write_text(
        "import functools, os\n"
        "import eager.within, poolkit\n"
        "def double(number, *_):\n    return number * 2\n"
        "class Doubler:\n    def double(self, number):\n        return number * 2\n"
        "depth = int(os.environ.get('DEPTH', 0))\n"
        "if depth > 1:\n    os._exit(3)\n"  # were it not refused, it would have no end
        f"with poolkit.Pool(1, env={{'DEPTH': str(depth + 1)}}) as pool:\n    print([{use}])\n"
    )
    source = f"""
        import sys
        sys.path.insert(0, {os.fspath(tmp_path)!r})
        try:
            import eager
        except RuntimeError as error:
            print(error)
        """
    said = "put what uses the pool into a function, or behind `if __name__ == '__main__':`"
    [line] = run(source)
    assert line.startswith(f"eager submits calls of its own {name}() while it is imported, and each worker")
    assert line.endswith(said)


@pytest.mark.parametrize("name", ["Pool", "run", "Worker", "Cluster", "offload", "SharedBuffer"])
def test_on_windows_each_name_says_why_it_cannot_be_had(name: str) -> None:
    script = (
        "import os, pickle\n"
        "import poolkit, poolkit.testing, poolkit.testing.plugin\n"
        "os.name = 'nt'\n"
        "print(poolkit.PoolClosed.__name__)\n"
        f"for look in (lambda: poolkit.{name}, lambda: poolkit.testing.FakePool):\n"
        "    try:\n        look()\n"
        "    except RuntimeError as error:\n        print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    said = (
        "poolkit does not run on this system (os.name is 'nt'): it needs Linux, or a POSIX system like it; "
        "on Windows run the program in WSL 2, or use concurrent.futures"
    )
    assert (found.stdout.splitlines(), found.stderr) == (["PoolClosed", said, said], "")


@pytest.mark.slow
def test_without_a_proc_all_works_but_limits_on_memory_which_say_so() -> None:
    script = """if 1:
        import poolkit
        with poolkit.Pool(1) as pool:
            print(pool.submit(abs, -3).result(), pool.run(["echo", "ran"], text=True).result().stdout.strip())
            try:
                pool.options(memory_limit=10**9).submit(abs, -3)
            except ValueError as error:
                print(error)
        """
    done = without_proc(python("-W", "ignore", "-c", script))
    said = "memory_limit=1000000000 cannot be kept: this system does not tell the memory of other processes"
    assert (done.stdout.splitlines(), done.stderr) == (["3 ran", said], "")


@pytest.mark.slow
def test_without_room_in_dev_shm_a_name_says_so_and_all_else_works() -> None:
    script = """if 1:
        import poolkit
        with poolkit.Pool(1) as pool:
            print(pool.submit(len, bytes(5 << 20)).result(), poolkit.SharedBuffer(5 << 20).nbytes)
        try:
            poolkit.SharedBuffer(5 << 20, name="poolkit-too-large")
        except OSError as error:
            print(error)
        """
    done = in_tiny_shared_memory(python("-c", script))
    said = (
        "[Errno 28] no room for 5242880 bytes under a name, which are in /dev/shm; without one they need no room there"
    )
    assert (done.stdout.splitlines(), done.stderr) == (["5242880 5242880", said], "")


def test_more_shared_memory_than_there_is_is_refused_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """To reserve it would have the kernel kill somebody."""

    def reserve(_fd: int, _offset: int, nbytes: int) -> None:
        pytest.fail(f"{nbytes} bytes were tried")

    monkeypatch.setattr("poolkit._os.reserve", reserve)
    for make in (lambda: poolkit.SharedBuffer(10**15), lambda: poolkit.SharedArray((10**8, 10**6), "int8")):
        said = text(make, OSError)
        assert "no room for " in said
        assert "bytes of shared memory: there are " in said
        assert "bytes of memory in all; in a file: there are " in said
    assert "bytes of memory in all" in text(lambda: poolkit.SharedBuffer(10**15, name="poolkit-too-large"), OSError)


def test_the_limit_of_the_control_group_counts_as_all_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_os_memory, "memory_limit", lambda: 10**9)
    assert text(lambda: _os_memory.check_room(10**9 + 1), OSError).endswith(
        "there are 1000000000 bytes of memory in all"
    )
    _os_memory.check_room(10**9)


def test_an_array_of_no_shape_is_told_what_was_given() -> None:
    pytest.importorskip("numpy")
    assert text(lambda: poolkit.SharedArray("x")).startswith("there is no array of shape 'x' and dtype 'float64': ")  # type: ignore[arg-type]
    assert "of shape 3 and dtype 'nonsense'" in text(lambda: poolkit.SharedArray(3, "nonsense"))


def test_a_future_of_another_loop_is_refused_by_asyncio_and_a_task_is_not() -> None:
    with FakePool() as pool:
        task = pool.submit(work.square, 3)

        async def wait() -> int:
            return await task

        assert [asyncio.run(wait()), asyncio.run(wait())] == [9, 9]


def test_what_stops_a_task_says_so_with_its_limit_and_where_it_was() -> None:
    def said(task: poolkit.Task[Any]) -> str:
        return str(task.exception(WATCHDOG))

    with poolkit.Pool(1) as pool:
        pool.submit(work.pid).result(WATCHDOG)  # its module is imported: the limit counts from there on
        late = said(pool.options(timeout=0.3).submit(work.spin))
        assert "(spin, attempt 1) ran longer than its timeout of 0.3 s and was stopped; it was at (most rec" in late
        assert "in spin" in late
        assert "was not done within its deadline of 0.3 s" in said(pool.options(deadline=0.3).submit(work.spin))
        running = pool.submit(work.spin)
        assert "waited in the queue for 0.1 s, its queue_timeout, and did not begin" in said(
            pool.options(queue_timeout=0.1).submit(work.pid)
        )
        running.cancel()
        assert "exited with code 3 while it ran task" in said(pool.submit(os._exit, 3))
        assert "the task ended its process: by os._exit()" in said(pool.submit(os._exit, 3))
        large = said(pool.options(memory_limit=1).submit(work.spin))
        assert "beyond the task's memory_limit of " in large
        assert large.endswith("the limit is below what any worker needs, with what it imports: raise it")


def test_an_initializer_or_a_preload_that_fails_is_told_with_what_it_raised() -> None:
    start = "the pool's initializer, or the import of its preload, raised "
    for settings, raised in (
        ({"initializer": work.raise_value_error, "initargs": ("no database",)}, "ValueError: no database"),
        ({"preload": ("not_to_be_found",)}, "ModuleNotFoundError: No module named 'not_to_be_found'"),
    ):
        with poolkit.Pool(1, **settings) as pool:  # type: ignore[arg-type]
            failed = text(lambda: pool.submit(work.pid).result(WATCHDOG), poolkit.InitializerFailed)
            assert failed == f"{start}{raised}; the pool has stopped"
            assert text(lambda: pool.submit(work.pid), poolkit.InitializerFailed) == failed


def test_workers_that_cannot_be_started_are_told_with_what_was_started_and_what_it_said() -> None:
    with poolkit.Pool(1, start_method="spawn", env={"PYTHONHOME": "/not/there"}) as pool:
        said = str(pool.submit(work.pid).exception(WATCHDOG))
    assert "3 workers in a row died before they were ready" in said
    assert sys.executable in said
    assert "ModuleNotFoundError: No module named 'encodings'" in said
    assert "name a Python interpreter by multiprocessing.set_executable(), or use start_method='fork'" in said


def test_a_pool_that_has_ended_says_what_ended_it() -> None:
    with poolkit.Pool(1) as pool:
        pass
    why = "the pool was shut down, by shutdown() or the end of its with block"
    assert text(lambda: pool.submit(work.pid), poolkit.PoolClosed) == f"cannot submit pid: {why}"
    assert text(lambda: pool.map(work.square, [1]), poolkit.PoolClosed) == f"cannot submit map(square): {why}"
    assert text(lambda: pool.resize(2), poolkit.PoolClosed) == f"cannot resize: {why}"


def test_a_pool_that_is_dropped_open_is_warned_of() -> None:
    pools = [poolkit.Pool(1, name="dropped")]
    pools[0].submit(work.pid).result(WATCHDOG)

    def drop() -> None:
        pools.clear()
        wait_until(lambda: gc.collect() >= 0 and len(told), "it to be told, also where the pool is part of a cycle")

    with pytest.warns(ResourceWarning, match=r"'dropped' .* was not shut down; use `with` or shutdown\(\)") as told:
        drop()


def test_a_fork_beside_other_threads_is_refused_by_their_names() -> None:
    release = threading.Event()
    other = threading.Thread(target=release.wait, name="reader")
    other.start()
    try:
        assert text(lambda: poolkit.Pool(1, start_method="fork"), RuntimeError) == (
            "start_method='fork' is not safe while other threads run (reader): "
            "make the pool before they start, or use start_method='forkserver'"
        )
    finally:
        release.set()
        other.join()


def test_a_full_queue_says_how_full_it_is() -> None:
    with FakePool(mode="manual", max_queue=1, max_workers=1) as pool:
        view = pool.options(block=False)
        said = text(lambda: [view.submit(work.pid) for _ in range(9)], poolkit.QueueFull)
        assert said.startswith("cannot submit pid: the queue is full (")
        assert said.endswith("max_workers=1, max_queue=1), and block=False does not wait for room")


@pytest.mark.slow
def test_a_script_is_told_what_its_tasks_do_not_have() -> None:
    lines = run(
        """
        import poolkit
        pool = poolkit.Pool(1)

        def uses_the_pool():
            return pool.submit(len, "abc").result()

        def asks():
            return input()

        for each in (uses_the_pool, asks):
            error = pool.submit(each).exception()
            print(type(error).__name__, error, *getattr(error, "__notes__", ()))
        pool.shutdown()
        """
    )
    assert lines[0].startswith("NameError name 'pool' is not defined")
    assert "Pool objects belong to the process that made them" in lines[0]
    assert lines[1].startswith("EOFError EOF when reading a line")
    assert "a task has no standard input: ask in the program, and pass on what was said" in lines[1]


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from poolkit.dask import DaskPool

    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.delitem(sys.modules, "poolkit._nodes.provider_dask", raising=False)
    said = r"^DaskPool needs Dask \(no module named '\w+'\): pip install poolkit\[dask\]$"
    with pytest.raises(ModuleNotFoundError, match=said):
        DaskPool()


def test_a_target_that_takes_nothing_fails_with_its_own_error() -> None:
    said = r"^takes_nothing\(\) takes 0 positional arguments but 1 was given$"
    with poolkit.Worker(takes_nothing, kind="thread") as worker, pytest.raises(TypeError, match=said):  # type: ignore[arg-type]
        worker.recv(WATCHDOG)


def takes_nothing() -> None:
    """No target."""


def test_a_number_that_is_none_is_refused_everywhere() -> None:
    with FakePool() as pool:
        for wait in (pool.warm_up, lambda value: pool.shutdown(timeout=value), pool.stacks):
            assert text(lambda: wait("1")) == "timeout must be a number of seconds or None, was '1'"  # noqa: B023
            said = "timeout must be at least 0 seconds (None means for ever), was nan"
            assert text(lambda: wait(math.nan), ValueError) == said  # noqa: B023
