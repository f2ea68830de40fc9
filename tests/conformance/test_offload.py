"""`@offload`: the faces of a decorated function, methods, the choice of the pool, nesting, pickling."""

from __future__ import annotations

import pickle

import pytest

import poolkit
import support_functions as work
import support_offloaded as offloaded
from poolkit import Task, use_pool
from poolkit.testing import FakePool

pytestmark = pytest.mark.one_start_method


@pytest.fixture
def used(pool):
    with use_pool(pool):
        yield pool


def test_a_call_returns_a_task(used):
    task = offloaded.double(4)
    assert isinstance(task, Task)
    assert task.result() == 8
    assert used.stats().submitted == 1


def test_local_runs_here(used):
    assert offloaded.double.local(4) == 8
    assert used.stats().submitted == 0


def test_map_and_options(used):
    assert list(offloaded.double.map([1, 2, 3])) == [2, 4, 6]
    assert offloaded.double.options(name="other")(4).name == "other"


def test_options_of_the_decorator_hold(used):
    assert offloaded.which_task().result() == "named"


def test_methods_of_every_sort(used):
    scale = offloaded.Scale(3)
    assert scale.plain(2).result() == 23
    assert offloaded.Scale.inner(2).result() == 20
    assert offloaded.Scale.outer(2).result() == 20
    assert offloaded.Scale.static(2).result() == 10
    assert scale.static(2).result() == 10


def test_lambdas_and_local_functions(used):
    base = 40
    assert poolkit.offload(lambda number: base + number)(2).result() == 42


def test_nested_calls_run_in_place(used):
    assert offloaded.sum_of_doubles([1, 2, 3]).result() == 12
    assert used.stats().submitted == 1


def test_coroutine_functions_run_to_the_end_nested_or_not(used):
    assert offloaded.double_later(4).result() == 8
    assert offloaded.double_later_inside(4).result() == 8


def test_the_exception_of_a_nested_call_stays_with_it(used):
    assert offloaded.failure_inside("no").result() == "ValueError('no')"


def test_the_pool_given_to_the_decorator_comes_first():
    with FakePool() as own, FakePool() as other, use_pool(other):
        assert poolkit.offload(pool=own)(work.square)(3).result() == 9
        assert (own.stats().submitted, other.stats().submitted) == (1, 0)


def test_the_innermost_pool_in_use_is_taken_and_left_again():
    with FakePool() as outer, FakePool() as inner, use_pool(outer):
        with use_pool(inner):
            offloaded.double(1)
        offloaded.double(1)
        assert (outer.stats().submitted, inner.stats().submitted) == (1, 1)


def test_a_default_pool_can_be_set_and_forgotten():
    with FakePool() as fake:
        poolkit.set_default_pool(fake, "process")
        try:
            assert poolkit.default_pool() is fake
            assert offloaded.double(4).result() == 8
            assert fake.stats().submitted == 1
        finally:
            poolkit.set_default_pool(None, "process")


def test_the_default_pool_is_made_once_and_again_after_its_end():
    pool = poolkit.default_pool("thread")
    try:
        assert poolkit.default_pool("thread") is pool
        assert poolkit.offload(kind="thread")(work.square)(3).result() == 9
        pool.shutdown()
        assert poolkit.default_pool("thread") is not pool
    finally:
        poolkit.default_pool("thread").shutdown()
        poolkit.set_default_pool(None, "thread")


def test_decorated_functions_pickle_by_name():
    assert pickle.loads(pickle.dumps(offloaded.double)) is offloaded.double
    again = pickle.loads(pickle.dumps(offloaded.double.options(timeout=3)))
    assert again.local(4) == 8
