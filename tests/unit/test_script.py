"""The half of a worker: what comes of a script is made there, and what tasks have bound stays."""

from __future__ import annotations

import collections
import gc
import linecache
import marshal
import pickle
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit._child import missing, script
from poolkit._wire import functions, modules, reseed
from poolkit._wire.items import ABSENT, DEFINITION, IMPORT, INHERITED, STATEMENT, VALUE
from poolkit._wire.pickles import BY_VALUE
from support_scripts import ScriptModules

NAME = "half_of_a_script"
DESCRIPTION = {"__file__": None, "__doc__": "Text.", "__package__": "", "spec": None, "origin": None, "typed": None}


class Half:
    """The half of a worker in this process, which is sent what a test makes up."""

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description
        self._number = 0

    @property
    def names(self) -> dict[str, Any]:
        """What the script's names are bound to."""
        return {name: value for name, value in vars(sys.modules[NAME]).items() if not name.startswith("__")}

    def define(self, *records: tuple[Any, ...], serials: tuple[int, ...] = (), **more: Any) -> int:
        """Send a manifest that has these records, and versions that came before; returns its number."""
        self._number += 1
        content = (
            more.get("gone", []),
            self._number,
            [*serials, *(record[0] for record in records)],
            more.get("bundle", []),
            list(records),
            {NAME: self._description},
        )
        script.define(pickle.dumps(content), None)  # type: ignore[arg-type]  # nothing lies in shared memory
        return self._number

    def make(self, *records: tuple[Any, ...], **more: Any) -> dict[str, Any]:
        """Send a manifest, and have it made, as before a call; returns what is bound now."""
        script.prepare(self.define(*records, **more))
        return self.names


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Half]:
    """A worker's half that has nothing yet."""
    for name in ("_manifests", "_versions", "bound", "_inherited", "reasons", "typed", "_containers"):
        monkeypatch.setattr(script, name, {})
    monkeypatch.setattr(script, "_bundles", collections.deque())
    monkeypatch.setattr(script, "ready", set())
    monkeypatch.setattr(reseed, "worker_number", 1)
    loaded = ScriptModules(tmp_path)
    half = Half(DESCRIPTION)
    half.define()
    del sys.modules[NAME]  # it is made anew, and gone after the test
    loaded.add(script._make_module(NAME, DESCRIPTION))
    yield half
    loaded.close()


def value(serial: int, name: str, content: object, shell: object = None, submodules: tuple[str, ...] = ()) -> Any:
    empty = None if shell is None else pickle.dumps(shell)
    return serial, NAME, name, VALUE, pickle.dumps(content), None, empty, submodules


def definition(serial: int, name: str, content: object) -> Any:
    return serial, NAME, name, DEFINITION, pickle.dumps(content), None, None, ()


def statement(serial: int, name: str, text: str, submodules: tuple[str, ...] = ()) -> Any:
    code = marshal.dumps(compile(text, "<half>", "exec", dont_inherit=True))
    return serial, NAME, name, STATEMENT, code, None, None, submodules


def imported(serial: int, name: str, module: str, inner: str | None = None) -> Any:
    return serial, NAME, name, IMPORT, marshal.dumps((module, inner)), None, None, ()


def absent(serial: int, name: str, why: str) -> Any:
    return serial, NAME, name, ABSENT, why.encode(), None, None, ()


# ===== what comes =====


def test_a_module_of_that_name_is_there(half: Half) -> None:
    """With the attributes that it has in the owner."""
    half.make(value(1, "K", 5))
    module = sys.modules[NAME]
    assert (module.__name__, module.__doc__, module.__package__) == (NAME, "Text.", "")
    assert not hasattr(module, "__file__")
    assert NAME in modules.scripts
    exec("assert len('abc') == 3", vars(module))  # noqa: S102 -- builtins are there


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (value(1, "K", [5]), [5]),
        (statement(1, "K", "K = 2 + 3"), 5),
        (imported(1, "K", "json"), sys.modules["json"]),
        (imported(1, "K", "json.decoder"), sys.modules["json.decoder"]),
        (imported(1, "K", "json", "dumps"), sys.modules["json"].dumps),
    ],
)
def test_each_kind_is_bound_to_its_name(half: Half, record: Any, expected: object) -> None:
    assert half.make(record) == {"K": expected}


def test_nothing_is_made_before_a_call_needs_it(half: Half) -> None:
    """What comes is kept, as the call may be taken back."""
    number = half.define(value(1, "K", 5))
    assert half.names == {}
    script.prepare(number)
    assert half.names == {"K": 5}
    assert number in script.ready


def test_what_is_made_is_made_once(half: Half) -> None:
    """Whatever manifests have it."""
    seen: list[int] = []
    vars(sys.modules[NAME])["seen"] = seen
    record = statement(2, "made", "made = [len(seen), seen.append(1)][0]")
    for _ in range(2):
        assert half.make(record, value(1, "K", 1)) == {"seen": [1], "made": 0, "K": 1}


def test_a_manifest_may_have_what_came_with_another(half: Half) -> None:
    """The one that brought it may never be made."""
    half.define(value(1, "K", 5))
    assert half.make(value(2, "L", 6), serials=(1,)) == {"K": 5, "L": 6}


def test_an_unknown_manifest_needs_nothing(half: Half) -> None:
    script.prepare(12345)
    assert half.names == {}


def test_submodules_are_imported_before(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be imported is for the task to miss."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    record = statement(1, "K", "import sys; K = 'colorsys' in sys.modules", submodules=("no.such_module", "colorsys"))
    assert half.make(record)["K"] is True


# ===== versions =====


def test_a_later_version_replaces_an_earlier_one(half: Half) -> None:
    half.make(value(1, "K", [1]))
    assert half.make(value(2, "K", [2])) == {"K": [2]}


def test_data_is_what_it_was_when_the_call_was_submitted(half: Half) -> None:
    """Back and forth, whichever call comes first; the very objects, with what tasks have done to them."""
    newer = half.define(value(2, "K", [2]), value(3, "L", 3))
    older = half.define(value(1, "K", [1]), serials=(3,))
    for _ in range(2):
        for number, expected in ((newer, [2]), (older, [1])):
            assert number not in script.ready
            script.prepare(number)
            assert half.names == {"K": expected, "L": 3}
    half.names["K"].append("a")
    script.prepare(newer)
    script.prepare(older)
    assert half.names["K"] == [1, "a"]


@pytest.mark.parametrize("between", ["None", "'own'", "[2]"])
def test_what_a_task_has_bound_is_not_taken_back(half: Half, between: str) -> None:
    """Whatever it looks like: another object is not the one that was sent."""
    older, newer = half.define(value(1, "K", [1])), half.define(value(2, "K", [2]))
    script.prepare(newer)
    vars(sys.modules[NAME])["K"] = expected = eval(between)  # noqa: S307 -- our own source
    for number in (older, newer):
        script.prepare(number)
        assert half.names["K"] is expected


@pytest.mark.parametrize(
    "record",
    [
        statement(1, "K", "K = 1 / 0"),
        imported(1, "K", "json"),
        definition(1, "K", len),
    ],
)
def test_definitions_never_go_back(half: Half, record: Any) -> None:
    """The newest counts; such as a function that a call of before needs."""
    half.make(value(2, "K", [2]))
    assert half.make(record) == {"K": [2]}
    assert script.reasons == {}


def test_data_does_not_take_the_place_of_a_newer_definition(half: Half) -> None:
    older = half.define(value(1, "K", 1))
    half.make(statement(2, "K", "def K(): pass"))
    script.prepare(older)
    assert callable(half.names["K"])


def test_an_old_definition_is_not_kept(half: Half) -> None:
    """Although a manifest has it, and is prepared again."""
    older = half.define(statement(1, "K", "class K: pass"))
    script.prepare(older)
    old = weakref.ref(half.names["K"])
    half.make(statement(2, "K", "class K: pass"))
    gc.collect()
    assert old() is None
    script.prepare(older)
    assert half.names["K"]


def test_a_name_is_unbound_where_it_is_so_in_the_owner(half: Half) -> None:
    """And bound again by a manifest in which it is; the task of another has bound it itself."""
    older = half.define(value(1, "K", None), value(2, "L", 1))
    script.prepare(older)
    newer = half.define(absent(3, "K", ""), absent(4, "L", ""), absent(5, "M", ""))
    vars(sys.modules[NAME])["L"] = "the task's"
    script.prepare(newer)
    assert half.names == {"L": "the task's"}
    assert script.reasons == {}
    script.prepare(older)
    assert half.names == {"K": None, "L": "the task's"}
    script.prepare(newer)
    assert half.names == {"L": "the task's"}
    assert half.make(value(6, "K", 6), value(7, "M", 7)) == {"K": 6, "L": "the task's", "M": 7}


def test_a_name_that_cannot_be_had_any_more_is_not_what_it_was(half: Half) -> None:
    """The reason is told each time."""
    older = half.define(value(1, "K", 1))
    newer = half.define(absent(2, "K", "TypeError: it cannot be pickled"))
    for _ in range(2):
        script.prepare(older)
        assert half.names == {"K": 1}
        assert script.reasons == {}
        script.prepare(newer)
        assert half.names == {}
        assert script.reasons == {"K": "TypeError: it cannot be pickled"}


def test_attributes_belong_to_one_version_of_their_class(half: Half) -> None:
    """Those of one before are not set on the newest; one that is deleted in the owner is so here."""
    older = half.define(statement(1, "C", "class C: x = 1"), value(2, "C.x", 2), value(3, "C.y", 3))
    half.make(statement(4, "C", "class C: x = 4"), absent(5, "C.x", ""), absent(6, "C.z", ""))
    assert not hasattr(half.names["C"], "x")
    script.prepare(older)
    assert not hasattr(half.names["C"], "x")
    assert not hasattr(half.names["C"], "y")


def test_attributes_that_two_versions_of_a_class_share_are_set_on_both(half: Half) -> None:
    """As they are the same objects in the owner."""
    shared = value(2, "C.x", 2), definition(3, "C.m", len)
    half.make(statement(1, "C", "class C: pass"), *shared)
    half.make(statement(4, "C", "class C: pass"), *shared)
    assert (half.names["C"].x, half.names["C"].m) == (2, len)


def inherited(serial: int, name: str) -> Any:
    return serial, NAME, name, INHERITED, b"", None, None, ()


def test_a_copy_of_the_owner_goes_back_to_what_it_began_with(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the owner tells of that only after a newer version; of definitions the newest counts here too."""
    exec("K = [0]\nL = [0]\ndef f(): pass\nclass C:\n x = [0]", vars(sys.modules[NAME]))  # noqa: S102 -- our own
    began = half.names
    monkeypatch.setattr(modules, "scripts", {NAME})
    monkeypatch.setattr(modules, "are_others_known", None)
    script.begin(1, {}, is_copy=True)
    vars(sys.modules[NAME])["L"] = "the task's"
    half.make(value(25, "K", [5]), definition(26, "f", len), value(27, "L", 7))
    half.make(inherited(1, "C"), value(28, "C.x", [8]))
    assert half.names == {"K": [5], "L": "the task's", "f": len, "C": began["C"]}
    assert began["C"].x == [8]
    names = half.make(*(inherited(1 + place, name) for place, name in enumerate(("C", "K", "f", "L", "C.x", "C#3"))))
    assert names == {"K": [0], "L": "the task's", "f": len, "C": began["C"]}
    assert names["K"] is began["K"]
    assert began["C"].x == [0]


def test_what_a_task_has_bound_stays(half: Half) -> None:
    """Later versions of the owner's do not replace it."""
    half.make(value(1, "K", 1000))
    vars(sys.modules[NAME])["K"] = "the task's"
    for serial, record in ((2, value(2, "K", 2)), (3, statement(3, "K", "K = 1 / 0")), (4, imported(4, "K", "json"))):
        assert record[0] == serial
        assert half.make(record) == {"K": "the task's"}
    assert script.reasons == {}


def test_what_a_task_has_deleted_stays_so(half: Half) -> None:
    half.make(value(1, "K", [1]))
    del vars(sys.modules[NAME])["K"]
    assert half.make(value(2, "K", [2])) == {}


def test_what_an_initializer_has_bound_first_stays(half: Half) -> None:
    """Neither the first sending nor a later one replaces it."""
    vars(sys.modules[NAME])["K"] = "the initializer's"
    assert half.make(value(1, "K", 1)) == {"K": "the initializer's"}
    assert half.make(value(2, "K", 2)) == {"K": "the initializer's"}


def test_what_a_task_has_changed_in_place_is_the_owners_still(half: Half) -> None:
    """It stays until the owner sends another version."""
    half.make(value(1, "K", [1]))
    half.names["K"].append("a")
    assert half.make(value(2, "L", 1)) == {"K": [1, "a"], "L": 1}
    assert half.make(value(3, "K", [3])) == {"K": [3], "L": 1}


def test_attributes_of_classes_are_bound_by_the_same_rules(half: Half) -> None:
    half.make(statement(1, "C", "class C:\n x = 1"), value(2, "C.x", [2]), value(3, "C.y", [3]))
    cls = half.names["C"]
    assert (cls.x, cls.y) == ([2], [3])
    cls.x = "the task's"
    half.make(value(4, "C.x", [4]), value(5, "C.y", [5]), serials=(1,))
    assert (cls.x, cls.y) == ("the task's", [5])
    half.make(serials=(1, 2, 3))
    assert (cls.x, cls.y) == ("the task's", [3])
    assert set(half.names) == {"C"}


def test_attributes_of_a_class_that_was_defined_again_are_the_owners(half: Half) -> None:
    """What the statement has set there, no task has bound."""
    half.make(statement(1, "C", "class C:\n x = [1]"), value(2, "C.x", [1, 2]))
    half.make(statement(3, "C", "class C:\n x = [3]"), value(4, "C.x", [3, 4]))
    assert half.names["C"].x == [3, 4]


def test_statements_that_act_are_run_once_for_each_version(half: Half) -> None:
    """They bind no name."""
    act = "seen.append('C' + str(C.n))"
    vars(sys.modules[NAME])["seen"] = []
    half.make(statement(2, "C", "class C: n = 1"), statement(3, "C#7", act))
    half.make(statement(3, "C#7", act), serials=(2,))
    half.make(statement(4, "C", "class C: n = 2"), statement(5, "C#7", act))
    assert half.names["seen"] == ["C1", "C2"]
    assert set(half.names) == {"seen", "C"}


@pytest.mark.parametrize("content", [[1], {1: 1}, {1}])
def test_data_has_the_effects_of_statements_already(half: Half, content: Any) -> None:
    """A decorator that registers what it decorates does so once."""
    register = "seen.append(2)" if type(content) is list else "seen.update({2: 2})"
    names = half.make(value(1, "seen", content), statement(2, "C", f"class C: pass\n{register}"))
    assert names["seen"] == content


def test_containers_are_copied_once_for_all_statements(half: Half) -> None:
    """And not for each: a script may have as many of the one as of the other. Nor for data and functions."""
    copies = 0

    def count(_: object, event: str, function: Any) -> None:
        nonlocal copies
        copies += event == "c_call" and function.__name__ == "copy" and type(function.__self__) is list

    containers = [value(serial, f"L{serial}", [serial]) for serial in range(1, 41)]
    functions = [definition(serial, f"f{serial}", len) for serial in (41, 42)]
    classes = [
        statement(serial, f"C{serial}", f"class C{serial}: L1.append(C1) if 0 else L2.append(2)")
        for serial in range(50, 90)
    ]
    first, second = half.define(*containers, *functions), half.define(*classes)
    sys.setprofile(count)
    try:
        script.prepare(first)
        assert not copies
        script.prepare(second)
    finally:
        sys.setprofile(None)
    assert copies == len(containers)
    assert half.names["L2"] == [2]


# ===== the bundle =====


def test_plain_functions_are_there_for_who_looks_them_up(half: Half) -> None:
    """Although no call has named them; one that fails is nobody's trouble."""
    bundle = [value(1, "g", len), (2, NAME, "h", VALUE, b"junk", None, None, ())]
    assert half.make(bundle=bundle) == {"g": len}
    assert script.reasons == {}


def test_the_bundle_replaces_nothing_newer(half: Half) -> None:
    half.make(value(5, "g", [5]))
    assert half.make(bundle=[definition(1, "g", len)]) == {"g": [5]}
    vars(sys.modules[NAME])["h"] = "the task's"
    assert half.make(bundle=[value(6, "h", [1])])["h"] == "the task's"


# ===== shells =====


def test_a_container_is_there_while_its_contents_are_made(half: Half) -> None:
    """What fills it while it is made has one to fill; then it has what the owner's has, and is the same object."""
    fill = statement(2, "C", "class C: pass\nregistry['C'] = C\nheld = registry")
    content = {"key": [1]}
    names = half.make(fill, value(1, "registry", content, shell={}))
    assert names["registry"] == content
    assert names["registry"] is names["held"]


@pytest.mark.parametrize(
    ("content", "empty"),
    [
        ([1, 2], []),
        ({1, 2}, set()),
        ({"a": 1}, {}),
        (collections.deque([1, 2], maxlen=2), collections.deque(maxlen=2)),
    ],
)
def test_a_filled_shell_is_like_the_owners(half: Half, content: Any, empty: Any) -> None:
    made = half.make(value(1, "x", content, shell=empty))["x"]
    assert (type(made), repr(made)) == (type(content), repr(content))


def test_a_shell_replaces_nothing(half: Half) -> None:
    """A name that is bound already has no need of one."""
    vars(sys.modules[NAME])["x"] = "the task's"
    assert half.make(value(1, "x", [1], shell=[])) == {"x": "the task's"}
    half.make(value(2, "y", [1], shell=[]))
    half.names["y"].append("a")
    held = half.names["y"]
    assert half.make(value(3, "z", [1]), serials=(2,))["y"] == [1, "a"]
    assert half.make(value(4, "y", [4], shell=[]))["y"] == [4]
    assert held == [1, "a"]


def test_a_shell_whose_contents_cannot_be_made_is_gone(half: Half) -> None:
    """Nobody is to take it for the owner's, which has something in it; once that can be made, it is."""
    content = (1, NAME, "x", VALUE, b"cposix\nno_such_name\n.", None, pickle.dumps([]), ())
    assert half.make(content) == {}
    assert half.make(value(2, "x", [1], shell=[])) == {"x": [1]}


def test_the_shell_of_an_attribute_is_that_of_its_class(half: Half) -> None:
    base = statement(1, "B", "class B:\n registry = []")
    names = half.make(base, value(2, "B.registry", ["owner"], shell=[]))
    assert names["B"].registry == ["owner"]
    assert set(names) == {"B"}


# ===== failures =====


def raised(fn: Any) -> Any:
    try:
        fn()
    except Exception as error:
        missing.explain(error)
        return error
    raise AssertionError


def notes_of(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (statement(1, "K", "K = 1 / 0"), "ZeroDivisionError"),
        (imported(1, "K", "no_such_module"), "no_such_module"),
        (imported(1, "K", "json", "no_such_name"), "no_such_name"),
        ((1, NAME, "K", VALUE, b"junk", None, None, ()), "UnpicklingError"),
        (absent(1, "K", "TypeError: cannot pickle it"), "TypeError: cannot pickle it"),
    ],
)
def test_a_name_that_could_not_be_made_is_told_to_who_misses_it(half: Half, record: Any, why: str) -> None:
    """And to nobody else: the call may not need it."""
    assert half.make(record, value(2, "L", 2)) == {"L": 2}
    exec("def read(): return K\ndef read_other(): return M", vars(sys.modules[NAME]))  # noqa: S102 -- our own source
    error = raised(lambda: sys.modules[NAME].read())
    assert isinstance(error, NameError)
    (note,) = notes_of(error)
    assert "'K'" in note
    assert why in note
    assert notes_of(raised(lambda: sys.modules[NAME].read_other())) == []
    assert notes_of(raised(lambda: 1 / 0)) == []


def test_what_failed_is_tried_again_with_the_next_call(half: Half) -> None:
    """By then it may be there."""
    record = statement(1, "K", "K = L")
    number = half.define(record)
    script.prepare(number)
    assert number not in script.ready
    vars(sys.modules[NAME])["L"] = 5
    script.prepare(number)
    assert half.names["K"] == 5
    assert number in script.ready
    assert script.reasons == {}


def test_a_later_version_makes_good_what_failed(half: Half) -> None:
    half.make(statement(1, "K", "K = 1 / 0"))
    assert half.make(value(2, "K", 2)) == {"K": 2}
    assert script.reasons == {}


def test_an_attribute_whose_class_could_not_be_made_is_missing_with_it(half: Half) -> None:
    half.make(statement(1, "C", "class C(missing): pass"), value(2, "C.x", 1), value(3, "K", 3))
    assert half.names == {"K": 3}


def test_what_is_no_exception_is_let_out(half: Half) -> None:
    """As it ends the task."""
    with pytest.raises(KeyboardInterrupt):
        half.make(statement(1, "K", "raise KeyboardInterrupt"))


def test_an_unpickled_name_that_could_not_be_made_is_told(half: Half) -> None:
    """The message of the unpickler, with the reason."""
    half.make(statement(1, "K", "class K(1 / 0): pass"))
    error = raised(lambda: pickle.loads(f"c{NAME}\nK\n.".encode()))
    (note,) = notes_of(error)
    assert "ZeroDivisionError" in note


# ===== what is gone =====


def test_what_only_forgotten_manifests_have_is_forgotten(half: Half) -> None:
    """That was never made; what another manifest has is kept."""
    first = half.define(value(1, "K", 1), value(2, "L", 2))
    second = half.define(serials=(2,))
    half.define(gone=[first])
    assert set(script._versions) == {2}
    script.prepare(first)
    assert half.names == {}
    script.prepare(second)
    assert half.names == {"L": 2}


def test_what_was_made_is_not_kept_as_it_came(half: Half) -> None:
    half.make(value(1, "K", 1), value(2, "L", 2))
    assert [version.record for version in script._versions.values()] == [None, None]
    assert not script._bundles


# ===== random numbers =====


def test_what_a_statement_makes_draws_numbers_of_its_own(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each worker others, the same in each run."""
    drawn = []
    for number in (1, 2, 1):
        monkeypatch.setattr(reseed, "worker_number", number)
        script.bound.clear()
        script._versions.clear()
        vars(sys.modules[NAME]).update(Random=random.Random)
        vars(sys.modules[NAME]).pop("C", None)
        made = half.make(
            statement(1, "C", "class C:\n rngs = [Random(5)]\n def m(self, r=Random(6)): return r.random()")
        )
        drawn.append((made["C"].rngs[0].random(), made["C"]().m()))
    assert drawn[0] == drawn[2]
    assert len({*drawn[0], *drawn[1]}) == 4


# ===== what others refer to =====


def refer(serial: int, name: str, *reference: Any) -> Any:
    """A value that is nothing but what another name was sent for."""
    content = b"\x80\x05" + pickle.dumps(reference, 5)[2:-1] + pickle.BINPERSID + pickle.STOP + BY_VALUE
    return serial, NAME, name, VALUE, content, None, None, ()


def test_a_reference_means_what_was_sent(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a task has bound before or since; what was not sent at all, is what there is."""
    monkeypatch.setattr(functions, "find", script._sent)
    namespace = vars(sys.modules[NAME])
    namespace["a"] = "own"
    sent = value(1, "a", ["sent"]), value(2, "b", [1])
    half.make(*sent)
    made = half.make(*sent, refer(3, "x", NAME, "a"), refer(4, "y", NAME, "a"), refer(5, "z", NAME, "b"))
    assert (made["a"], made["x"], made["x"] is made["y"], made["z"] is made["b"]) == ("own", ["sent"], True, True)
    namespace["b"] = "own"
    made = half.make(value(6, "b", [2]), refer(7, "x", NAME, "b"))
    assert (made["b"], made["x"], made["z"]) == ("own", [2], [1])
    namespace["c"] = []
    assert half.make(refer(8, "x", NAME, "c"))["x"] is namespace["c"]


def test_a_reference_to_a_cell_is_that_of_the_function(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "find", script._sent)
    cell = 5
    vars(sys.modules[NAME])["g"] = function = lambda: cell
    assert half.make(refer(1, "x", NAME, "g", 0))["x"] is function.__closure__[0]  # type: ignore[index]


def test_what_there_is_not_cannot_be_referred_to(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "find", script._sent)
    number = half.define(refer(1, "x", NAME, "missing"))
    script.prepare(number)
    assert "x" not in half.names
    assert number not in script.ready
    assert type(script.reasons["x"]) is AttributeError


# ===== names that nothing has needed =====


@pytest.fixture
def with_source(half: Half) -> Iterator[Callable[[str], Any]]:
    """Give the module a source."""

    def give(text: str) -> Any:
        module: Any = sys.modules[NAME]
        module.__file__ = f"<source of {NAME}>"
        linecache.cache[module.__file__] = len(text), None, text.splitlines(keepends=True), module.__file__
        return module

    yield give
    linecache.cache.pop(f"<source of {NAME}>", None)


def test_a_definition_is_made_when_it_is_looked_up_on_the_module(with_source: Callable[[str], Any]) -> None:
    """With what it needs: definitions, imports, constants; in the script's order, and nothing else."""
    module = with_source("""
import json as j
print("a side effect")
FACTOR = 3
DATA = open("/no/such/file")
class Base:
    factor = FACTOR
class C(Base):
    def m(self): return helper(self.factor)
def helper(x): return j.dumps(x)
class Other: 1 / 0
""")
    assert module.C().m() == "3"
    assert vars(module).keys() >= {"C", "Base", "FACTOR", "helper", "j"}
    assert not vars(module).keys() & {"DATA", "Other"}
    assert pickle.loads(f"c{NAME}\nBase\n.".encode()) is module.Base


def test_of_several_imports_the_first_that_is_to_be_had_is_taken(with_source: Callable[[str], Any]) -> None:
    module = with_source("try:\n import json as j\nexcept ImportError:\n import no_such as j\nclass C: j = j")
    assert module.C.j.__name__ == "json"
    with pytest.raises(ImportError, match="no_such"):
        with_source("try:\n import nor_this as k\nexcept ImportError:\n import no_such as k").k  # noqa: B018


def test_of_several_definitions_none_is_made(with_source: Callable[[str], Any]) -> None:
    """Nothing tells which branch ran."""
    module = with_source("if True:\n class C: x = 1\nelse:\n class C: x = 2\nclass D(C): pass\n")
    with pytest.raises(AttributeError, match="'C'"):
        module.C  # noqa: B018 -- the point


@pytest.mark.parametrize("name", ["missing", "DATA", "constant", "__path__", "__no_such_name__"])
def test_data_is_not_made_from_the_source(with_source: Callable[[str], Any], name: str) -> None:
    module = with_source("DATA = [1 / 0]\nconstant = 1\n")
    with pytest.raises(AttributeError, match=name):
        getattr(module, name)
    assert not hasattr(module, name)


def test_what_is_bound_is_not_made_anew_for_that(with_source: Callable[[str], Any]) -> None:
    module = with_source("def g(): return K\ndef h(): return g()\nK = 1\n")
    vars(module)["K"] = 7
    vars(module)["g"] = old = lambda: 8
    assert module.h() == 8
    assert (module.K, module.g) == (7, old)


def test_a_version_of_the_owners_replaces_what_was_made_from_the_source(
    half: Half, with_source: Callable[[str], Any]
) -> None:
    module = with_source("def g(): return 1\n")
    assert module.g() == 1
    half.make(value(1, "g", len))
    assert module.g is len


def test_without_a_source_there_is_nothing_to_make(half: Half) -> None:
    with pytest.raises(AttributeError, match="missing"):
        sys.modules[NAME].missing  # noqa: B018 -- the point
