"""Functions by value: when their bytes are reused, and when not."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import math
import pickle
import sys
import threading
import types
import weakref
from typing import Any

import pytest

from poolkit._wire import functions
from poolkit._wire.functions import pack_function
from poolkit._wire.pickles import BY_VALUE, REUSABLE


def in_main(source: str, **names: object) -> dict[str, Any]:
    """Define `source` as if in `__main__`, and return its namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    # without this file's own future imports, which would turn the annotations into strings
    exec(compile(source, "<main>", "exec", dont_inherit=True), namespace)  # noqa: S102 -- our own source
    return namespace


def is_reused(function: Any) -> bool:
    return pack_function(function) is pack_function(function)


def loaded(function: Any) -> Any:
    return pickle.loads(pack_function(function))


def warm() -> None:
    """Import all that packing imports, so that counting loaded modules is not disturbed."""
    pack_function(in_main("f = lambda: 0")["f"])


warm()


@pytest.mark.parametrize(
    "source",
    [
        "def f(x, y=(1, 'a', frozenset({2})), *, z=b'', w=None): return x",
        "K = 1\ndef f(): return K",
        "def g(): return 1\ndef f(): return g()",
        "def f(n): return f(n - 1) if n else 0",
        "def g(n): return f(n)\ndef f(n): return g(n - 1) if n else 0",
        "import math\ndef f(): return math.pi, len, math.sqrt, missing",
        "from math import sqrt\nfrom json import JSONDecoder\ndef f(): return sqrt(4), JSONDecoder, sqrt",
        "import json\ndef f(): return json.dumps(1)",
        "def f():\n def inner(): return K\n return inner\nK = 'k'",
        "def o():\n k = 1\n def inner(): return k\n return inner\nf = o()",
        "def o():\n def inner(n): return inner(n - 1) if n else 0\n return inner\nf = o()",
        "def f(x: int, y: list[int], z: 'int | None') -> 'str': return x",
        "from typing import Optional\nHint = Optional[int]\ndef f(x: Hint) -> Hint: return x",
        "def f(): return 1\nf.tag = 'a'",
        "def f():\n class C:\n  a = K\n return C\nK = 2",
        "def f():\n n = 0\n def inner():\n  nonlocal n\n  n += 1\n  return n\n return inner()",
    ],
)
def test_bytes_of_an_unchanged_function_are_reused_and_reusable(source: str) -> None:
    """Immutable surroundings need no second look, in the sender or in the worker."""
    f = in_main(source)["f"]
    assert is_reused(f)
    assert pack_function(f)[-1:] == REUSABLE


@pytest.mark.parametrize(
    "source",
    [
        "K = []\ndef f(): return K",
        "def f(x=[]): return x",
        "def f(*, x={}): return x",
        "class C: pass\ndef f(): return C",
        "class C: pass\ndef f(x: C): return x",
        "class C: pass\ndef f(x: list[C]): return x",
        "K = ([],)\ndef f(): return K",
        "def g(): return K\nK = {}\ndef f(): return g()",
        "def f(): return 1\nf.tag = []",
        "def f(): return 1\nf.__doc__ = []",
        "def o():\n k = []\n def inner(): return k\n return inner\nf = o()",
        "import __main__\ndef f(): return __main__",
        "K = [].append\ndef f(): return K",
        "class C: pass\nC.__module__ = None\ndef f(): return C",
        "def o():\n def inner(): return later\n if 0: later = 1\n return inner\nf = o()",
    ],
)
def test_whatever_is_mutable_is_written_anew_each_time(source: str) -> None:
    """A reachable mutable thing, a class of `__main__` included, forbids reuse."""
    f = in_main(source)["f"]
    assert not is_reused(f)
    assert pack_function(f)[-1:] == BY_VALUE


@pytest.mark.parametrize(
    "source",
    [
        "n = 0\ndef f():\n global n\n n += 1",
        "n = 0\ndef f():\n global n\n del n",
        "n = 0\ndef f():\n def inner():\n  global n\n  n = 1\n inner()",
        "n = 0\ndef g():\n global n\n n += 1\ndef f(): g()",
        "def o():\n n = 0\n def inner():\n  nonlocal n\n  n += 1\n return inner\nf = o()",
        "def f(): globals()['n'] = 1",
        "def f(): exec('global n; n = 1')",
        "def f(): f.calls = 1",
        "def g(): pass\ndef f(): setattr(g, 'calls', 1)",
        "def g(x): x.calls = 1\ndef f(): g(h)\ndef h(): pass",
    ],
)
def test_a_function_that_leaves_traces_is_not_reusable_in_the_worker(source: str) -> None:
    """The sender may reuse the bytes, the worker not the function."""
    f = in_main(source)["f"]
    assert is_reused(f)
    assert pack_function(f)[-1:] == BY_VALUE


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("K = 1000\ndef f(): return K", "K = 2000"),
        ("K = 1000\ndef f(): return K", "del K"),
        ("K = 1000\ndef f(): return K", "K = None"),
        ("def f(): return K", "K = 1"),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2"),
        ("def g(): return 1\ndef f(): return g()", "g = None"),
        ("def g(): return K\nK = 1\ndef f(): return g()", "K = 2"),
        ("def f(x=1): return x", "f.__defaults__ = (2,)"),
        ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2"),
        ("def f(*, x=1): return x", "f.__kwdefaults__ = None"),
        ("def f(): return 1", "f.__kwdefaults__ = {'x': 2}"),
        ("def f(): return 1", "f.tag = 1"),
        ("def f(): return 1\nf.tag = 1", "f.tag = 2"),
        ("def f(): return 1\nf.tag = 1", "del f.tag"),
        ("def f(x: int): return 1", "f.__annotations__ = {}"),
        ("def f(): return 1", "f.__code__ = (lambda: 2).__code__"),
        ("def f(): return 1", "f.__name__ = 'g'"),
        ("def f(): return 1", "f.__qualname__ = 'g'"),
        ("def f(): return 1", "f.__doc__ = 'g'"),
        ("def f(): return 1", "f.__module__ = 'g'"),
        ("def o():\n k = 1\n def inner(): return k\n return inner\nf = o()", "f.__closure__[0].cell_contents = 2"),
        ("def o():\n k = 1\n def inner(): return k\n return inner\nf = o()", "del f.__closure__[0].cell_contents"),
        ("def o(k):\n def inner(): return k\n return inner\nf = o(len)", "f.__closure__[0].cell_contents = abs"),
        ("def o(k):\n def inner(): return k\n return inner\nf = o(len)", "f.__closure__[0].cell_contents = None"),
        ("from math import sin as g\ndef f(): return g", "from math import cos as g"),
    ],
)
def test_a_change_is_noticed(source: str, change: str) -> None:
    """Whatever went into the bytes is looked at before they are used again."""
    namespace = in_main(source)
    f = namespace["f"]
    before = pack_function(f)
    assert is_reused(f)
    exec(change, namespace)  # noqa: S102 -- our own source
    assert pack_function(f) is not before
    assert pack_function(f)[:-1] != before[:-1]


def test_what_is_loaded_behaves_like_the_changed_function() -> None:
    """A rebound global reaches the next call."""
    namespace = in_main("K = 1\ndef g(): return K\ndef f(): return g()")
    assert loaded(namespace["f"])() == 1
    namespace["K"] = 2
    assert loaded(namespace["f"])() == 2


def test_a_helper_that_died_is_not_taken_for_none() -> None:
    """Neither a dead helper nor a name that became None passes as unchanged."""
    namespace = in_main("def g(): return 1\ndef f(): return g and g()")
    f = namespace["f"]
    assert loaded(f)() == 1
    namespace["g"] = None
    gc.collect()
    assert loaded(f)() is None


def test_a_dead_helper_reached_through_a_live_one_is_noticed() -> None:
    """The snapshot of a function that is gone counts as changed."""
    namespace = in_main("def g(): return 1\ndef f(): return g()")
    entry_of_f = pack_function(namespace["f"]) and functions._entries[weakref.ref(namespace["f"])]
    snapshot = entry_of_f.snapshots[1]
    assert snapshot.is_current()
    del namespace["g"]
    gc.collect()
    assert not snapshot.is_current()


def test_an_importable_function_goes_by_name() -> None:
    """What plain pickle can do stays a plain pickle."""
    assert pack_function(functools.wraps) == pickle.dumps(functools.wraps, 5)


def test_the_table_keeps_no_function_alive() -> None:
    """Recursive functions and closures go when their last user goes, and leave the table."""
    namespace = in_main("def f(n): return f(n - 1)\ndef o():\n def inner(): return inner\n return inner\ng = o()")
    references = [weakref.ref(namespace[name]) for name in "fg"]
    codes = [weakref.ref(namespace[name].__code__) for name in "fg"]
    for name in "fg":
        assert is_reused(namespace[name])
    assert all(reference in functions._entries for reference in references)
    del namespace
    gc.collect()
    assert [reference() for reference in references + codes] == [None] * 4
    assert not any(reference in functions._entries for reference in references)
    assert all(key() is not None for key in functions._scans)


def test_long_bytes_are_not_kept() -> None:
    """A function with a huge constant is written anew, and its bytes freed."""
    f = in_main("def f(): return K", K="x" * (2 << 20))["f"]
    assert not is_reused(f)
    assert weakref.ref(f) not in functions._entries


def test_a_newly_loaded_module_counts_when_a_package_is_referenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submodule imported later is imported in the worker too."""
    namespace = in_main("import json\ndef f(): return json.tool")
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    before = pack_function(namespace["f"])
    assert b"json.tool" not in before
    importlib.import_module("json.tool")
    assert b"json.tool" in pack_function(namespace["f"])
    assert json.dumps(1) == "1"


def test_what_changes_while_it_is_written_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A global rebound during pickling makes the bytes good for one call only."""
    namespace = in_main("K = 1\ndef f(): return K")
    write = functions.dumps_by_value

    def write_and_rebind(value: object, mark: bytes = BY_VALUE) -> bytes:
        packed = write(value, mark)
        namespace["K"] = 2
        return packed

    monkeypatch.setattr(functions, "dumps_by_value", write_and_rebind)
    assert pack_function(namespace["f"])[-1:] == BY_VALUE
    monkeypatch.undo()
    assert loaded(namespace["f"])() == 2


def test_an_entry_goes_when_its_function_becomes_loose() -> None:
    """Old bytes are not kept beside a function that now reaches something mutable."""
    namespace = in_main("K = 1\ndef f(): return K")
    pack_function(namespace["f"])
    namespace["K"] = []
    pack_function(namespace["f"])
    assert weakref.ref(namespace["f"]) not in functions._entries


def test_a_lambda_of_an_importable_module_is_reused() -> None:
    """By value is by value, wherever it was defined."""
    assert is_reused(lambda x: math.sqrt(x))


def test_a_dynamic_module_is_loose() -> None:
    """A module that nobody can import is written by value, and so never reused."""
    assert not is_reused(in_main("def f(): return m", m=types.ModuleType("nowhere"))["f"])


def test_threads_may_pack_the_same_function_at_once() -> None:
    """Whatever the interleaving, each thread gets bytes that load to a right answer."""
    namespace = in_main("K = 0\ndef g(): return K\ndef f(): return g()")
    f = namespace["f"]
    start = threading.Barrier(4)
    wrong: list[object] = []

    def pack_often(is_writer: bool) -> None:
        start.wait(30)
        for n in range(100):
            if is_writer:
                namespace["K"] = n
            elif pickle.loads(pack_function(f))() not in range(100):
                wrong.append(n)

    threads = [threading.Thread(target=pack_often, args=(number == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    namespace["K"] = 12345
    assert loaded(f)() == 12345
