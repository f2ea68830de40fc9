"""What a program has written: lines at every cut of it, and what is kept of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit._spawn import output
from poolkit._spawn.output import Kept, Output, Splitter, text_decoder

CHUNKS = st.lists(st.text("ab\n\ré").map(str.encode) | st.binary(max_size=5), max_size=6)


def decoder() -> object:
    return text_decoder("utf-8", "backslashreplace")


def wanted(whole: bytes | str, end: bytes | str, most: int) -> list[object]:
    lines = whole.split(end)  # type: ignore[arg-type]
    if not lines[-1]:
        lines.pop()
    return [piece for line in lines for piece in ([line[at : at + most] for at in range(0, len(line), most)] or [line])]


@pytest.mark.parametrize("most", [3, 1 << 20])
@given(chunks=CHUNKS)
def test_lines_are_the_same_wherever_the_output_is_cut(most: int, chunks: list[bytes]) -> None:
    before, output.LONGEST = output.LONGEST, most
    try:
        whole = b"".join(chunks)
        for splitter, text, end in (
            (Splitter(), whole, b"\n"),
            (Splitter(decoder()), decoder().decode(whole, True), "\n"),
        ):  # type: ignore[attr-defined, arg-type]
            found = [line for chunk in chunks for line in splitter.split(chunk)]
            found += splitter.split(b"", final=True)
            assert found == wanted(text, end, most)  # type: ignore[arg-type]
    finally:
        output.LONGEST = before


def test_text_has_universal_newlines_and_never_fails_to_decode() -> None:
    splitter = Splitter(text_decoder("utf-8", "backslashreplace"))
    found = [*splitter.split(b"10%\r20%\r"), *splitter.split(b"\nend\xff"), *splitter.split(b"", final=True)]
    assert found == ["10%", "20%", "end\\xff"]


@given(chunks=CHUNKS, most=st.integers(1, 12), small=st.integers(1, 6))
def test_the_beginning_is_kept_or_both_ends(chunks: list[bytes], most: int, small: int) -> None:
    before, output._SMALL = output._SMALL, small
    try:
        whole = b"".join(chunks)
        for both_ends in (False, True):
            kept = Kept(most, both_ends=both_ends)
            for chunk in chunks:
                kept.add(chunk)
            assert kept.dropped == max(0, len(whole) - most)
            if len(whole) <= most:
                assert kept.value() == whole
            elif not both_ends:
                assert kept.value() == whole[:most]
            else:
                head, tail = most // 2, most - most // 2
                mark = b"\n[... %d bytes are left out here ...]\n" % kept.dropped
                assert kept.value() == whole[:head] + mark + whole[-tail:]
    finally:
        output._SMALL = before


def test_each_line_goes_to_one_reader_and_the_last_needs_no_end() -> None:
    stream = Output("stdout", None, lambda: None)
    assert stream.feed(b"one\ntw")
    assert stream.take(lines=True) == [b"one"]
    assert stream.take(lines=True) == []
    stream.feed(b"o\nthree")
    stream.end()
    assert stream.take(lines=True) == [b"two", b"three"]
    assert stream.take(lines=True) is None


def test_who_reads_gives_the_pace() -> None:
    stream, calls = Output("stdout", None, lambda: None), []
    assert not stream.feed(b"x" * (output.UNTAKEN + 1))
    stream.wait_for_room(lambda: calls.append("on"))
    assert calls == []
    stream.take(lines=False)
    assert calls == ["on"]


def test_what_was_kept_before_somebody_asked_is_read_first() -> None:
    stream = Output("stdout", 100, lambda: None)
    stream.feed(b"one\n")
    stream.ask()
    stream.feed(b"two\n")
    stream.end()
    assert stream.take(lines=True) == [b"one", b"two"]
    assert stream.kept is not None
    assert stream.kept.value() == b"one\ntwo\n"
