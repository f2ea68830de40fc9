"""Who a worker says it is: guards that modules have for multiprocessing's children hold in workers, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.scripts import Script, python, run, text_of

pytestmark = pytest.mark.slow

METHODS = ["forkserver", "spawn", "fork"]


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_is_what_the_standard_librarys_is(method: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        text_of(
            f"""
            import multiprocessing, os
            from concurrent.futures import ProcessPoolExecutor
            import poolkit

            def look():
                me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
                return (
                    me._identity, me.daemon, me.pid == os.getpid(), me.is_alive(), me.name == "MainProcess",
                    parent.pid, parent.is_alive(), parent.name, multiprocessing.active_children(),
                )

            if __name__ == "__main__":
                context = multiprocessing.get_context({method!r})
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    theirs = pool.submit(look).result()
                with poolkit.Pool(1, start_method={method!r}) as pool:
                    ours = pool.submit(look).result()
                    names = pool.submit(eval, "__import__('multiprocessing').current_process().name").result()
                print(theirs == ours, ours[0], names, ours[5] == os.getpid())
            """
        ),
        encoding="utf-8",
    )
    with Script(python(str(path))) as script:
        if method == "forkserver":  # there the standard library's workers are children of its server
            assert script.finish().check()[0].endswith("(1,) PoolkitWorker-1 True")
        else:
            assert script.finish().check() == ["True (1,) PoolkitWorker-1 True"]


@pytest.mark.parametrize("method", METHODS)
def test_a_guarded_module_starts_nothing_in_workers_nor_where_it_is_preloaded(method: str, tmp_path: Path) -> None:
    (tmp_path / "guarded.py").write_text(
        text_of(
            """
            import multiprocessing
            guards = multiprocessing.current_process().name == "MainProcess", multiprocessing.parent_process() is None

            def look():
                return guards
            """
        ),
        encoding="utf-8",
    )
    lines = run(
        f"""
        import sys
        import poolkit

        sys.path.insert(0, {str(tmp_path)!r})
        look = "__import__('guarded').look()"
        for preload in ([], ["guarded"]):
            with poolkit.Pool(1, start_method={method!r}, preload=preload) as pool:
                print(*pool.submit(eval, look).result())
        """
    )
    assert lines == ["False False"] * 2


def test_workers_are_numbered_and_their_numbers_not_given_again() -> None:
    lines = run(
        """
        import os, threading
        import poolkit

        def number():
            import multiprocessing
            return multiprocessing.current_process()._identity[0]

        with poolkit.Pool(3) as pool:
            pool.warm_up()
            found = {}
            while len(found) < 3:
                for task in [pool.submit(number) for _ in range(9)]:
                    found[task.result()] = task.worker_id
            print(sorted(found), all(number == worker for number, worker in found.items()))
            for _ in range(3):
                pool.submit(os._exit, 1).exception()
            pool.warm_up()
            numbers = {worker.id for worker in pool.workers()}
            print(len(numbers) == 3, max(numbers) == 6, pool.submit(number).result() in numbers)
        """
    )
    assert lines == ["[1, 2, 3] True", "True True True"]


@pytest.mark.parametrize("method", METHODS)
def test_log_records_name_the_worker(method: str) -> None:
    """Also where nobody has imported multiprocessing, which is left at that."""
    lines = run(
        f"""
        import logging
        import poolkit

        def log():
            import io, logging, sys
            logger = logging.getLogger("own")
            stream = io.StringIO()
            handler = logging.StreamHandler(stream)
            handler.setFormatter(logging.Formatter("%(processName)s"))
            logger.addHandler(handler)
            logger.warning("hello")
            return stream.getvalue().strip(), "multiprocessing.process" in sys.modules

        with poolkit.Pool(1, start_method={method!r}) as pool:
            logging.getLogger().addHandler(logging.NullHandler())
            name, loaded = pool.submit(log).result()
            print(name, loaded and {method!r} != "fork")
        """
    )
    assert lines == ["PoolkitWorker-1 False"]


@pytest.mark.parametrize("method", METHODS)
def test_the_owner_is_seen_to_end(method: str) -> None:
    """By what a task has started; it outlives the worker by a moment at most, so it tells by a pipe."""
    source = f"""
        import os, sys
        import poolkit

        def look():
            import multiprocessing, multiprocessing.connection
            parent = multiprocessing.parent_process()
            assert parent.is_alive()
            assert parent.sentinel is not None
            return multiprocessing.connection.wait([parent.sentinel], 0)

        with poolkit.Pool(1, start_method={method!r}) as pool:
            print([pool.submit(look).result() for _ in range(3)])
        """
    assert run(source) == ["[[], [], []]"]


@pytest.mark.parametrize("method", METHODS)
def test_tasks_may_start_processes_and_see_none_of_the_owners(method: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        text_of(
            f"""
            import multiprocessing, signal
            import poolkit

            def start():
                mine = multiprocessing.active_children()
                context = multiprocessing.get_context("fork")
                queue = context.SimpleQueue()
                child = context.Process(target=tell, args=(queue,))
                child.start()
                child.join()
                return mine, queue.get(), child.exitcode

            def tell(queue):
                queue.put((multiprocessing.current_process().name, multiprocessing.parent_process().name))

            if __name__ == "__main__":
                theirs = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
                theirs.start()
                with poolkit.Pool(1, start_method={method!r}) as pool:
                    print(*pool.submit(start).result())
                print(theirs.is_alive())
                theirs.kill()
                theirs.join()
            """
        ),
        encoding="utf-8",
    )
    with Script(python(str(path))) as script:
        assert script.finish().check() == ["[] ('ForkProcess-1:1', 'PoolkitWorker-1') 0", "True"]
