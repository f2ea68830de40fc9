"""Frames over a pipe: whole or not at all, in order, whatever the pieces they come in."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

import pytest

from poolkit._wire import link
from poolkit._wire.link import CHUNK, FrameReader, FrameWriter, Outbox

HEADER = struct.Struct("<BQ")  # kind, payload bytes


def frame(kind: int, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of which neither end blocks."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


def receive_all(reader: FrameReader) -> list[tuple[int, bytes]]:
    """Every whole frame that is there."""
    frames = []
    while True:
        try:
            frames += [(fields[0], bytes(payload)) for fields, payload in reader.receive()]
        except BlockingIOError:
            return frames


# ===== reading =====


def test_frames_that_come_together_are_taken_apart(pipe: tuple[int, int]) -> None:
    reader = FrameReader(pipe[0], HEADER)
    os.write(pipe[1], frame(1, b"one") + frame(2, b"") + frame(3, b"three"))
    assert receive_all(reader) == [(1, b"one"), (2, b""), (3, b"three")]


def test_a_frame_that_comes_byte_by_byte_is_put_together(pipe: tuple[int, int]) -> None:
    reader = FrameReader(pipe[0], HEADER)
    data = frame(1, b"one") + frame(2, b"two")
    frames = []
    for index in range(len(data)):
        os.write(pipe[1], data[index : index + 1])
        frames += receive_all(reader)
        assert len(frames) == (index + 1) // len(frame(1, b"one"))
    assert frames == [(1, b"one"), (2, b"two")]
    assert reader.received == len(data)


@pytest.mark.parametrize("size", [CHUNK - HEADER.size - 1, CHUNK - HEADER.size, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("piece", [1000, CHUNK])
def test_a_large_frame_between_small_ones(pipe: tuple[int, int], size: int, piece: int) -> None:
    reader = FrameReader(pipe[0], HEADER)
    payload = os.urandom(size)
    data = frame(1, b"before") + frame(2, payload) + frame(3, b"after")
    frames = []
    for index in range(0, len(data), piece):
        os.write(pipe[1], data[index : index + piece])
        frames += receive_all(reader)
    assert frames == [(1, b"before"), (2, payload), (3, b"after")]
    assert reader.received == len(data)


@pytest.mark.parametrize("cut", [1, HEADER.size, HEADER.size + 1, HEADER.size + CHUNK])
def test_a_frame_cut_short_is_dropped_with_its_link(pipe: tuple[int, int], cut: int) -> None:
    reader = FrameReader(pipe[0], HEADER)
    os.write(pipe[1], frame(1, b"whole"))
    assert receive_all(reader) == [(1, b"whole")]
    data = frame(2, bytes(2 * CHUNK))[:cut]
    for index in range(0, cut, CHUNK):
        os.write(pipe[1], data[index : index + CHUNK])
        assert receive_all(reader) == []
    os.close(pipe[1])
    with pytest.raises(EOFError):
        receive_all(reader)


def test_an_announced_size_beyond_all_memory_is_an_error(pipe: tuple[int, int]) -> None:
    """Nonsense, as of a worker that scribbles on its link."""
    reader = FrameReader(pipe[0], HEADER)
    os.write(pipe[1], HEADER.pack(1, 2**64 - 1))
    with pytest.raises((MemoryError, OverflowError)):
        reader.receive()


# ===== writing =====


def test_what_fits_is_written_at_once(pipe: tuple[int, int]) -> None:
    writer = FrameWriter(pipe[1])
    assert writer.send([b"one", b"", b"two"])
    assert os.read(pipe[0], 100) == b"onetwo"
    assert writer.sent == 6


def drain(reader: int) -> bytes:
    pieces = []
    try:
        while piece := os.read(reader, CHUNK):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


@pytest.mark.parametrize("size", [10, CHUNK, 5 * CHUNK])
def test_what_does_not_fit_is_kept_and_written_in_order(pipe: tuple[int, int], size: int) -> None:
    writer = FrameWriter(pipe[1])
    sent = b""
    while True:
        parts = [os.urandom(size), b"", os.urandom(3)]
        sent += b"".join(parts)
        if not writer.send(parts):
            break
    behind = [b"behind", os.urandom(size)]
    assert not writer.send(behind)
    sent += b"".join(behind)
    received = drain(pipe[0])
    while not writer.flush():
        received += drain(pipe[0])
    received += drain(pipe[0])
    assert received == sent
    assert writer.sent == len(sent)
    assert writer.flush()


def test_small_and_large_parts_go_in_their_order(pipe: tuple[int, int]) -> None:
    writer = FrameWriter(pipe[1])
    parts = [os.urandom(size) for size in (10, 2000, 3 * link.JOIN_UP_TO, 0, 7, 2 * link.JOIN_UP_TO, link.JOIN_UP_TO)]
    received = b""
    done = writer.send(parts)
    while not done:
        received += drain(pipe[0])
        done = writer.flush()
    assert received + drain(pipe[0]) == b"".join(parts)


@pytest.mark.parametrize("size", [10, 5 * CHUNK])
def test_what_is_written_to_a_closed_link_is_dropped(pipe: tuple[int, int], size: int) -> None:
    """The death of the worker is reported elsewhere; nobody waits for room that never comes."""
    writer = FrameWriter(pipe[1])
    while writer.send([bytes(size)]):
        pass
    os.close(pipe[0])
    assert writer.flush()
    assert writer.send([bytes(size)])


def test_blocking_writing_ends_when_all_is_taken() -> None:
    reader, writer = os.pipe()
    large = os.urandom(10 * CHUNK)
    received = []

    def take() -> None:
        while piece := os.read(reader, CHUNK):
            received.append(piece)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        outbox = Outbox(writer)
        outbox.send(b"head", large)
        outbox.send(b"small", b"parts")
        outbox.send(b"alone", b"")
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    assert b"".join(received) == b"head" + large + b"smallpartsalone"


def test_blocking_writing_to_a_closed_link_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(BrokenPipeError):
            Outbox(writer).send(b"x", b"")
    finally:
        os.close(writer)
