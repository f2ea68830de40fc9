"""Which picklers are used when, what stands for a descriptor, and when the copies of it are closed."""

from __future__ import annotations

import copyreg
import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import pytest
from unit.memory_pair import Pair, pair

import support_handed_over as work
from poolkit._memory.out_of_band import OutOfBand
from poolkit._memory.owner import WorkerChannel, load_value
from poolkit._wire import codec, handover, remote
from poolkit._wire.buffers import Found
from poolkit._wire.pickles import Needs, pickler_of


@pytest.fixture
def ends() -> Iterator[Pair]:
    with pair() as made:
        yield made


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    pair = multiprocessing.Pipe()
    yield pair
    for end in pair:
        end.close()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# ===== picklers =====

STEPS = """
from poolkit._wire import handover
seen = [handover.is_plain_wrong()]
import multiprocessing.reduction
seen += [handover.is_loaded(), handover.is_plain_wrong()]
import multiprocessing.managers  # its reducers are of types that pickle and cloudpickle do as well
import multiprocessing.connection
seen += [handover.is_plain_wrong()]
print(seen)
"""


def test_plain_pickle_is_used_as_it_is_until_there_is_a_reason_not_to() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, True, False, True]"


def test_a_module_that_is_half_imported_is_none_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_standard", None)
    monkeypatch.setitem(sys.modules, "multiprocessing.reduction", type(reduction)("half"))
    handover.is_plain_wrong()
    assert handover._standard is None


def test_whoever_registers_later_or_anew_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        pass

    monkeypatch.setattr(reduction.ForkingPickler, "_extra_reducers", {**reduction.ForkingPickler._extra_reducers})
    monkeypatch.setattr(handover, "_registered", reduction.ForkingPickler._extra_reducers)
    reduction.register(Late, lambda _: (str, ("first",)))
    assert handover.reduce(Late()) == (str, ("first",))
    assert codec.load_value(codec.pack_value([Late()], Found())) == ["first"]
    reduction.register(Late, lambda _: (str, ("second",)))
    assert codec.load_value(codec.pack_value([Late()], Found())) == ["second"]
    assert codec.load_value(codec.pack_value([Late(), lambda: 5], Found()))[0] == "second"


def test_reducers_of_the_script_and_of_cloudpickle_go_on_working(
    pipe: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch, ends: Pair
) -> None:
    class Own:
        pass

    monkeypatch.setitem(copyreg.dispatch_table, Own, lambda _: (str, ("reduced",)))
    for also in ([], [lambda: 5], [{}.keys()]):
        loaded = ends.trip([Own(), pipe[0], *also])
        loaded[1].close()
        assert loaded[0] == "reduced"


def test_partials_keep_what_multiprocessing_would_leave_out(ends: Pair) -> None:
    made = partial(int, "10")
    made.note = "kept"  # type: ignore[attr-defined]
    assert ends.trip(made).note == "kept"


# ===== descriptors =====


def test_a_descriptor_arrives_under_a_number_of_its_own(ends: Pair, pipe: tuple[Connection, Connection]) -> None:
    packed = ends.pack({"a": [pipe[1]]})
    assert isinstance(packed, OutOfBand)
    with closing(load_value(ends.send(packed))["a"][0]) as end:
        assert end.fileno() not in {pipe[0].fileno(), pipe[1].fileno()}
        end.send("through")
        assert pipe[0].recv() == "through"


def test_a_copy_is_closed_when_its_message_is_dropped(ends: Pair, pipe: tuple[Connection, Connection]) -> None:
    packed = ends.pack([pipe[1]])
    assert isinstance(packed, OutOfBand)
    fd = packed.memories[0].fd
    assert is_open(fd)
    del packed
    gc.collect()
    assert not is_open(fd)


def test_what_a_first_try_has_copied_is_closed(ends: Pair, pipe: tuple[Connection, Connection]) -> None:
    before = work.sockets()
    packed = ends.pack([pipe[1], lambda: 5])
    assert isinstance(packed, OutOfBand)
    assert len(packed.memories) == 1
    assert work.sockets() == before + 1


def test_a_reader_that_has_loaded_a_call_has_none_of_its_descriptors(
    ends: Pair, pipe: tuple[Connection, Connection]
) -> None:
    packed = ends.pack([pipe[1]])
    assert isinstance(packed, OutOfBand)
    received = ends.send(packed)
    load_value(received)[0].close()
    fd, number = packed.memories[0].fd, packed.memories[0].id
    del received, packed  # in one process, both sides have the same one
    assert not is_open(fd)
    assert list(ends.out.gone) == [number]
    assert ends.out.forget()
    ends.into.forget_theirs()


def test_a_reader_that_may_have_to_load_again_keeps_it(ends: Pair, pipe: tuple[Connection, Connection]) -> None:
    packed = ends.pack([pipe[1]])
    assert isinstance(packed, OutOfBand)
    for _ in range(2):
        with closing(load_value(ends.send(packed, copies=True))[0]) as end:
            end.send("again")
            assert pipe[0].recv() == "again"
    assert list(ends.into.memories) == [packed.memories[0].id]


def test_what_stands_for_a_descriptor_may_be_opened_later(ends: Pair) -> None:
    read, write = os.pipe()
    packed = ends.pack([Lazy(write)])
    assert isinstance(packed, OutOfBand)
    received = ends.send(packed)
    (loaded,) = load_value(received)
    del received, packed
    fd = loaded.descriptor.detach()
    os.write(fd, b"late")
    assert os.read(read, 10) == b"late"
    for each in (read, write, fd):
        os.close(each)


class Lazy:
    """One that keeps what stands for its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.descriptor: Any = None

    def __getstate__(self) -> Any:
        return {"descriptor": reduction.DupFd(self.fd)}


def test_only_the_task_that_has_begun_closes_its_descriptors(ends: Pair, pipe: tuple[Connection, Connection]) -> None:
    channel = WorkerChannel(os.dup(ends.out._socket.fileno()), 1)
    packed = [ends.pack([pipe[1]]) for _ in range(3)]
    for number, message in enumerate(packed):
        assert isinstance(message, OutOfBand)
        assert message.has_descriptors()
        message.goes_once = number != 1
        channel.calls[number] = message
    for begun in (7, 1, 0):  # the second one may run again
        channel.begun(begun)
    assert [message.has_descriptors() for message in packed if isinstance(message, OutOfBand)] == [False, True, True]
    channel.close()


# ===== where no descriptor can follow =====


def test_an_exception_goes_without(pipe: tuple[Connection, Connection]) -> None:
    error = ValueError("text")
    error.connection = pipe[0]  # type: ignore[attr-defined]
    loaded = remote.load_error(remote.pack_error(error))
    assert type(loaded) is ValueError
    assert "cannot be pickled" in loaded.connection  # type: ignore[attr-defined]


def test_without_anybody_to_hand_it_to_it_is_refused(pipe: tuple[Connection, Connection]) -> None:
    with handover.guard(), pytest.raises(pickle.PicklingError, match="only in the arguments"):
        pickler_of(cloudpickle.Pickler)(io.BytesIO(), None, Needs()).dump(pipe)
    with Found() as found:
        with handover.guard(found):
            reduction.DupFd(pipe[0].fileno())
        assert len(found.memories) == 1
        with handover.guard(), pytest.raises(pickle.PicklingError):  # a call within the packing of another
            reduction.DupFd(pipe[0].fileno())
        reduction.DupFd(pipe[0].fileno())
        assert len(found.memories) == 2


def test_who_pickles_for_himself_gets_what_multiprocessing_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    handover.is_plain_wrong()
    monkeypatch.setattr(handover, "_standard", lambda fd: ("standard", fd))
    assert reduction.DupFd(5) == ("standard", 5)
    with handover.guard(), pytest.raises(pickle.PicklingError):
        reduction.DupFd(5)
    assert reduction.DupFd(6) == ("standard", 6)
