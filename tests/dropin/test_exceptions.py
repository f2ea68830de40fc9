"""Exceptions that refuse to be assigned to, or to be made anew, arrive as themselves, with all that hangs on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

CLASSES = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Refused(Exception):
    code: int

@dataclasses.dataclass(frozen=True, kw_only=True)
class RefusedByName(Exception):
    code: int

class Guarded(Exception):
    def __init__(self, text, *, code):
        super().__init__(text)
        object.__setattr__(self, "code", code)
    def __setattr__(self, name, value):
        raise AttributeError(f"{name} cannot be set")

class Required(Exception):
    def __init__(self, request, code):
        self.code = code
        super().__init__(f"{request} was answered with {code}")

class Slotted(Exception):
    __slots__ = ("code",)
    def __init__(self, *, code):
        super().__init__()
        self.code = code

class NoFile(FileNotFoundError):
    def __init__(self, path, *, code):
        super().__init__(2, "not there", path)
        self.code = code

def errors():
    return [
        Refused(3), RefusedByName(code=3), Guarded("t", code=3), Required("GET", 3),
        Slotted(code=3), NoFile("/x", code=3),
    ]

def work(index):
    try:
        int("x")
    except ValueError as inner:
        error = errors()[index]
        if hasattr(error, "add_note"):
            BaseException.add_note(error, "a note") if index > 2 else error.__dict__.update(__notes__=["a note"])
        raise error from inner
"""

PROGRAM = """
import sys, traceback
import poolkit
NAMES
with poolkit.Pool(1, kind=sys.argv[1]) as pool:
    tasks = [pool.submit(work, index) for index in range(len(errors()))]
    for task, mine in zip(tasks, errors()):
        error = task.exception()
        assert type(error) is type(mine), (error, mine)
        assert error.code == 3 and error.args == mine.args and str(error) == str(mine), error
        assert type(error.__cause__) is ValueError and error.__suppress_context__, error
        assert getattr(error, "__notes__", ["a note"]) == ["a note"] or sys.version_info < (3, 11), error
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        assert "in work" in text and "invalid literal" in text, text
        try:
            task.result()
        except type(mine) as raised:
            assert raised is error
    print(len(tasks))
"""


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_those_of_the_script(kind: str) -> None:
    assert run(PROGRAM.replace("NAMES", CLASSES), kind) == ["6"]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_those_of_a_module(kind: str, tmp_path: Path) -> None:
    (tmp_path / "refusals.py").write_text(CLASSES, encoding="utf-8")
    names = f"sys.path.insert(0, {str(tmp_path)!r}); from refusals import errors, work"
    assert run(PROGRAM.replace("NAMES", names), kind) == ["6"]


def test_they_pass_through_the_blocks_of_the_library() -> None:
    source = """
        import dataclasses
        import poolkit
        from poolkit.testing import leaks

        @dataclasses.dataclass(frozen=True)
        class Refused(Exception):
            code: int

        with poolkit.Pool(1, kind="thread") as pool:
            for block in (lambda: poolkit.use_pool(pool), leaks, lambda: pool, lambda: pool.options(priority=1)):
                try:
                    with block():
                        raise Refused(3)
                except Refused as error:
                    print(error.code)
    """
    assert run(source) == ["3"] * 4
