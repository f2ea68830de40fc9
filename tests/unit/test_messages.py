"""The closed set of messages: what is packed comes out again."""

from __future__ import annotations

import pytest

from poolkit._wire import messages
from poolkit._wire.messages import Call, call_parts, unpack_calls


def packed(*calls: Call) -> bytes:
    parts: list[bytes] = []
    for call in calls:
        head, tail = call[:2], (call.name, call.timeout, call.fn, bytes(call.body), call.flags, call.manifest)
        parts += call_parts(*head, *tail)
    return b"".join(parts)


def test_calls_come_out_as_they_went_in() -> None:
    calls = [
        Call(1, 1, flags=0, name="f", timeout=None, manifest=0, fn=b"fn", body=b"body"),
        Call(2**64 - 1, 3, flags=1, name="", timeout=0.25, manifest=2**64 - 1, fn=b"", body=b""),
        Call(7, 1, flags=7, name="größer.\udcff", timeout=1e300, manifest=5, fn=bytes(1000), body=bytes(100_000)),
    ]
    found = list(unpack_calls(packed(*calls), len(calls)))
    assert [call._replace(body=bytes(call.body)) for call in found] == calls


def test_a_body_is_not_copied_when_it_is_unpacked() -> None:
    call = Call(1, 1, flags=0, name="f", timeout=None, manifest=0, fn=b"fn", body=b"body")
    payload = bytearray(packed(call))
    (call,) = unpack_calls(payload, 1)
    assert isinstance(call.body, memoryview)
    assert call.body.obj is payload


def test_more_attempts_than_the_field_holds_are_its_largest_number() -> None:
    call = Call(1, 10**9, flags=0, name="f", timeout=None, manifest=0, fn=b"", body=b"")
    (call,) = unpack_calls(packed(call), 1)
    assert call.attempt == 0xFFFF


def test_every_kind_has_a_number_of_its_own() -> None:
    flags = {"KILL", "HAS_OUTPUT", "HAS_ERRORS", "MOST_FDS"}
    kinds = [
        value
        for name, value in vars(messages).items()
        if name.isupper() and isinstance(value, int) and not name.startswith(("_", "FLAG_")) and name not in flags
    ]
    assert len(kinds) == len(set(kinds)) >= 18
    assert all(0 < kind < 256 for kind in kinds)


@pytest.mark.parametrize("layout", [messages.FRAME_TO_WORKER, messages.FRAME_TO_OWNER])
def test_sizes_have_64_bits(layout: object) -> None:
    """And are the last field, which is where a reader looks."""
    assert str(layout.format).endswith("Q")  # type: ignore[attr-defined]
