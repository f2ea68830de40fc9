"""Versions of what a call needs of a script: when there is a new one, and when not."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit._wire import codec, modules, plans
from poolkit._wire.items import ABSENT, DEFINITION, INHERITED, VALUE
from poolkit._wire.plans import Manifest, Sent, inheritance, manifest_for
from support import WATCHDOG

NewScript = Callable[..., Any]


def manifest(script: Any, *names: str) -> Manifest:
    """What these names of a script need."""
    modules.look()
    found = manifest_for(None, {(script.__name__, name) for name in names or ("f",)})
    assert found is not None
    return found


def order(script: Any, *names: str) -> list[str]:
    return [item.name for item in manifest(script, *names).items]


def version(script: Any, name: str) -> int:
    """The serial of what a name means now."""
    return next(item.serial for item in manifest(script, name).items if item.name == name)


def test_an_unchanged_plan_gives_the_same_manifest(new_script: NewScript) -> None:
    """However often, and whatever else changes."""
    script = new_script("""
import os, random
class C:
    x = [1]
    def m(self): return K
class B: pass
K, data, generator, big, c = 1, {"a": [1]}, random.Random(1), list(range(1000)), B()
def g(): return C().m(), data, generator, os, big, c
def f(): return g()
other = 1
""")
    before = manifest(script)
    script.other = 2
    script.generator.random()  # where it goes on is the worker's own
    assert manifest(script) is before


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("K = 1", "K = 2"),
        ("K = 1", "K = 1.0"),
        ("K = None", "K = 1"),
        ("K = 1", "K = None"),
        ("K = [1]", "K = [1]"),
        ("class C: pass\nK = C()", "K = C()"),
        ("K = [1]", "K.append(2)"),
        ("K = {'a': [1]}", "K['a'].append(2)"),
        ("K = {1, 2}", "K.add(3)"),
        ("class C: pass\nK = C()", "K.x = 1"),
        ("class C: pass\nK = C()\nK.x = []", "K.x.append(1)"),
        ("from collections import deque\nK = deque(maxlen=2)", "K.append(1)"),
        ("K = list(range(1000))", "K.append(1)"),
        ("K = dict.fromkeys(range(1000))", "K[1000] = 1"),
        ("K = list(range(1000))", "K = list(range(1000))"),
        ("def K(): return 1", "def K(): return 2"),
        ("def K(): return 1", "K.__code__ = (lambda: 2).__code__"),
        ("class K: x = 1", "class K: x = 1"),
        ("class K: x = 1", "K.x = 2"),
        ("class K: x = 1", "K.y = 2"),
        ("class K: x = 1", "del K.x"),
        ("class K: pass\nK.x = [1]", "del K.x"),
        ("class K:\n def m(self): return 1", "del K.m"),
        ("class K: x = [1]", "K.x = [1]"),
        ("class K: x = [1]", "K.x.append(2)"),
        ("class K:\n def m(self): return 1", "K.m = lambda self: 2"),
        ("class C: pass\nclass K: x = None", "K.x = C()"),
        ("import os as K", "import json as K"),
        ("from math import sin as K", "from math import cos as K"),
        pytest.param("class K: pass", "class L(K): pass"),
        pytest.param("def K(x=1): return x", "K.__defaults__ = (2,)"),
        pytest.param("def K(*, x=1): return x", "K.__kwdefaults__ = {'x': 2}"),
        pytest.param("def K(): return K.x\nK.x = 1", "K.x = 2"),
        pytest.param("K = {'a': lambda: 1}", "K['b'] = 1"),
        pytest.param("class C: pass\nclass K: x = None", "K.x = C"),
        pytest.param("class K: pass", "K.x = property(lambda self: 1)"),
        pytest.param("", "K = 1"),
        pytest.param("def K(): return L()", "def L(): return 1"),
        ("", "K = None"),
        ("def K(*, x=1): return x", "K.__kwdefaults__['x'] = 2"),
        ("def K(x): return x", "K.__defaults__ = (2,)"),
        ("def K(*, x): return x", "K.__kwdefaults__ = {'x': 2}"),
        ("def K(): return K.x", "K.x = 2"),
        ("def K(): return K.x\nK.x = None", "K.x = 2"),
        ("def K(): return K.x\nK.x = 2", "del K.x"),
        ("def K(): return K.x\nK.x = 2", "K.y = K.x; del K.x"),
        ("def K(x=1): return x", "K.x = 2"),
        ("def K(x=1): return x", "K.__code__ = (lambda x: 2).__code__"),
        ("def K(x=1): return x", "K.__defaults__ = None"),
        ("K = (lambda lock: lambda: lock)(iter([]))", "K.x = 2"),
        ("import threading\nclass C: pass\nK = C()\nK.lock, K.x = threading.Lock(), 1", "K.x = 2"),
        ("import threading\nK = {'a': [1], 'lock': threading.Lock()}", "K['a'].append(2)"),
        ("K = {'a': [1], 'f': lambda: 1}", "K['a'].append(2)"),
        ("K = [lambda: 1]", "K[0] = lambda: 1"),
        ("import contextvars\nK = [contextvars.ContextVar('x'), 1]", "K[1] = 2"),
        ("class C: pass\nK = [C, C()]\nclass C: pass", "K[1].x = 1"),
    ],
)
def test_a_change_is_a_new_manifest(new_script: NewScript, source: str, change: str) -> None:
    """Bound to another object, changed in place, defined again: the next call has it; serials only grow."""
    script = new_script(f"{source}\ndef f(): return K")
    before = manifest(script)
    assert manifest(script) is before
    last = max(item.serial for item in before.items)
    exec(compile(change, script.__file__, "exec"), vars(script))  # noqa: S102 -- our own source
    after = manifest(script)
    assert after is not before
    assert after.number > before.number
    news = [item for item in after.items if item not in before.items]
    assert news
    assert all(item.serial > last for item in news)
    assert manifest(script) is after


@pytest.mark.parametrize(
    "source",
    [
        "import threading\nclass C: pass\nK = C()\nK.lock = threading.Lock()",
        "class C: pass\nK = [C(), lambda: 1]\nclass C: pass",
        "class K:\n def __reduce__(self): return (lambda: 1), ()\nK = K()",
        "class K:\n def __reduce__(self): raise TypeError\nK = K()",
        "class K:\n def __len__(self): raise TypeError\n def __reduce__(self): raise ValueError\nK = K()",
        "import threading\nK = [threading.Lock(), threading.Thread()]",
        "import sys\nK = {'out': sys.stdout}",
    ],
)
def test_what_is_hard_to_pickle_is_not_new_each_time(new_script: NewScript, source: str) -> None:
    script = new_script(f"{source}\ndef f(): return K")
    before = manifest(script)
    assert manifest(script) is before
    script.unrelated = 1
    assert manifest(script) is before


def test_what_a_value_has_a_lock_or_a_function_for_is_not_kept_alive(new_script: NewScript) -> None:
    script = new_script("class C: pass\nK = C()\nK.f = lambda: 1\ndef f(): return K")
    manifest(script)
    dead = weakref.ref(script.K.f)
    script.K = None
    gc.collect()
    assert dead() is None


CHANGING = """
hook = None
class V:
    def __reduce__(self):
        if hook is not None: hook()
        return V, ()
{}
def f(): return K
"""


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("K = [0, V()]", "K[0] = 1"),
        ("K = [0, V(), lambda: 1]", "K[0] = 1"),
        ("K = {1: V()}", "K[2] = 1"),
        ("K = [V()]", "K.insert(0, 1)"),
        ("K = [0, V(), bytes(5000)]", "K.append(1)"),
    ],
)
def test_what_changes_while_it_is_pickled_is_sent_as_it_is_now(new_script: NewScript, source: str, change: str) -> None:
    """By another thread, or by its own hooks; whichever time that is."""
    script = new_script(CHANGING.format(source))
    for time in range(1, 7):
        times = iter(range(1, 1000))

        def hook(time: int = time, times: Iterator[int] = times) -> None:
            if next(times) == time:
                exec(change, vars(script))  # noqa: S102 -- our own source

        script.hook, script.K = hook, script.K.copy()
        for _ in range(3):
            manifest(script)
        script.hook = None
        (item,) = (item for item in manifest(script).items if item.name == "K")
        found = codec.load_value(item.payload)
        assert len(found) == len(script.K)
        assert [each for each in found if type(each) is int] == [each for each in script.K if type(each) is int]
        exec(source, vars(script))  # noqa: S102 -- our own source


@pytest.mark.parametrize("change", ["K.append(1)", "K[0].x = 1", "K = K[0]\nK.x = 1"])
def test_data_with_an_instance_of_a_class_that_was_defined_again_is_followed(
    new_script: NewScript, change: str
) -> None:
    """It is by value from then on."""
    script = new_script("class C: pass\nK = [C()]\ndef f(): return K")
    before = version(script, "K")
    exec(f"class C: pass\n{change}", vars(script))  # noqa: S102 -- our own source
    between = version(script, "K")
    assert between > before
    assert version(script, "K") == between
    exec("K.append(2)" if type(script.K) is list else "K.x = 2", vars(script))  # noqa: S102 -- our own source
    assert version(script, "K") > between


def test_large_data_is_followed_by_its_length_alone(new_script: NewScript) -> None:
    """To pickle it for each call would cost too much."""
    script = new_script("K = list(range(1000))\ndef f(): return K")
    before = manifest(script)
    script.K[0] = 5
    assert manifest(script) is before


def test_a_version_is_shared_by_the_manifests_that_need_it(new_script: NewScript) -> None:
    script = new_script("K = [1]\ndef f(): return K\ndef g(): return K")
    one, other = manifest(script, "f"), manifest(script, "g")
    assert one is not other
    assert {item for item in one.items if item.name == "K"} == {item for item in other.items if item.name == "K"}


def test_a_manifest_stays_as_it_was(new_script: NewScript) -> None:
    """A queued call has the globals of its submit."""
    script = new_script("K = [1]\ndef f(): return K")
    before = manifest(script)
    script.K.append(2)
    script.K = [3]
    manifest(script)
    (item,) = (item for item in before.items if item.name == "K")
    assert codec.load_value(item.payload) == [1]


def test_a_module_that_was_loaded_anew_has_new_versions(new_script: NewScript, tmp_path: Path) -> None:
    """Another module under the same name."""
    script = new_script("K = 1\ndef f(): return K")
    before = version(script, "K")
    again = type(script)(script.__name__)
    again.K = 1
    sys.modules[script.__name__] = again
    assert version(again, "K") > before


def test_a_name_that_was_deleted_is_a_version_without_a_value(new_script: NewScript) -> None:
    script = new_script("K = 1\ndef f(): return K")
    assert set(order(script)) == {"f", "K"}
    del script.K
    after = manifest(script)
    assert [(item.name, item.kind, item.payload) for item in after.items if item.name != "f"] == [("K", ABSENT, b"")]
    assert manifest(script) is after


def test_what_may_be_large_is_not_kept_alive(new_script: NewScript) -> None:
    """An old version goes with its object; only the newest is known."""
    script = new_script("class C: pass\nK = C()\ndef f(): return K")
    manifest(script)
    dead = weakref.ref(script.K)
    script.K = None
    gc.collect()
    assert dead() is None
    manifest(script)
    assert version(script, "K")


def test_old_versions_are_freed(new_script: NewScript) -> None:
    """With the last call that needs them."""
    script = new_script("K = [1]\ndef f(): return K\nclass C: pass")
    queued = manifest(script)
    old = weakref.ref(script.f), weakref.ref(queued)
    exec("K = [2]\ndef f(): return K", vars(script))  # noqa: S102 -- our own source
    manifest(script)
    gc.collect()
    assert all(each() is not None for each in old)  # for the call that is queued
    del queued
    gc.collect()
    assert [each() for each in old] == [None, None]


# ===== classes =====


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("C.x = 5", {"C.x"}),
        ("C.new = [1]", {"C.new"}),
        ("C.m = lambda self: 1", {"C.m"}),
        ("C.m = elsewhere", {"C.m"}),
        ("pass", set()),
        pytest.param("C.other = Other()", {"C.other"}),
        pytest.param("C.other = Other", {"C.other"}),
        pytest.param("C.p = property(len)", {"C.p"}),
    ],
)
def test_what_was_set_on_a_class_before_it_is_first_needed_travels(
    new_script: NewScript, setting: str, expected: set[str]
) -> None:
    """Its statement does not have it. What was there when it is first needed, is taken for the statement's own."""
    script = new_script(f"""
class Other: pass
def elsewhere(self): return 2
class C:
    def m(self): return 0
    other = p = None
{setting}
def f(): return C
""")
    found = {name for name in order(script) if name.startswith("C.")}
    assert expected <= found


def test_functions_that_a_class_statement_has_do_not_travel_beside_it(new_script: NewScript) -> None:
    script = new_script("""
import dataclasses, enum
@dataclasses.dataclass
class D:
    x: int = 1
    def m(self): return 1
class E(enum.Enum):
    A = 1
    def m(self): return 1
def f(): return D, E
""")
    found = {name for name in order(script) if "." in name}
    assert {name for name in found if not name.startswith("E._")} == {"D.x"}


# ===== threads =====


def test_threads_may_plan_the_same_at_once(new_script: NewScript) -> None:
    """Whatever the interleaving: in each manifest is one version of each name, and it is one that there was."""
    script = new_script("class C: pass\nK = [0]\ndef g(): return K, C\ndef f(): return g()")
    modules.look()
    start = threading.Barrier(4)
    wrong: list[object] = []

    def plan_often(number: int) -> None:
        start.wait(30)
        for count in range(200):
            if number == 0:
                script.K = [count]
                continue
            found = manifest(script)
            names = [item.name for item in found.items]
            if sorted(names) != ["C", "K", "f", "g"]:
                wrong.append(names)

    threads = [threading.Thread(target=plan_often, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    script.K = [12345]
    (item,) = (item for item in manifest(script).items if item.name == "K")
    assert codec.load_value(item.payload) == [12345]


RACE = """
hook = None
class V:
    def __init__(self, n): self.n = n
    def __reduce__(self):
        if hook is not None: hook()
        return V, (self.n,)
K = V(0)
def f(): return K
def g(): return K
"""


def test_a_version_that_was_bound_later_has_the_larger_serial(new_script: NewScript) -> None:
    """Although it was pickled first: another thread has bound and submitted while the older one was pickled."""
    script = new_script(RACE)
    old = script.K
    later: list[int] = []

    def bind_another() -> None:
        script.hook = None
        script.K = script.V(1)
        later.append(version(script, "K"))

    script.hook = bind_another
    earlier = next(item for item in manifest(script).items if item.name == "K")
    assert script.K is not old
    assert earlier.serial < later[0] or earlier.get() is script.K


def test_no_hook_of_an_object_runs_under_a_lock(new_script: NewScript) -> None:
    """It may wait for another thread, which plans a call of its own."""
    script = new_script(RACE + "o = V(1)")
    planned: list[int] = []

    def plan_others() -> None:
        script.hook = None
        if not planned:  # of several who make the same version, one finds that of another, and compares
            version(script, "K")
        thread = threading.Thread(target=lambda: planned.append(version(script, "o")))
        thread.start()
        thread.join(WATCHDOG)
        assert not thread.is_alive()
        script.o, script.hook = script.V(1), plan_others

    script.hook = plan_others
    version(script, "K")
    assert len(planned) > 1


def test_a_class_may_be_changed_while_it_is_looked_at(new_script: NewScript) -> None:
    """By another thread, which the name of an attribute stands for here."""
    script = new_script("""
class Name(str):
    def __getitem__(self, key):
        setattr(C, f"x{len(vars(C))}", 1)
        return str.__getitem__(self, key)
C = type("C", (), {Name("first"): 1, "second": 2, "__module__": __name__})
def f(): return C
""")
    assert {item.name for item in manifest(script).items} >= {"C", "C.first", "C.second", "f"}
    assert any(each.startswith("x") for each in vars(script.C))


def test_no_more_plans_than_a_bound_are_kept(new_script: NewScript, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MOST_PLANS", 3)
    script = new_script("\n".join(f"def f{n}(): return {n}" for n in range(10)))
    for n in range(10):
        manifest(script, f"f{n}")
        assert len(plans._plans) <= 3


# ===== copies of the owner =====


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("K = 1", "K = 2"),
        ("K = (1, (2, 3))", "K = (1, (2, 4))"),
        ("K = [1]", "K.append(2)"),
        ("K = bytearray(100_000)", "K.append(2)"),
        ("import array\nK = array.array('d', bytes(100_000))", "K.append(2)"),
        ("import threading\nK = {'a': [1], 'lock': threading.Lock()}", "K['a'].append(2)"),
        ("class C: pass\nK = [C(), lambda: 1]\nclass C: pass", "K[0].x = 1"),
        ("def K(): pass", "K.x = 1"),
        ("def K(): pass", "K.__defaults__ = (1,)"),
        ("def K(): pass", "K.__code__ = (lambda: 2).__code__"),
        ("K = 1", "globals().pop('K', None)"),
    ],
)
def test_a_copy_of_this_process_is_sent_only_what_has_changed_since(
    new_script: NewScript, source: str, change: str
) -> None:
    """Of the rest it is told which version it has, as it may have to go back to that."""
    script = new_script(f"{source}\ndef f(): return K")
    modules.look()
    sent, queued = Sent(inheritance()), []
    for kind, count in ((INHERITED, 2), (None, 1)):
        found = manifest(script)
        queued.append(found)
        _, _, serials, bundle, records, _ = pickle.loads(sent.lacking(found)[0])
        sent.commit()
        news = [record for record in records if kind is None or record[3] == kind]
        assert len(records) == len(news) == count
        assert len(serials) == len(found.items)
        assert {record[2] for record in bundle} <= {"K"}
        changed = ABSENT if "pop" in change else DEFINITION if "def" in source else VALUE
        assert kind or news[0][2:4] == ("K", changed)
        exec(change, vars(script))  # noqa: S102 -- our own source


@pytest.mark.parametrize("value", ["subprocess.Popen('true')", "threading.Thread()", "[(n for n in 'a')]"])
def test_a_copy_of_this_process_keeps_what_cannot_be_sent(new_script: NewScript, value: str) -> None:
    script = new_script(f"import subprocess, threading\nK = {value}\ndef f(): return K")
    modules.look()
    sent = Sent(inheritance())
    records = pickle.loads(sent.lacking(manifest(script))[0])[4]
    assert {record[2:4] for record in records} == {("f", INHERITED), ("K", INHERITED)}
    if isinstance(script.K, subprocess.Popen):
        script.K.wait()


def test_what_copies_of_this_process_have_is_not_kept_alive_for_them(new_script: NewScript) -> None:
    script = new_script("class C: pass\nK = C()")
    modules.look()
    known, weak = Sent(inheritance()), weakref.ref(script.K)
    del script.K
    gc.collect()
    assert weak() is None
    assert known
