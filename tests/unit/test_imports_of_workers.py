"""What a worker has to import before the first result: next to nothing, as every program waits for it."""

from __future__ import annotations

import poolkit

HEAVY = {"asyncio", "cloudpickle", "concurrent.futures", "dataclasses", "logging", "poolkit.task", "tblib"}


def test_a_worker_that_ran_calls_and_maps_has_not_imported_the_owners_half() -> None:
    with poolkit.Pool(1) as pool:
        assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]
        loaded = set(pool.submit(eval, "list(__import__('sys').modules)").result())
    assert not HEAVY & loaded
    assert "poolkit._child.loop" in loaded
