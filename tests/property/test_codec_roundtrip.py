"""Whatever builtin structure or chain of exceptions goes in comes out the same."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolkit._wire.codec import load_call, load_error, load_value, pack_call, pack_error, pack_value

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.just("__main__")
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(atoms, inner, max_size=4)
        | st.frozensets(atoms, max_size=4)
        | st.sets(atoms, max_size=4)
    ),
    max_leaves=12,
)

errors = st.builds(
    lambda kind, args: kind(*args),
    st.sampled_from([ValueError, KeyError, RuntimeError, SystemExit, KeyboardInterrupt]),
    st.lists(values, max_size=3),
)


@given(values)
def test_values_round_trip(value: object) -> None:
    """A result arrives equal."""
    assert load_value(memoryview(pack_value(value))) == value


@given(st.lists(values, max_size=3), st.dictionaries(st.text(), values, max_size=3))
def test_calls_round_trip(args: list[Any], kwargs: dict[str, Any]) -> None:
    """A call arrives equal, whether its function goes by name or by value."""
    assert load_call(*pack_call(max, tuple(args), kwargs)[:2]) == (max, tuple(args), kwargs)
    loaded, loaded_args, loaded_kwargs = load_call(*pack_call(lambda *a, **k: (a, k), tuple(args), kwargs)[:2])
    assert loaded(*loaded_args, **loaded_kwargs) == (tuple(args), kwargs)


@given(st.data())
def test_chains_of_exceptions_round_trip(data: st.DataObject) -> None:
    """Any graph of causes and contexts, circles included, arrives with the same shape, arguments and attributes."""
    nodes = data.draw(st.lists(errors, min_size=1, max_size=5))
    links = st.none() | st.integers(0, len(nodes) - 1)
    for node in nodes:
        cause, context = data.draw(links), data.draw(links)
        node.__cause__ = None if cause is None else nodes[cause]
        node.__context__ = None if context is None else nodes[context]
        node.__suppress_context__ = data.draw(st.booleans())
        node.__dict__.update(data.draw(st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=2)))
    pairs = [(nodes[0], load_error(pack_error(nodes[0])))]
    seen: dict[int, BaseException] = {}
    for sent, got in pairs:  # grows while we go through it
        if id(sent) in seen:
            assert seen[id(sent)] is got
            continue
        seen[id(sent)] = got
        assert (type(got), got.args, vars(got)) == (type(sent), sent.args, vars(sent))
        assert got.__suppress_context__ == sent.__suppress_context__
        for one, other in ((sent.__cause__, got.__cause__), (sent.__context__, got.__context__)):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                pairs.append((one, other))
