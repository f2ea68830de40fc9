"""What is said of a worker that was killed, from files as the kernel has them in /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolkit import _os_memory
from poolkit._os_memory import OutOfMemory

MIB = 1 << 20


class Machine:
    """Such files in a folder."""

    def __init__(self, folder: Path, version: int, group: str) -> None:
        self.root, self.proc = folder / "cgroup", folder / "proc"
        self.version = version
        base = self.root / "memory" if version == 1 else self.root
        self.groups = [base.joinpath(*parts) for parts in (["app", "web"], ["app"], [])]
        self.write(
            self.proc / "self" / "cgroup", {1: f"5:cpu:/\n4:memory:{group}\n0::/\n", 2: f"0::{group}\n"}[version]
        )
        self.kills()

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def kills(self, in_group: int = 0, on_machine: int = 0, which: int = 0) -> None:
        counter = {1: "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n", 2: "high 0\nmax 4\noom 2\noom_kill {}\n"}
        name = {1: "memory.oom_control", 2: "memory.events"}[self.version]
        self.write(self.groups[which] / name, counter[self.version].format(in_group))
        self.write(self.proc / "vmstat", f"nr_free_pages 1\noom_kill {on_machine}\n")

    def limit(self, which: int, nbytes: int | str) -> None:
        self.write(self.groups[which] / {1: "memory.limit_in_bytes", 2: "memory.max"}[self.version], f"{nbytes}\n")

    def watch(self) -> OutOfMemory:
        return OutOfMemory(str(self.root), str(self.proc))


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def machine(tmp_path: Path, version: int) -> Machine:
    return Machine(tmp_path, version, "/app/web")


def test_a_kill_in_our_control_group_is_told_with_its_limit(machine: Machine) -> None:
    machine.limit(0, {1: 9223372036854771712, 2: "max"}[machine.version])
    machine.limit(1, 256 * MIB)
    machine.limit(2, 512 * MIB)
    watch = machine.watch()
    machine.kills(1, 1)
    assert watch.explain(200 * MIB, 0.0) == (
        "the kernel's out-of-memory killer ended it, as the 268 MB of its control group were used up: "
        "allow more, let tasks need less, or let fewer run at once"
    )


def test_without_a_limit_it_was_the_machine(machine: Machine) -> None:
    watch = machine.watch()
    machine.kills(1, 1)
    assert "ended it, as the machine's memory was used up" in watch.explain(0, 0.0)


def test_a_kill_in_another_control_group_is_told_as_such(machine: Machine) -> None:
    watch = machine.watch()
    machine.kills(0, 1)
    assert "of another control group" in watch.explain(0, 0.0)


def test_what_was_counted_before_is_not_blamed(machine: Machine) -> None:
    machine.kills(3, 5)
    watch = machine.watch()
    text = "killed from outside poolkit, by a SIGKILL; the kernel counted no out-of-memory kill"
    assert watch.explain(0, 0.0) == text
    machine.kills(4, 6)
    assert "ended it" in watch.explain(0, 1.0)
    assert watch.explain(0, 1.1) == text


def test_kills_that_were_counted_together_explain_as_many_deaths_and_not_for_long(machine: Machine) -> None:
    watch = machine.watch()
    machine.kills(3, 3)
    assert "ended it" in watch.explain(0, 5.0)
    assert "ended it" in watch.explain(0, 5.5)
    assert "counted no" in watch.explain(0, 5.0 + _os_memory.TOGETHER + 0.1)


def test_who_had_nearly_all_of_its_memory_is_told_so(machine: Machine) -> None:
    """Programs that kill before the kernel has to are not counted by it."""
    machine.limit(1, 100 * MIB)
    watch = machine.watch()
    assert watch.near_limit(89 * MIB) == ""
    assert watch.near_limit(90 * MIB) == "it had nearly all of the 105 MB that its control group allows"
    assert watch.explain(95 * MIB, 0.0).endswith("out-of-memory kill, though " + watch.near_limit(95 * MIB))
    machine.write(machine.proc / "self" / "limits", "Max address space\nMax address space unlimited\n")
    assert watch.near_limit(50 * MIB) == ""
    limits = f"Limit   Soft Limit   Hard Limit   Units\nMax address space   {50 * MIB}   unlimited   bytes\n"
    machine.write(machine.proc / "self" / "limits", limits)
    assert watch.near_limit(50 * MIB) == "it had nearly all of the 52 MB that RLIMIT_AS allows"


def test_in_a_container_the_group_is_the_root_of_what_is_seen(tmp_path: Path, version: int) -> None:
    machine = Machine(tmp_path, version, "/docker/0123")
    machine.groups[0].joinpath({1: "memory.oom_control", 2: "memory.events"}[version]).unlink()
    machine.kills(0, 0, which=2)
    machine.limit(2, 64 * MIB)
    watch = machine.watch()
    machine.kills(1, 1, which=2)
    assert "the 67 MB of its control group" in watch.explain(0, 0.0)


def test_a_system_that_tells_nothing_is_not_quoted(tmp_path: Path) -> None:
    watch = OutOfMemory(str(tmp_path), str(tmp_path))
    assert (watch.explain(0), watch.near_limit(1 << 40)) == ("", "")


def test_files_that_make_no_sense_are_no_counts(machine: Machine) -> None:
    machine.write(machine.proc / "self" / "cgroup", "what\n:::\n\xff\n")
    machine.write(machine.proc / "vmstat", "oom_kill\noom_kill x\noom_kill 1 2\n")
    assert machine.watch().explain(0, 0.0) == ""


def test_the_limit_of_this_process_can_be_read() -> None:
    assert OutOfMemory().near_limit(0) == ""
