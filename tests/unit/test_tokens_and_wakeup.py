"""The seam to the system: tokens, wake-ups, pages and facts, with the fallbacks of other systems forced too."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit import _os, _os_processes
from poolkit._os import Tokens, Wakeup
from support import WATCHDOG, wait_until


@pytest.fixture(params=["eventfd", "pipe"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the counters are made of."""
    if request.param == "eventfd" and not _os._HAS_EVENTFD:
        pytest.skip("no eventfd here")
    monkeypatch.setattr(_os, "_HAS_EVENTFD", request.param == "eventfd")
    return str(request.param)


@pytest.fixture
def tokens(means: str) -> Iterator[tuple[Tokens, Tokens]]:
    """The owner's and the worker's side of one counter."""
    owner = Tokens()
    worker = Tokens(os.dup(owner.fileno()))
    yield owner, worker
    owner.close()
    worker.close()


# ===== tokens =====


def add(owner: Tokens, count: int) -> None:
    os.write(owner.write_fd, owner.of(count))


def taken(owner: Tokens) -> int:
    found: list[Any] = []
    owner.take_all(found)
    return len(found)


def test_there_is_none_before_one_is_added(tokens: tuple[Tokens, Tokens]) -> None:
    owner, worker = tokens
    assert not worker.take()
    assert not owner.take()
    assert taken(owner) == 0


def test_each_token_goes_to_one_side(tokens: tuple[Tokens, Tokens]) -> None:
    owner, worker = tokens
    add(owner, 5)
    assert [worker.take(), owner.take(), worker.take()] == [True] * 3
    assert taken(owner) == 2
    assert not worker.take()
    add(owner, 1)
    add(owner, 2)
    assert [worker.take() for _ in range(4)] == [True, True, True, False]


def test_many_tokens_and_two_takers(tokens: tuple[Tokens, Tokens]) -> None:
    owner, worker = tokens
    theirs = [0]

    def take() -> None:
        while worker.take():
            theirs[0] += 1

    add(owner, 2000)
    thread = threading.Thread(target=take)
    thread.start()
    mine = taken(owner)
    thread.join()
    assert mine + theirs[0] == 2000


def test_closing_tokens_twice_is_fine(tokens: tuple[Tokens, Tokens]) -> None:
    owner, _ = tokens
    owner.close()
    owner.close()


def test_taking_where_the_counter_was_closed_is_an_error(tokens: tuple[Tokens, Tokens]) -> None:
    """As in a worker whose task closed every descriptor: it must not look like a reclaim."""
    _, worker = tokens
    worker.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        worker.take()


# ===== wake-ups =====


@pytest.fixture
def wakeup(means: str) -> Iterator[Wakeup]:
    """A wake-up of either sort."""
    wakeup = Wakeup()
    yield wakeup
    wakeup.close()


def is_readable(wakeup: Wakeup) -> bool:
    return bool(select.select([wakeup.fileno()], [], [], 0)[0])


def test_a_wakeup_stays_set_until_it_is_cleared(wakeup: Wakeup) -> None:
    assert not is_readable(wakeup)
    wakeup.set()
    wakeup.set()
    assert is_readable(wakeup)
    wakeup.clear()
    assert not is_readable(wakeup)
    wakeup.clear()
    wakeup.set()
    assert is_readable(wakeup)


def test_setting_never_blocks_however_often(wakeup: Wakeup) -> None:
    for _ in range(20_000):
        wakeup.set()
    wakeup.clear()
    assert not is_readable(wakeup)
    wakeup.set()
    assert is_readable(wakeup)


def test_setting_a_closed_one_is_ignored(wakeup: Wakeup) -> None:
    wakeup.close()
    wakeup.close()
    wakeup.set()


def test_a_wakeup_reaches_a_thread_that_waits(wakeup: Wakeup) -> None:
    thread = threading.Thread(target=select.select, args=([wakeup.fileno()], [], []))
    thread.start()
    wakeup.set()
    thread.join()


# ===== pages =====


@pytest.mark.parametrize("linux", [True, False])
def test_a_page_is_zeroed_and_has_no_name(linux: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_os, "LINUX", linux and _os.LINUX)
    fd = _os.shared_page(4096)
    try:
        assert os.pread(fd, 5000, 0) == bytes(4096)
        assert not os.get_inheritable(fd)
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


# ===== facts =====


def quota(tmp_path: Path, files: dict[str, str], listed: str = "1:cpuacct,cpu:/a/b\n0::/a/b\n") -> float | None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="ascii")
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(listed, encoding="ascii")
    return _os._cgroup_quota(str(tmp_path), str(proc))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu.max": "\n"}, None),
        ({"cpu.max": "100 0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "50000\n"}, None),
    ],
)
def test_the_control_groups_quota(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert quota(tmp_path, files) == expected


@pytest.mark.parametrize("listed", ["", "4:memory:/x\n", "1:name=systemd:/\n"])
@pytest.mark.parametrize(
    "files",
    [{"cpu.max": "150000 100000\n"}, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}],
    ids=["version 2", "version 1"],
)
def test_the_roots_quota_counts_whatever_is_listed(tmp_path: Path, files: dict[str, str], listed: str) -> None:
    assert quota(tmp_path, files, listed) == 1.5


@pytest.mark.parametrize(("allowed", "expected"), [(None, 8), (2.0, 2), (0.3, 1), (100.0, 8), (2.6, 3)])
def test_the_cpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch, allowed: float | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.setattr(_os, "_cgroup_quota", lambda: allowed)
    assert _os.usable_cpus() == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [("1", 8), ("2", 4), ("3", 2), ("8", 1), ("9", 1), ("007", 1), ("999999999", 1)]
    + [(nonsense, 8) for nonsense in ("", "0", "-2", "2.0", " 2", "1_0", "two", "\u0662", "9" * 5000, "\udcff")],
)
def test_the_cpus_that_a_worker_of_a_cluster_may_use(
    monkeypatch: pytest.MonkeyPatch, share: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.setattr(_os, "_cgroup_quota", lambda: None)
    monkeypatch.setenv("POOLKIT_SHARE", share)
    assert poolkit.usable_cpus() == expected


def test_the_cpus_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(_os, "_cgroup_quota", lambda: None)
    assert _os.usable_cpus() == 1


def test_resident_memory() -> None:
    mine = _os.resident_bytes()
    assert mine is not None
    assert mine > 1_000_000
    assert _os.resident_bytes(os.getpid()) is not None
    assert _os.resident_bytes(2**30) is None


def test_a_process_that_is_ending_is_told_from_one_that_lives() -> None:
    """One that has ended and was not reaped is ending too, and so is one that cannot be looked at."""
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    assert not _os.is_ending(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert _os.is_ending(pid)
    os.waitpid(pid, 0)
    assert _os.is_ending(pid)
    assert _os.is_ending(2**30)


def test_names_of_signals() -> None:
    assert _os.signal_name(signal.SIGSEGV) == "SIGSEGV"
    assert _os.signal_name(_os.STACK_SIGNAL).startswith(("signal ", "SIG"))
    assert _os.signal_name(9999) == "signal 9999"


@pytest.mark.parametrize(("platform", "expected"), [("linux", 2048), ("darwin", 2)])
def test_peak_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch, platform: str, expected: int) -> None:
    monkeypatch.setattr("sys.platform", platform)
    assert _os.peak_bytes(2) == expected


def test_a_group_that_is_not_there_is_killed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has not made its group yet is killed alone; one that is gone, not at all."""
    calls = []

    def gone(pid: int, number: int) -> None:
        calls.append((pid, number))
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", gone)
    monkeypatch.setattr(os, "kill", gone)
    _os_processes.kill_group(12345, signal.SIGKILL)
    assert calls == [(12345, signal.SIGKILL)] * 2


def test_closing_what_is_no_descriptor_is_fine() -> None:
    _os.close_fd(-1)
    read, write = os.pipe()
    for fd in (read, write, write):
        _os.close_fd(fd)


def test_a_number_is_not_given_away_while_somebody_is_about_to_write_to_it(
    means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who gets that number next gets eight bytes that were not meant for him."""
    wakeup, about_to_write, may_write, write = Wakeup(), threading.Event(), threading.Event(), os.write
    fds = wakeup.both()

    def held_up(fd: int, data: bytes) -> int:
        about_to_write.set()
        may_write.wait(WATCHDOG)
        return write(fd, data)

    monkeypatch.setattr(os, "write", held_up)
    monkeypatch.setattr(_os, "_LOOKS", 1_000_000)
    setter, closer = threading.Thread(target=wakeup.set), threading.Thread(target=wakeup.close)
    setter.start()
    assert about_to_write.wait(WATCHDOG)
    closer.start()
    wait_until(lambda: wakeup.fileno() == -1, "the end to begin")
    for fd in fds:
        os.fstat(fd)
    may_write.set()
    setter.join()
    closer.join()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    wakeup.set()
