"""The closed set of messages: what is packed comes out again."""

from __future__ import annotations

import pytest

from poolkit._wire import messages
from poolkit._wire.messages import CALL, Call, unpack_calls


def packed(*calls: Call) -> bytes:
    parts: list[bytes] = []
    for task_id, attempt, flags, name, timeout, manifest, fn, body in calls:
        header = CALL.pack(task_id, attempt, flags, len(name), timeout, manifest, len(fn), len(body))
        parts += header, name, fn, bytes(body)
    return b"".join(parts)


def test_calls_come_out_as_they_went_in() -> None:
    name = "größer.\udcff".encode("utf-8", "surrogatepass")
    calls: list[Call] = [
        (1, 1, 0, b"f", 0.0, 0, b"fn", b"body"),
        (2**64 - 1, 3, 1, b"", 0.25, 2**64 - 1, b"", b""),
        (7, 1, 7, name, 1e300, 5, bytes(1000), bytes(100_000)),
    ]
    assert unpack_calls(packed(*calls), len(calls)) == calls


def test_a_body_is_not_copied_when_it_is_unpacked() -> None:
    payload = bytearray(packed((1, 1, 0, b"f", 0.0, 0, b"fn", b"body")))
    ((*_, body),) = unpack_calls(payload, 1)
    assert isinstance(body, memoryview)
    assert body.obj is payload


def test_every_kind_has_a_number_of_its_own() -> None:
    flags = {"TYPE_CHECKING", "KILL", "HAS_OUTPUT", "HAS_ERRORS", "HAS_CHANNEL", "HAS_LEASE", "MOST_FDS"}
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
