"""What the scripted pool's recorder was told, against what its tasks and workers say."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from poolkit.picture import Run


def check_records(pool: Any) -> None:
    """Check what a trace would show: each run once, one after the other at each worker."""
    found = [record for record in pool.records if len(record) == len(Run._fields)]
    # One that is taken down again where a step was interrupted follows on itself; a trace leaves it out.
    again = [run for run, before in _each_with_the_one_before(found) if before and run[1:4:2] == before[1:4:2]]
    runs = [run for run in found if not any(run is each for each in again)]
    tasks = {task.id: task for task in pool.outcomes}
    assert not again or pool.is_interrupted, "a run was taken down twice"
    assert max(Counter((run[1], run[3]) for run in runs).values(), default=1) == 1, "a run was taken down twice"
    begun = Counter({task.id: count for task, count in pool.workforce.begun.items() if count})
    missing = begun - Counter(run[1] for run in runs)
    # Of a task that was cancelled when it was over, the outcome did not come before its worker died.
    assert all(pool.outcomes[tasks[number]].cancelled for number in missing), "a run was not taken down"
    by_worker: dict[int, list[tuple[float, float]]] = {}
    for worker, *_, began, ended, _ in runs:
        by_worker.setdefault(worker, []).append((began, ended))
    for spans in by_worker.values():
        spans.sort()
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans)), "two runs at once"
    last: dict[int, Any] = {}
    for run in runs:
        last[run[1]] = run[-1]
    for number, how in last.items():
        assert pool.outcomes[tasks[number]].ok == (how is None)


def _each_with_the_one_before(runs: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Each run, and the last one of its worker."""
    last: dict[int, Any] = {}
    for run in runs:
        yield run, last.get(run[0])
        last[run[0]] = run
