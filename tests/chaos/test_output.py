"""What a killed worker printed, against what arrived."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

import support_evidence as tasks
from chaos.faults import new_pool, new_rng, scaled, worker_pids
from poolkit import WorkerCrashed
from support_gates import Gate


@pytest.mark.slow
def test_what_a_worker_printed_until_it_was_killed_is_the_end_of_what_arrived(
    new_gate: Callable[[], Gate], capfd: pytest.CaptureFixture[str]
) -> None:
    """What it was just printing may be shown and not have arrived."""
    rng = new_rng()
    with new_pool(1) as pool:
        for _ in range(scaled(40)):
            capfd.readouterr()
            arrived = new_gate()
            task = pool.submit(tasks.say_for_ever, arrived, rng.randrange(1, 2000))
            arrived.wait()
            for pid in worker_pids(pool):
                os.kill(pid, signal.SIGKILL)
            error = task.exception()
            assert type(error) is WorkerCrashed
            text, output = capfd.readouterr().out, error.output
            lines = "".join(f"line {number}\n" for number in range(1, text.count("\n") + 3))
            start = lines.index(output)
            assert lines.startswith(text)
            assert 0 <= start + len(output) - len(text) <= len("line 100000\n")
            assert len(output) > 4000 or start == 0
