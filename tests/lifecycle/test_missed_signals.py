"""A signal that interrupts no wait, and that the main thread sees all the same.

Such is one that arrives when it has looked for signals and does not sleep yet, which is a matter of luck; and one that
another thread has got, which is the same to the main thread, and certain.
"""

from __future__ import annotations

import pytest

from lifecycle.scripts import run, text_of

pytestmark = pytest.mark.slow

SOURCE = """
    import contextlib, os, signal, threading, time
    import poolkit

    def switches():
        # How often the main thread went to sleep, while it is asleep.
        with open(f"/proc/self/task/{os.getpid()}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return lines["voluntary_ctxt_switches"] if lines["State"].split()[0] == "S" else None

    def interrupt():
        # Once the main thread sleeps: if it waited for the interpreter's lock, it would wake up each time.
        looks = []
        while len(looks) < 5 or len({*looks[-5:]}) != 1 or looks[-1] is None:
            time.sleep(0.01)
            looks.append(switches())
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def wait_here(*_):
        ended.wait()

    def sleep(*_):
        time.sleep(3600)

    class Sleeper:
        sleep = sleep

    def interrupted(wait):
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            wait()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        finally:
            ended.set()

    ended = threading.Event()
"""

WAITS = {
    "result": """
        with poolkit.Pool(1, kind="thread") as pool:
            interrupted(pool.submit(wait_here).result)
        """,
    "result with a limit": """
        with poolkit.Pool(1, kind="thread") as pool:
            task = pool.submit(wait_here)
            interrupted(lambda: task.result(3600))
        """,
    "result of processes while another thread waits for one": """
        with poolkit.Pool(2) as pool:
            pool.warm_up()
            tasks = [pool.submit(time.sleep, 3600) for _ in range(2)]

            def wait_until_cancelled(task):
                with contextlib.suppress(poolkit.TaskCancelled):
                    task.result()

            threading.Thread(target=wait_until_cancelled, args=(tasks[0],), daemon=True).start()
            while not pool._supervisor._reader.awaited:
                time.sleep(0.01)
            interrupted(tasks[1].result)
            for task in tasks:
                task.cancel()
        """,
    "map": """
        with poolkit.Pool(1, kind="thread") as pool:
            interrupted(lambda: list(pool.map(wait_here, range(3))))
        """,
    "map in no order": """
        with poolkit.Pool(1, kind="thread") as pool:
            interrupted(lambda: list(pool.map(wait_here, range(3), ordered=False)))
        """,
    "items of a stream": """
        def items():
            wait_here()
            yield 1

        with poolkit.Pool(1, kind="thread") as pool:
            interrupted(lambda: list(pool.stream(items)))
        """,
    "messages": """
        with poolkit.Pool(1, kind="thread") as pool:
            messages = pool.submit(wait_here).messages()
            interrupted(lambda: list(messages))
        """,
    "shutdown": """
        pool = poolkit.Pool(1, kind="thread")
        pool.submit(wait_here)
        interrupted(pool.shutdown)
        pool.shutdown()
        """,
    "shutdown that goes on with a map": """
        pool = poolkit.Pool(1, kind="thread")
        results = pool.map(wait_here, range(10_000), chunksize=1)
        interrupted(pool.shutdown)
        pool.shutdown(cancel_futures=True, kill=True)
        """,
    "room in the queue": """
        with poolkit.Pool(1, kind="thread", max_queue=1) as pool:
            def fill():
                for _ in range(3):
                    pool.submit(wait_here)

            interrupted(fill)
        """,
    "warm_up": """
        with poolkit.Pool(1, kind="thread", initializer=wait_here) as pool:
            interrupted(pool.warm_up)
        """,
    "bars": """
        with poolkit.Pool(1, kind="thread") as pool:
            tasks = [pool.submit(wait_here) for _ in range(2)]
            interrupted(lambda: list(poolkit.progress(tasks, bar=None)))
        """,
    "join of a worker": """
        worker = poolkit.Worker(wait_here, kind="thread")
        interrupted(worker.join)
        worker.join()
        """,
    "a message of a worker that is a thread": """
        with poolkit.Worker(wait_here, kind="thread") as worker:
            interrupted(worker.recv)
        """,
    "a message of a worker that is a process": """
        with poolkit.Worker(sleep) as worker:
            interrupted(worker.recv)
            worker.terminate()
        """,
    "a call of an object in a process": """
        with poolkit.Worker.hosting(Sleeper) as worker:
            interrupted(worker.call("sleep").result)
            worker.terminate()
        """,
    "lines of a command": """
        with poolkit.Pool(1) as pool, pool.run(["sleep", "3600"], text=True) as command:
            interrupted(lambda: list(command))
        """,
    "start of a cluster": """
        cluster = poolkit.Cluster(sleep, workers=1, bind=None, kind="thread")
        interrupted(cluster.start)
        """,
    "end of a cluster": """
        def serve(context):
            context.ready()
            context.stopping.wait()

        cluster = poolkit.Cluster(serve, workers=1, bind=None, kind="thread")
        cluster.start()
        interrupted(cluster.wait)
        cluster.stop()
        """,
}


@pytest.mark.parametrize("wait", WAITS)
def test_it_is_seen(wait: str) -> None:
    assert run(text_of(SOURCE) + text_of(WAITS[wait])) == ["interrupted"]
