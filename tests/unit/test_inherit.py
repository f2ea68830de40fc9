"""multiprocessing's objects as arguments of the initializer."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from multiprocessing.process import AuthenticationString
from multiprocessing.queues import SimpleQueue
from typing import Any, NoReturn

import pytest

from poolkit._wire import inherit
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
        return pickle.loads(packed)
    finally:
        inherit.arrived([])
        for fd in fds:
            os.close(fd)


def test_a_queue_is_packed_for_workers_and_for_nobody_else(queue: SimpleQueue[str]) -> None:
    with pytest.raises(RuntimeError):
        pickle.dumps(queue)
    packed, fds = inherit.pack_initializer(print, (queue,))
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
        _, (one, same, different) = arrive(*inherit.pack_initializer(print, (queue, queue, other)))
        assert one is same
        different.put("other")
        assert other.get() == "other"
        assert queue.empty()
        one.close()
        different.close()
    finally:
        other.close()


def test_plain_arguments_need_no_descriptor() -> None:
    packed, fds = inherit.pack_initializer(print, (1, "two"))
    assert fds == []
    assert arrive(packed, fds) == (print, (1, "two"))


def test_what_belongs_to_no_module_travels_by_value() -> None:
    factor = 3
    fn, args = arrive(*inherit.pack_initializer(lambda number: number * factor, (2,)))
    assert fn(*args) == 6


def test_the_authentication_key_travels_in_no_other_way() -> None:
    key = AuthenticationString(b"key")
    packed, fds = inherit.pack_initializer(print, (key,))
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
