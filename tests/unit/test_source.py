"""Statements of a script, by the names that they define, and their code."""

from __future__ import annotations

import ast
import linecache
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit._wire import source as sources
from poolkit._wire.origins import functions_of
from poolkit._wire.source import Source, codes_in, source_for


@pytest.fixture(autouse=True)
def lines_as_before() -> Iterator[None]:
    """Forget the lines of what a test made up."""
    before = set(linecache.cache)
    yield
    for name in set(linecache.cache) - before:
        del linecache.cache[name]
    for name in ("<string>", "<stdin>"):
        sources._sources.pop(name, None)


def source_of(text: str) -> Source:
    return Source("<made up>", text)


def lines_of(nodes: list[ast.stmt]) -> list[int]:
    return [node.lineno for node in nodes]


# ===== names =====


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(): pass", {"f": [1]}),
        ("async def f(): pass", {"f": [1]}),
        ("class C: pass", {"C": [1]}),
        ("class C:\n x = 1\n def m(self): y = 2", {"C": [1]}),
        ("def f():\n g = 1\n global h\n h = 2", {"f": [1]}),
        ("import a", {"a": [1]}),
        ("import a.b", {"a": [1]}),
        ("import a.b as c, d", {"c": [1], "d": [1]}),
        ("from a import b, c as d", {"b": [1], "d": [1]}),
        ("x = 1\nx = 2", {"x": [1, 2]}),
        ("x: int = 1\ny: int", {"x": [1]}),
        ("x = y = 1", {"x": [1], "y": [1]}),
        ("x += 1", {}),
        ("print(1)", {}),
        ("@d\ndef f(): pass", {"f": [2]}),
        ("if a:\n def f(): pass\nelif b:\n x = 1\nelse:\n class C: pass", {"f": [2], "x": [4], "C": [6]}),
        (
            "try:\n import a\nexcept E:\n a = None\nelse:\n b = 1\nfinally:\n c = 2",
            {"a": [2, 4], "b": [6], "c": [8]},
        ),
        ("with a:\n x = 1", {"x": [2]}),
        ("for x in y:\n z = 1\nwhile a:\n b = 2", {}),  # what ran more than once, or not at all
        ("from __future__ import annotations", {}),
    ],
)
def test_statements_are_found_by_the_names_that_they_define(text: str, expected: dict[str, list[int]]) -> None:
    found = source_of(text).definitions
    assert {name: lines_of(nodes) for name, nodes in found.items()} == expected


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement came with 3.12")
def test_a_type_statement_defines_its_name() -> None:
    assert lines_of(source_of("type X = int").definitions["X"]) == [1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="except* came with 3.11")
def test_a_block_with_exception_groups_is_open_too() -> None:
    assert lines_of(source_of("try:\n x = 1\nexcept* E:\n y = 2").definitions["y"]) == [4]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("x = 1", {"x"}),
        ("x: int = 1", {"x"}),
        ("x = y = 1", set()),
        ("x, y = 1, 2", set()),
        ("if a:\n x = 1", set()),
        ("x.a = 1", set()),
        ("x[0] = 1", set()),
        ("def f(): pass", set()),
    ],
)
def test_plain_is_one_name_outside_any_block(text: str, plain: set[str]) -> None:
    assert {
        each.targets[0].id if hasattr(each, "targets") else each.target.id for each in source_of(text).plain
    } == plain


# ===== acting =====


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("X.a = 1", {"X": [1]}),
        ("X.a.b = 1", {"X": [1]}),
        ("X[0] = 1", {"X": [1]}),
        ("X.a: int = 1", {"X": [1]}),
        ("X.a: int", {}),
        ("X.a += 1", {}),
        ("X.register(int)", {"X": [1]}),
        ("X.register(int)(print)", {}),
        ("X.run()", {}),
        ("register(X)", {}),
        ("copyreg.pickle(X, f)", {"X": [1]}),
        ("copyreg.pickle(module.X, f)", {"module": [1]}),
        ("@X.register\ndef f(): pass", {"X": [2]}),
        ("@X.register(int)\ndef f(): pass", {"X": [2]}),
        ("@X.register\nclass C: pass", {"X": [2]}),
        ("@X\ndef f(): pass", {}),
        ("@X(1)\ndef f(): pass", {"X": [2]}),
        ("if a:\n X.a = 1", {"X": [2]}),
        ("for n in y:\n X.a = 1", {}),
        ("f().a = 1", {"f": [1]}),
        ("(a + b).c = 1", {}),
    ],
)
def test_statements_are_found_by_the_names_that_they_act_on(text: str, expected: dict[str, list[int]]) -> None:
    """Assignments to attributes and items, registrations, decorators of another name; no augmented assignment."""
    found = source_of(text).acting
    assert {name: lines_of(nodes) for name, nodes in found.items()} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b = c", True),
        ("a.b = [c, {d: e}, (f.g, h[0])]", True),
        ("a.b = lambda: f()", True),
        ("a.b = f()", False),
        ("a.b = [f()]", False),
        pytest.param("a.b = lambda x=f(): x", False),
        ("a.b = {x: f(x) for x in y}", False),
    ],
)
def test_a_right_side_without_a_call(text: str, expected: bool) -> None:
    """What is called when a lambda is called does not count; its defaults do."""
    assert sources.makes_no_call(ast.parse(text).body[0]) is expected


@pytest.mark.parametrize(
    ("text", "is_constant"),
    [
        ("x = 1", True),
        ("x: list = [1, ('a', {2: None})]", True),
        ("x = -1", True),
        ("x = y", False),
        ("x = f()", False),
        ("x: int", False),
        ("x += 1", False),
        ("def f(): pass", False),
    ],
)
def test_a_constant_is_written_out(text: str, is_constant: bool) -> None:
    assert sources.is_constant(ast.parse(text).body[0]) is is_constant


@pytest.mark.parametrize(
    ("expression", "root"),
    [
        ("a", "a"),
        ("a.b", "a"),
        ("a[0].b(c).d", "a"),
        ("a(b)", "a"),
        ("(a + b).c", None),
        ("'a'.join", None),
        ("1", None),
    ],
)
def test_the_root_is_the_name_that_an_expression_begins_with(expression: str, root: str | None) -> None:
    assert sources.root_of(ast.parse(expression, mode="eval").body) == root


# ===== code =====

PROGRAM = '''
import os.path, json as j
from math import *
from functools import lru_cache, singledispatch, wraps
from dataclasses import dataclass

def plain(x, *, y=1):
    """Text."""
    def inner(): return [j.dumps(each) for each in os.path.split(x)], y
    return inner

async def coroutine():
    async with plain(1) as a:
        return await a

def generator():
    yield from (each for each in range(3))

@lru_cache(maxsize=None)
def cached(x: int) -> "str":
    return j.dumps(lru_cache(x).cache_info())

@dataclass
class Point:
    x: int
    y: int = 0

    def norm(self):
        return sqrt(self.x ** 2) + super().__hash__() + __class__.__name__.__len__()

    class Inner:
        def method(self): return j.dumps(self.__private)

    @property
    def area(self): return self.x
    @area.setter
    def area(self, value): self.x = value

    @staticmethod
    def make(): return Point(1)

    @classmethod
    def build(cls): return lambda: cls

if os.sep == "/":
    def conditional(): return 1
    class Conditional:
        def method(self): return j.dumps(1)
else:
    def conditional(): return 2
    class Conditional:
        def method(self): return j.dumps(2)

try:
    import no_such_module
except ImportError as error:
    def fallback(): return j.loads("1"), error
else:
    def fallback(): return no_such_module.loads("1")

with open(os.devnull) as file:
    def within(): return file.read()
'''
FUTURE = '"""Text."""\nfrom __future__ import annotations\n' + PROGRAM


def by_position(codes: Any) -> dict[tuple[str, int], types.CodeType]:
    return {(code.co_name, code.co_firstlineno): code for code in codes}


@pytest.mark.parametrize("program", [PROGRAM, FUTURE], ids=["plain", "future"])
def test_a_statement_alone_has_the_code_of_the_whole_module(program: str) -> None:
    """Each function and class of it, decorators, methods and inner functions included, wherever it stands."""
    source = source_of(program)
    whole = codes_in(compile(program, "<made up>", "exec", dont_inherit=True))
    alone: set[types.CodeType] = set()
    for nodes in source.definitions.values():
        for node in nodes:
            alone |= codes_in(source.code_of(node))
    missing = by_position(whole - alone)
    # what comprehensions and the like at the top of the module leave is nobody's statement
    assert missing == {}
    assert by_position(alone - whole) == {}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters came with 3.12")
def test_generic_statements_have_the_code_of_the_whole_module() -> None:
    program = "import j\ndef f[T](x: T) -> T: return j.d(x)\nclass C[T]:\n def m[S](self, x: S) -> T: return j.d(x)\n"
    source = source_of(program)
    whole = codes_in(compile(program, "<made up>", "exec", dont_inherit=True))
    alone = {code for nodes in source.definitions.values() for node in nodes for code in codes_in(source.code_of(node))}
    assert alone == whole


def test_a_changed_function_has_another_code() -> None:
    """Its text, or its line."""
    whole = codes_in(compile("def f(): return 1", "<made up>", "exec"))
    for text in ("def f(): return 2", "\ndef f(): return 1"):
        source = source_of(text)
        assert not codes_in(source.code_of(source.definitions["f"][0])) & whole


def run(source: Source, name: str, **names: Any) -> dict[str, Any]:
    namespace = {"__name__": "made_up", **names}
    exec(source.code_of(source.definitions[name][-1]), namespace)  # noqa: S102 -- our own source
    return namespace


def test_running_a_statement_defines_its_name_and_imports_nothing() -> None:
    source = source_of("import no_such_module\nfrom nowhere import nothing\nprint(1)\nx = 3\ndef f(): return 2\n")
    assert run(source, "f")["f"]() == 2
    assert run(source, "x")["x"] == 3
    assert run(source, "f").keys() <= {"__name__", "__builtins__", "f", "__annotate__", "__conditional_annotations__"}


def test_annotations_of_a_future_module_stay_text() -> None:
    """And those of another are evaluated."""
    text = "import dataclasses\nclass C:\n x: Undefined\ndef f(x: Undefined): pass"
    future = source_of("from __future__ import annotations\n" + text)
    assert run(future, "C")["C"].__annotations__ == {"x": "Undefined"}
    assert run(future, "f")["f"].__annotations__ == {"x": "Undefined"}
    assert run(source_of(text), "f", Undefined=int)["f"].__annotations__ == {"x": int}


def test_a_statement_keeps_its_place_and_file() -> None:
    """Tracebacks show its own lines."""
    code = run(source_of("\n\n\ndef f(): pass"), "f")["f"].__code__
    assert (code.co_filename, code.co_firstlineno) == ("<made up>", 4)


def test_decorators_are_left_out() -> None:
    source = source_of("@a\n@b.c(1)\n@d[0]\n@(lambda f: f)\ndef f(): return 1\n@a\nclass C(int):\n x = 1")
    (function,), (cls,) = source.definitions["f"], source.definitions["C"]
    namespace: dict[str, Any] = {}
    exec(source.code_of(function, function.decorator_list[:3]), namespace)  # noqa: S102 -- our own source
    exec(source.code_of(cls, cls.decorator_list), namespace)  # noqa: S102 -- our own source
    assert namespace["f"]() == 1
    assert (namespace["C"].x, namespace["C"].__base__) == (1, int)
    assert len(cls.decorator_list) == 1  # the statement itself is as it was


@pytest.mark.parametrize("text", ["def f(:", "x = '\0'", "(" * 1000])
def test_text_that_is_no_program_has_no_statements(text: str) -> None:
    name = "<no program>"
    linecache.cache[name] = len(text), None, [text], name
    assert source_for(name) is None


# ===== functions of a class =====


def test_functions_of_a_class_are_those_behind_its_attributes() -> None:
    """Methods, those behind descriptors, and those that decorators wrapped with `functools.wraps`."""
    text = """
from functools import cached_property, lru_cache, wraps
def wrapped(f):
    @wraps(f)
    def inner(*args): return f(*args)
    return inner
class C:
    def a(self): pass
    @classmethod
    def b(cls): pass
    @staticmethod
    def c(): pass
    @property
    def d(self): pass
    @d.setter
    def d(self, value): pass
    @cached_property
    def e(self): pass
    @lru_cache
    def f(self): pass
    @wrapped
    def g(self): pass
    @property
    @wrapped
    def h(self): pass
    i = len
    j = 3
"""
    namespace: dict[str, Any] = {"__name__": "made_up"}
    exec(compile(text, "<made up>", "exec", dont_inherit=True), namespace)  # noqa: S102 -- our own source
    codes = [each.__code__ for each in functions_of(namespace["C"]) if each.__qualname__.startswith("C.")]
    assert {code.co_name for code in codes} == set("abcdefgh")
    source = source_of(text)
    assert codes_in(source.code_of(source.definitions["C"][0])).issuperset(codes)


# ===== files =====


def test_a_file_is_read_once(tmp_path: Path) -> None:
    """Until its lines change."""
    path = tmp_path / "script.py"
    path.write_text("x = 1\n", encoding="utf-8")
    first = source_for(str(path))
    assert first is not None
    assert first is source_for(str(path))
    path.write_text("x = 1\ny = 2\n", encoding="utf-8")
    linecache.checkcache(str(path))
    second = source_for(str(path))
    assert second is not None
    assert set(second.definitions) == {"x", "y"}


def test_the_inputs_of_a_session_are_sources() -> None:
    """As IPython, doctest and the REPL put them into `linecache`; the newest comes first."""
    for number in (1, 2):
        sources.remember_text(f"<input {number}>", f"x = {number}\n")
    found = sources.interactive_files()
    assert found.index("<input 2>") < found.index("<input 1>")
    assert source_for("<input 1>").definitions.keys() == {"x"}  # type: ignore[union-attr]


def test_a_loader_that_raises_is_no_source() -> None:
    class Loader:
        def get_source(self, name: str) -> str:
            raise LookupError

    assert source_for("<nowhere>", {"__name__": "made_up", "__loader__": Loader()}) is None
    assert source_for("/no/such/file.py") is None


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["python", "-c", "x = 1"], "x = 1"),
        (["python", "-W", "error", "-c", "x = 1", "-c", "y"], "x = 1"),
        (["python", "-c"], ""),
        (["python", "script.py"], ""),
        pytest.param(["python", "script.py", "-c", "y"], ""),
    ],
)
def test_a_program_on_the_command_line_is_a_source(monkeypatch: pytest.MonkeyPatch, argv: list[str], text: str) -> None:
    monkeypatch.setattr(sys, "orig_argv", argv)
    monkeypatch.setattr(sys, "argv", ["script.py" if "script.py" in argv else "-c"])
    monkeypatch.setattr(linecache, "cache", {})  # which a test before, or its runner, may have filled
    assert sources.typed_text("<string>") == text
    assert (source_for("<string>") is None) == (not text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("X.a = 1", {"X"}),
        ("  X.a.b = 1", {"X"}),
        ("X['a'] = 1", {"X"}),
        ("X.a == 1", set()),
        ("x = 1", set()),
        ("X.a += 1", set()),
        ("X.a(b=1)", set()),
        pytest.param("X.a: int = 1", {"X"}),
        pytest.param("y = 1; X.a = 1", {"X"}),
        pytest.param("X.a = Y.b = z", {"X", "Y"}),
    ],
)
def test_names_that_are_acted_on_are_told_without_parsing(text: str, names: set[str]) -> None:
    sources.remember_text("<acting>", text)
    assert {name for name in ("X", "Y", "x", "a") if sources.may_act_on("<acting>", {}, name)} == names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("X.a = 1", "X"),
        ("X.register(Y)", "X"),
        ("a.X.register(Y)", "a"),
        ("@X.register\ndef f(): pass", "X"),
        ("@X(1)\ndef f(): pass", "X"),
        ("@X[0](1)\ndef f(): pass", "X"),
        ("copyreg.pickle(X, f)", "X"),
    ],
)
def test_names_that_calls_act_on_are_told(text: str, name: str) -> None:
    assert name in Source("<acting>", text).acting
