"""Dedicated workers and the life of their owner: its end, its forks, its interrupts, its script."""

from __future__ import annotations

import signal
import time

import pytest

from lifecycle.scripts import run, running

pytestmark = pytest.mark.slow

TARGETS = """
import os, signal, sys, threading, time
import poolkit

def sleep(port):
    port.send(os.getpid())
    time.sleep(3600)

def echo(port):
    for message in port:
        port.send(message)

def count(port, number):
    for each in range(number):
        port.send(each)

kind = {"kind": "thread"} if sys.argv[1] == "thread" else {"start_method": sys.argv[1]}
"""
PATIENCE = 10.0  # seconds, on any machine; where nothing else runs it takes a tenth of one


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork", "thread"])
def test_the_end_of_the_interpreter_terminates_them(method: str) -> None:
    source = """
workers = [poolkit.Worker(sleep, **kind) for _ in range(3)]
for worker in workers:
    worker.recv()
print("up", flush=True)
"""
    with running(TARGETS + source, method) as script:
        assert script.read_lines(1) == ["up"]
        started = time.monotonic()
        assert script.finish().check() == []
        assert time.monotonic() - started < PATIENCE
        script.wait_until_gone()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_an_owner_that_is_killed(number: int) -> None:
    source = """
workers = [poolkit.Worker(sleep), poolkit.Worker(echo)]
print(workers[0].recv() > 0, flush=True)
signal.pause()
"""
    with running(TARGETS + source, "forkserver") as script:
        assert script.read_lines(1) == ["True"]
        script.kill(number)
        script.wait_until_gone()


@pytest.mark.parametrize("method", ["forkserver", "thread"])
def test_a_forked_child_of_the_owner_has_no_worker(method: str) -> None:
    source = """
worker = poolkit.Worker(echo, **kind)
worker.send(1)
print(worker.recv())
worker.send(2)
pid = os.fork()
if not pid:
    for call in (worker.recv, lambda: worker.send(3), worker.task.result):
        try:
            call()
        except poolkit.PoolClosed:
            print("closed", flush=True)
    worker.close()
    worker.terminate()
    del worker
    with poolkit.Worker(echo, **kind) as own:
        own.send("its own")
        print(own.recv(), flush=True)
    os._exit(0)
print(os.waitpid(pid, 0)[1])
print(worker.recv())
worker.send(4)
print(worker.recv())
with worker:
    pass
print(worker.task.done())
"""
    lines = run(TARGETS + source, method)
    assert sorted(lines) == sorted(["1", "closed", "closed", "closed", "its own", "0", "2", "4", "True"])


@pytest.mark.parametrize("method", ["forkserver", "thread"])
def test_interrupts_lose_no_message(method: str) -> None:
    source = """
class Interrupt(BaseException):
    pass

def interrupt(*_):
    if len(found) < number:  # else the loop has ended
        raise Interrupt

number, found, interrupts = 3000, [], 0
signal.signal(signal.SIGALRM, interrupt)
with poolkit.Worker(count, number, **kind) as worker:
    while len(found) < number:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0002 + len(found) % 7 * 0.0001)
            while len(found) < number:
                found += map(worker.recv, (30,))  # received and noted by one instruction
        except Interrupt:
            interrupts += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    print(sorted(found) == [*range(number)], interrupts > 10)
"""
    assert run(TARGETS + source, method) == ["True True"]


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_messages_know_the_script(method: str) -> None:
    source = """
class Box:
    def __init__(self, content):
        self.content = content

FACTOR = 3

class Late:
    def times(self, number):
        return FACTOR * number

def look(port):
    for message in port:
        if isinstance(message, Box):
            port.send((type(message) is Box, message))
        else:
            port.send(message.times(5) if hasattr(message, "times") else message(2))

with poolkit.Worker(look, **kind) as worker:
    for message in (Box(1), Late(), lambda number: number + FACTOR, Box(2), Late()):
        worker.send(message)
    for _ in range(5):
        answer = worker.recv()
        print((answer[0], type(answer[1]) is Box, answer[1].content) if type(answer) is tuple else answer)
"""
    assert run(TARGETS + source, method) == ["(True, True, 1)", "15", "5", "(True, True, 2)", "15"]


def test_several_threads_of_the_worker_get_what_needs_the_script() -> None:
    source = """
def threads(port):
    def run():
        for message in port:
            port.send(message())
    several = [threading.Thread(target=run) for _ in range(4)]
    [thread.start() for thread in several]
    [thread.join() for thread in several]

with poolkit.Worker(threads) as worker:
    for number in range(200):
        worker.send(lambda number=number: number)
    worker.close()
    print(sorted(worker) == [*range(200)])
"""
    assert run(TARGETS + source, "forkserver") == ["True"]
