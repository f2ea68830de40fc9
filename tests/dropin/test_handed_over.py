"""Connections, sockets and what users register: arguments and results, as with ProcessPoolExecutor, and nothing stays.

Longer than most: each way of a value, and each end that a call may have, is one case.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support
import support_handed_over as work
from chaos import faults
from lifecycle.scripts import Script, python, text_of
from support_gates import Gate

pytestmark = pytest.mark.slow

METHODS = ["forkserver", "spawn", "fork"]


@pytest.fixture(params=METHODS)
def pool(request: pytest.FixtureRequest) -> Iterator[poolkit.Pool]:
    with poolkit.Pool(1, start_method=request.param) as made:
        yield made


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    """A pipe; both ends are closed afterwards."""
    with ExitStack() as stack:
        pair = multiprocessing.Pipe()
        for end in pair:
            stack.callback(end.close)
        yield pair


def told(end: Any) -> object:
    """What a task wrote to the other end."""
    if isinstance(end, Connection):
        assert end.poll(support.WATCHDOG)
        return end.recv()
    end.settimeout(support.WATCHDOG)
    return end.recv(100)


def is_at_end(end: Connection) -> bool:
    """Whether nobody has the other end open any more."""
    if not end.poll(0):
        return False
    try:
        end.recv()
    except EOFError:
        return True
    return False


# ===== arguments =====


def test_every_connection_of_a_program_arrives(pool: poolkit.Pool) -> None:
    """Whatever numbers their descriptors have: as bare numbers, they would be poolkit's own in the worker."""
    with ExitStack() as stack:
        pairs = [multiprocessing.Pipe() for _ in range(6)]
        for end in (end for pair in pairs for end in pair):
            stack.callback(end.close)
        for ours, theirs in [*pairs, *(pair[::-1] for pair in pairs)]:
            assert pool.submit(work.tell, theirs).result() == 1
            assert told(ours) == "hello"


def test_sockets_arrive(pool: poolkit.Pool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert pool.submit(work.tell, theirs).result() == 1
        assert told(ours) == b"hello"
        assert pool.submit(work.tell, [1, {"a": work.Holder((theirs,))}], more=theirs).result() == 2
        assert told(ours) == b"hellohello"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda end: [end],
        lambda end: {"a": (1, end)},
        lambda end: work.Holder([end, "b"]),
        lambda end: [end, bytes(200_000)],
        lambda end: [end, lambda: 5],
    ],
    ids=["list", "dict", "attribute", "beside what is large", "beside what goes by value"],
)
def test_connections_arrive_wherever_they_are(ends: tuple[Connection, Connection], wrap: Callable[..., Any]) -> None:
    with poolkit.Pool(1) as pool:
        assert pool.submit(work.tell, wrap(ends[1])).result() == 1
        assert told(ends[0]) == "hello"
        assert pool.submit(work.tell, 1, named=wrap(ends[1])).result() == 1
        assert told(ends[0]) == "hello"


def test_items_of_map_arrive(pool: poolkit.Pool) -> None:
    with ExitStack() as stack:
        pairs = [multiprocessing.Pipe() for _ in range(10)]
        for end in (end for pair in pairs for end in pair):
            stack.callback(end.close)
        assert list(pool.map(work.tell, [theirs for _, theirs in pairs])) == [1] * 10
        assert list(pool.map(work.tell, [theirs for _, theirs in pairs], chunksize=4)) == [1] * 10
        for ours, _ in pairs:
            assert [told(ours), told(ours)] == ["hello", "hello"]


@pytest.mark.parametrize("method", METHODS)
def test_initargs_arrive(method: str, ends: tuple[Connection, Connection]) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        poolkit.Pool(1, start_method=method, initializer=work.keep, initargs=([ends[1], theirs],)) as pool,
    ):
        assert pool.submit(work.tell_kept).result() == 2
        assert (told(ends[0]), told(ours)) == ("hello", b"hello")


def test_what_a_function_that_goes_by_value_refers_to_arrives(ends: tuple[Connection, Connection]) -> None:
    ours, theirs = socket.socketpair()
    connection = ends[1]
    with ours, theirs, poolkit.Pool(1) as pool:
        pool.submit(lambda number: (connection.send(number), theirs.sendall(b"hello")), 5).result()
        assert (told(ends[0]), told(ours)) == (5, b"hello")
        pool.submit(lambda value: (connection.send(value.held), theirs.sendall(b"hello")), work.Holder(6)).result()
        assert (told(ends[0]), told(ours)) == (6, b"hello")


class Submitting:
    """Submits a call while it is pickled for another."""

    def __init__(self, submit: Callable[[], object], end: Connection) -> None:
        self._submit, self._end = submit, end

    def __reduce__(self) -> Any:
        self._submit()
        return work.Holder, (self._end,)


def test_a_call_that_is_submitted_while_another_is_pickled(ends: tuple[Connection, Connection]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, poolkit.Pool(1) as pool:
        argument = Submitting(lambda: pool.submit(lambda: theirs.sendall(b"hello")), ends[1])
        pool.submit(lambda holder: holder.held.send(7), argument).result()
        assert (told(ends[0]), told(ours)) == (7, b"hello")


def test_broadcast_objects_arrive_once_in_each_worker(ends: tuple[Connection, Connection]) -> None:
    with poolkit.Pool(2, max_tasks_per_child=2) as pool, pool.broadcast({"a": [ends[1]]}) as shared:
        for _ in range(6):
            assert pool.submit(work.tell, shared).result() == 1
            assert told(ends[0]) == "hello"


def test_subclasses_of_connections_and_sockets_arrive_as_what_they_are(pool: poolkit.Pool) -> None:
    """With their attributes; made at any time; what says itself how it is pickled is asked."""

    class Later(work.OwnerConnection):
        pass

    for kind in (work.OwnConnection, work.OwnerConnection, Later):
        ours, theirs = multiprocessing.Pipe()
        end = kind(os.dup(theirs.fileno()))
        theirs.close()
        end.note = "kept"
        with ours, end:
            assert pool.submit(
                lambda held: (held[0].send(held[0].note), type(held[0]).__name__)[1], [end]
            ).result() == (kind.__name__)
            assert told(ours) == "kept"
    plain, other = socket.socketpair()
    with plain, work.OwnSocket(fileno=other.detach()) as own:
        own.note = "kept"
        assert pool.submit(lambda held: (held.sendall(held.note.encode()), type(held).__name__)[1], own).result() == (
            "OwnSocket"
        )
        assert told(plain) == b"kept"
    with work.Stubborn(os.open(os.devnull, os.O_RDWR)) as stubborn:
        assert pool.submit(lambda held: held, [stubborn]).result() == ["its own"]


def test_what_users_register_arrives(pool: poolkit.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reduction.ForkingPickler._extra_reducers, work.Registered, work.reduce_registered)
    for kind in (work.Registered, work.Reducing):
        read, write = os.pipe()
        try:
            assert pool.submit(work.tell, [kind(write)]).result() == 1
            assert os.read(read, 100) == b"hello"
        finally:
            os.close(read)
            os.close(write)


@pytest.mark.parametrize("make", [multiprocessing.Lock, multiprocessing.Queue, multiprocessing.Event])
def test_what_only_an_initializer_may_have_is_refused_as_an_argument(make: Callable[[], Any]) -> None:
    made = make()
    with poolkit.Pool(1) as pool, pytest.raises(poolkit.SerializationError, match="inheritance"):
        pool.submit(work.tell, [made]).result()
    if hasattr(made, "close"):
        made.close()


def test_the_part_that_cannot_be_pickled_is_named_not_a_socket_beside_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, poolkit.Pool(1) as pool:
        error = pool.submit(work.tell, {"a": ours, "b": threading.Lock()}).exception()
    assert isinstance(error, poolkit.SerializationError)
    assert 'args[0]["b"]: _thread.lock' in str(error)


# ===== results =====


def test_connections_and_sockets_are_returned(pool: poolkit.Pool) -> None:
    with closing(pool.submit(work.make_connection, "from there").result()) as end:
        assert told(end) == "from there"
    with closing(pool.submit(work.make_socket, b"from there").result()) as end:
        assert told(end) == b"from there"
    ends = [holder.held for holder in pool.submit(work.make_many, 30).result()["ends"]]
    assert [told(end) for end in ends] == [str(number) for number in range(30)]
    for end in ends:
        end.close()


def test_a_result_that_is_not_read_leaves_no_descriptor(pool: poolkit.Pool) -> None:
    pool.submit(work.tell, 1).result()
    before = work.sockets()
    for _ in range(20):
        task = pool.submit(work.make_many, 3)
        assert task.exception() is None
    del task
    gc.collect()
    support.wait_until(lambda: work.sockets() <= before, "the ends of all pipes to be closed")


def test_what_is_returned_goes_on_to_the_next_task(pool: poolkit.Pool) -> None:
    with closing(pool.submit(work.make_connection, "once").result()) as end:
        back, _ = pool.submit(work.twice, end).result()
        with closing(back):
            assert told(back) == "once"


# ===== copies are closed =====


def test_a_hundred_calls_leave_as_many_descriptors_as_before(pool: poolkit.Pool) -> None:
    ours, theirs = multiprocessing.Pipe()
    with closing(ours), closing(theirs):
        assert pool.submit(work.tell, theirs).result() == 1
        before, theirs_before = work.open_descriptors(), pool.submit(work.open_descriptors).result()
        for task in [pool.submit(work.tell, [theirs, ours][: number % 3 + 1]) for number in range(100)]:
            task.result()
        del task
        support.wait_until(lambda: work.open_descriptors() == before, "the owner's copies to be closed")
        support.wait_until(
            lambda: pool.submit(work.open_descriptors).result() == theirs_before, "the worker's copies to be closed"
        )


def test_the_other_end_hears_of_it_when_a_task_closes_its_end_and_goes_on(
    pool: poolkit.Pool, new_gate: Callable[[], Gate]
) -> None:
    gate = new_gate()
    ours, theirs = multiprocessing.Pipe()
    with closing(ours):
        task = pool.submit(work.close_and_wait, theirs, gate)
        theirs.close()
        support.wait_until(lambda: is_at_end(ours), "the end of the pipe")
        gate.signal()
        assert task.result() == "done"


def test_a_call_that_is_never_made_leaves_nothing(new_gate: Callable[[], Gate]) -> None:
    gate, entered = new_gate(), new_gate()
    pairs = [multiprocessing.Pipe() for _ in range(5)]
    with poolkit.Pool(1) as pool:
        held = pool.submit(work.tell_after, gate, entered, 0)
        entered.wait()
        tasks = [pool.submit(work.tell, theirs) for _, theirs in pairs]  # some are sent ahead
        for _, theirs in pairs:
            theirs.close()
        assert all(task.cancel() for task in tasks)
        gate.signal()
        assert held.result() == 0
        del tasks
        for ours, _ in pairs:
            support.wait_until(lambda ours=ours: is_at_end(ours), "the end of the pipe")
            ours.close()


def test_a_call_that_cannot_be_loaded_leaves_nothing(pool: poolkit.Pool) -> None:
    ours, theirs = multiprocessing.Pipe()
    with closing(ours):
        task = pool.submit(work.tell, [theirs, work.CannotBeLoaded()])
        theirs.close()
        assert isinstance(task.exception(), LookupError)
        support.wait_until(lambda: is_at_end(ours), "the end of the pipe")


def test_a_call_that_cannot_be_pickled_leaves_nothing() -> None:
    ours, theirs = multiprocessing.Pipe()
    with closing(ours), poolkit.Pool(1) as pool:
        task = pool.submit(work.tell, [theirs, (number for number in ())])
        theirs.close()
        assert isinstance(task.exception(), poolkit.SerializationError)
        del task
        gc.collect()
        assert is_at_end(ours)


def test_without_room_for_a_copy_the_call_is_refused(ends: tuple[Connection, Connection]) -> None:
    import resource

    with poolkit.Pool(1) as pool:
        pool.submit(work.tell, 1).result()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            task = pool.submit(work.tell, [ends[1]])
            error = task.exception()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(error, poolkit.SerializationError)
        assert "args[0][0]" in str(error)
        assert "Too many open files" in str(error)
        assert pool.submit(work.tell, [ends[1]]).result() == 1


# ===== more than one run =====


def test_a_task_that_is_retried_has_its_connection_each_time(pool: poolkit.Pool, tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    with closing(ours):
        pool.on("task_started", lambda _event: None)  # so that the worker says when it begins
        retrying = pool.options(retries=5, retry_on=ConnectionError)
        task = retrying.submit(work.tell_at_last, theirs, os.fspath(tmp_path / "tries"), 4)
        theirs.close()
        assert task.result() == 1
        assert told(ours) == "hello"
        support.wait_until(lambda: is_at_end(ours), "the end of the pipe")


def test_a_task_that_is_retried_in_another_worker_has_its_connection_there(pool: poolkit.Pool, tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    with closing(ours):
        retrying = pool.options(retries=5)
        task = retrying.submit(work.die_at_first, theirs, os.fspath(tmp_path / "tries"))
        theirs.close()
        assert task.result() == 1
        assert told(ours) == "hello"
        support.wait_until(lambda: is_at_end(ours), "the end of the pipe")


@pytest.mark.parametrize("retries", [0, 5])
def test_a_worker_that_is_killed_while_it_loads(retries: int, tmp_path: Path) -> None:
    for number in range(faults.scaled(3)):
        ours, theirs = multiprocessing.Pipe()
        with closing(ours), poolkit.Pool(1, retries=retries) as pool:
            task = pool.submit(work.tell, [theirs, work.KillsItsWorker(os.fspath(tmp_path / f"killed-{number}"))])
            theirs.close()
            if retries:
                assert task.result() == 1
                assert told(ours) == "hello"
            else:
                assert isinstance(task.exception(), poolkit.WorkerCrashed)
            support.wait_until(lambda ours=ours: is_at_end(ours), "the end of the pipe")
            assert pool.submit(work.tell, 1).result() == 0


def sockets_of_no_template() -> int:
    """How many sockets are open beside those of the template processes that wait for the next pool, one each."""
    return work.sockets() - len(support.idle_templates())


@pytest.mark.long
def test_random_kills_lose_no_connection(ends: tuple[Connection, Connection]) -> None:
    rng = faults.new_rng()
    count = faults.scaled(300)
    before = sockets_of_no_template()
    with (
        faults.new_pool(2, retries=100, preload=["support_handed_over", "chaos.faults"]) as pool,
        faults.Killer(pool, rng),
    ):
        tasks = [pool.submit(work.twice, [ends[1], number]) for number in range(count)]
        for number, task in enumerate(tasks):
            (end, same), _ = task.result()
            assert same == number
            end.send(number)
            end.close()
            assert told(ends[0]) == number
    del tasks, task
    gc.collect()
    assert sockets_of_no_template() == before


def test_exceptions_come_without_their_connections(ends: tuple[Connection, Connection]) -> None:
    with poolkit.Pool(1) as pool:
        error = pool.submit(work.fail_with, ends[1]).exception()
    assert type(error) is ValueError
    assert error.args == ("what it is",)
    assert error.number == 5  # type: ignore[attr-defined]
    assert "Connection that cannot be pickled" in error.connection  # type: ignore[attr-defined]


def test_a_fake_pool_hands_over_too(ends: tuple[Connection, Connection]) -> None:
    from poolkit.testing import FakePool

    before = work.sockets()
    with FakePool() as pool:
        assert pool.submit(work.tell, [ends[1]]).result() == 1
        assert told(ends[0]) == "hello"
        with closing(pool.submit(work.make_connection, "from there").result()) as end:
            assert told(end) == "from there"
    del end
    gc.collect()
    assert work.sockets() == before


# ===== as with the standard library =====

PROGRAM = text_of(
    """
    import multiprocessing, socket, sys
    from concurrent.futures import ProcessPoolExecutor
    import poolkit

    lines, others = multiprocessing.Pipe()

    class Client:
        def __init__(self, connection, name):
            self.connection, self.name = connection, name

    def answer(client):
        client.connection.sendall(b"hello " + client.name + b"\\n")
        client.connection.close()
        return "answered"

    def report(where, text):
        where["lines"].send(text)

    def open_line():
        ours, theirs = multiprocessing.Pipe()
        theirs.send("from the worker")
        return ours

    if __name__ == "__main__":
        with {"ProcessPoolExecutor": ProcessPoolExecutor, "Pool": poolkit.Pool}[sys.argv[1]](2) as pool:
            with socket.create_server(("127.0.0.1", 0)) as server:
                for name in (b"one", b"two"):
                    with socket.create_connection(server.getsockname()) as caller:
                        accepted, _ = server.accept()
                        print(pool.submit(answer, Client(accepted, name)).result())
                        accepted.close()
                        print(caller.makefile("rb").readline())
            list(pool.map(report, [{"lines": others}] * 2, ["first", "second"]))
            print(sorted([lines.recv(), lines.recv()]))
            print(pool.submit(open_line).result().recv())
            try:
                pool.submit(report, {"lines": multiprocessing.Lock()}, "").result()
            except Exception as exc:
                print("refused")
    """
)


def test_it_is_as_with_the_standard_library(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    seen = []
    for kind in ("ProcessPoolExecutor", "Pool"):
        with Script(python(os.fspath(script), kind)) as running:
            seen.append(running.finish().check())
    assert seen[0] == seen[1]
    assert seen[1][-1] == "refused"


ALONE = text_of(
    """
    import socket, sys
    import poolkit

    def answer(connection):
        connection.sendall(b"hello")
        return connection

    def loaded():
        return "multiprocessing" in sys.modules

    pairs = [socket.socketpair() for _ in range(3)]
    with poolkit.Pool(1) as pool:
        if sys.argv[1] == "argument":
            print(pool.submit(answer, pairs[0][1]).result().getsockname() == "")
            print(pairs[0][0].recv(10))
        elif sys.argv[1] == "closure":
            def over(end):
                return lambda number: end.sendall(b"hello")
            pool.submit(over(pairs[0][1]), 5).result()
            print(pairs[0][0].recv(10))
        else:
            print(pool.submit(loaded).result())
            def make():
                ours, theirs = socket.socketpair()
                ours.sendall(b"hello")
                return theirs
            print(pool.submit(make).result().recv(10))
    """
)


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("argument", ["True", "b'hello'"]),
        ("closure", ["b'hello'"]),
        ("result", ["False", "b'hello'"]),
    ],
)
def test_a_socket_arrives_where_nobody_has_imported_multiprocessing(what: str, lines: list[str]) -> None:
    with Script(python("-c", ALONE, what)) as script:
        assert script.finish().check() == lines
