"""The frames of all threads, which CPython up to 3.11 makes objects for under a lock of its own."""

from __future__ import annotations

import pytest

from support_scripts import run_script

_LOOK_WHILE_THREADS_COME_AND_GO = """
import faulthandler, gc, os, threading, time
from poolkit._kinds.thread import current_frames

faulthandler.dump_traceback_later(40, exit=True)


class Garbage:
    def __init__(self):
        self.me = self

    def __del__(self):
        time.sleep(0)  # another thread runs


def come_and_go(over):
    while not over.is_set():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()


over = threading.Event()
others = [threading.Thread(target=come_and_go, args=(over,)) for _ in range(3)]
others += [threading.Thread(target=over.wait) for _ in range(20)]
for thread in others:
    thread.start()
gc.set_threshold(1)
gc.disable()  # elsewhere, a finalizer that runs within `threading` may have threads wait for each other, too
end = time.monotonic() + 3
while time.monotonic() < end:
    Garbage()
    gc.enable()
    frames = current_frames()
    was_enabled = gc.isenabled()
    gc.disable()
    assert was_enabled and threading.get_ident() in frames
over.set()
for thread in others:
    thread.join()
print("over", flush=True)
os._exit(0)  # or what is left would be collected first
"""


@pytest.mark.slow
def test_a_collection_meanwhile_does_not_have_threads_wait_for_each_other() -> None:
    assert run_script(_LOOK_WHILE_THREADS_COME_AND_GO) == "over"
