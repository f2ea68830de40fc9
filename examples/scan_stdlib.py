"""Measure every module of this interpreter's standard library, in line and in a pool of processes.

Each file is one task: parse it, count lines, functions and branches, find its longest function.
No file may take longer than `--timeout` seconds.
The same figures are computed in line first, to compare the results and the time.

`--sabotage` plants an endless loop, a segmentation fault and an `os._exit(3)` among the files.
Each of them must cost its own file and nothing else; the exit status tells.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import os
import platform
import resource
import sys
import sysconfig
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, as_completed
from pathlib import Path

import poolkit

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp, ast.comprehension)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
TESTS = {"test", "tests", "idle_test"}
NOT_STANDARD = {"site-packages", "dist-packages"}


# Lines, functions, branches, length of the longest function, its name.
# A plain tuple, since a class of this script would travel along with every result.
Figures = tuple[int, int, int, int, str]

# What became of one file: its figures, or the exception that took their place.
Outcome = Figures | BaseException


def measure(path: str) -> Figures:
    """Parse the module at `path` and count. Raises SyntaxError or ValueError for what is no Python."""
    source = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old string escapes in old modules
        tree = ast.parse(source, path)
    functions = branches = longest = 0
    longest_name = ""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            functions += 1
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > longest:
                longest, longest_name = length, node.name
        elif isinstance(node, BRANCHES):
            branches += 1
    return source.count(b"\n"), functions, branches, longest, longest_name


# ===== the sabotage =====


def loop_for_ever(path: str) -> Figures:
    """Stand in for a file that the parser never gets to the end of."""
    while True:
        path = path[::-1]


def read_address_zero(path: str) -> Figures:
    """Stand in for a file that trips over a bug in C code."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the crash is on purpose, a core file helps nobody
    ctypes.string_at(0)
    raise AssertionError(path)


def exit_at_once(path: str) -> Figures:
    """Stand in for a file whose parser gives up on the whole process."""
    del path
    os._exit(3)


def is_time_limit(error: Outcome) -> bool:
    """Tell whether `error` is what the endless loop should end in."""
    return isinstance(error, poolkit.TaskTimeout)


def is_segfault(error: Outcome) -> bool:
    """Tell whether `error` is what the segmentation fault should end in."""
    return isinstance(error, poolkit.WorkerCrashed) and error.signal == "SIGSEGV"


def is_exit_3(error: Outcome) -> bool:
    """Tell whether `error` is what the exit should end in."""
    return isinstance(error, poolkit.WorkerCrashed) and error.exitcode == 3  # noqa: PLR2004 -- see exit_at_once


SABOTAGE: dict[Callable[[str], Figures], Callable[[Outcome], bool]] = {
    loop_for_ever: is_time_limit,
    read_address_zero: is_segfault,
    exit_at_once: is_exit_3,
}


def plant(files: list[str]) -> dict[str, Callable[[str], Figures]]:
    """Choose a file for each act of sabotage, spread over the list."""
    step = len(files) / (len(SABOTAGE) + 1)
    return {files[int(step * (number + 1))]: act for number, act in enumerate(SABOTAGE)}


# ===== the two ways to do the job =====


def scan_in_line(files: Iterable[str]) -> dict[str, Outcome]:
    """Measure one file after the other, here."""
    outcomes: dict[str, Outcome] = {}
    for path in files:
        try:
            outcomes[path] = measure(path)
        except Exception as error:  # noqa: BLE001 -- a file that does not parse is a finding
            outcomes[path] = error
    return outcomes


def scan_in_pool(
    files: Iterable[str],
    workers: int | None,
    timeout: float,
    planted: Mapping[str, Callable[[str], Figures]],
) -> dict[str, Outcome]:
    """Measure all files in a pool of processes, none for longer than `timeout` seconds."""
    outcomes: dict[str, Outcome] = {}
    with poolkit.Pool(max_workers=workers) as pool:
        limited = pool.options(timeout=timeout)
        tasks: dict[Future[Figures], str] = {limited.submit(planted.get(path, measure), path): path for path in files}
        for task in as_completed(tasks):
            error = task.exception()
            outcomes[tasks[task]] = task.result() if error is None else error
    return outcomes


# ===== what to read, what to print =====


def standard_library(root: Path, *, tests: bool) -> list[str]:
    """List the modules under `root`, without what was installed there later."""
    skipped = NOT_STANDARD if tests else NOT_STANDARD | TESTS
    return sorted(str(path) for path in root.rglob("*.py") if skipped.isdisjoint(path.relative_to(root).parts))


def print_table(outcomes: Mapping[str, Outcome], root: Path, top: int) -> None:
    """Print the modules with the longest functions, and the totals."""
    modules = [(path, found) for path, found in outcomes.items() if isinstance(found, tuple)]
    modules.sort(key=lambda module: (-module[1][3], module[0]))
    print(f"{'module':<36} {'lines':>8} {'functions':>9} {'branches':>8}  longest function")
    for path, (lines, functions, branches, longest, name) in modules[:top]:
        module = str(Path(path).relative_to(root))
        print(f"{module:<36} {lines:>8} {functions:>9} {branches:>8}  {longest:>4} {name}")
    lines = sum(found[0] for _, found in modules)
    functions = sum(found[1] for _, found in modules)
    branches = sum(found[2] for _, found in modules)
    print(f"{f'all {len(modules)} modules':<36} {lines:>8} {functions:>9} {branches:>8}")
    if len(modules) < len(outcomes):
        print(f"no figures for {len(outcomes) - len(modules)} files")


def print_sabotage(
    planted: Mapping[str, Callable[[str], Figures]], outcomes: Mapping[str, Outcome], root: Path
) -> None:
    """Print what each sabotaged file ended in."""
    print("\nsabotaged:")
    for path, act in planted.items():
        error = outcomes[path]
        print(f"  {Path(path).relative_to(root)}: {act.__name__}")
        print(textwrap.indent(f"{type(error).__name__}: {error}", "    "))


def same(left: Outcome, right: Outcome) -> bool:
    """Compare two outcomes of one file; exceptions by their type."""
    if isinstance(left, BaseException):
        return type(left) is type(right)
    return left == right


def find_faults(
    planted: Mapping[str, Callable[[str], Figures]],
    expected: Mapping[str, Outcome],
    outcomes: Mapping[str, Outcome],
) -> list[str]:
    """Say which files did not end as they should have."""
    faults = [f"{path}: nothing came back" for path in expected if path not in outcomes]
    for path, outcome in outcomes.items():
        if path in planted:
            if not SABOTAGE[planted[path]](outcome):
                faults.append(f"{path}: {planted[path].__name__} ended in {outcome!r}")
        elif not same(outcome, expected[path]):
            faults.append(f"{path}: {outcome!r} in the pool, {expected[path]!r} in line")
    return faults


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the standard library in a pool of processes.")
    parser.add_argument("--workers", type=int, help="how many processes (default: the CPUs at hand)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds that one file may take (default: 5)")
    parser.add_argument("--limit", type=int, help="only so many files")
    parser.add_argument("--top", type=int, default=10, help="rows of the table (default: 10)")
    parser.add_argument("--all", action="store_true", help="the library's own tests too, about four times the work")
    parser.add_argument("--sabotage", action="store_true", help="plant a hang, a crash and an exit among the files")
    arguments = parser.parse_args()
    if arguments.sabotage and arguments.limit is not None and arguments.limit <= len(SABOTAGE):
        parser.error(f"--sabotage needs more than {len(SABOTAGE)} files")
    return arguments


def main() -> int:
    """Scan twice, compare, print; the exit status is 1 when a file did not end as it should have."""
    arguments = parse_arguments()
    root = Path(sysconfig.get_path("stdlib"))
    files = standard_library(root, tests=arguments.all)[: arguments.limit]
    nbytes = sum(len(Path(path).read_bytes()) for path in files)  # both scans find the files in memory
    print(
        f"{platform.python_implementation()} {platform.python_version()}: {len(files)} files, {nbytes / 1e6:.1f} MB\n"
    )

    begin = time.perf_counter()
    expected = scan_in_line(files)
    in_line = time.perf_counter() - begin

    planted = plant(files) if arguments.sabotage else {}
    begin = time.perf_counter()
    outcomes = scan_in_pool(files, arguments.workers, arguments.timeout, planted)
    in_pool = time.perf_counter() - begin

    print_table(outcomes, root, arguments.top)
    if planted:
        print_sabotage(planted, outcomes, root)
    print(f"\nin line {in_line:.2f} s, in the pool {in_pool:.2f} s", end="")
    print(", a hang waited for" if planted else f": {in_line / in_pool:.2f} times as fast")

    faults = find_faults(planted, expected, outcomes)
    if faults:
        print("\nnot as it should be:", *faults, sep="\n  ")
        return 1
    print(f"{len(files) - len(planted)} of {len(files)} files ended as they do in line, {len(planted)} were sabotaged")
    return 0


sys.exit(main())
