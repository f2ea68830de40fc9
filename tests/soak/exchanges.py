"""Who reads streams, and talks with tasks that run, in the soak: actors, as those of `actors.py`.

What comes is checked at once: items and messages in order, and none missing before the last that came. How the task
ends is for the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any

import poolkit
from soak.ledger import Entry
from support import wait_until

if TYPE_CHECKING:
    from soak.stage import Stage

Actor = Callable[["Stage", random.Random], None]


# ===== streams =====


def read_streams(stage: Stage, rng: random.Random) -> None:
    """One after the other, or two by turns; to the end, or left in any way, with other tasks between the items."""
    while not stage.over.is_set():
        begun = [_begin(stage, rng) for _ in range(rng.choice([1, 1, 2]))]
        readers = [(entry, stream, _Check(stage, entry)) for entry, stream in begun if stream is not None]
        leave_after = rng.choice([None, None, 0, 1, 10])
        with contextlib.suppress(Exception, CancelledError):  # the ledger sees how the task has ended
            for number in itertools.count() if leave_after is None else range(leave_after):
                for _, stream, check in readers:
                    check.take(next(stream, None))
                if all(check.is_over for _, _, check in readers):
                    break
                if rng.random() < 0.05:
                    other = stage.submit(stage.new_entry(rng, callback=True))  # not to wait for room: see `block`
                    if number % 2:
                        stage.ledger.close(other)
        how = rng.choice(["close", "close at once", "with", "cancel", "drop"])
        del begun
        while readers:
            entry, stream, check = readers.pop()
            _leave(stream, entry, how)
            del stream
            stage.ledger.close(entry)
            check.end()


def _begin(stage: Stage, rng: random.Random) -> tuple[Entry, poolkit.Stream[Any] | None]:
    entry = stage.new_entry(rng, sort="stream")
    return entry, stage.begin(entry, partial(_stream, entry))


def _stream(entry: Entry, view: poolkit.PoolView) -> poolkit.Stream[Any]:
    return view.stream(entry.call.fn, *entry.call.args)


def _leave(stream: poolkit.Stream[Any], entry: Entry, how: str) -> None:
    if how == "cancel":
        entry.cancel()
        return
    entry.may_be_cancelled = True
    if how == "with":
        with stream:
            pass
    elif how != "drop":
        stream.close(0 if how == "close at once" else 1)


class _Check:
    """What has come of one stream: numbers from 0, as they are or in arrays."""

    def __init__(self, stage: Stage, entry: Entry) -> None:
        self.is_over = False
        self._stage = stage
        self._entry = entry
        self._count = 0

    def take(self, item: Any) -> None:
        if item is None:
            self.is_over = True
            return
        if set([item] if isinstance(item, int) else item.tolist()) != {self._count}:
            self._stage.ledger.blame(f"item {self._count} of {self._entry.call} was {item!r}")
        self._count += 1

    def end(self) -> None:
        self._stage.ledger.count("items of streams", self._count)
        if self.is_over and self._entry.outcome == "value" and self._count != self._entry.call.args[2]:
            self._stage.ledger.blame(f"{self._count} items of {self._entry.call}")


def read_streams_in_loop(stage: Stage, rng: random.Random) -> None:
    """Several coroutines; waits for an item are cancelled now and then."""

    async def read() -> None:
        entry = stage.new_entry(rng, sort="stream", in_loop=True)
        stream = stage.begin(entry, partial(_stream, entry))
        if stream is None:
            return
        check, leaves = _Check(stage, entry), rng.random() < 0.3
        with contextlib.suppress(Exception, CancelledError, asyncio.CancelledError):
            while not check.is_over and not (leaves and rng.random() < 0.05):
                with contextlib.suppress(asyncio.TimeoutError):
                    patience = rng.choice([None, None, 0.0005])
                    check.take(await asyncio.wait_for(anext(stream, None), patience))
        entry.may_be_cancelled = True
        await stream.aclose()
        stage.ledger.close(entry)
        check.end()

    async def read_all() -> None:
        while not stage.over.is_set():
            await asyncio.gather(*[read() for _ in range(rng.randint(1, 4))])

    asyncio.run(read_all())


# ===== messages =====


def talk(stage: Stage, rng: random.Random) -> None:
    """Tasks ask, and are answered: by who iterates over what they send, by a callback, or by nobody."""
    while not stage.over.is_set():
        entry = stage.new_entry(rng, sort="talk")
        count, is_answered = entry.call.args[2:]
        heard: list[tuple[int, int]] = []
        how = rng.choice(["iterate", "callback"] if is_answered else ["iterate", "callback", "leave", "ignore"])
        task = stage.begin(entry, partial(_submit, entry))
        if task is None:
            continue
        answer = _answerer(task, heard, is_answered=is_answered)
        if how == "callback":
            task.on_message(answer)
        elif how != "ignore":
            for message in task.messages():
                answer(message)
                if how == "leave":
                    break
            task.messages().close()
        del task, answer
        stage.ledger.close(entry)
        if entry.outcome != "value" or how not in {"callback", "iterate"}:
            count = 0
        elif how == "callback":  # it may have come when the task was just ending
            wait_until(partial(_has_heard, heard, count), f"the callback of {entry.call}")
        _check_heard(stage, entry, heard, count)


def _submit(entry: Entry, view: poolkit.PoolView) -> poolkit.Task[Any]:
    return view.submit(entry.call.fn, *entry.call.args)


def _answerer(task: poolkit.Task[Any], heard: list[tuple[int, int]], *, is_answered: bool) -> Callable[[Any], None]:
    def answer(message: tuple[int, int, Any]) -> None:
        heard.append(message[:2])
        if is_answered:
            with contextlib.suppress(poolkit.QueueFull):
                task.send(message[:2])

    return answer


def _has_heard(heard: list[tuple[int, int]], count: int) -> bool:
    """Whether all messages of an attempt have come."""
    return bool(heard) and heard[-1][1] == count - 1


def _check_heard(stage: Stage, entry: Entry, heard: list[tuple[int, int]], least: int) -> None:
    """Of each attempt the first messages, in order; so many of the last one."""
    stage.ledger.count("messages", len(heard))
    right = [(attempt, n) for attempt, all_ in itertools.groupby(heard, lambda one: one[0]) for n, _ in enumerate(all_)]
    if heard != right or len({attempt for attempt, _ in heard}) != len([n for _, n in heard if n == 0]):
        stage.ledger.blame(f"{entry.call} sent {heard}")
    if least and not _has_heard(heard, least):
        stage.ledger.blame(f"{entry.call} sent no more than {heard[-3:]}")


ACTORS: dict[str, list[Actor]] = {"streams": [read_streams, read_streams_in_loop], "messages": [talk]}
