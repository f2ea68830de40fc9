"""Dedicated workers and the life of their owner: its end, its forks, its interrupts, its script."""

from __future__ import annotations

import signal
import time

import pytest

from lifecycle.scripts import run, running

pytestmark = pytest.mark.slow

TARGETS = """
import os, resource, signal, sys, threading, time, warnings
import poolkit

warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # a fork, from CPython 3.12 on

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

def receive():  # a function of its own, as what is raised at a jump back may pass by the `except` around a loop
    global found
    while len(found) < number:
        found += map(worker.recv, (30,))  # received and noted by one instruction

number, found, interrupts = 3000, [], 0
signal.signal(signal.SIGALRM, interrupt)
while interrupts < 10:  # a fast machine may receive all of them between two
    found.clear()
    with poolkit.Worker(count, number, **kind) as worker:
        while len(found) < number:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + len(found) % 7 * 0.0001)
                receive()
            except Interrupt:
                interrupts += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert sorted(found) == [*range(number)]
print("all")
"""
    assert run(TARGETS + source, method) == ["all"]


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


@pytest.mark.parametrize("method", ["forkserver", "thread"])
def test_callbacks_are_called_at_the_end_of_the_interpreter(method: str) -> None:
    source = """
def say(port):
    for number in range(1000):
        port.send(number)
    threading.Event().wait()

got = []
worker = poolkit.Worker(say, **kind)
worker.on_exit(lambda exited: print(exited.cause, got == [*range(1000)], flush=True))
other = poolkit.Worker(echo, **kind)
other.on_exit(lambda exited: print(exited.cause, flush=True))
all_came = threading.Event()

def note(message):
    got.append(message)
    if message == 999:
        all_came.set()

worker.on_message(note)
all_came.wait()
"""
    assert sorted(run(TARGETS + source, method)) == ["terminated", "terminated True"]


@pytest.mark.parametrize("method", ["forkserver", "thread"])
def test_none_is_started_in_place_of_those_that_the_end_terminates(method: str) -> None:
    source = """
def start(exited=None):
    try:
        worker = poolkit.Worker(sleep, **kind)
    except poolkit.PoolClosed:
        print(exited.cause, "refused", flush=True)
    else:
        worker.on_exit(start)
        workers.append(worker)

workers = []
start()
workers[0].recv()
"""
    assert run(TARGETS + source, method) == ["terminated refused"]


@pytest.mark.parametrize("method", ["forkserver", "thread"])
def test_a_forked_child_has_callbacks_and_calls_of_its_own(method: str) -> None:
    source = """
import queue
from collections import Counter

def listen(number):
    found = queue.SimpleQueue()
    worker = poolkit.Worker(echo, **kind)
    worker.on_message(found.put)
    worker.send(number)
    return worker, found, found.get(timeout=20)

mine = listen(1)
hosted = poolkit.Worker.hosting(Counter, "abca", **kind)
print(hosted.call("total").result())
plain = poolkit.Worker(echo, **kind)
waiting = [hosted.call("total") for _ in range(2)]
pid = os.fork()
if not pid:
    for refused in (
        waiting[1].result,
        lambda: hosted.call("clear"),
        lambda: hosted.on_exit(print),
        lambda: plain.on_message(print),
    ):
        try:
            refused()
        except poolkit.PoolClosed:
            print("closed", flush=True)
    hosted.close()
    theirs = listen(2)
    print(theirs[2], flush=True)
    with poolkit.Worker.hosting(Counter, "ab", **kind) as own:
        print(own.call("total").result(), flush=True)
    theirs[0].terminate()
    theirs[0].join()
    os._exit(0)
print(os.waitpid(pid, 0)[1])
mine[0].send(5)
print(mine[1].get(timeout=20), waiting[1].result(), hosted.call("total").result())
for worker in (mine[0], hosted, plain):
    with worker:
        pass
"""
    assert sorted(run(TARGETS + source, method)) == sorted(["4", *["closed"] * 4, "2", "2", "0", "5 4 4"])


def test_callbacks_go_on_after_there_were_no_descriptors_for_one() -> None:
    source = """
import queue

workers = [poolkit.Worker(echo) for _ in range(2)]
for worker in workers:
    worker.send(1)
    worker.recv()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard))  # `poll` takes no more than that, even of open ones
try:
    workers[0].on_message(print)
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
found = queue.SimpleQueue()
for number, worker in enumerate(workers):
    worker.on_message(found.put)
    worker.send(number)
    print(found.get(timeout=20))
    worker.on_exit(lambda exited: found.put(exited.cause))
    worker.close()
    print(found.get(timeout=20))
"""
    assert run(TARGETS + source, "forkserver") == ["24", "0", "finished", "1", "finished"]


@pytest.mark.parametrize("method", ["forkserver", "thread"])
def test_interrupts_lose_no_call_and_make_none_twice(method: str) -> None:
    source = """
class Interrupt(BaseException):
    pass

class Journal:
    def __init__(self):
        self.numbers = []
    def note(self, number):
        self.numbers.append(number)
        return number
    def all(self):
        return self.numbers

def interrupt(*_):
    if is_on:
        raise Interrupt

def call():  # a function of its own, as in the test above
    global number, tasks
    for _ in range(500):  # what is raised in a finalizer is lost
        number += 1
        tasks += map(worker.call, ("note",), (number,))
        if number % 3 == 0:
            tasks[-1].result(30)

number, interrupts, tasks, is_on = 0, 0, [], False
signal.signal(signal.SIGALRM, interrupt)
with poolkit.Worker.hosting(Journal, **kind) as worker:
    worker.call("all").result()
    is_on = True
    while number < 2000 or interrupts < 20:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0002 + number % 7 * 0.0001)
            call()
        except Interrupt:
            interrupts += 1
    is_on = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    found = [task.result(30) for task in tasks]
    noted = worker.call("all").result(30)
    print(noted == sorted({*noted}), {*found} <= {*noted}, interrupts >= 20)
"""
    with running(TARGETS + source, method) as script:  # what is raised in a finalizer is told on stderr
        ended = script.finish()
        assert (ended.code, ended.out) == (0, "True True True\n"), ended.err
        script.wait_until_gone()


@pytest.mark.long
def test_idle_workers_cost_no_thread_no_time_and_little_memory() -> None:
    source = """
def cpu():
    used = 0
    for pid in ("self", *pids):
        fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used  # hundredths of a second

def pss(pid):
    lines = open(f"/proc/{pid}/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10

workers = [poolkit.Worker(sleep) for _ in range(50)]
pids = [worker.recv() for worker in workers]
names = sorted(thread.name for thread in threading.enumerate())
print(len(names) <= 3, names)  # the main thread, a supervisor, and its callback thread
before = cpu()
time.sleep(1.0)
print(cpu() - before <= 2, cpu() - before)
print(max(map(pss, pids)) < 5 << 20, max(map(pss, pids)) >> 10)
"""
    lines = run(TARGETS + source, "forkserver")
    assert [line.split()[0] for line in lines] == ["True"] * 3, lines


def test_a_flood_that_nobody_reads_takes_no_memory() -> None:
    source = """
def rss(pid):
    return int(open(f"/proc/{pid}/statm").read().split()[1]) * resource.getpagesize()

worker = poolkit.Worker(sleep)
pid = worker.recv()
both = ("self", pid)

def flood(message, number):
    refused = 0
    for _ in range(number):
        try:
            worker.send(message, timeout=0)
        except TimeoutError:
            refused += 1
    return refused

flood([1], 2000)
before = sum(map(rss, both))
print(flood([1], 10_000) == 10_000, sum(map(rss, both)) - before < 1 << 20)
flood(bytes(1 << 20), 100)
before = sum(map(rss, both))
print(flood(bytes(1 << 20), 200) == 200, sum(map(rss, both)) - before < 4 << 20)
worker.terminate()
"""
    assert run(TARGETS + source, "forkserver") == ["True True", "True True"]
