"""What a call needs of a script: which names, in which form and order, in which version."""

from __future__ import annotations

import contextlib
import json
import marshal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolkit._wire import codec, modules
from poolkit._wire.items import ABSENT, IMPORT, STATEMENT, VALUE
from poolkit._wire.plans import Manifest, manifest_for

NewScript = Callable[..., Any]


def manifest(script: Any, *names: str) -> Manifest:
    """What these names of a script need."""
    modules.look()
    found = manifest_for(None, {(script.__name__, name) for name in names or ("f",)})
    assert found is not None
    return found


def kinds(script: Any, *names: str) -> dict[str, int]:
    return {item.name: item.kind for item in manifest(script, *names).items}


def order(script: Any, *names: str) -> list[str]:
    return [item.name for item in manifest(script, *names).items]


# ===== which names =====


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): return 1", {"f"}),
        ("def f(): return K\nK = 1\nL = 2", {"f", "K"}),
        ("def f(): return g()\ndef g(): return h()\ndef h(): return K\nK = 1", {"f", "g", "h", "K"}),
        ("def f(): return f()", {"f"}),
        ("def f(): return g()\ndef g(): return f()", {"f", "g"}),
        ("def f(): return len, missing", {"f", "missing"}),
        ("def f():\n global K\n K = 2\nK = 1", {"f", "K"}),
        ("def f():\n def inner(): return K\n return [L for _ in range(3)], inner\nK = L = 1", {"f", "K", "L"}),
        ("def f():\n class C:\n  a = K\n  def m(self): return L\nK = L = 1", {"f", "K", "L"}),
        ("def f(K): return K\nK = 1", {"f"}),
        ("def f():\n return x.K\nclass x: pass\nK = 1", {"f", "x"}),
        ("K = 1\ndef f(x=K): return x", {"f"}),  # its default is what it was when the function was made
        ("def f(x: 'C'): pass\nclass C: pass", {"f"}),
        ("class B: pass\nclass C(B):\n def m(self): return K\nK = 1\ndef f(): return C()", {"f", "B", "C", "K"}),
        ("K = 1\nclass C:\n limit = K\ndef f(): return C", {"f", "C", "K", "C.limit"}),
        ("def d(x): return x\n@d\nclass C: pass\ndef f(): return C", {"f", "C", "d"}),
        ("class C: pass\nx = C()\ndef f(): return x", {"f", "x", "C"}),
        ("def g(): return K\nK = 1\ntable = {'g': [g]}\ndef f(): return table", {"f", "table", "g", "K"}),
        ("def g(): return K\nK = 1\ntable = [lambda: g()]\ndef f(): return table", {"f", "table", "g", "K"}),
        ("class B: pass\nclass C(B): pass\ndef f(): return B", {"f", "B", "C"}),  # it may look for its subclasses
        ("def f(): return globals()\ndef g(): return K\nK = 1", {"f", "g", "K"}),
        ("import sys\ndef f(): return getattr(sys.modules[__name__], 'g')\ndef g(): return 1", {"f", "g", "sys"}),
        ("def f(): return __name__, __file__, __doc__", {"f"}),
    ],
)
def test_names_are_found_directly_and_through_others(new_script: NewScript, source: str, expected: set[str]) -> None:
    assert set(order(new_script(source))) == expected


def test_annotations_that_are_no_text_are_needed(new_script: NewScript) -> None:
    """At the latest when somebody looks at them."""
    script = new_script("class C: pass\ndef f(x: C) -> None: pass")
    assert set(order(script)) == {"f", "C"}


def test_names_of_several_roots_are_one_manifest(new_script: NewScript) -> None:
    script = new_script("def f(): return K\ndef g(): return L\nK = L = 1")
    assert set(order(script, "f", "g")) == {"f", "g", "K", "L"}
    assert manifest(script, "f", "g") is manifest(script, "g", "f")


def test_names_that_are_not_there_need_nothing(new_script: NewScript) -> None:
    """But that a name is not bound is told, as a worker may have it bound."""
    script = new_script("x = 1")
    for name, kinds in (("missing", [ABSENT]), ("__name__", [])):  # the module itself is to be there
        found = manifest_for(None, {(script.__name__, name)})
        assert found is not None
        assert ([item.kind for item in found.items], found.modules) == (kinds, {script.__name__})
        assert manifest_for(None, {(script.__name__, name)}) is found
    assert manifest_for(None, {("no_such_module", "f")}) is None


def test_attributes_come_behind_their_class_although_that_is_in_a_circle(new_script: NewScript) -> None:
    """And is newer, or was sent before what it needs."""
    script = new_script("registry = {}\nclass A: r = registry\nregistry['A'] = A\nA.k = [1]\ndef f(): return A")
    for number in range(2):
        found = order(script)
        assert found.index("A") < found.index("A.k")
        script.registry[number] = number


def test_another_script_module_is_needed_as_a_whole(new_script: NewScript) -> None:
    """Names of a module are found by attributes, which code does not tell."""
    other = new_script("def g(): return K\nK = 1\nL = 2", name="other_script")
    modules.look()
    script = new_script("import other_script\ndef f(): return other_script.g()")
    found = {(item.module, item.name) for item in manifest(script).items}
    assert {("other_script", name) for name in "gKL"} < found
    assert vars(other)["__name__"] == "other_script"


def test_all_plain_functions_are_in_the_bundle(new_script: NewScript) -> None:
    """Those that need nothing to be made; who looks a name up finds them."""
    script = new_script("class C: pass\ndef f(): return 1\ndef g(): return h()\ndef h(x=C): pass\nk = 1")
    assert [[item.name for item in bundle] for bundle in manifest(script).bundles] == [["f", "g"]]


# ===== in which form =====


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def x(): pass", VALUE),
        ("async def x(): pass", VALUE),
        ("x = lambda: 1", VALUE),
        ("def o():\n def x(): pass\n return x\nx = o()", VALUE),
        (
            "from functools import wraps\ndef d(f):\n @wraps(f)\n def w(): return f()\n return w\n@d\ndef x(): pass",
            VALUE,
        ),
        ("x = 1", VALUE),
        ("x = [1, {2: 'a'}]", VALUE),
        ("class C: pass\nx = C()", VALUE),
        ("class C: pass\nx = C", VALUE),
        ("from functools import partial\nx = partial(print, 1)", VALUE),
        ("def o():\n class C: pass\n return C\nx = o()", VALUE),
        ("import threading\nx = threading.Lock()", VALUE),
        ("import threading\nx = [threading.RLock()]", VALUE),
        ("import threading\nx = threading.local()", VALUE),
        ("from contextvars import ContextVar\nx = ContextVar('x', default=1)", VALUE),
        ("import random\nx = random.Random(1)", VALUE),
        ("import sys\nx = sys.__stdout__", VALUE),
        ("import logging\nx = logging.getLogger('x')", VALUE),
        ("class x: pass", STATEMENT),
        ("class x(Exception): pass", STATEMENT),
        ("import enum\nclass x(enum.Enum): A = 1", STATEMENT),
        ("from collections import namedtuple\nx = namedtuple('x', 'a')", STATEMENT),
        ("from typing import NamedTuple\nx = NamedTuple('x', [('a', int)])", STATEMENT),
        ("from typing import NewType\nx = NewType('x', int)", VALUE),
        ("class C:\n def __reduce__(self): return 'x'\nx = C()", STATEMENT),
        ("import os as x", IMPORT),
        ("import os.path as x", IMPORT),
        ("from os import path as x", IMPORT),
        ("from os import environ\nx = environ", VALUE),
        ("x = (n for n in 'a')", ABSENT),
    ],
)
def test_a_name_travels_in_the_form_that_suits_it(new_script: NewScript, source: str, kind: int) -> None:
    assert kinds(new_script(source), "x")["x"] == kind


def test_decorated_functions_that_are_none_any_more_go_by_their_statement(new_script: NewScript) -> None:
    """What kind of cache it is, it is there, too."""
    script = new_script("""
class Wrapper:
    def __init__(self, function): self.numbers = (n for n in "abc")
@Wrapper
def f(): return 1
""")
    assert kinds(script) == {"Wrapper": STATEMENT, "f": STATEMENT}


def test_a_connection_is_made_anew(new_script: NewScript) -> None:
    """By the plain call that made it here."""
    script = new_script("import sqlite3\nx = sqlite3.connect(':memory:')")
    with contextlib.closing(script.x):
        assert kinds(script, "x") == {"sqlite3": IMPORT, "x": STATEMENT}


@pytest.mark.parametrize(
    ("argument", "kind"),
    [("os.path.join(here, 'x.db')", STATEMENT), ("Path('x.db')", STATEMENT), ("tempfile.mktemp()", ABSENT)],
)
def test_a_connection_is_made_anew_with_what_is_the_same_at_any_time(
    new_script: NewScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, kind: int
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "import os.path, sqlite3, tempfile\nfrom pathlib import Path\nhere = '.'\n"
    script = new_script(f"{text}x = sqlite3.connect({argument})")
    with contextlib.closing(script.x):
        assert kinds(script, "x")["x"] == kind


def test_an_object_that_a_module_has_under_this_name_is_imported_from_there(new_script: NewScript) -> None:
    script = new_script("from os import environ\nfrom math import sqrt\nfrom json import JSONDecoder, dumps\nf = 1")
    found = {item.name: item for item in manifest(script, "environ", "sqrt", "JSONDecoder", "dumps").items}
    assert [marshal.loads(found[name].payload) for name in ("environ", "sqrt")] == [  # noqa: S302 -- our own
        ("os", "environ"),
        ("math", "sqrt"),
    ]
    assert {found[name].kind for name in ("JSONDecoder", "dumps")} == {VALUE}  # by their own names


def test_what_cannot_be_had_says_why(new_script: NewScript) -> None:
    (item,) = manifest(new_script("x = (n for n in 'a')"), "x").items
    assert b"generator" in item.payload


def test_what_one_of_several_statements_made_says_that_this_cannot_be_told(new_script: NewScript) -> None:
    (item,) = manifest(new_script("x = iter(a for a in 'a')\nif x:\n x = iter(b for b in 'b')"), "x").items
    assert b"2 statements define it" in item.payload


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters came with 3.12")
def test_functions_keep_their_type_parameters(new_script: NewScript) -> None:
    script = new_script("def f[T: int, *U, **P](x: T) -> T: return x")
    (item,) = (item for item in manifest(script).items if item.name == "f")
    (first, *rest) = codec.load_value(item.payload).__type_params__
    assert (first.__name__, first.__bound__, [each.__name__ for each in rest]) == ("T", int, ["U", "P"])


def test_what_is_made_anew_is_neither_a_process_nor_a_socket(new_script: NewScript) -> None:
    script = new_script("import socket\nx = socket.socket()")
    with script.x:
        assert kinds(script, "x") == {"x": ABSENT}


def test_a_running_program_is_not_copied(new_script: NewScript) -> None:
    """A worker is not its parent."""
    script = new_script("import subprocess, sys\nx = subprocess.Popen([sys.executable, '-S', '-c', ''])")
    with script.x:
        assert kinds(script, "x") == {"x": ABSENT}


def test_a_function_of_the_script_makes_nothing_anew(new_script: NewScript) -> None:
    """A worker would run the script's own side effects."""
    script = new_script("def make(): return (n for n in 'a')\nx = make()")
    assert kinds(script, "x") == {"x": ABSENT}


def test_an_open_file_goes_by_its_path(new_script: NewScript, tmp_path: Path) -> None:
    """It is read from its start there, and what is written is appended."""
    path = tmp_path / "lines"
    path.write_text("one\n", encoding="utf-8")
    script = new_script(f"reading, writing = open({str(path)!r}), open({str(path)!r}, 'a')")
    try:
        items = {item.name: item for item in manifest(script, "reading", "writing").items}
        assert {item.kind for item in items.values()} == {VALUE}
        with codec.load_value(items["reading"].payload) as file:
            assert file.read() == "one\n"
        with codec.load_value(items["writing"].payload) as file:
            assert (file.mode, file.write("two\n")) == ("a", 4)
        assert path.read_text(encoding="utf-8") == "one\ntwo\n"
    finally:
        script.reading.close()
        script.writing.close()


def test_a_file_is_never_created_or_cut(new_script: NewScript, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    script = new_script(f"f = open({str(path)!r}, 'w')")
    with script.f:
        print("one", file=script.f, flush=True)
        (item,) = manifest(script).items
        codec.load_value(item.payload).close()
        assert path.read_text(encoding="utf-8") == "one\n"
        path.unlink()
        with pytest.raises(FileNotFoundError):
            codec.load_value(item.payload)
        assert not path.exists()


def test_large_data_lies_in_shared_memory(new_script: NewScript) -> None:
    script = new_script("small = bytes(1000)\nlarge = bytes(100_000)")
    items = {item.name: item for item in manifest(script, "small", "large").items}
    assert (items["small"].region, items["large"].payload) == (None, b"")
    assert items["large"].region.nbytes > 100_000  # type: ignore[union-attr]


def test_submodules_that_code_reaches_through_a_package_are_imported(new_script: NewScript) -> None:
    import xml.dom.minidom  # noqa: F401 -- it is there, and not named

    script = new_script("import xml.etree.ElementTree\ndef f(): return xml.etree.ElementTree.fromstring")
    items = {item.name: item for item in manifest(script).items}
    assert {"xml.etree", "xml.etree.ElementTree"} <= set(items["f"].submodules)


# ===== in which order =====


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("K = 1\nclass B:\n x = K\nclass C(B): pass\ndef f(): return C", ["K", "B", "C"]),
        ("import functools as ft\ndef d(c): return ft and c\n@d\nclass C: pass\ndef f(): return C", ["ft", "d", "C"]),
        ("class A: pass\na = A()\nclass B:\n a = a\ndef f(): return B", ["A", "a", "B"]),
        ("class Z: pass\nclass Y: pass\nclass X: pass\ndef f(): return X, Y, Z", ["Z", "Y", "X"]),
        ("class B: pass\nB.x = 1\nclass C: y = B.x\ndef f(): return C", ["B", "C"]),
        ("def g(): return 1\nt = {'g': g}\ndef f(): return t", ["g", "t"]),
    ],
)  # fmt: skip
def test_what_is_needed_at_once_comes_first_and_statements_in_the_scripts_order(
    new_script: NewScript, source: str, expected: list[str]
) -> None:
    assert [name for name in order(new_script(source)) if name in expected] == expected


def test_statements_that_act_on_a_definition_come_behind_it(new_script: NewScript) -> None:
    """In the script's order; what they need, before."""
    script = new_script("""
from functools import singledispatch
@singledispatch
def g(x): return "any"
class C: pass
@g.register(C)
def of_c(x): return "C"
g.register(int, lambda x: K)
K = "int"
import json
json.extra = K
def f(): return g(C()), json
""")
    try:
        found = order(script)
        assert [name for name in found if name.startswith("json")] == ["json", "json#1:11:0"]
        assert found.index("K") < found.index("json#1:11:0")
        if "g#1:8:0" in found:  # a function made of others may also go with what was registered
            assert found.index("C") < found.index("of_c")
            assert found.index("g") < found.index("of_c") < found.index("g#1:8:0")
    finally:
        del json.extra  # type: ignore[attr-defined]


def test_an_import_is_acted_on_only_where_nothing_is_called(new_script: NewScript) -> None:
    """A worker runs no code of the script that is no definition."""
    script = new_script("import json\njson.a = 1\njson.b = str(2)\njson.c = lambda: str(3)\nf = lambda: json")
    try:
        assert order(script) == ["json", "f", "json#1:2:0", "json#1:4:0"] or set(order(script)) == {
            "json",
            "f",
            "json#1:2:0",
            "json#1:4:0",
        }
    finally:
        for name in "abc":
            delattr(json, name)


def test_names_in_a_circle_are_begun_somewhere(new_script: NewScript) -> None:
    """A list in itself, and a class that has an instance of itself."""
    script = new_script("class C: pass\nC.own = C()\nx = [C]\nx.append(x)\nC.all = x\ndef f(): return C")
    assert set(order(script)) >= {"f", "C"}
