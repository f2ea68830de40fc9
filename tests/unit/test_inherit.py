"""multiprocessing's objects as arguments of the initializer."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.process import AuthenticationString
from multiprocessing.queues import SimpleQueue
from typing import Any, NoReturn

import pytest

from poolkit._wire import codec, inherit
from poolkit.errors import SerializationError


@pytest.fixture
def queue() -> Iterator[SimpleQueue[str]]:
    """A queue of multiprocessing, which owns two descriptors and locks."""
    queue: SimpleQueue[str] = multiprocessing.get_context("forkserver").SimpleQueue()
    yield queue
    queue.close()


def arrive(packed: bytes, fds: list[int]) -> Any:
    """Unpack as a worker does, to which the descriptors came."""
    inherit.arrived(fds)
    try:
        return codec.load_value(packed)
    finally:
        inherit.arrived([])
        for fd in fds:
            os.close(fd)


def test_a_queue_is_packed_for_workers_and_for_nobody_else(queue: SimpleQueue[str]) -> None:
    with pytest.raises(RuntimeError):
        pickle.dumps(queue)
    packed, fds, manifest = inherit.pack_initializer(print, (queue,))
    assert manifest is None
    with pytest.raises(RuntimeError):
        pickle.dumps(queue)
    fn, (copy,) = arrive(packed, fds)
    assert fn is print
    copy.put("through the copy")
    assert queue.get() == "through the copy"
    copy.close()


def test_an_object_given_twice_is_one_and_two_objects_are_two(queue: SimpleQueue[str]) -> None:
    other: SimpleQueue[str] = multiprocessing.get_context("forkserver").SimpleQueue()
    try:
        packed, fds, _ = inherit.pack_initializer(print, (queue, queue, other))
        _, (one, same, different) = arrive(packed, fds)
        assert one is same
        different.put("other")
        assert other.get() == "other"
        assert queue.empty()
        one.close()
        different.close()
    finally:
        other.close()


def test_plain_arguments_need_no_descriptor() -> None:
    packed, fds, manifest = inherit.pack_initializer(print, (1, "two"))
    assert (fds, manifest) == ([], None)
    assert arrive(packed, fds) == (print, (1, "two"))


def test_what_belongs_to_no_module_travels_by_value() -> None:
    factor = 3
    packed, fds, _ = inherit.pack_initializer(lambda number: number * factor, (2,))
    fn, args = arrive(packed, fds)
    assert fn(*args) == 6


def test_what_it_needs_of_a_script_is_said(queue: SimpleQueue[str], new_script: Callable[..., Any]) -> None:
    """The function, what it names, and the classes of its arguments, beside the descriptors."""
    script = new_script("""
limit = 5
class Mode: pass
def begin(queue, mode):
    global state
    state = limit, queue, mode
state = None
""")
    packed, fds, manifest = inherit.pack_initializer(script.begin, (queue, script.Mode()))
    assert {item.name for item in manifest.items} == {"begin", "limit", "state", "Mode"}  # type: ignore[union-attr]
    fn, (copy, mode) = arrive(packed, fds)
    assert (fn, type(mode)) == (script.begin, script.Mode)
    copy.put("here")
    assert queue.get() == "here"
    copy.close()


def test_the_authentication_key_travels_in_no_other_way() -> None:
    key = AuthenticationString(b"key")
    packed, fds, _ = inherit.pack_initializer(print, (key,))
    assert arrive(packed, fds)[1] == (b"key",)
    with pytest.raises(TypeError):
        pickle.dumps(key)


class Refuses:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


@pytest.mark.parametrize(
    ("raised", "expected"), [(ZeroDivisionError("no"), SerializationError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_nothing_is_left_when_it_cannot_be_packed(
    queue: SimpleQueue[str], raised: BaseException, expected: type[BaseException]
) -> None:
    """The leak check looks for the descriptors that were copied before it failed."""
    with pytest.raises(expected):
        inherit.pack_initializer(print, (queue, Refuses(raised)))
    with pytest.raises(RuntimeError):
        pickle.dumps(queue)
