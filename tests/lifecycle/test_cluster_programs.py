"""Clusters as programs have them: signals, exit codes, owners that are killed, fork, end, or lack descriptors."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path

import pytest

import support_clusters as work
from lifecycle.scripts import Script, running
from support import wait_until

pytestmark = pytest.mark.slow

HEAD = f"""
import logging, os, signal, sys, threading
sys.path.insert(0, {str(Path(work.__file__).parent)!r})
import poolkit
import support_clusters as work

logging.basicConfig(level=logging.INFO, format="%(message)s")

def cluster(target=work.talk, workers=2, bind="127.0.0.1:0", **settings):
    made = poolkit.Cluster(target, workers, bind, **settings)
    port = made.address[1] if made.address else 0
    print(port, flush=True)
    return made
"""
RUN = HEAD + "sys.exit(cluster({}).run())"


def address_of(script: Script) -> tuple[str, int]:
    return "127.0.0.1", int(script.read_lines(1)[0])


def wait_until_served(address: tuple[str, int], workers: int = 2) -> None:
    """Wait until so many answer."""
    found: set[int] = set()

    def looks() -> bool:
        found.add(work.who(address).worker_id)
        return len(found) >= workers

    wait_until(looks, "workers to serve")


def texts(script: Script) -> tuple[int, str]:
    ended = script.finish()
    return ended.code, ended.err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_it(name: str) -> None:
    with running(RUN.format("schedule='round_robin', name='shop'")) as script:
        address = address_of(script)
        wait_until_served(address)
        with work.Client(address) as client:
            client.who()
            script.process.send_signal(getattr(signal, name))
            code, err = texts(script)
        assert code == 0, err
        assert "worker=1 gen=1 pid=" in err
        assert "ready after" in err
        assert "Traceback" not in err
        script.wait_until_gone()
        assert work.is_refused(address)


@pytest.mark.parametrize("names", [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGQUIT",)])
def test_a_second_signal_kills(names: tuple[str, ...]) -> None:
    source = (
        HEAD + "c = cluster(work.deaf_and_tell, grace=600)\nc.on('worker_ready', lambda _: print('up', flush=True))\n"
    )
    source += "c.on_message(lambda *_: print('told', flush=True))\n"
    with running(source + "sys.exit(c.run())") as script:
        script.read_lines(3)
        for place, name in enumerate(names):
            if place:  # two of a kind that are pending are one
                script.read_lines(1)
            script.process.send_signal(getattr(signal, name))
        code, err = texts(script)
        assert code == 0, err
        script.wait_until_gone()


def test_a_group_that_gets_ctrl_c_stops_orderly() -> None:
    """A terminal sends it to the workers, too, which leave it to the owner."""
    source = RUN.format("schedule='round_robin'")
    with running(source, terminal=True) as script:
        script.wait_for_text("ready after", 2)
        address = "127.0.0.1", int(script.screen.split()[0])
        assert work.who(address).generation == 1
        script.press_ctrl_c()
        ended = script.finish()
        assert ended.code == 0, ended.out
        assert "Traceback" not in ended.out
        assert ended.out.count("has ended (stopped)") == 2


def test_other_signals() -> None:
    with running(RUN.format("schedule='round_robin'")) as script:
        address = address_of(script)
        wait_until_served(address)
        script.process.send_signal(signal.SIGHUP)
        wait_until(lambda: work.who(address).generation == 2)
        script.process.send_signal(signal.SIGTTIN)
        wait_until_served(address, 3)

        def shrinks() -> bool:  # one is left, however often
            script.process.send_signal(signal.SIGTTOU)
            return {work.who(address).worker_id for _ in range(4)} == {0}

        wait_until(shrinks, "one worker to be left")
        script.process.send_signal(signal.SIGTTOU)
        script.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: work.who(address).generation == 2)
        script.process.send_signal(signal.SIGTERM)
        code, err = texts(script)
        assert code == 0, err
        assert "gen=2 serves, with 2 workers" in err
        assert "ready for" in err  # the table
        assert "Traceback" not in err


def test_many_reloads_are_few() -> None:
    with running(RUN.format("schedule='round_robin'")) as script:
        address = address_of(script)
        wait_until_served(address)
        with work.Load(address) as load:
            for _ in range(20):
                script.process.send_signal(signal.SIGHUP)
                assert work.who(address).generation
            wait_until(lambda: work.who(address).generation >= 3)
        script.process.send_signal(signal.SIGTERM)
        code, err = texts(script)
        assert code == 0, err
        assert load.failures == []
        assert err.count("serves, with 2 workers") <= 20


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [("work.raise_at_once", 3, "no database"), ("work.die_at_once", 3, "SIGKILL")],
)
def test_the_exit_code_of_a_first_start_that_fails(target: str, code: int, said: str) -> None:
    with running(RUN.format(target)) as script:
        address = address_of(script)
        found, err = texts(script)
        assert found == code, err
        assert said in err
        assert "has failed in its first start" in err
        assert work.is_refused(address)
        script.wait_until_gone()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT"])
def test_a_signal_before_it_is_up(name: str) -> None:
    source = HEAD + "c = cluster()\nos.kill(os.getpid(), signal.SIG_DFL)\nbegin = c._begin\n"
    source += f"c._begin = lambda: (os.kill(os.getpid(), signal.{name}), begin())\nsys.exit(c.run())"
    with running(source) as script:
        address = address_of(script)
        code, err = texts(script)
        assert code == 0, err
        assert "Traceback" not in err
        assert work.is_refused(address)


def test_handlers_are_put_back() -> None:
    source = (
        HEAD
        + """
names = "SIGTERM SIGINT SIGHUP SIGQUIT SIGUSR1 SIGTTIN SIGTTOU".split()
before = [signal.getsignal(getattr(signal, name)) for name in names]
c = cluster(kind="thread")
c.on("worker_ready", lambda _: os.kill(os.getpid(), signal.SIGTERM))
assert c.run() == 0
assert before == [signal.getsignal(getattr(signal, name)) for name in names]
"""
    )
    with running(source) as script:
        code, err = texts(script)
        assert code == 0, err


# ===== owners =====

UP = HEAD + "c = cluster({})\nc.start()\nprint('up', flush=True)\n"


@pytest.mark.parametrize("settings", ["", "schedule='least_busy'", "start_method='fork'", "target=work.deaf"])
def test_nobody_outlives_an_owner_that_is_killed(settings: str) -> None:
    with running(UP.format(settings) + "signal.pause()") as script:
        address = address_of(script)
        script.read_lines(1)
        with work.Client(address) as client:
            if "deaf" not in settings:
                client.who()
            script.kill()
            script.wait_until_gone()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(address)
            again.listen()


def test_one_that_runs_at_the_end_of_the_interpreter_is_killed() -> None:
    with running(UP.format("work.deaf, grace=600")) as script:
        address = address_of(script)
        code, err = texts(script)
        assert code == 0, err
        script.wait_until_gone()
        assert work.is_refused(address)


def test_an_exception_in_the_block_stops_it() -> None:
    with running(HEAD + "with cluster(): raise SystemExit(7)") as script:
        address = address_of(script)
        assert texts(script)[0] == 7
        script.wait_until_gone()
        assert work.is_refused(address)


@pytest.mark.parametrize("schedule", ["kernel", "round_robin"])
def test_a_forked_child_of_the_owner(schedule: str) -> None:
    source = (
        UP.format(f"schedule={schedule!r}")
        + """
import socket
pid = os.fork()
if not pid:
    for call in (c.start, c.reload, lambda: c.resize(3), lambda: c.send(1), c.workers, c.stats, c.run, c.wait,
                 lambda: c.on_message(print)):
        try:
            call()
        except poolkit.PoolClosed as exc:
            assert "forked" in str(exc), exc
        else:
            os._exit(5)
    c.stop()
    os.write(1, b"child\\n")  # a print would be two writes, between which the other's may come
    signal.pause()
os.write(1, f"{pid}\\n".encode())
input()
c.stop()
print("stopped", flush=True)
"""
    )
    with running(source) as script:
        address = address_of(script)
        script.read_lines(1)
        lines = script.read_lines(2)
        assert "child" in lines
        child = next(int(line) for line in lines if line.isdigit())
        assert work.who(address).generation == 1
        script.write_line()
        assert script.read_lines(1) == ["stopped"]
        assert work.is_refused(address)  # although the child lives
        os.kill(child, signal.SIGKILL)
        code, err = texts(script)
        assert code == 0, err


def test_the_owner_lacks_descriptors_while_it_passes() -> None:
    source = (
        UP.format("schedule='round_robin'")
        + """
import resource
free = os.dup(0)
os.close(free)
for line in sys.stdin:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free if "lack" in line else limits[1], limits[1]))
    print(line.strip(), flush=True)
c.stop()
"""
    )
    with running(source) as script:
        address = address_of(script)
        script.read_lines(1)
        assert work.who(address).generation == 1
        for _ in range(2):
            script.write_line("lack")
            script.read_lines(1)
            with work.Client(address) as first, work.Client(address) as second:
                first.say("who")
                assert not select.select([first.socket], [], [], 0.3)[0]
                script.write_line("has")
                script.read_lines(1)
                assert first.hear().split()[1] == "1"
                assert second.who().generation == 1
        assert script.process.stdin is not None
        script.process.stdin.close()
        script.process.stdin = None
        code, err = texts(script)
        assert code == 0, err
        assert err.count("connections wait in the kernel") == 1
        assert "ulimit -n" in err
        assert "Traceback" not in err


def test_a_hung_schedule_does_not_keep_it_from_stopping() -> None:
    with running(UP.format("schedule=lambda *_: threading.Event().wait()") + "input()\nc.stop()") as script:
        address = address_of(script)
        script.read_lines(1)
        with work.Client(address):
            script.write_line()
            code, err = texts(script)
        assert code == 0, err
