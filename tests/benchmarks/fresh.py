"""A program as small as can be with a pool in it: says when the first results are there, then waits.

Usage: fresh.py CONTENDER start | hold. It imports nothing of the benchmarks, so that what it takes is the pool's own.
"""

import sys
from time import perf_counter

started = perf_counter()  # before anything of the pool is imported

if __name__ == "__main__":
    contender, what = sys.argv[1:]
    if contender == "poolkit":
        from poolkit import Pool

        def make():  # noqa: ANN201 -- typing would be one more import
            return Pool(2)
    elif contender.startswith("ppe-"):
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        def make():  # noqa: ANN201
            return ProcessPoolExecutor(2, mp_context=get_context(contender[4:]))

    if what == "start":
        figures = []
        for _ in range(2):
            with make() as pool:
                pool.submit(abs, -1).result()
                figures.append(perf_counter() - started)
            started = perf_counter()  # the end of a pool is not part of the next one's start
        print(*figures)
    elif contender == "idle":
        print(flush=True)
        sys.stdin.read()
    else:
        with make() as pool:
            if contender == "poolkit":
                pool.warm_up()
            else:
                from time import sleep

                for future in [pool.submit(sleep, 0.1) for _ in range(2)]:
                    future.result()
            pool.submit(abs, -1).result()
            print(flush=True)
            sys.stdin.read()
