"""`@offload`: which pool a call lands on, in threads and coroutines too, and how decorated functions travel."""

from __future__ import annotations

import asyncio
import threading

import pytest

import poolkit
import support_functions as work
import support_offloaded as offloaded
from poolkit import Pool, default_pool, offload, set_default_pool, use_pool

pytestmark = pytest.mark.one_start_method


@pytest.fixture
def used(pool):
    """A pool with one worker that offloaded calls land on."""
    with use_pool(pool):
        yield pool


@pytest.fixture
def _no_defaults():
    """No default pools afterwards."""
    yield
    for kind in ("process", "thread"):
        pool = poolkit.decorator._defaults.get(kind)
        set_default_pool(None, kind)
        if pool is not None:
            pool.shutdown()


# ===== which pool =====


def test_use_pool_gives_the_pool(pool):
    with use_pool(pool) as same:
        assert same is pool


def test_the_innermost_pool_is_used(make_pool):
    outer, inner = make_pool(), make_pool()
    with use_pool(outer):
        with use_pool(inner):
            offloaded.offloaded_square(1).result()
        offloaded.offloaded_square(1).result()
        offloaded.offloaded_square(1).result()
    assert (outer.stats().submitted, inner.stats().submitted) == (2, 1)


def test_a_view_can_be_used(pool):
    with use_pool(pool.options(name="of the view")):
        assert offloaded.offloaded_square(3).name == "of the view"
        assert offloaded.offloaded_name().result() == "named"


def test_the_decorators_own_pool_comes_first(used, make_pool):
    own = make_pool()
    assert offload(pool=own)(work.square)(3).result() == 9
    assert (own.stats().submitted, used.stats().submitted) == (1, 0)


@pytest.mark.usefixtures("_no_defaults")
def test_a_pool_is_used_in_its_own_thread_only(pool):
    default = Pool(1, kind="thread")
    set_default_pool(default, "process")
    with use_pool(pool):
        other = threading.Thread(target=lambda: offloaded.offloaded_square(1).result())
        other.start()
        other.join()
        offloaded.offloaded_square(1).result()
    assert (pool.stats().submitted, default.stats().submitted) == (1, 1)


@pytest.mark.needs("unattended")
def test_coroutines_use_pools_of_their_own(make_pool):
    pools = [make_pool(), make_pool()]

    async def use(pool, count):
        with use_pool(pool):
            for _ in range(count):
                await offloaded.offloaded_square(2)

    async def main():
        await asyncio.gather(use(pools[0], 2), use(pools[1], 3))

    asyncio.run(main())
    assert [pool.stats().submitted for pool in pools] == [2, 3]


@pytest.mark.usefixtures("_no_defaults")
@pytest.mark.slow
def test_the_default_pool_is_of_processes():
    assert offloaded.offloaded_square(5).result() == 25
    assert (default_pool().kind, default_pool().stats().succeeded) == ("process", 1)


@pytest.mark.usefixtures("_no_defaults")
def test_an_offloaded_function_may_ask_for_threads():
    assert offloaded.offloaded_thread_id().result() != threading.get_ident()
    assert default_pool("thread").stats().succeeded == 1


@pytest.mark.usefixtures("_no_defaults")
def test_threads_that_ask_at_once_get_the_same_default_pool():
    found, barrier = [], threading.Barrier(4)

    def ask():
        barrier.wait()
        found.append(default_pool("thread"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


# ===== names, options, methods =====


def test_it_looks_like_the_function():
    assert offloaded.offloaded_square.__name__ == "offloaded_square"
    assert offloaded.offloaded_square.__wrapped__(3) == 9
    assert "offloaded_square" in repr(offloaded.offloaded_square)


@pytest.mark.usefixtures("used")
def test_a_task_has_the_functions_name():
    assert offloaded.offloaded_square(7).name == "offloaded_square"
    assert offloaded.Account(3).times(4).name == "Account.times"


@pytest.mark.usefixtures("used")
def test_options_of_a_call_come_on_top():
    changed = offloaded.offloaded_name.options(name="other")
    assert changed().result() == "other"
    assert changed.options(timeout=50)().result() == "other"
    assert offloaded.offloaded_name().result() == "named"


@pytest.mark.usefixtures("used")
@pytest.mark.needs("unattended")
def test_calls_can_be_awaited():
    async def main():
        return await asyncio.gather(*(offloaded.offloaded_square(number) for number in range(5)))

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


@pytest.mark.usefixtures("used")
def test_methods_have_the_other_faces_too():
    account = offloaded.Account(3)
    assert account.times.local(5) == 15
    assert list(account.times.map([1, 2])) == [3, 6]
    assert account.times.options(name="other")(2).name == "other"
    assert offloaded.Account.times(account, 6).result() == 18
    assert offloaded.Account.rated.local(7) == 14
    assert offloaded.Account.plus.local(5, 6) == 11


@pytest.mark.usefixtures("used")
def test_class_methods_see_the_class_they_were_called_on():
    class Dear(offloaded.Account):
        rate = 10

    assert Dear.rated(5).result() == 50
    assert offloaded.Account.rated(5).result() == 10


# ===== travelling =====


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        pytest.param(offloaded.double, (3,), 6, id="function"),
        pytest.param(offloaded.Account(2).times, (3,), 6, id="method"),
        pytest.param(offloaded.Account.rated, (3,), 6, id="class-method"),
        pytest.param(offloaded.Account.plus, (3, 4), 7, id="static-method"),
        pytest.param(offloaded.double.options(timeout=100), (3,), 6, id="with-options"),
        pytest.param(offloaded.Account(2).times.options(timeout=100), (3,), 6, id="method-with-options"),
        pytest.param(offload(lambda number: number + 1), (3,), 4, id="lambda"),
    ],
)
def test_decorated_functions_travel_as_arguments(pool, function, arguments, expected):
    assert pool.submit(offloaded.call_offloaded, function, *arguments).result() == expected
