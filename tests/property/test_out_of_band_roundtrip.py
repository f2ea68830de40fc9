"""Round trips of nested structures with arrays of every type, order and size around the threshold."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.memory_pair import pair

THRESHOLD = 4096
DTYPES = ["u1", "<i2", ">i4", "f4", "f8", "c16", "?", "S7", "U5", "M8[s]", "m8[ms]", "V16", "O", "f2"]
STRUCTURED = [("a", "u1"), ("b", ">f8"), ("c", "i4", (2,))]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = np.dtype(draw(st.sampled_from([*DTYPES, STRUCTURED])))
    if draw(st.booleans()):
        near = THRESHOLD // dtype.itemsize + draw(st.integers(-2, 2))
        shape: tuple[int, ...] = (max(0, near),)
    else:
        shape = tuple(draw(st.lists(st.integers(0, 24), max_size=4)))
    size = int(np.prod(shape, dtype=int))
    seed = draw(st.integers(0, 2**32 - 1))
    if dtype.hasobject:
        made = np.array([seed + index for index in range(size)], dtype=object).reshape(shape)
    else:
        raw = np.random.default_rng(seed).integers(0, 64, size * dtype.itemsize, dtype="u1")
        if dtype.kind == "U":
            made = np.array([str(number) for number in raw[:: dtype.itemsize]], dtype).reshape(shape)
        elif dtype.kind == "b":
            made = (raw % 2).astype(bool).reshape(shape)
        else:
            made = np.frombuffer(raw.tobytes(), dtype).reshape(shape).copy()
    order = draw(st.sampled_from("CF"))
    made = np.array(made, order=order)
    if made.ndim and draw(st.booleans()):
        made = made[:: draw(st.sampled_from([-1, 2]))]
    if draw(st.booleans()):
        made.flags.writeable = False
    return made


values = st.recursive(
    st.one_of(
        arrays(),
        st.none(),
        st.integers(),
        st.text(max_size=20),
        st.integers(THRESHOLD - 60, THRESHOLD + 60).map(bytes),
        st.integers(THRESHOLD - 60, THRESHOLD + 60).map(bytearray),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


def check(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes() if not one.dtype.hasobject else (one == other).all()
        assert other.flags.writeable
        if one.flags.f_contiguous and one.flags.contiguous is False:
            assert other.flags.f_contiguous
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            check(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            check(left, right)
    else:
        assert one == other


@settings(max_examples=200)
@given(values, st.booleans())
def test_what_arrives_is_what_was_sent_and_every_block_comes_back(value: Any, copies: bool) -> None:
    plain = pickle.loads(pickle.dumps(value, 5))  # NumPy turns the bytes of some arrays round when it pickles them
    with pair(THRESHOLD) as ends:
        got = ends.trip(value, copies=copies)
        check(plain, got)
        held = ends.leased()
        more = ends.trip(value)
        check(plain, got)  # what came later lies elsewhere
        check(plain, more)
        del got, more
        gc.collect(1)  # the old generation is large in a long run, and none of this is in it
        assert ends.leased() == 0 or held == 0
        assert ends.leased() == 0
