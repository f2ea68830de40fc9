"""Records: what they have of dataclasses."""

from __future__ import annotations

import copy
import pickle

import pytest

from poolkit import WorkerExited, WorkerStarted
from poolkit._core.workforce import Died


def test_fields_are_given_in_order_or_by_name() -> None:
    died = Died(3, 1, hint="why")
    assert (died.worker_id, died.exitcode, died.signal, died.hint, died.abandoned) == (3, 1, None, "why", False)
    assert repr(WorkerStarted(1, pid=2)) == "WorkerStarted(worker_id=1, pid=2)"


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1,), {}), ((1, 2, 3), {}), ((1, 2), {"pid": 2}), ((1, 2), {"other": 2})]
)
def test_each_field_is_given_once(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="WorkerStarted"):
        WorkerStarted(*args, **kwargs)


def test_they_are_frozen() -> None:
    event = WorkerStarted(1, 2)
    with pytest.raises(AttributeError, match="frozen"):
        event.pid = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        del event.pid
    assert event.pid == 2


def test_they_are_equal_by_their_fields_and_class() -> None:
    assert WorkerStarted(1, 2) == WorkerStarted(1, 2)
    assert WorkerStarted(1, 2) != WorkerStarted(1, 3)
    assert WorkerStarted(1, 2) != Died(1)
    assert len({WorkerStarted(1, 2), WorkerStarted(1, 2), WorkerStarted(1, None)}) == 2


def test_they_can_be_copied_pickled_and_matched() -> None:
    event = WorkerExited(1, 2, None, "SIGKILL", "crashed")
    assert copy.copy(event) == pickle.loads(pickle.dumps(event)) == event
    match event:
        case WorkerExited(worker_id, _, _, "SIGKILL", cause=cause):
            assert (worker_id, cause) == (1, "crashed")
        case _:
            pytest.fail("not matched")
