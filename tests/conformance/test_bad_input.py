"""What has no sense is refused where it is given, by an error that names it; the pool is none the worse for it."""

from __future__ import annotations

import math

import pytest

import poolkit
import support_functions as work
import support_objects as objects
import support_workers as workers
from poolkit import Pool
from poolkit.testing import FakePool
from support import WATCHDOG

pytestmark = pytest.mark.one_start_method

NOT_SECONDS = [
    pytest.param(0, ValueError, id="zero"),
    pytest.param(-1, ValueError, id="negative"),
    pytest.param(math.nan, ValueError, id="nan"),
    pytest.param(-math.inf, ValueError, id="minus-infinity"),
    pytest.param(True, TypeError, id="bool"),
    pytest.param("1", TypeError, id="text"),
    pytest.param([1], TypeError, id="list"),
]
NOT_A_COUNT = [
    pytest.param(0, ValueError, id="zero"),
    pytest.param(-1, ValueError, id="negative"),
    pytest.param(1.0, TypeError, id="float"),
    pytest.param(math.nan, TypeError, id="nan"),
    pytest.param(True, TypeError, id="bool"),
    pytest.param("1", TypeError, id="text"),
]
NOT_CALLABLE = [pytest.param(None, id="none"), pytest.param("len", id="text"), pytest.param(3, id="number")]


@pytest.mark.parametrize("name", ["timeout", "queue_timeout", "deadline"])
@pytest.mark.parametrize(("value", "error"), NOT_SECONDS)
def test_limits_of_a_call_must_be_positive_seconds(pool, name, value, error):
    with pytest.raises(error, match=name):
        pool.options(**{name: value})


@pytest.mark.parametrize("name", ["timeout", "queue_timeout", "deadline"])
@pytest.mark.parametrize("value", [None, math.inf, 0.001, 10**9])
def test_none_and_infinity_mean_no_limit(pool, name, value):
    assert isinstance(pool.options(**{name: value}), poolkit.PoolView)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"priority": 1.5}, TypeError),
        ({"priority": "high"}, TypeError),
        ({"priority": None}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retries": 1.0}, TypeError),
        ({"retries": True}, TypeError),
        ({"retries": None}, TypeError),
        ({"retry_on": "ValueError"}, TypeError),
        ({"retry_on": (ValueError, 3)}, TypeError),
        ({"retry_on": ValueError("no")}, TypeError),
        ({"retry_on": [ValueError]}, TypeError),
        ({"block": 0}, TypeError),
        ({"block": None}, TypeError),
        ({"name": 3}, TypeError),
        ({"name": b"bytes"}, TypeError),
    ],
    ids=str,
)
def test_options_without_sense_are_refused(pool, options, error):
    with pytest.raises(error, match=next(iter(options))):
        pool.options(**options)


def test_unknown_options_are_refused(pool):
    with pytest.raises(TypeError, match=r"Pool\.options\(\) .*speed"):
        pool.options(speed=3)


def test_a_submit_of_nothing_is_refused_by_its_public_name(pool):
    with pytest.raises(TypeError, match=r"Pool\.submit\(\) missing"):
        pool.submit()


@pytest.mark.parametrize("value", NOT_CALLABLE)
def test_only_callables_can_be_submitted(pool, value):
    with pytest.raises(TypeError, match="something to call"):
        pool.submit(value)
    with pytest.raises(TypeError, match="something to call"):
        pool.map(value, [1])
    with pytest.raises(TypeError, match="something to call"):
        pool.starmap(value, [(1,)])
    assert pool.submit(work.add, 1, 2).result() == 3


def test_map_needs_iterables(pool):
    with pytest.raises(TypeError, match=r"argument 2 .*5"):
        pool.map(work.add, [1], 5)
    with pytest.raises(TypeError, match="iterable"):
        pool.starmap(work.add, 5)
    with pytest.raises(TypeError, match=r"starmap\(\) needs an iterable of tuples .*, which had 5"):
        list(pool.starmap(work.add, [5]))


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
@pytest.mark.parametrize(("value", "error"), NOT_A_COUNT)
def test_sizes_of_a_map_must_be_positive(pool, name, value, error):
    with pytest.raises(error, match=name):
        pool.map(work.square, [1], **{name: value})


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)])
def test_waits_must_not_be_negative(pool, value, error):
    with pytest.raises(error, match="timeout"):
        pool.map(work.square, [1], timeout=value)
    with pytest.raises(error, match="timeout"):
        pool.warm_up(value)
    with pytest.raises(error, match="timeout"):
        pool.shutdown(timeout=value)
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.parametrize(("value", "error"), NOT_A_COUNT)
def test_a_pool_is_not_resized_to_nonsense(pool, value, error):
    with pytest.raises(error, match="max_workers"):
        pool.resize(value)
    assert pool.max_workers == 1


def test_unknown_events_are_refused(pool):
    with pytest.raises(ValueError, match="task_done"):
        pool.on("task_finished", print)
    with pytest.raises(ValueError, match="task_finished"):
        pool.off("task_finished", print)
    with pytest.raises(TypeError, match="callback"):
        pool.on("task_done", None)
    with pytest.raises(ValueError, match="does not listen"):
        pool.off("task_done", print)


# ===== making a pool; nothing of it may stay when it is refused =====


@pytest.mark.parametrize("name", ["max_workers", "max_queue", "max_tasks_per_child"])
@pytest.mark.parametrize(("value", "error"), NOT_A_COUNT)
def test_sizes_of_a_pool_must_be_positive(kind, name, value, error):
    with pytest.raises(error, match=name):
        kind.make(**kind.settings, **{name: value})


@pytest.mark.parametrize("name", ["timeout", "idle_timeout"])
@pytest.mark.parametrize(("value", "error"), NOT_SECONDS)
def test_limits_of_a_pool_must_be_positive_seconds(kind, name, value, error):
    with pytest.raises(error, match=name):
        kind.make(**kind.settings, **{name: value})


@pytest.mark.needs("here")
def test_no_more_workers_stay_than_there_may_be(kind):
    with pytest.raises(ValueError, match="min_workers"):
        kind.make(**kind.settings, max_workers=2, min_workers=3)
    with pytest.raises(ValueError, match="min_workers"):
        kind.make(**kind.settings, min_workers=-1)


@pytest.mark.parametrize("value", ["f", 3])
def test_the_initializer_must_be_callable(kind, value):
    with pytest.raises(TypeError, match="initializer"):
        kind.make(**kind.settings, initializer=value)


def test_the_name_of_a_pool_is_text(kind):
    with pytest.raises(TypeError, match="name"):
        kind.make(**kind.settings, name=3)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"kind": "goblin"}, ValueError, "kind must be one of 'process', 'thread'.*'goblin'"),
        ({"kind": "interpreter"}, ValueError, "'interpreter': this version of poolkit has no workers of that kind"),
        ({"kind": None}, ValueError, "kind"),
        ({"start_method": "teleport"}, ValueError, "start_method must be one of .*'forkserver'.*'teleport'"),
        ({"preload": "json"}, TypeError, "preload"),
        ({"preload": [3]}, TypeError, "preload"),
        ({"env": {"A": 1}}, TypeError, "env"),
        ({"env": {1: "A"}}, TypeError, "env"),
        ({"max_memory_per_child": 0}, ValueError, "max_memory_per_child"),
        ({"max_memory_per_child": "1G"}, TypeError, "max_memory_per_child"),
        ({"kind": "thread", "env": {"A": "1"}}, ValueError, "env"),
        ({"kind": "thread", "preload": ["json"]}, ValueError, "preload"),
        ({"kind": "thread", "start_method": "spawn"}, ValueError, "start_method"),
        ({"initargs": 3, "initializer": print}, TypeError, "initargs must be a tuple of arguments .*, was 3"),
        ({"env": 3}, TypeError, None),
        ({"preload": 3}, TypeError, None),
    ],
    ids=str,
)
def test_settings_without_sense_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        Pool(**settings)


@pytest.mark.parametrize("name", ["A=B", "", "A\0B"])
def test_environment_names_that_no_system_takes_are_refused(name):
    with pytest.raises(ValueError, match="env"):
        Pool(env={name: "1"})


def test_an_initializer_that_cannot_be_pickled_is_refused():
    with pytest.raises(poolkit.SerializationError, match="cannot be pickled"):
        Pool(1, initializer=work.identity, initargs=(objects.RaisesOnPickle(),))


def test_a_fake_pool_has_two_modes():
    with pytest.raises(ValueError, match="mode must be 'eager' or 'manual', was 'lazy'"):
        FakePool("lazy")


# ===== the decorator =====


@pytest.mark.parametrize("value", [3, "f"])
def test_only_functions_can_be_offloaded(value):
    with pytest.raises(TypeError, match="offload"):
        poolkit.offload()(value)


@pytest.mark.parametrize(
    ("options", "error"), [({"timeout": -1}, ValueError), ({"retries": 1.5}, TypeError), ({"speed": 1}, TypeError)]
)
def test_options_of_an_offloaded_function_are_checked_at_once(options, error):
    with pytest.raises(error, match=next(iter(options))):
        poolkit.offload(**options)(work.square)
    with pytest.raises(error, match=next(iter(options))):
        poolkit.offload(work.square).options(**options)


@pytest.mark.parametrize("value", [None, 3, "process"])
def test_only_pools_can_be_used(value):
    with pytest.raises(TypeError, match="use_pool"), poolkit.use_pool(value):
        pass
    with pytest.raises(TypeError, match="pool"):
        poolkit.set_default_pool(value)


def test_a_pool_to_offload_to_must_be_a_pool():
    with pytest.raises(TypeError, match="pool"):
        poolkit.offload(pool="process")(work.square)


def test_a_default_pool_is_of_a_known_kind():
    with pytest.raises(ValueError, match="goblin"):
        poolkit.default_pool("goblin")
    with pytest.raises(ValueError, match="goblin"):
        poolkit.offload(kind="goblin")(work.square)


# ===== dedicated workers =====


@pytest.mark.needs("kill_running")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "fiber"}, ValueError),
        ({"kind": None}, ValueError),
        ({"name": 3}, TypeError),
        ({"preload": "json"}, TypeError),
        ({"env": {"A": 1}}, TypeError),
        ({"start_method": "vfork"}, ValueError),
        ({"memory_limit": 0}, ValueError),
        ({"memory_limit": "1G"}, TypeError),
        ({"shm_threshold": 0}, ValueError),
        ({"shm_threshold": "64K"}, TypeError),
    ],
    ids=str,
)
def test_options_of_dedicated_workers_without_sense_are_refused(options, error):
    for make in (poolkit.Worker, poolkit.Worker.hosting):
        with pytest.raises(error, match=next(iter(options))):
            make(work.identity, **options)


@pytest.mark.needs("kill_running")
@pytest.mark.parametrize("value", NOT_CALLABLE)
def test_dedicated_workers_need_something_to_call(make_worker, value):
    for hosting in (False, True):
        with pytest.raises(TypeError, match="something to call"):
            make_worker(value, hosting=hosting)
    worker = make_worker(workers.echo)
    for register in (worker.on_message, worker.on_exit):
        with pytest.raises(TypeError, match="callback must be something to call"):
            register(value)


@pytest.mark.needs("kill_running")
@pytest.mark.parametrize("value", [-1, math.nan, -math.inf])
def test_seconds_of_dedicated_workers_are_no_negative_numbers(make_worker, value):
    worker = make_worker(workers.echo)
    for method in (worker.recv, worker.join, worker.terminate, lambda seconds: worker.send(1, seconds)):
        with pytest.raises(ValueError, match=r"timeout|grace"):
            method(value)
        with pytest.raises(TypeError, match=r"timeout|grace"):
            method("1")
    worker.send(1)
    assert worker.recv(WATCHDOG) == 1


@pytest.mark.needs("kill_running")
def test_calls_of_dedicated_workers_without_sense_are_refused(make_worker):
    hosting, plain = make_worker(workers.Counter, hosting=True), make_worker(workers.echo)
    with pytest.raises(TypeError, match=r"Worker\.hosting"):
        plain.call("add")
    for method, error in ((None, TypeError), (b"add", TypeError), ("_private", AttributeError)):
        with pytest.raises(error, match=r"method|private"):
            hosting.call(method)
    assert hosting.call("add").result(WATCHDOG) == 1
