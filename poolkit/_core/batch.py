"""How many small tasks go out in one message: as many as make about a millisecond of work.

A message costs some ten microseconds of system calls and wake-ups on both sides; a batch shares them. A batch never
owns its tasks: each is claimed before it runs and can be taken back until then, so its size is no promise.
Guarded by: the pool's one lock.
"""

from __future__ import annotations

import math
from typing import Any

from poolkit._core.queue import AnyTask, TaskQueue

BATCH_SECONDS = 0.001  # a batch is about this much work
BATCH_BYTES = 32 * 1024  # and fits the pipe with room to spare, so that sending it never waits
REMEMBERED = 1024  # functions whose run time is kept


class RunTimes:
    """Measured run time per function, as `Task.function` has it, as a moving average."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: dict[Any, float] = {}  # by function; to be looked at by `take_batch`

    def measured(self, function: Any, seconds: float) -> None:
        """Take one run into account; see `Dispatcher.measured`."""
        if not 0.0 <= seconds < math.inf:
            return  # a worker's own word, and this is no time
        known = self.seconds.get(function)
        if known is None:
            if len(self.seconds) >= REMEMBERED:
                del self.seconds[next(iter(self.seconds))]
            self.seconds[function] = seconds
        elif seconds > known:
            self.seconds[function] = (known + seconds) / 2
        else:
            self.seconds[function] = known + (seconds - known) / 8

    def expected(self, function: Any) -> float:
        """Seconds one run is expected to take; a whole batch's worth when nothing is known."""
        return self.seconds.get(function, BATCH_SECONDS)


def take_batch(queue: TaskQueue, times: RunTimes, *, most: int, workers: int, ahead: float = 0.0) -> list[AnyTask]:
    """Take tasks for one message from the queue; at least one if there is one. One with a memory limit goes alone.

    Args:
        queue: where they come from.
        times: what their functions usually take.
        most: the largest number of tasks.
        workers: how many workers share the queue; none takes more than its part.
        ahead: seconds of work that the worker has been sent already.
    """
    share = -(-queue.size // workers)
    batch: list[AnyTask] = []
    room_bytes = BATCH_BYTES
    work = ahead
    expected = times.seconds
    for _ in range(min(most, share)):
        task = queue.pop()
        work += expected.get(id(task.code) ^ hash(task.name), BATCH_SECONDS)  # as `function` has it, without a call
        room_bytes -= task.nbytes
        alone = task.options.alone  # of one with a limit on memory: what its worker has is known when it is idle
        if (alone or work > BATCH_SECONDS or room_bytes < 0) and (batch or ahead):
            queue.put_back([task])
            break
        batch.append(task)
        if alone:
            break
    return batch
