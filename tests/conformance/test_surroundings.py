"""What a worker finds when it begins: the initializer's work, modules, environment, multiprocessing's own things."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest

import support_functions as work
from poolkit import InitializerFailed, _os
from support import WATCHDOG

pytestmark = pytest.mark.each_start_method


def test_the_initializer_runs_before_any_task(make_pool):
    pool = make_pool(initializer=work.initialize_positional, initargs=("flavour", "plum"))
    assert pool.submit(work.state, "flavour").result() == "plum"


def test_the_initializer_runs_once_in_every_worker(make_pool, journal):
    pool = make_pool(2, initializer=work.write_line, initargs=(journal, "begun"))
    pool.warm_up()
    for task in [pool.submit(work.none_of_it) for _ in range(10)]:
        task.result()
    assert journal.lines() == ["begun", "begun"]


@pytest.mark.needs("crash")
def test_a_replaced_worker_is_initialised_too(make_pool):
    pool = make_pool(initializer=work.initialize_positional, initargs=("flavour", "plum"))
    pool.submit(work.die).exception()
    assert pool.submit(work.state, "flavour").result() == "plum"


@pytest.mark.needs("by_value")
def test_a_closure_can_initialise(make_pool, journal):
    def initialise():
        journal.write("begun")

    pool = make_pool(initializer=initialise)
    pool.submit(work.none_of_it).result()
    assert journal.lines() == ["begun"]


def test_warm_up_raises_what_the_initializer_raised(make_pool):
    pool = make_pool(initializer=work.fail_to_initialize, initargs=("broken",))
    with pytest.raises(InitializerFailed, match="broken") as caught:
        pool.warm_up()
    assert type(caught.value.__cause__) is ZeroDivisionError


@pytest.mark.needs("process", "shared_here")
def test_initargs_may_hold_multiprocessing_primitives(make_pool):
    context = multiprocessing.get_context("spawn")
    lock, event, queue = context.Lock(), context.Event(), context.Queue()
    pool = make_pool(2, initializer=work.keep_primitives, initargs=(lock, event, queue))
    assert not pool.submit(work.use_primitives, 1).result()
    event.set()
    assert pool.submit(work.use_primitives, 2).result()
    assert sorted(queue.get(timeout=WATCHDOG) for _ in range(2)) == [1, 2]
    with lock:
        pass
    queue.close()


@pytest.mark.needs("crash", "shared_here")
@pytest.mark.one_start_method
def test_a_replaced_worker_gets_multiprocessing_primitives_too(make_pool):
    context = multiprocessing.get_context("spawn")
    event, queue = context.Event(), context.Queue()
    pool = make_pool(initializer=work.keep_primitives, initargs=(context.Lock(), event, queue))
    pool.submit(work.die).exception()
    assert not pool.submit(work.use_primitives, 1).result()
    assert queue.get(timeout=WATCHDOG) == 1
    queue.close()


@pytest.mark.needs("process", "shared_here")
@pytest.mark.one_start_method
@pytest.mark.slow
def test_manager_proxies_work_as_arguments(make_pool):
    with multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.list()
        pool = make_pool()
        pool.submit(work.append_to, shared, 3).result()
        assert list(shared) == [3]


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A module that notes each import, and the environment that it found; this process does not import it."""
    (tmp_path / "poolkit_probe.py").write_text(
        "import os\nFLAVOUR = os.environ.get('FLAVOUR')\nopen(os.environ['IMPORTS'], 'a').write('imported\\n')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    imports = tmp_path / "imports"
    imports.touch()
    monkeypatch.setenv("IMPORTS", str(imports))
    yield imports
    assert "poolkit_probe" not in sys.modules


@pytest.mark.needs("process")
@pytest.mark.usefixtures("probe")
def test_env_is_set_before_anything_is_imported(make_pool):
    def flavour():
        import poolkit_probe

        return poolkit_probe.FLAVOUR

    pool = make_pool(env={"FLAVOUR": "plum"}, preload=["poolkit_probe"])
    assert pool.submit(flavour).result() == "plum"
    assert "FLAVOUR" not in os.environ


@pytest.mark.needs("forks")
def test_preloaded_modules_are_imported_once_for_all_workers(make_pool, probe):
    pool = make_pool(2, preload=["poolkit_probe"])
    pool.warm_up()
    assert pool.submit(work.loaded_modules, "poolkit_probe").result() == [True]
    assert probe.read_text() == "imported\n"


@pytest.mark.needs("process")
def test_preloaded_modules_are_there_in_every_worker(make_pool, probe):
    pool = make_pool(preload=["poolkit_probe"])
    assert pool.submit(work.loaded_modules, "poolkit_probe").result() == [True]
    pool.submit(work.die).exception()
    assert pool.submit(work.loaded_modules, "poolkit_probe").result() == [True]


@pytest.mark.needs("process")
def test_a_module_that_cannot_be_preloaded_is_told(make_pool):
    pool = make_pool(preload=["poolkit_there_is_no_such_module"])
    with pytest.raises(InitializerFailed) as caught:
        pool.submit(work.none_of_it).result()
    assert type(caught.value.__cause__) is ModuleNotFoundError


@pytest.mark.needs("process")
def test_numerical_libraries_get_their_share_of_the_cpus(make_pool, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pool = make_pool(2)
    share = max(1, _os.usable_cpus() // 2)
    assert pool.submit(work.environment, "OMP_NUM_THREADS").result() == str(share)


@pytest.mark.needs("process")
def test_a_worker_that_has_the_cpus_with_others_makes_pools_of_its_share(make_pool, monkeypatch):
    """As a cluster tells its workers, whose environment is there before anything is imported."""
    for name in ("OMP_NUM_THREADS", "POOLKIT_SHARE"):
        monkeypatch.delenv(name, raising=False)
    cpus = _os.usable_cpus()
    for share in (1, 2, cpus, cpus + 1):
        pool = make_pool(env={"POOLKIT_SHARE": str(share), "OMP_NUM_THREADS": "1"})
        expected = max(1, cpus // share)
        assert pool.submit(work.share_of_pools).result() == (expected,) * 3
        pool.shutdown()


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_numerical_libraries_get_their_share_of_the_share(make_pool, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cpus = _os.usable_cpus()
    monkeypatch.setenv("POOLKIT_SHARE", str(cpus))
    assert make_pool(1).submit(work.environment, "OMP_NUM_THREADS").result() == "1"
    monkeypatch.setenv("POOLKIT_SHARE", "nonsense")
    assert make_pool(1).submit(work.environment, "OMP_NUM_THREADS").result() == str(cpus)


@pytest.mark.needs("process")
def test_the_share_is_that_of_the_moment_when_the_pool_is_made(make_pool, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pool = make_pool(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    assert pool.submit(work.environment, "OMP_NUM_THREADS").result() == str(_os.usable_cpus())


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_the_environment_decides_on_the_share_before_the_pool_does(make_pool, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    pool = make_pool(env={"MKL_NUM_THREADS": "5"})
    assert pool.submit(work.environment, "OMP_NUM_THREADS").result() == "3"
    assert pool.submit(work.environment, "MKL_NUM_THREADS").result() == "5"
