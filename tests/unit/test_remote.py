"""Exceptions across processes, one by one."""

from __future__ import annotations

import copyreg
import dataclasses
import pickle
import sys
import threading
import traceback
import types
from typing import Any

import cloudpickle
import pytest
import tblib.pickling_support
from unit.remote_errors import NeedsTwoError, PlainError, names_of, raised, travel

from poolkit import errors
from poolkit._wire import remote
from poolkit._wire.codec import load_error, pack_error
from poolkit.errors import RemoteError
from support_scripts import run_script


class ChangesArgumentsError(Exception):
    def __init__(self, code: int = 1) -> None:
        super().__init__(f"code {code}")
        self.code = code


class SlottedError(Exception):
    __slots__ = ("code", "unset")


class OwnReduceError(Exception):
    def __init__(self, code: object) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.tries = 0
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return OwnReduceError, (self.code,)


class OwnStateError(Exception):
    loaded: object = None

    def __reduce__(self) -> Any:
        return OwnStateError, self.args, ["state"]

    def __setstate__(self, state: Any) -> None:
        self.loaded = state


class JunkError(Exception):
    junk: Any = None

    def __reduce__(self) -> Any:
        if isinstance(self.junk, type):
            raise self.junk
        return self.junk


class UnshowableError(Exception):
    def __str__(self) -> str:
        raise ValueError


class OddTextError(Exception):
    def __str__(self) -> str:
        class Text(str):
            __slots__ = ()

            def __reduce__(self) -> Any:
                raise KeyError

        return Text("odd")


class NamelessMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "__qualname__":
            raise KeyError
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=NamelessMeta):
    def __reduce__(self) -> Any:
        raise SystemExit


class FrozenError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        msg = "frozen"
        raise AttributeError(msg)


class GoesMissing:
    pass


def test_type_arguments_attributes_and_notes_arrive() -> None:
    """The exception is the same in all but identity."""
    error = PlainError("a", 1)
    error.code = 5  # type: ignore[attr-defined]
    error.__notes__ = ["note"]  # type: ignore[attr-defined,unused-ignore]
    got = travel(error)
    assert (type(got), got.args, vars(got)) == (PlainError, ("a", 1), {"code": 5, "__notes__": ["note"]})


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "no such file", "name"),
        FileNotFoundError(2, "no such file", "name", None, "other"),
        KeyError("k"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("m", name="mod", path="p"),
        StopIteration(3),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        SyntaxError("bad", ("file", 1, 2, "text")),
        ChangesArgumentsError(7),
    ],
)
def test_exceptions_keep_what_pickle_knows_of_them(error: BaseException) -> None:
    """Builtin exceptions and those with their own __init__ arrive with text, arguments and attributes."""
    got = travel(error)
    assert type(got) is type(error)
    assert (str(got), got.args, vars(got)) == (str(error), error.args, vars(error))


def test_attributes_outside_of_dict_arrive() -> None:
    """Slots, and the name of a NameError, which old pickles lose."""
    error = SlottedError("x")
    error.code = [1]
    assert travel(error).code == [1]
    assert not hasattr(travel(error), "unset")
    name_error = raised(lambda: undefined_name)  # type: ignore[name-defined]  # noqa: F821 -- the point
    assert travel(name_error).name == "undefined_name"
    attribute_error = raised(lambda: threading.Lock().missing)  # type: ignore[attr-defined]
    assert travel(attribute_error).name == "missing"


@pytest.mark.parametrize(
    "error",
    [
        errors.TaskTimeout("slow", timeout=2.0, stack="here"),
        errors.WorkerCrashed("gone", exitcode=3, signal="SIGSEGV", pid=4, hint="oom"),
        errors.MemoryLimitExceeded("big", limit=1, used=2),
        errors.RemoteError("t", type_name="T", message="m", traceback_text="tb"),
        errors.PoolClosed("closed"),
    ],
)
def test_our_own_errors_travel(error: BaseException) -> None:
    """With message and facts."""
    got = travel(error)
    assert (type(got), got.args, vars(got)) == (type(error), error.args, vars(error))


def test_an_exception_whose_class_does_not_travel_is_replaced_alone() -> None:
    """It becomes a RemoteError; its cause and its traceback stay."""
    error = NamelessError("a", "b")
    error.__cause__ = raised(lambda: 1 / 0)
    error.__notes__ = ["note", 3]  # type: ignore[attr-defined,unused-ignore]

    def fail() -> None:
        raise error

    got = travel(raised(fail))
    assert type(got) is RemoteError
    assert (got.type_name, got.message) == ("an exception whose type has no name", "('a', 'b')")
    assert "has no name: ('a', 'b') [cannot be rebuilt: SystemExit" in str(got)
    assert "raise error" in got.traceback_text
    assert got.traceback_text.endswith("has no name: ('a', 'b')\nnote\n")
    assert got.__notes__ == ["note"]
    assert names_of(got) == ["raised", "fail"]
    assert type(got.__cause__) is ZeroDivisionError


def test_notes_that_are_no_list_are_not_invented() -> None:
    """Junk in __notes__ harms nothing."""
    error = NamelessError(1, 2)
    error.__notes__ = 5  # type: ignore[attr-defined,unused-ignore]
    assert not hasattr(travel(error), "__notes__")


@pytest.mark.parametrize(
    "junk", [None, 5, "no_such_global", (), (int,), (int, ("3",)), (print, 5), (len, ()), KeyError, SystemExit]
)
def test_junk_from_reduce_harms_nothing(junk: Any) -> None:
    """Whatever `__reduce__` returns or raises, the exception arrives."""
    error = JunkError("x")
    error.junk = junk
    got = travel(error)
    assert type(got) is JunkError
    assert (got.args, got.junk) == (("x",), junk)


class KeywordError(Exception):
    def __init__(self, *, code: int) -> None:
        self.code = code
        super().__init__("made of", code)


class FromNewError(Exception):
    def __new__(cls, *, code: int) -> Any:
        made = super().__new__(cls)
        made.code = code
        return made

    def __init__(self, *, code: int) -> None:
        super().__init__()

    code: int


class RequiredSlotError(OSError):
    __slots__ = ("code",)

    def __init__(self, errno: int, text: str, code: int) -> None:
        super().__init__(errno, text, "file")
        self.code = code


class TwoBasesError(RemoteError, MemoryError):
    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)
        self.code = code

    __reduce__ = Exception.__reduce__


class RefusesOutsideError(UnicodeDecodeError):
    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__("utf-8", b"ab", 0, 1, "why")


@dataclasses.dataclass(frozen=True)
class FrozenDataError(Exception):
    code: int
    more: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenKeywordError(Exception):
    code: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotsError(Exception):
    code: int


class HidesEverythingError(Exception):
    """Its names mean something else."""

    __cause__ = __context__ = __traceback__ = args = property(lambda self: 1 / 0)  # type: ignore[assignment]
    code = 3

    def __getattribute__(self, name: str) -> Any:
        if name in {"code", "__class__", "__reduce_ex__"}:
            return super().__getattribute__(name)
        raise SystemExit(name)


@pytest.mark.parametrize(
    "error",
    [
        KeywordError(code=3),
        FromNewError(code=3),
        RequiredSlotError(2, "no", 3),
        TwoBasesError("t", code=3),
        RefusesOutsideError(3),
        FrozenDataError(3, [1]),
        FrozenKeywordError(code=3),
        FrozenSlotsError(3),
        HidesEverythingError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("with_tblib", [False, True])
def test_what_cannot_be_called_or_set_arrives_as_itself_with_all_that_hangs_on_it(
    error: Any, *, with_tblib: bool
) -> None:
    own = vars(BaseException)

    def fail() -> None:
        raise error from cause

    cause = raised(lambda: 1 / 0)
    own["__dict__"].__get__(error)["__notes__"] = ["note"]
    before = dict(copyreg.dispatch_table)
    if with_tblib:
        tblib.pickling_support.install()
    try:
        got = travel(raised(fail))
    finally:
        copyreg.dispatch_table.clear()
        copyreg.dispatch_table.update(before)
    assert type(got) is type(error)
    assert got.code == 3
    assert own["args"].__get__(got) == own["args"].__get__(error)
    assert own["__dict__"].__get__(got) == own["__dict__"].__get__(error)
    assert type(own["__cause__"].__get__(got)) is ZeroDivisionError
    assert own["__suppress_context__"].__get__(got)
    frames = traceback.extract_tb(own["__traceback__"].__get__(got))
    assert [frame.name for frame in frames][-2:] == ["raised", "fail"]
    if isinstance(error, OSError):
        assert (got.errno, got.strerror, got.filename) == (2, "no", "file")
    if isinstance(error, UnicodeDecodeError):
        assert (got.encoding, got.object, got.start, got.end, got.reason) == ("utf-8", b"ab", 0, 1, "why")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with 3.11")
def test_a_group_that_wants_more_arguments_arrives_with_its_members() -> None:
    base: Any = __import__("builtins").ExceptionGroup

    class Group(base):  # type: ignore[misc]
        def __new__(cls, text: str, members: Any, *, code: int) -> Any:
            return super().__new__(cls, text, members)

        def __init__(self, text: str, members: Any, *, code: int) -> None:
            super().__init__(text, members)
            self.code = code

    member = raised(lambda: 1 / 0)
    got = travel(Group("several", [member, NeedsTwoError(1, 2)], code=3))
    assert (type(got), got.message, got.code) == (Group, "several", 3)
    assert [type(each) for each in got.exceptions] == [ZeroDivisionError, NeedsTwoError]
    assert names_of(got.exceptions[0]) == names_of(member)


def test_the_owner_makes_one_without_a_call_when_only_its_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_error(PlainError("x"))

    def refuse(_self: object, *_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainError, "__init__", refuse)
    got = load_error(packed)
    assert (type(got), got.args) == (PlainError, ("x",))


def test_an_attribute_that_cannot_travel_is_replaced_alone() -> None:
    """Type, arguments and the other attributes are worth more than none."""
    error = PlainError("x")
    error.lock, error.code = threading.Lock(), 5  # type: ignore[attr-defined]
    got = travel(error)
    assert type(got) is PlainError
    assert vars(got) == {"lock": "<_thread.lock that cannot be pickled>", "code": 5}


def test_an_argument_that_cannot_travel_is_replaced_alone() -> None:
    """`except PlainError` goes on working."""
    got = travel(PlainError("x", threading.Lock(), 5))
    assert type(got) is PlainError
    assert got.args == ("x", "<_thread.lock that cannot be pickled>", 5)


def test_an_own_reduce_is_honoured_and_completed() -> None:
    """What it makes stays, and attributes set later are joined."""
    error = OwnReduceError(3)
    error.tries = 2
    error.extra = "e"  # type: ignore[attr-defined]
    got = travel(error)
    assert (got.args, got.code, got.tries, got.extra) == (("code 3",), 3, 2, "e")
    assert isinstance(got.lock, type(threading.Lock()))
    assert travel(OwnStateError("a")).loaded == ["state"]


def test_a_registered_reducer_is_honoured() -> None:
    """`copyreg.pickle` comes before `__reduce__`, as in pickle itself."""
    copyreg.pickle(NeedsTwoError, lambda error: (NeedsTwoError, tuple(str(error).split(" and "))))  # type: ignore[arg-type]
    try:
        assert type(travel(NeedsTwoError("a", "b"))) is NeedsTwoError
    finally:
        del copyreg.dispatch_table[NeedsTwoError]


def test_texts_that_misbehave_do_no_harm() -> None:
    """str() that raises, a str subclass that cannot be pickled, a type without a name, and no setattr."""
    assert type(travel(UnshowableError(1))) is UnshowableError
    assert type(travel(OddTextError())) is OddTextError
    assert "no name" in travel(NamelessError()).type_name
    assert type(travel(FrozenError("x"))) is FrozenError


def test_classes_of_main_come_home_as_themselves() -> None:
    """The class of an exception that comes back is the script's own, metaclass and all."""
    script = """
from support_scripts import WorkerHalf
class Meta(type):
    pass
class MyError(Exception, metaclass=Meta):
    shared = []
    def __init__(self, a, b):
        super().__init__(a, b)
        self.a = a
shared = MyError.shared
def f():
    raise MyError(1, 2) from ValueError("v")
worker = WorkerHalf()
try:
    worker.call(f)
except MyError as error:
    assert error.args == (1, 2) and error.a == 1 and MyError.shared is shared
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    print(type(error.__cause__).__name__, traceback.tb_frame.f_code.co_name)
worker.close()
"""
    assert run_script(script) == "ValueError f"


def test_a_class_registered_by_value_travels() -> None:
    """The user's wish to send a module by value holds for exceptions too."""
    module = sys.modules[PlainError.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        packed = pack_error(PlainError(1))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert b"_make_skeleton_class" in packed
    assert type(load_error(packed)) is PlainError


def test_a_class_missing_in_the_receiver_becomes_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text shipped beside is all that is needed, and the rest of the chain stays."""
    module = types.ModuleType("only_in_the_worker")
    exec("class LostError(Exception): pass\nclass Thing: pass", module.__dict__)  # noqa: S102 -- our own source
    monkeypatch.setitem(sys.modules, module.__name__, module)
    lost: Any = module.LostError("x")
    lost.code = 5
    error = PlainError("outer")
    error.__cause__, error.thing = lost, module.Thing()  # type: ignore[attr-defined]
    packed = pack_error(error)
    monkeypatch.delitem(sys.modules, module.__name__)
    got: Any = load_error(packed)
    assert type(got) is PlainError
    assert not hasattr(got, "thing")
    assert type(got.__cause__) is RemoteError
    assert got.__cause__.type_name == "only_in_the_worker.LostError"
    assert got.__cause__.message == "x"
    assert not hasattr(got.__cause__, "code")


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([]), pickle.dumps(5), pickle.dumps([(1, 2)])])
def test_loading_never_raises(data: bytes) -> None:
    """Even bytes that nobody packed give an exception."""
    assert type(load_error(data)) is RemoteError
    assert type(load_error(memoryview(data))) is RemoteError


def test_packing_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when our own half fails."""

    def fail(_traceback: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(remote, "capture", fail)
    got = travel(PlainError("x"))
    assert type(got) is RemoteError
    assert got.type_name == f"{PlainError.__module__}.PlainError"
    assert "MemoryError" in str(got)
