"""Compare backends of joblib in one process, warm and in turn, and print how many times faster poolkit's is.

Usage: python tests/benchmarks/joblib_mod.py [WORK...] [--repeat N] [--scale F] [--jobs N]
In each round each backend does the work once, and the order turns by one; a ratio is taken within a round, and what is
printed is the median of the rounds. Works that need scikit-learn are left out where there is none.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benchmarks`, here and in the workers

import joblib
import numpy as np
from joblib import Parallel, delayed

from poolkit.extras.joblib import register

BACKENDS = ("poolkit", "loky", "threading")


def square(number: int) -> int:
    """A tiny call."""
    return number * number


def total(array: Any) -> float:
    """What is done with a large array."""
    return float(array[::64].sum())


def nested(depth: int) -> set[int]:
    """The processes that run this, and what is nested in it."""
    found = {os.getpid()}
    if depth:
        found.update(*Parallel(n_jobs=2)(delayed(nested)(depth - 1) for _ in range(2)))
    return found


def tiny(scale: float) -> Callable[[], object]:
    """20,000 tiny calls."""
    count = max(2, round(20_000 * scale))
    return lambda: Parallel()(delayed(square)(number) for number in range(count))


def array(scale: float) -> Callable[[], object]:
    """50 calls with one array of 32 MiB."""
    large = np.ones(max(2 << 17, round((4 << 20) * scale)))
    return lambda: Parallel()(delayed(total)(large) for _ in range(50))


def three_deep(_scale: float) -> Callable[[], object]:
    """Calls in calls in calls, with two jobs at each level."""
    return lambda: Parallel(batch_size=1)(delayed(nested)(2) for _ in range(4))


def cross_validation(scale: float) -> Callable[[], object]:
    """cross_val_score of a logistic regression, 10 folds, 3,000 rows of 40 (0.9 MiB)."""
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    x, y = make_classification(max(100, round(3_000 * scale)), 40, random_state=0)
    return lambda: cross_val_score(LogisticRegression(max_iter=200), x, y, cv=10)


def grid(scale: float) -> Callable[[], object]:
    """GridSearchCV of a decision tree, 12 times 5 fits, 1,000 rows of 20."""
    from sklearn.datasets import make_classification
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    x, y = make_classification(max(100, round(1_000 * scale)), 20, random_state=0)
    asked = {"max_depth": [2, 3, 4, 6], "min_samples_leaf": [1, 5, 20]}
    return lambda: GridSearchCV(DecisionTreeClassifier(random_state=0), asked, cv=5).fit(x, y)


WORKS = {work.__name__: work for work in (tiny, array, three_deep, cross_validation, grid)}
NEED_SKLEARN = {"cross_validation", "grid"}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compare backends of joblib in one process, warm and in turn.")
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"all unless given: {', '.join(WORKS)}")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="rounds (default: 15)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="sizes are multiplied by it (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="n_jobs (default: 2)")
    asked = parser.parse_args()
    register()
    has_sklearn = importlib.util.find_spec("sklearn") is not None
    print(f"joblib: {joblib.__version__}", f"n_jobs: {asked.jobs}", f"load: {os.getloadavg()[0]:.2f}", sep="\n")
    for name in asked.works or WORKS:
        if has_sklearn or name not in NEED_SKLEARN:
            compare(name, asked.scale, asked.repeat, asked.jobs)


def compare(name: str, scale: float, repeat: int, jobs: int) -> None:
    """Measure one work, and print its table."""
    work = WORKS[name](scale)
    took: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for number in range(repeat + 2):  # two that are not counted: what is cold gets warm
        turn = number % len(BACKENDS)
        for backend in BACKENDS[turn:] + BACKENDS[:turn]:
            with joblib.parallel_config(backend, n_jobs=jobs):
                started = time.perf_counter()
                found = work()
                took[backend].append(time.perf_counter() - started)
            if name == "three_deep" and backend == "poolkit":
                assert isinstance(found, list)
                processes = set().union(*found)
                assert len(processes) <= jobs, "more processes than n_jobs"
    print(f"\n## {name}: {WORKS[name].__doc__}")
    for backend in BACKENDS:
        times = took[backend][2:]
        ratio = statistics.median(other / ours for other, ours in zip(times, took["poolkit"][2:], strict=True))
        told = "" if backend == "poolkit" else f"   poolkit is {ratio:.2f} times faster"
        print(f"  {backend:<10}{statistics.median(times) * 1e3:8.1f} ms{told}", flush=True)


if __name__ == "__main__":
    main()
