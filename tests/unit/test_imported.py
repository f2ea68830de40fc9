"""The owner's multiprocessing key in workers, whenever multiprocessing is imported there."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import subprocess
import sys

import poolkit

SCRIPT = """
import sys
from poolkit._child.standard import assume
{before}
found = list(sys.meta_path)
assume(3, parent=1, sentinel=0, authkey=b"the key")
import json  # another module is found as ever
import multiprocessing.process as module
import importlib
assert bytes(module.current_process().authkey) == b"the key"
assert [each for each in sys.meta_path if getattr(each, "name", "") != "logging"] == found, sys.meta_path
assert type(module.__loader__) is type(module.__spec__.loader) is type(json.__loader__), module.__loader__
importlib.reload(module)
"""


def run(before: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT.format(before=before)], check=True)


def test_the_key_is_set_when_the_module_is_imported_later() -> None:
    run("assert 'multiprocessing' not in sys.modules")


def test_finders_of_the_old_kind_are_passed_by() -> None:
    """They have `find_module` alone."""
    run("class Old:\n def find_module(self, *_): return None\nsys.meta_path.insert(0, Old())")


def test_a_finder_may_hand_out_the_same_spec_twice() -> None:
    script = """
import importlib.machinery, importlib.util, sys
from poolkit._child.imported import when_imported
spec = importlib.machinery.PathFinder.find_spec("colorsys")
class Finder:
    def find_spec(self, name, path=None, target=None):
        return spec if name == "colorsys" else None
sys.meta_path.insert(0, Finder())
calls = []
when_imported("colorsys", calls.append)
assert importlib.util.find_spec("colorsys") is spec
import colorsys
assert calls == [colorsys]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_all_who_wait_for_a_module_are_called() -> None:
    """In their order; none of them finds the module through another one without end."""
    script = """
from poolkit._child.imported import when_imported
calls = []
when_imported("colorsys", lambda module: calls.append((1, module)))
when_imported("colorsys", lambda module: calls.append((2, module)))
import colorsys
assert calls == [(1, colorsys), (2, colorsys)]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_key_is_set_when_the_module_is_there() -> None:
    run("import multiprocessing.process")


def test_a_worker_has_the_owners_key_and_imports_multiprocessing_only_when_it_needs_it() -> None:
    key = bytes(multiprocessing.process.current_process().authkey)
    code = "bytes(__import__('multiprocessing').process.current_process().authkey)"
    with poolkit.Pool(1) as pool:
        assert not pool.submit(eval, "'multiprocessing' in __import__('sys').modules").result()
        assert pool.submit(eval, code).result() == key
    with poolkit.Pool(1, preload=["multiprocessing.process"]) as pool:
        assert pool.submit(eval, code).result() == key
