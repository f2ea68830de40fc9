"""Modules that start threads when they are imported: no worker is forked from a process that has those."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

MODULE = """
import threading
lock = threading.Lock()
held = threading.Event()

def hold():
    with lock:
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()

def others():
    return threading.active_count() - 1
"""

SOURCE = """
import logging, sys
import poolkit

sys.path.insert(0, {folder!r})
records = []
class Heard(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger().addHandler(Heard())
"""


def test_workers_are_new_interpreters_then_and_it_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(MODULE, encoding="utf-8")
    lines = run(
        SOURCE.format(folder=str(tmp_path))
        + """
for _ in range(2):
    with poolkit.Pool(2, preload=["json", "threaded"]) as pool:
        print(pool.submit(eval, "__import__('threaded').others()").result())
        template = pool._supervisor.workforce._template.pid
with poolkit.Pool(1, preload=["json"]) as pool:  # another template
    print(pool.submit(abs, -1).result(), pool._supervisor.workforce._template.pid != template)
print(len(records), "threaded" in records[0], "json" in records[0], "preload" in records[0])
"""
    )
    assert lines == ["1", "1", "1 True", "1 True False True"]


def test_with_fork_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(MODULE, encoding="utf-8")
    lines = run(
        SOURCE.format(folder=str(tmp_path))
        + """
with poolkit.Pool(2, preload=["threaded"], start_method="fork") as pool:
    print(pool.submit(eval, "__import__('threaded').others()").result())
print(len(records), "threaded" in records[0], "start_method='fork'" in records[0])
"""
    )
    assert lines == ["0", "1 True True"]


def test_a_library_that_ends_its_threads_for_a_fork_is_preloaded(tmp_path: Path) -> None:
    """As OpenBLAS does, which starts them when numpy is imported."""
    pytest.importorskip("numpy")
    lines = run(
        SOURCE.format(folder=str(tmp_path))
        + """
with poolkit.Pool(1, preload=["numpy"], env={"OPENBLAS_NUM_THREADS": "4"}) as pool:
    code = "float(__import__('numpy').ones((300, 300)).dot(__import__('numpy').ones(300))[0])"
    print(pool.submit(eval, code).result())
print(records)
"""
    )
    assert lines == ["300.0", "[]"]
