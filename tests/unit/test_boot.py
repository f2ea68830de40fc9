"""How a worker begins, in a forked child, with the test as its owner."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from poolkit._child import boot
from poolkit._kinds.peer import Peer, boot_settings
from poolkit._kinds.settings import PoolSettings
from poolkit._wire import inherit, messages
from support_functions import fail_to_initialize, none_of_it


@pytest.mark.parametrize(("initializer", "code"), [(none_of_it, 0), (fail_to_initialize, 1)])
def test_a_worker_that_nobody_waits_for_any_more_ends_without_a_word(
    initializer: Callable[..., object], code: int
) -> None:
    """Its pool has let go of the link while it started; it writes to a pipe that nobody reads."""
    settings = PoolSettings(1, "process", None, None, (), (), None, None)
    packed, _, manifest = inherit.pack_initializer(initializer, ())
    peer = Peer(1)
    told, regions = boot_settings(
        settings, peer, initializer=(packed, manifest), measure_rss=False, shm_threshold=1e9, habits={}
    )
    assert regions == []
    theirs = peer.open([])
    os.write(peer.calls_fd, messages.FRAME_TO_WORKER.pack(messages.BOOT, 0, len(told)) + told)
    os.close(peer.outcomes_fd)
    peer.outcomes_fd = -1
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(boot.run_worker(theirs, os.getppid()))
        finally:
            os._exit(99)  # it raised, which would be printed
    for fd in theirs:
        os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    peer.close()
