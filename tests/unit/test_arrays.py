"""Arrays of numbers go by a pickle of our own, and arrive as NumPy's would."""

from __future__ import annotations

import copyreg
import pickle
from multiprocessing import reduction
from typing import Any

import numpy as np
import pytest

import support_functions as work
from poolkit import Pool
from poolkit._wire import codec
from poolkit._wire.arrays import stand_ins
from poolkit._wire.buffers import Found, found_from

KINDS = ["?", "i1", "<i2", ">i4", "u8", "f2", "<f4", ">f8", "c8", "longdouble"]
THRESHOLD = 1000


def found() -> Found:
    return found_from(THRESHOLD)()


def trip(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """There and back; what is found arrives as a writable buffer."""
    seen = found()
    packed = stand_ins(values, seen, "value")
    assert packed is not None
    data = codec.pack_value(packed, seen)
    loaded: tuple[Any, ...] = codec.load_value(data, [bytearray(buffer.raw()) for buffer in seen])
    return loaded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 0, 2), (500, 3)])
def test_an_array_arrives_as_what_it_was(kind: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).astype(kind).reshape(shape)
    for _ in range(2):  # the second one may have a pickle that is known
        (got,) = trip((array,))
        assert (got.dtype, got.dtype.str, got.shape) == (array.dtype, array.dtype.str, array.shape)
        assert got.tobytes() == array.tobytes()
        assert got.flags.writeable


def test_the_pickle_of_an_array_is_that_of_another_of_its_type_and_shape_alone() -> None:
    one, other = np.arange(1000.0).reshape(10, 100), np.arange(2000.0, 3000.0).reshape(100, 10)
    for array in (one, other, one.astype("f4"), one.astype(">f8"), one.reshape(1000), one):
        (got,) = trip((array,))
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert np.array_equal(got, array)
    calls = []
    for content in ("call", "value"):
        seen = found()
        packed = stand_ins((one,), seen, content)
        calls.append(pickle.loads(codec.pack_value(packed if content == "value" else (packed, {}), seen), buffers=seen))
    assert [len(call) for call in calls] == [2, 1]


def test_one_array_is_one_where_it_arrives_and_atoms_are_what_they_were() -> None:
    small, large = np.arange(5), np.arange(1000)
    for array in (small, large):
        first, number, text, second, nothing = trip((array, 3, "text", array, None))
        assert first is second
        assert (number, text, nothing) == (3, "text", None)


class Derived(np.ndarray[Any, Any]):
    """Has a way of its own to be pickled."""


@pytest.mark.parametrize(
    "value",
    [
        np.arange(10)[::2],
        np.asfortranarray(np.ones((3, 4))),
        np.array(["a", "b"]),
        np.array([{}]),
        np.zeros(3, [("a", "u1")]),
        np.zeros(3, "M8[s]"),
        np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
        np.zeros(3).view(Derived),
        np.broadcast_to(np.zeros(3), (3,)),
        np.float64(3.0),
        [np.zeros(3)],
    ],
    ids=str,
)
def test_anything_else_is_left_to_numpy(value: Any) -> None:
    assert stand_ins((value, np.zeros(3)), found(), "value") is None


def test_large_and_small_ones_together_are_looked_at_one_by_one() -> None:
    assert stand_ins((np.zeros(3), np.zeros(1000)), found(), "value") is None
    assert stand_ins((1, "text"), found(), "value") is None


@pytest.mark.parametrize("register", ["copyreg.pickle", "ForkingPickler.register"])
def test_whoever_registers_a_reducer_for_arrays_is_asked(register: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reducers: Any = copyreg.dispatch_table
    if register != "copyreg.pickle":
        reducers = reduction.ForkingPickler._extra_reducers
    assert stand_ins((np.zeros(3),), found(), "value") is not None
    monkeypatch.setitem(reducers, np.ndarray, lambda array: (str, (f"{array.size} numbers",)))
    assert stand_ins((np.zeros(3),), found(), "value") is None
    with Pool(1) as pool:
        assert pool.submit(work.identity, np.zeros(3)).result() == "3 numbers"
