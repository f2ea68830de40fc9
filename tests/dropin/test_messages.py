"""Messages say where something happened, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

MISSING = """
import sys, traceback
import poolkit

def shown(task):
    error = task.exception()
    print(type(error).__name__)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    print("a worker raised this while it loaded the call" in text and "register_pickle_by_value" in text)

sys.path.insert(0, FOLDER)
import changed
with poolkit.Pool(1) as pool:
    pool.submit(abs, -1).result()
    sys.path.insert(0, FOLDER + "/later")
    import arrived_late
    shown(pool.submit(arrived_late.work))
    pool.submit(changed.work).result()
    exec("def added():\\n    pass", vars(changed))
    shown(pool.submit(changed.added))
    error = pool.submit(changed.imports).exception()  # not while it is loaded: nothing is said
    print(type(error).__name__, "a worker raised" in str(error) + str(getattr(error, "__notes__", "")))
"""


def test_a_name_that_a_worker_does_not_find(tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "arrived_late.py").write_text("def work():\n    return 1\n", encoding="utf-8")
    (tmp_path / "changed.py").write_text(
        "def work():\n    return 1\n\ndef imports():\n    import no_such_module\n", encoding="utf-8"
    )
    found = run(MISSING.replace("FOLDER", repr(str(tmp_path))))
    assert found == ["ModuleNotFoundError", "True", "AttributeError", "True", "ModuleNotFoundError False"]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_submit_while_the_interpreter_ends(kind: str) -> None:
    source = """
        import atexit, sys

        def late():
            try:
                pool.submit(abs, -1)
            except poolkit.PoolClosed as error:
                print(error)

        atexit.register(late)  # before poolkit's own, which therefore comes first
        import poolkit
        pool = poolkit.Pool(1, kind=sys.argv[1])
        pool.submit(abs, -1).result()
    """
    assert run(source, kind) == ["cannot submit abs: the interpreter is ending, and every pool with it"]
