"""More workers than the soft limit on open files has room for: it is raised, or the error says the numbers."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = [pytest.mark.slow, pytest.mark.skipif("sys.platform != 'linux'", reason="reads /proc")]

BEGIN = """
import errno, logging, os, resource, subprocess, sys
import poolkit

def limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)

def limits_of_a_worker():
    shown = subprocess.run(["sh", "-c", "ulimit -n"], capture_output=True, text=True, check=True).stdout
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0], int(shown), os.getppid()

class Keeper(logging.Handler):
    kept = []
    def emit(self, record):
        self.kept.append(record.getMessage())

logging.root.addHandler(Keeper())
logging.root.setLevel(logging.INFO)
"""


def test_the_soft_limit_is_raised_for_this_program_alone_and_that_is_said_once() -> None:
    source = """
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 1024))
with poolkit.Pool(1) as first:
    *_, template = first.submit(limits_of_a_worker).result()
with poolkit.Pool(30) as pool:
    pool.warm_up(60)
    print(len(pool.workers()), limit()[0] > 210, limit()[1])
    soft, of_programs, parent = pool.submit(limits_of_a_worker).result()
    with poolkit.Pool(2) as other:
        other.warm_up(60)
        print(soft, of_programs, {soft_of for soft_of, *_ in [other.submit(limits_of_a_worker).result()]})
        print(other.submit(limits_of_a_worker).result()[2] == parent == template)
    print([message.partition(": ")[2].partition(",")[0] for message in Keeper.kept if "limit" in message])
"""
    found = run(BEGIN + source)
    assert found[:3] == ["30 True 1024", "128 128 {128}", "True"]
    assert found[3].startswith("['the soft limit on open files was raised from 128 to ")
    assert found[3].count("raised") == 1


def test_where_the_hard_limit_is_too_low_the_error_has_the_numbers() -> None:
    source = """
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 128))
with poolkit.Pool(30) as pool:
    for timeout in (None, 60):
        try:
            pool.warm_up(timeout)
        except OSError as error:
            print(error.errno == errno.EMFILE, *[part in str(error) for part in ("30 workers", "210 in all", "128")])
    print(pool.submit(abs, -1).result(), 5 < len(pool.workers()) < 30, pool.stats().submitted)
"""
    assert run(BEGIN + source) == ["True True True True"] * 2 + ["1 True 1"]


def test_each_worker_takes_seven_descriptors_at_most() -> None:
    source = """
def count():
    return len(os.listdir("/proc/self/fd"))
with poolkit.Pool(20) as pool:
    pool.submit(abs, -1).result()
    one = count()
    pool.warm_up(60)
    print((count() - one) / 19 <= 7)
"""
    assert run(BEGIN + source) == ["True"]


def test_the_first_look_at_the_pool_needs_no_descriptor_that_its_workers_took() -> None:
    source = """
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
with poolkit.Pool(30) as pool:
    try:
        pool.warm_up(60)
    except OSError:
        kept = []
        try:
            while True:
                kept.append(os.dup(0))
        except OSError:
            print(pool.stats().submitted, 5 < len(pool.workers()) < 30)
        for fd in kept:
            os.close(fd)
"""
    assert run(BEGIN + source) == ["0 True"]
