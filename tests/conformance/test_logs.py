"""What tasks log reaches the owner's loggers: at the owner's levels, in order, and before the outcome of the task.

Longer than most: one promise a test, of records on their way and of handlers that are slow, raise or wait.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time

import pytest

import support_functions as work
import support_logs as logs
from poolkit import TaskTimeout, WorkerCrashed
from support import wait_until
from support_logs import Keeper


@pytest.fixture
def keeper():
    """A handler of the root logger."""
    handler = Keeper()
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


@pytest.fixture
def level():
    """Set the level of a logger for the length of a test."""
    before = {}

    def set_level(name, value):
        before.setdefault(name, logging.getLogger(name).level)
        logging.getLogger(name).setLevel(value)

    yield set_level
    for name, value in before.items():
        logging.getLogger(name).setLevel(value)


def test_a_record_says_who_logged_it_and_is_there_when_the_result_is(pool, keeper):
    for number in range(20):
        task = pool.submit(logs.say, "%s number %d", "task", number)
        pid = task.result()
        record = keeper.records.pop()
        assert record.getMessage() == f"task number {number}"
        assert (record.name, record.levelno, record.funcName) == (logs.log.name, logging.WARNING, "say")
        assert (record.poolkit_worker, record.poolkit_task) == (task.worker_id, task.id)
        assert record.process == pid
        assert not keeper.records


@pytest.mark.needs("background")
def test_a_callback_sees_it_too(pool, keeper, recorder):
    """Nobody waits, so the pool's own thread reads."""
    for _ in range(20):
        pool.submit(logs.say, "hello").add_done_callback(lambda _: recorder(len(keeper.records)))
        assert recorder.next() == 1
        keeper.records.clear()


@pytest.mark.needs("unattended")
@pytest.mark.needs("background")
def test_a_coroutine_sees_it_too(pool, keeper):
    async def main():
        for _ in range(20):
            await pool.submit(logs.say, "hello")
            assert keeper.messages == ["hello"]
            keeper.records.clear()

    asyncio.run(main())


def test_only_what_the_owner_would_log_is_logged(make_pool, keeper, level):
    level("support.talkative", logging.DEBUG)
    level("support.quiet", logging.ERROR)
    pool = make_pool()
    for name in ("support.talkative", "support.quiet", "support.usual"):
        for number in (logging.DEBUG, logging.WARNING, logging.ERROR):
            pool.submit(logs.say, "%s %d", name, number, level=number, name=name).result()
    assert keeper.messages == [
        "support.talkative 10",
        "support.talkative 30",
        "support.talkative 40",
        "support.quiet 40",
        "support.usual 30",
        "support.usual 40",
    ]


@pytest.mark.needs("process")
def test_levels_are_those_of_when_the_worker_was_started(make_pool, keeper, level):
    level("support.talkative", logging.DEBUG)
    pool = make_pool()
    assert pool.submit(logs.levels, "support.talkative", "support.usual").result() == [logging.DEBUG, logging.WARNING]
    level("support.talkative", logging.CRITICAL)
    pool.submit(logs.say, "too late for the worker, not for the owner", name="support.talkative").result()
    assert not keeper.records


def test_what_is_disabled_stays_so(make_pool, keeper):
    logging.disable(logging.WARNING)
    try:
        pool = make_pool()
        pool.submit(logs.say, "not this").result()
        pool.submit(logs.say, "this", level=logging.ERROR).result()
    finally:
        logging.disable(logging.NOTSET)
    assert keeper.messages == ["this"]


def test_the_root_logger_is_a_logger_too(pool, keeper):
    pool.submit(logs.say, "hello", name="root").result()
    assert [(record.name, record.getMessage()) for record in keeper.records] == [("root", "hello")]


def test_an_exception_and_a_stack_come_as_text(pool, keeper):
    pool.submit(logs.say_an_exception, "by nothing").result()
    text = logging.Formatter().format(keeper.records[0])
    assert text.startswith("it failed\nTraceback")
    assert "ZeroDivisionError: by nothing" in text
    assert "Stack (most recent call last)" in text
    assert text.count("ZeroDivisionError: by nothing") == 1


@pytest.mark.needs("by_value")
def test_what_else_a_record_carries_comes_along(pool, keeper):
    pool.submit(logs.say_what_does_not_pickle).result()
    assert keeper.records[0].number == 7
    assert "lock" in str(keeper.records[0].lock)


@pytest.mark.needs("by_value")
def test_a_record_is_there_whatever_else_it_carries(pool, keeper):
    pool.submit(logs.say_what_cannot_be_loaded).result()
    record = keeper.records[0]
    assert record.getMessage() == "order 7 failed"
    assert (record.levelno, record.flag) == (45, True)
    assert "no room" in str(record.error)


def test_several_threads_of_a_task_may_log(pool, keeper):
    pool.submit(logs.say_in_threads, 4, 500).result()
    found = [tuple(map(int, message.split())) for message in keeper.messages]
    assert sorted(found) == [(thread, number) for thread in range(4) for number in range(500)]
    for thread in range(4):
        assert [number for name, number in found if name == thread] == list(range(500))


def test_an_initializer_may_log(make_pool, keeper):
    pool = make_pool(initializer=logs.say, initargs=("begun",))
    pool.submit(logs.say, "done").result()
    assert keeper.messages == ["begun", "done"]
    assert getattr(keeper.records[0], "poolkit_task", None) is None


@pytest.mark.needs("process")
def test_a_forked_child_of_a_task_writes_to_stderr(capfd, make_pool, keeper):
    """It must not write to the link."""
    pool = make_pool()
    assert pool.submit(logs.say_in_a_fork, "from a child").result() == 7
    pool.submit(logs.say, "from the task").result()
    assert keeper.messages == ["from the task"]
    assert capfd.readouterr().err == "from a child\n"


@pytest.mark.needs("process")
def test_the_owners_handlers_are_not_the_workers(pool, keeper):
    """With start_method='fork' they are all there."""
    assert pool.submit(logs.count_handlers).result() == 0
    pool.submit(logs.say, "hello").result()
    assert keeper.messages == ["hello"]


@pytest.mark.needs("process")
def test_what_a_preloaded_module_configures_is_for_the_owner_to_configure(
    make_pool, keeper, tmp_path, monkeypatch, capfd
):
    (tmp_path / "poolkit_logs_probe.py").write_text(
        "import logging\n"
        "own = logging.getLogger('support.preloaded')\n"
        "own.addHandler(logging.StreamHandler())\n"
        "own.propagate = False\n"
        "own.addFilter(lambda record: False)\n"
        "own.setLevel(logging.CRITICAL)\n"
        "def say(message):\n"
        "    own.warning(message)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = make_pool(preload=["poolkit_logs_probe"])
    pool.submit(eval, "__import__('poolkit_logs_probe').say('hello')").result()
    assert keeper.messages == ["hello"]
    assert capfd.readouterr().err == ""


@pytest.mark.needs("process")
def test_what_a_preloaded_module_logs_while_it_is_imported_is_seen(
    kind, make_pool, keeper, tmp_path, monkeypatch, capfd
):
    """On the standard error where a template process imports it, which has no link to this pool."""
    if kind.can("inherits"):
        pytest.skip("a copy of the owner's handlers gets it")
    (tmp_path / "poolkit_logs_at_import.py").write_text("import logging\nlogging.warning('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = make_pool(preload=["poolkit_logs_at_import"])
    pool.submit(work.none_of_it).result()
    assert "imported" in capfd.readouterr().err + "".join(keeper.messages)


def test_what_a_task_configures_stands(make_pool, keeper, tmp_path, kind):
    if not kind.can("process"):
        pytest.skip("its workers share the owner's loggers")
    pool = make_pool()
    path = tmp_path / "own.log"
    pool.submit(logs.configure_own, str(path)).result()
    pool.submit(logs.say, "hello").result()
    assert path.read_text() == "hello\n"
    assert not keeper.records


@pytest.mark.needs("background")
def test_many_records_keep_their_order_while_the_owner_waits_for_something_else(make_pool, keeper, hold):
    pool = make_pool(2)
    pool.warm_up()
    many = pool.submit(logs.say_many, 10_000)
    assert pool.submit(work.square, 3).result() == 9
    assert many.result() == 10_000
    assert [int(message) for message in keeper.messages] == list(range(10_000))


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_record_may_be_larger_than_the_link(pool, keeper):
    pool.submit(logs.say_many, 3, size=500_000).result()
    assert [len(message) for message in keeper.messages] == [500_001] * 3


@pytest.mark.needs("process", "here")
@pytest.mark.one_start_method
def test_arguments_that_do_not_fit_are_shown_in_the_worker_as_anywhere(pool, keeper, capfd):
    pool.submit(logs.say_with_wrong_arguments).result()
    assert not keeper.records
    assert "Logging error" in capfd.readouterr().err


@pytest.mark.needs("crash")
@pytest.mark.one_start_method
def test_what_a_worker_logged_before_it_died_is_there(pool, keeper):
    assert isinstance(pool.submit(logs.say_and_die, 100).exception(), WorkerCrashed)
    assert [int(message) for message in keeper.messages] == list(range(100))


@pytest.mark.needs("process")
@pytest.mark.one_start_method
@pytest.mark.parametrize("size", [0, 200_000])
def test_a_signal_handler_may_log_and_raise_in_the_midst_of_logging(pool, keeper, size):
    count = 2000 if size == 0 else 100
    for _ in range(3):
        assert pool.submit(logs.say_while_interrupted, count, size).result() > 0
    expected = {"interrupted", *(f"{number}{' ' * size}" for number in range(count))}
    assert [message[:99] for message in keeper.messages if message not in expected] == []
    assert "interrupted" in keeper.messages


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_finalizer_may_log_in_the_midst_of_logging(make_pool, keeper, level):
    level(logs.log.name, logging.INFO)
    pool = make_pool()
    pool.submit(logs.say_in_finalizers, 2000).result()
    said = [message for message in keeper.messages if message != "gone"]
    assert said == [str(number) for number in range(2000)]
    assert len(said) < len(keeper.messages)


# ===== what handlers do =====


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_handler_that_raises_harms_nothing(pool, keeper, caplog):
    def fail(record):
        if record.name == logs.log.name:
            raise ZeroDivisionError

    keeper.action = fail
    for _ in range(3):
        assert pool.submit(logs.say, "hello").result() > 0
    said = [record for record in caplog.records if record.name == "poolkit"]
    assert len(said) == 1
    assert "could not hand on" in said[0].getMessage()
    assert keeper.messages.count("hello") == 3


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_handler_may_submit_and_wait_for_tasks_of_the_pool(make_pool, keeper):
    """Also when their worker has to be started first, and when the records come from one that died."""
    pool = make_pool(2)
    found = []

    def ask(_record):
        found.append(pool.submit(work.square, len(found)).result())

    keeper.action = ask
    for _ in range(5):
        pool.submit(logs.say_many, 3).result()
    assert isinstance(pool.submit(logs.say_and_die, 5).exception(), WorkerCrashed)
    wait_until(lambda: len(found) == 20, "all records are told: outcomes went ahead of them")
    assert found == [number**2 for number in range(20)]


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_handler_may_shut_the_pool_down(pool, keeper):
    keeper.action = lambda _record: pool.shutdown()
    pool.submit(logs.say, "hello").result()
    pool.shutdown()
    assert keeper.messages == ["hello"]


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_ctrl_c_while_a_result_waits_for_a_handler_loses_nothing(pool, keeper, recorder):
    release = threading.Event()

    def press(_record):
        wait_until(lambda: pool._supervisor.records.deferred, "an outcome waits")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        release.wait()

    keeper.action = press
    task = pool.submit(logs.say, "hello")
    with pytest.raises(KeyboardInterrupt):
        task.result()
    assert not task.done()
    release.set()
    task.add_done_callback(recorder)
    assert recorder.next() is task
    assert pool.submit(work.square, 3).result() == 9


# ===== while a handler takes its time =====


@pytest.fixture
def held_up(make_pool, keeper):
    """A pool of two, with a noisy task, the first record of which is being told and will be for long."""
    release = threading.Event()
    keeper.action = lambda _record: release.wait()
    pool = make_pool(2, max_queue=100)
    pool.warm_up()
    pool.noisy = pool.submit(logs.say_many, 3000)
    wait_until(lambda: pool._supervisor.records.paused, "its worker is not read any more")
    yield pool
    release.set()


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_others_have_their_results_limits_and_timeouts(held_up):
    assert held_up.submit(work.square, 3).result(logs.PATIENCE / 2) == 9
    with pytest.raises(TaskTimeout):
        held_up.options(timeout=0.05).submit(signal.pause).result(logs.PATIENCE / 2)
    assert list(held_up.map(work.square, range(200), timeout=logs.PATIENCE / 2)) == [n * n for n in range(200)]
    with pytest.raises(TimeoutError):
        held_up.noisy.result(timeout=0.01)


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_an_event_loop_goes_on(held_up):
    async def main():
        noisy = asyncio.ensure_future(asyncio.wrap_future(held_up.noisy))
        for number in range(50):
            assert await asyncio.wait_for(held_up.submit(work.square, number), logs.PATIENCE / 2) == number**2
        noisy.cancel()

    asyncio.run(main())


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_submitting_goes_on_and_memory_does_not_grow(held_up):
    tasks = [held_up.submit(logs.say, "once") for _ in range(96)]
    wait_until(lambda: held_up.stats().succeeded >= 50, "the other worker runs them")
    assert held_up._supervisor.records.pending.total() < 2500
    assert not any(task.done() for task in tasks[-5:])


@pytest.mark.needs("process")
@pytest.mark.one_start_method
@pytest.mark.parametrize("how", [{"kill": True}, {"timeout": 0.1}])
def test_a_shutdown_that_is_to_be_quick_does_not_wait_for_it(held_up, how):
    began = time.monotonic()
    held_up.shutdown(**how)
    assert time.monotonic() - began < logs.PATIENCE / 2
    assert held_up.noisy.done()


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_worker_is_read_again_when_half_of_its_records_are_told(make_pool, keeper):
    """None is lost, and none comes twice."""
    pool = make_pool(2)
    most = 0

    def look(_record):
        nonlocal most
        most = max(most, pool._supervisor.records.pending.total())

    keeper.action = look
    assert pool.submit(logs.say_many, 20_000).result() == 20_000
    assert [int(message) for message in keeper.messages] == list(range(20_000))
    assert most < 2500


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_a_handler_may_wait_for_a_task_of_the_worker_that_logs_too_much(make_pool, keeper):
    pool = make_pool()
    answers = []

    def ask(record):
        if record.getMessage() == "0":
            wait_until(lambda: pool._supervisor.records.paused, "the worker is not read")
            answers.append(pool.submit(work.square, 3).result())

    keeper.action = ask
    pool.submit(logs.say_many, 3000).result()
    wait_until(lambda: len(keeper.records) == 3000, "all are told: outcomes went ahead of them")
    assert answers == [9]


@pytest.mark.needs("process")
def test_no_worker_imports_logging_by_itself(pool, kind):
    loaded = pool.submit(eval, "'logging' in __import__('sys').modules").result()
    assert loaded == kind.can("inherits")
