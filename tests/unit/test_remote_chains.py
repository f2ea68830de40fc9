"""Exceptions arrive with their causes, contexts, members and tracebacks, and leave no cycle."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest
from unit.remote_errors import NeedsTwoError, PlainError, names_of, raised, travel

from poolkit._wire import remote, tracebacks
from poolkit._wire.codec import load_error, pack_error
from poolkit.errors import RemoteError
from support import WATCHDOG


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
    """Traceback, cause and notes of each member; one with more arguments is itself."""
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
    assert type(got.exceptions[1].exceptions[0]) is NeedsTwoError
    assert got.exceptions[1].exceptions[0].args == ("1 and 2",)


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
    where = raised.__code__.co_filename  # of `travel` too, which loaded it
    assert seen[0] == where  # the remote frame itself
    assert where not in seen[1:]
    assert __file__ not in seen


def test_chains_travel_as_ever_where_tblib_has_registered_its_own_way() -> None:
    """Which it does for every exception that there is, when `distributed` is imported."""
    source = """
        import tblib.pickling_support
        tblib.pickling_support.install()
        from poolkit._wire.remote import load_error, pack_error

        class Told(Exception):
            def __setstate__(self, state):
                self.__dict__.update(state)

        try:
            try:
                raise Told("first")
            except Told as first:
                first.code = 3
                raise ValueError from first
        except ValueError as second:
            error = load_error(pack_error(second))
        print(type(error).__name__, error.args, type(error.__cause__).__name__, error.__cause__.code)
    """
    command = [sys.executable, "-c", textwrap.dedent(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WATCHDOG)
    assert done.stdout == "ValueError () Told 3\n"
