"""Programs that hand in by `map` and ignore the results, as for the standard library's pools: all of it is done."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lifecycle.scripts import run, running, text_of

pytestmark = pytest.mark.slow

START = """
import itertools, logging, multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import poolkit

POOLS = {
    "standard": lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")),
    "standard-thread": lambda: ThreadPoolExecutor(2),
    "process": lambda: poolkit.Pool(2),
    "spawn": lambda: poolkit.Pool(2, start_method="spawn"),
    "fork": lambda: poolkit.Pool(2, start_method="fork"),
    "thread": lambda: poolkit.Pool(2, kind="thread"),
    "bounded": lambda: poolkit.Pool(2, max_queue=1),
    "view": lambda: poolkit.Pool(2).options(priority=1),
}
folder = sys.argv[2]

def make():
    return POOLS[sys.argv[1]]()

def save(number):
    open(os.path.join(folder, str(number)), "w").close()
    return -number

def save_but_some(number):
    save(number)
    if number % 3 == 0:
        raise ValueError(number)

"""
KINDS = ["standard", "standard-thread", "process", "spawn", "fork", "thread", "bounded", "view"]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
SOME_KINDS = pytest.mark.parametrize("kind", ["standard", "process", "thread"])
OURS = pytest.mark.parametrize("kind", ["process", "thread"])


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


@EVERY_KIND
@pytest.mark.every_nth(4)
def test_ignored_in_a_with_block(tmp_path: Path, kind: str) -> None:
    text = """
    if __name__ == "__main__":
        with make() as pool:
            pool.map(save, range(200))
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == []
    assert saved(tmp_path) == list(range(200))


@EVERY_KIND
@pytest.mark.every_nth(4)
def test_read_after_the_with_block(tmp_path: Path, kind: str) -> None:
    text = """
    if __name__ == "__main__":
        with make() as pool:
            results = pool.map(save, range(200))
            assert len(os.listdir(folder)) <= 200
        print(len(os.listdir(folder)), sum(results))
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["200 -19900"]


@SOME_KINDS
def test_read_in_part_and_then_after_the_with_block(tmp_path: Path, kind: str) -> None:
    text = """
    if __name__ == "__main__":
        with make() as pool:
            results = pool.map(save, list(range(200)))
            print(next(results), next(results))
        print(len(os.listdir(folder)), sum(results))
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["0 -1", "200 -19899"]


@SOME_KINDS
@pytest.mark.parametrize("held", ["", "results = "])
@pytest.mark.parametrize("end", ["", "pool.shutdown(wait=False)", "pool.shutdown(wait=False); del pool", "sys.exit()"])
@pytest.mark.every_nth(5)
def test_left_to_the_end_of_the_interpreter(tmp_path: Path, kind: str, held: str, end: str) -> None:
    text = f"""
    if __name__ == "__main__":
        pool = make()
        {held}pool.map(save, range(200))
        {end}
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == []
    assert saved(tmp_path) == list(range(200))


@SOME_KINDS
def test_ignored_in_a_function_that_goes_on(tmp_path: Path, kind: str) -> None:
    text = """
    if __name__ == "__main__":
        pool = make()
        pool.map(save, range(200))
        while len(os.listdir(folder)) < 200:
            time.sleep(0.01)
        print(pool.submit(abs, -3).result())
        pool.shutdown()
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["3"]


@SOME_KINDS
def test_several_at_once_and_tasks_beside_them(tmp_path: Path, kind: str) -> None:
    text = """
    if __name__ == "__main__":
        with make() as pool:
            for first in range(0, 300, 100):
                pool.map(save, range(first, first + 100))
                pool.submit(save, 1000 + first)
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == []
    assert saved(tmp_path) == [*range(300), 1000, 1100, 1200]


@SOME_KINDS
def test_items_that_raise_stop_no_others(tmp_path: Path, kind: str) -> None:
    text = """
    if __name__ == "__main__":
        logging.getLogger("poolkit").addHandler(logging.NullHandler())
        with make() as pool:
            pool.map(save_but_some, range(200))
            results = pool.map(save_but_some, range(1000, 1200))
        try:
            print(list(results))
        except ValueError as error:
            print(error)
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["1002"]
    assert saved(tmp_path) == [*range(200), *range(1000, 1200)]


@SOME_KINDS
def test_an_exception_in_the_with_block_stops_nothing(tmp_path: Path, kind: str) -> None:
    text = """
    if __name__ == "__main__":
        try:
            with make() as pool:
                pool.map(save, range(200))
                raise LookupError("mine")
        except LookupError as error:
            print(error)
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["mine"]
    assert saved(tmp_path) == list(range(200))


@OURS
def test_a_chain_of_maps(tmp_path: Path, kind: str) -> None:
    text = """
    def successor(number):
        return number + 1

    with make() as pool:
        pool.map(save, pool.map(successor, (number for number in range(200))))
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == []
    assert saved(tmp_path) == list(range(1, 201))


@OURS
def test_what_an_item_raises_is_logged_once(tmp_path: Path, kind: str) -> None:
    text = """
    pool = make()
    pool.map(save_but_some, range(100))
    pool.shutdown()
    """
    with running(START + text_of(text), kind, str(tmp_path)) as script:
        ended = script.finish()
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.count("ValueError: ") == 1
    assert "map(save_but_some)" in ended.err


@OURS
def test_it_is_done_on_the_thread_that_shuts_down(tmp_path: Path, kind: str) -> None:
    text = """
    import sqlite3
    database = sqlite3.connect(":memory:")
    database.execute("create table t (number)")
    database.executemany("insert into t values (?)", [(number,) for number in range(200)])
    with make() as pool:
        results = pool.starmap(save, database.execute("select number from t"))
    print(sum(results))
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["-19900"]


@OURS
def test_offloaded_functions_too_also_within_a_task(tmp_path: Path, kind: str) -> None:
    text = """
    @poolkit.offload
    def store(number):
        save(number)

    def within():
        store.map(range(1000, 1020))
        return sum(1 for _ in store.map(range(2000, 2020)))

    pool = make()
    with poolkit.use_pool(pool):
        store.map(range(200))
    print(pool.submit(within).result())
    store.map(range(300, 400))
    pool.shutdown()
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["20"]
    assert saved(tmp_path) == [*range(200), *range(300, 400), *range(1000, 1020), *range(2000, 2020)]


@OURS
def test_async_with(tmp_path: Path, kind: str) -> None:
    text = """
    import asyncio

    async def main():
        async with make() as pool:
            pool.map(save, range(100))
            results = pool.map(save, range(100, 200))
        return sum([item async for item in results])

    print(asyncio.run(main()))
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == [str(-sum(range(100, 200)))]
    assert saved(tmp_path) == list(range(200))


WAIT = """
os.dup2(1, 2)

def wait(number):
    time.sleep(0.01)

"""
ENDLESS = """
pool = make()
{held}pool.map(wait, itertools.count())
print("handed in", flush=True)
"""


@OURS
@pytest.mark.parametrize("held", ["", "results = "])
@pytest.mark.every_nth(9)
def test_an_endless_input_goes_on_until_the_timeout(tmp_path: Path, kind: str, held: str) -> None:
    text = WAIT + ENDLESS.format(held=held) + "pool.shutdown(timeout=1.5); print('ended')"
    with running(START + text, kind, str(tmp_path)) as script:
        ended = script.finish()
    first, warning, last = ended.out.splitlines()
    assert (ended.code, first, last) == (0, "handed in", "ended")
    assert "map(wait)" in warning


@OURS
@pytest.mark.parametrize("held", ["", "results = "])
@pytest.mark.parametrize("end", ["pool.shutdown()", "", "pool.__exit__(None, None, None)"])
@pytest.mark.every_nth(9)
def test_an_endless_input_goes_on_until_ctrl_c(tmp_path: Path, kind: str, held: str, end: str) -> None:
    text = WAIT + ENDLESS.format(held=held) + end
    with running(START + text, kind, str(tmp_path)) as script:
        first, warning = script.read_lines(2)
        assert first == "handed in"
        assert "map(wait)" in warning
        script.process.send_signal(signal.SIGINT)
        ended = script.finish()
        script.wait_until_gone()
    assert "map(wait)" not in ended.out


@OURS
def test_a_with_block_that_is_interrupted_cancels_it(tmp_path: Path, kind: str) -> None:
    text = """
    with make() as pool:
        pool.map(wait, itertools.count())
        results = pool.map(wait, itertools.count())
        raise KeyboardInterrupt
    """
    with running(START + WAIT + text_of(text), kind, str(tmp_path)) as script:
        ended = script.finish()
        script.wait_until_gone()
    assert ended.out.endswith("KeyboardInterrupt\n")
    assert "map(wait)" not in ended.out


@OURS
def test_a_fork_does_none_of_it_twice(tmp_path: Path, kind: str) -> None:
    text = """
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads

    def note(number):
        with open(os.path.join(folder, "notes"), "a") as file:
            file.write(f"{number}\\n")

    pool = make()
    results = pool.map(note, range(100))
    pool.map(note, range(100, 200))
    child = os.fork()
    if not child:
        del results
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    pool.shutdown()
    print(len(list(results)))
    """
    assert run(START + text_of(text), kind, str(tmp_path)) == ["7", "100"]
    notes = (tmp_path / "notes").read_text(encoding="utf-8").split()
    assert sorted(map(int, notes)) == list(range(200))


def test_a_pool_that_forks_may_be_made_beside_it(tmp_path: Path) -> None:
    text = """
    pool = make()
    pool.map(save, range(20))
    while len(os.listdir(folder)) < 20:
        time.sleep(0.01)
    with poolkit.Pool(1, start_method="fork") as other:
        print(other.submit(abs, -3).result())
    pool.shutdown()
    """
    assert run(START + text_of(text), "process", str(tmp_path)) == ["3"]
