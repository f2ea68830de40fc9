"""What is said of a worker that was killed, from files as the kernel has them in /proc and /sys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from poolkit._os_memory import FRESH, SETTLED, OutOfMemory

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
        return OutOfMemory(str(self.root), str(self.proc), now=0.0)


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def machine(tmp_path: Path, version: int) -> Machine:
    return Machine(tmp_path, version, "/app/web")


NO_KILL = (
    "not killed by poolkit, but by the task itself, another process or an operator; "
    "the kernel counted no out-of-memory kill"
)


def test_a_kill_in_our_control_group_is_told_with_its_limit(machine: Machine) -> None:
    machine.limit(0, {1: 9223372036854771712, 2: "max"}[machine.version])
    machine.limit(1, 256 * MIB)
    machine.limit(2, 512 * MIB)
    watch = machine.watch()
    machine.kills(1, 1)
    assert watch.explain(3.0) == (
        "in the 3 s before, the kernel's out-of-memory killer ended 1 process of its control group, most likely this "
        "one: the 268 MB of the group were used up; allow more, let tasks need less, or let fewer run at once"
    )


def test_without_a_limit_it_was_the_machine(machine: Machine) -> None:
    watch = machine.watch()
    machine.kills(1, 1)
    assert "most likely this one: the machine's memory was used up" in watch.explain(0.0)


def test_a_kill_in_another_control_group_is_told_as_such(machine: Machine) -> None:
    watch = machine.watch()
    machine.kills(0, 2)
    assert watch.explain(3.0) == (
        "in the 3 s before, the kernel's out-of-memory killer ended 2 processes on the machine, perhaps this one; "
        "if not, the task itself, another process or an operator did"
    )


def test_what_a_group_above_ours_counts_is_another_groups(tmp_path: Path) -> None:
    """Where ours does not count memory; theirs has the kills of all below it."""
    machine = Machine(tmp_path, 2, "/app/web")
    (machine.groups[0] / "memory.events").unlink()
    machine.kills(0, 0, which=1)
    watch = machine.watch()
    machine.kills(1, 1, which=1)
    assert "1 process on the machine, perhaps this one" in watch.explain(1.0)


def test_what_was_counted_before_is_not_blamed(machine: Machine) -> None:
    machine.kills(3, 5)
    watch = machine.watch()
    assert watch.explain(0.0) == NO_KILL
    machine.kills(4, 6)
    assert "most likely this one" in watch.explain(1.0)
    assert watch.explain(1.1) == NO_KILL


def test_a_kill_that_was_seen_a_while_before_the_death_is_not_blamed(machine: Machine) -> None:
    """It was another process, as a program that a task had started: the worker lived on."""
    watch = machine.watch()
    machine.kills(1, 1)
    watch.look(10.0)
    assert watch.explain(10.0 + SETTLED) == NO_KILL


def test_a_kill_that_was_seen_just_before_the_death_was_known_is_told(machine: Machine) -> None:
    """The kernel counts first, and a large process takes its time to end."""
    watch = machine.watch()
    for second in range(100):
        watch.look(float(second))
    machine.kills(1, 1)
    watch.look(100.0)
    assert "in the 5 s before" in watch.explain(100.1)


def test_a_kill_in_a_long_time_is_told_with_that_time_and_a_doubt(machine: Machine) -> None:
    watch = machine.watch()
    machine.kills(1, 1)
    text = watch.explain(3600.0)
    assert text.startswith("in the 3600 s before, the kernel's out-of-memory killer ended 1 process of its control gr")
    assert "perhaps this one" in text
    assert FRESH < 3600


def test_kills_that_were_counted_together_explain_as_many_deaths_and_not_for_long(machine: Machine) -> None:
    watch = machine.watch()
    machine.kills(3, 3)
    assert "ended 3 processes" in watch.explain(5.0)
    watch.look(5.1)
    assert "ended 2 processes" in watch.explain(5.5)
    watch.look(6.0)
    assert watch.explain(6.0 + SETTLED) == NO_KILL


def test_in_a_container_the_group_is_the_root_of_what_is_seen(tmp_path: Path, version: int) -> None:
    machine = Machine(tmp_path, version, "/docker/0123")
    shutil.rmtree(machine.groups[1])
    machine.kills(0, 0, which=2)
    machine.limit(2, 64 * MIB)
    watch = machine.watch()
    machine.kills(1, 1, which=2)
    assert "the 67 MB of the group" in watch.explain(0.0)


def test_a_system_that_tells_nothing_is_not_quoted(tmp_path: Path) -> None:
    assert OutOfMemory(str(tmp_path), str(tmp_path)).explain() == ""


def test_files_that_make_no_sense_are_no_counts(machine: Machine) -> None:
    machine.write(machine.proc / "self" / "cgroup", "what\n:::\n\xff\n")
    machine.write(machine.proc / "vmstat", "oom_kill\noom_kill x\noom_kill 1 2\n")
    assert machine.watch().explain(0.0) == ""
