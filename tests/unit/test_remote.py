"""Exceptions across processes."""

from __future__ import annotations

import copyreg
import gc
import os
import pickle
import subprocess
import sys
import threading
import traceback
import types
import weakref
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from poolkit import errors
from poolkit._wire import remote, tracebacks
from poolkit._wire.codec import load_error, pack_error
from poolkit.errors import RemoteError

ROOT = str(Path(remote.__file__).parents[2])
HERE = __name__


def travel(error: BaseException) -> Any:
    return load_error(pack_error(error))


def raised(function: Any) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError


def names_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


class PlainError(Exception):
    pass


class ChangesArgumentsError(Exception):
    def __init__(self, code: int = 1) -> None:
        super().__init__(f"code {code}")
        self.code = code


class NeedsTwoError(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} and {two}")


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


def chain() -> None:
    try:
        try:
            msg = "first"
            raise KeyError(msg)
        except KeyError as cause:
            error = PlainError("second")
            raise error from cause
    except PlainError:
        msg = "third"
        raise ValueError(msg) from None


def test_cause_context_and_tracebacks_arrive() -> None:
    """Each link of a chain keeps its own frames, and the suppression of context."""
    got = travel(raised(chain))
    assert got.__cause__ is None
    assert got.__suppress_context__
    second = got.__context__
    assert type(second) is PlainError
    assert type(second.__cause__) is KeyError
    assert second.__cause__ is second.__context__
    assert [names_of(each) for each in (got, second, second.__cause__)] == [["raised", "chain"], ["chain"], ["chain"]]
    text = "".join(traceback.format_exception(type(got), got, got.__traceback__))
    assert f'File "{__file__}"' in text
    assert "raise ValueError(msg) from None" in text


def test_a_circular_chain_arrives_circular() -> None:
    """Two exceptions may be each other's cause."""
    one, two = PlainError(1), PlainError(2)
    one.__cause__, two.__cause__ = two, one
    got = travel(one)
    assert got.__cause__.args == (2,)
    assert got.__cause__.__cause__ is got


def test_a_long_chain_arrives_whole() -> None:
    """No recursion, so no limit."""
    error = first = PlainError(0)
    for number in range(1, 3000):
        error.__context__ = PlainError(number)
        error = error.__context__
    got = travel(first)
    for number in range(3000):
        assert got.args == (number,)
        got = got.__context__
    assert got is None


def test_a_very_deep_traceback_arrives_without_its_middle() -> None:
    """Endless recursion in a task gives a traceback that can be sent."""

    def endless() -> None:
        endless()

    got = travel(raised(endless))
    assert type(got) is RecursionError
    assert names_of(got)[0] == "raised"
    assert names_of(got)[-1] == "endless"
    frames = [("file", "name", line, None, None) for line in range(2000)]
    tb = tracebacks.rebuild(frames)
    assert len(tracebacks.capture(tb)) == 1000
    assert tracebacks.capture(tb)[-1][2] == 1999


def test_exceptions_among_arguments_and_attributes_are_the_ones_of_the_chain() -> None:
    """`raise B(a) from a` still holds one `a`, traceback and all; an attribute may lead back to its owner."""
    inner = raised(lambda: 1 / 0)
    outer = PlainError(inner, [inner])
    outer.__cause__ = inner
    outer.me = outer  # type: ignore[attr-defined]
    outer.other = raised(lambda: {}[1])  # type: ignore[attr-defined]
    got = travel(outer)
    assert got.args[0] is got.__cause__
    assert got.args[1][0] is got.__cause__
    assert names_of(got.__cause__) == ["raised", "<lambda>"]
    assert got.me is got
    assert names_of(got.other) == ["raised", "<lambda>"]


def test_an_exception_that_contains_itself_becomes_text() -> None:
    """What can never be made anew is replaced, and does not loop."""
    error = PlainError()
    error.args = (error,)
    got = travel(error)
    assert type(got) is RemoteError
    assert "contains itself" in str(got) or "recursion" in str(got).lower()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with 3.11")
def test_the_members_of_a_group_keep_what_hangs_on_them() -> None:
    """Traceback, cause and notes of each member; one that cannot travel is replaced alone."""
    group_type: Any = __import__("builtins").ExceptionGroup
    first = raised(chain)
    first.add_note("n")  # type: ignore[attr-defined,unused-ignore]
    broken = raised(lambda: (_ for _ in ()).throw(NeedsTwoError(1, 2)))
    group = group_type("several", [first, group_type("nested", [broken])])
    group.add_note("of the group")
    got = travel(raised(lambda: (_ for _ in ()).throw(group)))
    assert type(got) is group_type
    assert got.message == "several"
    assert got.__notes__ == ["of the group"]
    assert got.exceptions[0].__notes__ == ["n"]
    assert names_of(got.exceptions[0]) == names_of(first)
    assert type(got.exceptions[0].__context__.__cause__) is KeyError
    assert got.exceptions[1].exceptions[0].type_name == f"{HERE}.NeedsTwoError"


def test_an_exception_that_does_not_unpickle_is_replaced_alone() -> None:
    """The famous two-argument exception becomes a RemoteError; its cause and its traceback stay."""
    error = NeedsTwoError("a", "b")
    error.__cause__ = raised(lambda: 1 / 0)
    error.__notes__ = ["note", 3]  # type: ignore[attr-defined,unused-ignore]

    def fail() -> None:
        raise error

    got = travel(raised(fail))
    assert type(got) is RemoteError
    assert (got.type_name, got.message) == (f"{HERE}.NeedsTwoError", "a and b")
    assert "NeedsTwoError: a and b [cannot be rebuilt: TypeError" in str(got)
    assert "raise error" in got.traceback_text
    assert got.traceback_text.endswith("NeedsTwoError: a and b\nnote\n")
    assert got.__notes__ == ["note"]
    assert names_of(got) == ["raised", "fail"]
    assert type(got.__cause__) is ZeroDivisionError


def test_notes_that_are_no_list_are_not_invented() -> None:
    """Junk in __notes__ harms nothing."""
    error = NeedsTwoError(1, 2)
    error.__notes__ = 5  # type: ignore[attr-defined,unused-ignore]
    assert not hasattr(travel(error), "__notes__")


@pytest.mark.parametrize(
    "junk", [None, 5, "no_such_global", (), (int,), (int, ("3",)), (print, 5), (len, ()), KeyError, SystemExit]
)
def test_junk_from_reduce_becomes_text(junk: Any) -> None:
    """Whatever `__reduce__` returns or raises, an outcome arrives."""
    error = JunkError("x")
    error.junk = junk
    got = travel(error)
    assert type(got) is RemoteError
    assert got.type_name == f"{HERE}.JunkError"


def test_an_attribute_that_cannot_travel_is_replaced_alone() -> None:
    """Type, arguments and the other attributes are worth more than none."""
    error = PlainError("x")
    error.lock, error.code = threading.Lock(), 5  # type: ignore[attr-defined]
    got = travel(error)
    assert type(got) is PlainError
    assert vars(got) == {"lock": "<_thread.lock that cannot be pickled>", "code": 5}


def test_an_argument_that_cannot_travel_turns_the_exception_into_text() -> None:
    """Arguments are what the exception is made of."""
    got = travel(PlainError(threading.Lock()))
    assert type(got) is RemoteError
    assert "_thread.lock" in str(got)


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
    """A class that went out by value is recognised in the exception that comes back, metaclass and all."""
    script = """
import subprocess, sys
from poolkit._wire.codec import load_error, pack_call
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
pieces = pack_call(f, (), {})
worker = '''
import sys
from poolkit._wire.codec import load_call, pack_error
try:
    fn, args, kwargs = load_call(*map(bytes.fromhex, sys.argv[1:]))
    fn(*args, **kwargs)
except Exception as error:
    print(pack_error(error).hex())
'''
done = subprocess.run([sys.executable, "-c", worker, *[p.hex() for p in pieces]], capture_output=True, check=True)
error = load_error(bytes.fromhex(done.stdout.decode()))
assert type(error) is MyError and error.args == (1, 2) and error.a == 1 and MyError.shared is shared
print(type(error.__cause__).__name__, error.__traceback__.tb_next.tb_frame.f_code.co_name)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ROOT},
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("ValueError f", "")


def test_a_class_registered_by_value_travels() -> None:
    """The user's wish to send a module by value holds for exceptions too."""
    module = sys.modules[HERE]
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
    assert got.type_name == f"{HERE}.PlainError"
    assert "MemoryError" in str(got)


def test_frames_of_the_worker_half_are_left_out() -> None:
    """At the outer end only, and not when nothing else would remain."""
    half = str(Path(remote.__file__).parents[1] / "_child" / "loop.py")
    frames = [(half, "run", 1, "m", half), ("user.py", "f", 2, "u", None), (half, "hook", 3, None, None)]
    assert [frame[1] for frame in tracebacks.capture(tracebacks.rebuild(frames))] == ["f", "hook"]
    assert [frame[1] for frame in tracebacks.capture(tracebacks.rebuild(frames[:1]))] == ["run"]


def test_modules_with_odd_names_have_tracebacks() -> None:
    """Globals may hold anything under `__name__` and `__file__`."""
    namespace: dict[str, Any] = {"__name__": 5, "__file__": None}
    exec("def f(): raise KeyError", namespace)  # noqa: S102 -- our own source
    got = travel(raised(namespace["f"]))
    assert names_of(got) == ["raised", "f"]
    assert got.__traceback__.tb_next.tb_frame.f_globals.get("__name__") in (None, "builtins")


def test_no_cycle_is_left_behind() -> None:
    """An exception goes with its last user, on either side, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:

        def there() -> tuple[Any, bytes]:
            try:
                raise PlainError("x") from raised(chain)
            except PlainError as error:
                return weakref.ref(error), pack_error(error)

        def here(packed: bytes) -> Any:
            error = load_error(packed)  # kept in a local, as callers do
            return weakref.ref(error)

        reference, packed = there()
        assert reference() is None
        assert here(packed)() is None
    finally:
        gc.enable()


def test_rebuilt_frames_do_not_lead_to_the_caller() -> None:
    """Whoever keeps the exception does not keep the frames of the thread that loaded it."""
    error = travel(raised(chain))
    frame: Any = error.__traceback__.tb_frame
    seen = []
    while frame is not None:
        seen.append(frame.f_code.co_filename)
        frame = frame.f_back
    assert seen[0] == __file__  # the remote frame itself
    assert __file__ not in seen[1:]
