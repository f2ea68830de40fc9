"""Which of several statements made what a name means."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from poolkit._wire import modules
from poolkit._wire.items import STATEMENT, VALUE, Item
from poolkit._wire.plans import manifest_for

NewScript = Callable[..., Any]


def item_of(script: Any, name: str) -> Item:
    modules.look()
    found = manifest_for(None, {(script.__name__, name)})
    assert found is not None
    return next(item for item in found.items if item.name == name)


@pytest.mark.parametrize(
    "bodies",
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1; y = 2"),
        ("x: int", "x: str; y: int"),
        ("x = []", "x = []; y = []"),
        ("'One.'", "'Other.'"),
        ("x = [int]", "x = [str]"),
        ("def m(self): pass", "x = 1"),
        ("def m(self): pass", "def m(self): pass"),
    ],
)
@pytest.mark.parametrize("taken", [True, False])
def test_a_class_in_branches_is_made_by_its_own_statement(
    new_script: NewScript, bodies: tuple[str, str], taken: bool
) -> None:
    """Told by its line, from CPython 3.13 on; else by what stands in it."""
    one, other = bodies
    script = new_script(f"if {taken}:\n class C:\n  {one}\nelse:\n class C:\n  {other}\n")
    item = item_of(script, "C")
    assert (item.kind, item.line[-1]) == (STATEMENT, 2 if taken else 5)


@pytest.mark.parametrize(("base", "line"), [("Exception", 2), ("ValueError", 4)])
def test_a_class_in_branches_is_told_by_its_base(new_script: NewScript, base: str, line: int) -> None:
    script = new_script(f"if {base} is Exception:\n class C(Exception): pass\nelse:\n class C(ValueError): pass\n")
    item = item_of(script, "C")
    assert (item.kind, item.line[-1]) == (STATEMENT, line)


def test_a_class_of_two_equal_statements_is_told_by_its_line_or_goes_by_value(new_script: NewScript) -> None:
    """The line is known from CPython 3.13 on."""
    item = item_of(new_script("if True:\n class C: x = 1\nelse:\n class C: x = 1\n"), "C")
    assert (item.kind, item.line[-1]) == ((STATEMENT, 2) if sys.version_info >= (3, 13) else (VALUE, 0))


@pytest.mark.parametrize(
    "later",
    [
        "C = wrap(C)",
        "if not C: C = wrap(C)",
        "C = type('C', (C,), {'__module__': __name__})",
    ],
)
def test_a_class_that_a_later_call_may_have_made_goes_by_value(new_script: NewScript, later: str) -> None:
    script = new_script(f"def wrap(cls): return cls\nclass C:\n def m(self): return 1\n{later}\n")
    assert item_of(script, "C").kind == VALUE


@pytest.mark.parametrize("other", ["C = None", "import json as C", "D = C\nC = D", "def g():\n C = wrap(C)"])
def test_what_makes_no_class_leaves_the_statement_of_one_alone(new_script: NewScript, other: str) -> None:
    script = new_script(f"if False:\n C = None\nclass C:\n def m(self): return 1\nkeep = C\n{other}\nC = keep\n")
    assert item_of(script, "C").kind == STATEMENT


@pytest.mark.parametrize(
    "how",
    [
        "self.function = function",
        "functools.update_wrapper(self, function)",
        "self.calls = functools.partial(function, 1)",
        "self.calls = lambda: function()",
        "self.calls = function.__get__(1)",
    ],
)
@pytest.mark.parametrize("taken", [True, False])
def test_what_a_decorator_made_is_told_by_the_function_behind_it(new_script: NewScript, how: str, taken: bool) -> None:
    script = new_script(f"""
import functools
class Wrapper:
    def __init__(self, function):
        {how}
        self.values = iter(each for each in [1])
if {taken}:
    @Wrapper
    def g(): return 1
else:
    @Wrapper
    def g(): return 1
""")
    item = item_of(script, "g")
    assert (item.kind, item.line[-1]) == (STATEMENT, 9 if taken else 12)
