"""All pools of a process that want the same template process share one, and otherwise notice nothing of each other.

Longer than most: what may differ between two pools, and what may befall the process they share, is one case each.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import poolkit
import support
import support_functions as work
from chaos.faults import template_pid, worker_pids
from lifecycle.scripts import Script, run, running
from poolkit._spawn import registry, templates
from poolkit._spawn.key import is_open
from poolkit._spawn.launch import FORKING
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    """Begin without a template process, and leave none."""
    registry.end_all()
    yield
    registry.end_all()


def use(pool: poolkit.Pool) -> int:
    """Have a pool do something; its template process."""
    assert pool.submit(work.square, 3).result() == 9
    return template_pid(pool)


def use_new(max_workers: int = 1) -> int:
    """The template process of a pool that is over."""
    with poolkit.Pool(max_workers) as pool:
        return use(pool)


def stop(template: int, pool: poolkit.Pool) -> None:
    """Stop a template process that has carried out all that this pool has told it."""
    workforce = pool._supervisor.workforce
    support.wait_until(lambda: not workforce._asked)  # type: ignore[attr-defined]
    os.kill(template, signal.SIGSTOP)
    os.waitid(os.P_PID, template, os.WSTOPPED | os.WNOWAIT)


def open_pipes(pid: int) -> set[str]:
    """The pipes and sockets that a process holds."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.fspath(path.readlink())
            if target.startswith(("pipe:", "socket:")):
                found.add(target)
    return found


def children(pid: int) -> list[int]:
    """The processes that a process of one thread has started, and not waited for."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


# ===== who shares =====


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_pools_at_once_and_one_after_another_share_one(method: str) -> None:
    with poolkit.Pool(1, start_method=method) as first, poolkit.Pool(2, start_method=method) as second:
        template = use(first)
        assert use(second) == template
    with poolkit.Pool(3, start_method=method) as third:
        assert use(third) == template


def test_pools_that_start_at_the_same_moment_share_one() -> None:
    together = threading.Barrier(8)
    found = []

    def start() -> None:
        with poolkit.Pool(1) as pool:
            together.wait()
            found.append(use(pool))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.long
def test_a_start_by_fork_is_shared_with_nobody() -> None:
    with poolkit.Pool(1, start_method="fork") as first:
        template = use(first)
        with poolkit.Pool(1, start_method="fork") as second:
            assert use(second) != template
    assert support.idle_templates() == []


def change_environment() -> Callable[[], object]:
    os.environ["SHARING"] = "changed"
    return lambda: os.environ.pop("SHARING")


def take_from_environment() -> Callable[[], object]:
    before = os.environ.pop("HOME")
    return lambda: os.environ.update(HOME=before)


def change_directory() -> Callable[[], object]:
    before = Path.cwd()
    os.chdir("/")
    return lambda: os.chdir(before)


def change_mask() -> Callable[[], object]:
    before = os.umask(0o077)
    return lambda: os.umask(before)


def change_limit() -> Callable[[], object]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def change_affinity() -> Callable[[], object]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    return lambda: os.sched_setaffinity(0, before)


def inherited() -> tuple[object, ...]:
    """What a process has of the one that started it."""
    mask = os.umask(0)
    os.umask(mask)
    return (
        os.environ.get("SHARING"),
        os.environ.get("HOME"),
        Path.cwd(),
        mask,
        resource.getrlimit(resource.RLIMIT_NOFILE),
        os.sched_getaffinity(0),
    )


@pytest.mark.parametrize(
    "change",
    [
        change_environment,
        take_from_environment,
        change_directory,
        change_mask,
        change_limit,
        pytest.param(
            change_affinity,
            marks=pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is one CPU, which it has"),
        ),
    ],
    ids=lambda fn: fn.__name__,
)
def test_what_was_changed_between_two_pools_holds_for_the_second(change: Callable[[], Callable[[], object]]) -> None:
    first = use_new()
    undo = change()
    try:
        with poolkit.Pool(1) as pool:
            assert pool.submit(inherited).result() == inherited()
            assert (template_pid(pool) == first) == (change is not change_affinity), "each worker is told the rest"
    finally:
        undo()
    with poolkit.Pool(1) as pool:
        assert pool.submit(inherited).result() == inherited()
        assert template_pid(pool) == first


def test_workers_of_pools_of_different_sizes_have_their_own_share_of_the_cpus() -> None:
    cpus = len(os.sched_getaffinity(0))
    found = []
    for size in (1, cpus):
        with poolkit.Pool(size) as pool:
            found.append(pool.submit(work.environment, "OMP_NUM_THREADS").result())
            use(pool)
    assert found == [str(cpus), "1"]
    assert len(support.idle_templates()) == 1


def test_what_no_pool_has_is_kept_for_the_last_kinds_only() -> None:
    found = []
    for value in ("1", "2", "3", "4"):
        with poolkit.Pool(1, env={"POOLKIT_TEST_SHARING": value}) as pool:
            found.append(use(pool))
    assert [template.pid for template in support.idle_templates()] == found[-registry.MOST_IDLE :]
    support.wait_for_exit(*found[: -registry.MOST_IDLE])


def test_what_was_started_for_pools_that_are_there_is_kept_for_them() -> None:
    """And when they are not there any more, for the last kinds only."""
    pools = [poolkit.Pool(1, env={"POOLKIT_TEST_SHARING": str(value)}) for value in range(2 * registry.MOST_IDLE)]
    started = [template.pid for template in support.idle_templates()]
    used = pools[: -registry.MOST_IDLE]
    assert [use(pool) for pool in used] == started[: len(used)]
    for pool in pools:
        pool.shutdown()
    assert len(support.idle_templates()) == registry.MOST_IDLE


# ===== when it starts =====


def test_it_starts_with_the_pool_that_will_use_it() -> None:
    with poolkit.Pool(1) as pool:
        (template,) = support.idle_templates()
        assert use(pool) == template.pid


def test_a_pool_that_is_made_in_the_middle_of_a_fork_starts_none_yet() -> None:
    """By a finalizer or a signal handler, which interrupted whoever holds the lock."""
    with FORKING:
        pool = poolkit.Pool(1)
    with pool:
        assert support.idle_templates() == []
        use(pool)


@pytest.mark.parametrize("preload", [(), ("has_a_pool",)])
def test_a_module_with_a_pool_starts_none_in_workers_and_templates(
    preload: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a preload of its own each template would start the next, without end, were it not for its first use."""
    text = f"""
        import poolkit
        from poolkit._spawn import registry
        pool = poolkit.Pool(1, preload={preload!r})
        def idle():
            return len(registry._templates)
        def of_its_own():
            with pool:
                return pool.submit(abs, -3).result()
        """
    (tmp_path / "has_a_pool.py").write_text(textwrap.dedent(text), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("has_a_pool")
    try:
        with module.pool as pool:
            assert pool.submit(module.idle).result() == 0
            assert children(template_pid(pool)) == worker_pids(pool)
            assert pool.submit(module.of_its_own).result() == 3
    finally:
        del sys.modules["has_a_pool"]


def test_nothing_is_inherited_but_the_standard_streams() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    target = os.fspath(Path(f"/proc/self/fd/{write}").readlink())
    try:
        with poolkit.Pool(1) as pool:
            template = use(pool)
            assert target not in open_pipes(template) | open_pipes(worker_pids(pool)[0])
    finally:
        os.close(read)
        os.close(write)


def inheritable() -> list[int]:
    """Descriptors that programs would get, but for the standard streams."""
    return [fd for fd in range(3, 200) if is_open(fd) and os.get_inheritable(fd)]


def test_a_stray_descriptor_above_a_lowered_limit_hinders_no_start() -> None:
    source = """
        import os, resource
        import poolkit

        os.dup2(1, 600, inheritable=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with poolkit.Pool(1) as pool:
            print(pool.submit(abs, -1).result())
        """
    assert run(source) == ["1"]


def test_an_environment_that_cannot_be_set_is_told_by_the_tasks() -> None:
    with poolkit.Pool(1, env={"POOLKIT_TEST_SHARING": chr(0xD800)}) as pool:
        assert isinstance(pool.submit(work.square, 3).exception(), poolkit.WorkerCrashed)


def test_a_search_path_of_odd_strings_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(str):
        __slots__ = ()

    monkeypatch.setattr(sys, "path", [*sys.path, Odd("/odd")])
    with poolkit.Pool(1) as pool:
        use(pool)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_programs_that_a_task_starts_have_nothing_of_its_worker(method: str) -> None:
    with poolkit.Pool(1, start_method=method) as pool:
        assert pool.submit(inheritable).result() == []
        command = "ls -l /proc/self/fd | grep -c -e pipe: -e socket: -e memfd: -e eventfd"
        streams = sum(os.fspath(Path(f"/proc/self/fd/{fd}").readlink()).startswith(("pipe", "socket")) for fd in (1, 2))
        counted = pool.submit(work.output_of, command).result()
    assert int(counted) <= streams + 2  # the pipe behind `ls`, and that of its output


@pytest.mark.parametrize(("flags", "optimize"), [([], 0), (["-O"], 1)])
def test_workers_have_the_flags_of_the_owner(flags: list[str], optimize: int) -> None:
    task = "pool.submit(eval, '__import__(\\'sys\\').flags.optimize')"
    source = f"import poolkit\nwith poolkit.Pool(1) as pool: print({task}.result())"
    with Script([sys.executable, *flags, "-c", source], env={"PYTHONOPTIMIZE": ""}) as script:
        assert script.finish().check() == [str(optimize)]


# ===== what is each pool's own =====


def test_the_end_of_one_pool_ends_its_workers_alone(new_gate: Callable[[], Gate], journal: Journal) -> None:
    """With the programs that they started."""
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(1) as first, poolkit.Pool(1) as second:
        kept = second.submit(work.arrive_and_wait, arrived, release, "kept")
        arrived.wait()
        first.submit(work.start_program, arrived, journal)
        arrived.wait()
        program = int(journal.lines()[0])
        (worker,) = worker_pids(first)
        template = template_pid(second)
        first.shutdown(kill=True)
        assert not support.is_alive(worker)
        support.wait_for_exit(program)
        release.signal()
        assert kept.result() == "kept"
        assert template_pid(second) == template
        assert second.stats().crashed == 0


def test_a_worker_holds_nothing_of_another_pool() -> None:
    with poolkit.Pool(1) as first, poolkit.Pool(1) as second:
        template = use(first)
        use(second)
        (one,), (other,) = worker_pids(first), worker_pids(second)
        streams = {os.fspath(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (1, 2)}
        assert not open_pipes(one) & open_pipes(other) - streams
        assert not open_pipes(one) & open_pipes(template) - streams
        third = poolkit.Pool(1)
        with third:
            use(third)
            assert not open_pipes(worker_pids(third)[0]) & (open_pipes(one) | open_pipes(template)) - streams


def test_an_idle_template_holds_next_to_nothing() -> None:
    template = use_new()
    null = {os.fspath(Path(f"/proc/{template}/fd/{fd}").readlink()) for fd in (0, 1, 2)}
    assert null == {os.devnull}
    support.wait_until(lambda: len(open_pipes(template)) == 2)  # its root socket, and its own wake-up pipe


def test_output_goes_where_the_owner_had_it_when_the_pool_started() -> None:
    """And who waits for the end of a pipe that a pool wrote to does not wait for the template process."""
    lines = run(
        """
        import os
        import poolkit
        from poolkit._spawn import registry

        def into_a_pipe():
            read, write = os.pipe()
            before = os.dup(1)
            os.dup2(write, 1)
            os.close(write)
            try:
                with poolkit.Pool(1) as pool:
                    pool.submit(os.system, "echo program").result()
                    pool.submit(print, "task").result()
            finally:
                os.dup2(before, 1)
                os.close(before)
            with open(read) as file:
                return file.read()

        with poolkit.Pool(1) as outer:
            outer.submit(print, "first").result()
            print(repr(into_a_pipe()), repr(into_a_pipe()), flush=True)
            outer.submit(print, "second").result()
        with poolkit.Pool(1) as pool:
            pool.submit(print, "third").result()
        print(len(registry._templates))
        """
    )
    assert sorted(lines) == sorted(["first", r"'program\ntask\n' 'program\ntask\n'", "second", "third", "1"])


def test_a_pool_that_is_stuck_in_a_callback_keeps_no_other_waiting(new_gate: Callable[[], Gate]) -> None:
    stuck, release = threading.Event(), threading.Event()
    with poolkit.Pool(1) as first, poolkit.Pool(1) as second:

        def hold(_task: object) -> None:
            stuck.set()
            release.wait()

        first.submit(work.square, 2).add_done_callback(hold)
        stuck.wait()
        try:
            for _ in range(3):
                assert isinstance(second.submit(work.die).exception(), poolkit.WorkerCrashed)
            use(second)
        finally:
            release.set()


# ===== what goes wrong =====


def test_two_pools_go_on_when_their_template_is_killed(new_gate: Callable[[], Gate]) -> None:
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(1) as first, poolkit.Pool(1) as second:
        tasks = [pool.submit(work.arrive_and_wait, arrived, release) for pool in (first, second)]
        arrived.wait(2)
        template = template_pid(first)
        workers = worker_pids(first) + worker_pids(second)
        os.kill(template, signal.SIGKILL)
        for task in tasks:
            error = task.exception()
            assert isinstance(error, poolkit.WorkerCrashed)
            assert "was killed by SIGKILL" in str(error)
        support.wait_for_exit(*workers)
        new = use(first)
        assert new != template
        assert use(second) == new


def test_two_pools_go_on_when_their_template_hangs(
    new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkit._spawn.templates.ANSWER_GRACE", 0.2)
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(1) as first, poolkit.Pool(1) as second:
        task = second.submit(work.arrive_and_wait, arrived, release)
        arrived.wait()
        template = use(first)
        os.kill(template, signal.SIGSTOP)
        with pytest.raises(poolkit.TaskTimeout):
            first.options(timeout=0.1).submit(work.spin).result()
        assert "did not answer" in str(task.exception())
        new = use(first)
        assert new != template
        assert use(second) == new


def test_a_template_that_died_while_idle_is_replaced() -> None:
    template = use_new()
    os.kill(template, signal.SIGKILL)
    with poolkit.Pool(1) as pool:
        assert use(pool) != template
        assert pool.stats().crashed == 0


def test_a_template_that_somebody_else_waited_for_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its number, which may be another's by now, is sent no signal."""
    template = use_new()
    os.kill(template, signal.SIGKILL)
    os.waitpid(template, 0)
    killed, kill = [], os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid) if pid == template else kill(pid, number))
    with poolkit.Pool(1) as pool:
        assert use(pool) != template
    registry.end_all()
    assert killed == []


def test_forks_are_not_held_up_while_a_template_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    template = use_new()
    os.kill(template, signal.SIGSTOP)
    os.waitid(os.P_PID, template, os.WSTOPPED | os.WNOWAIT)
    end, held = templates.Template.end, []

    def look_and_end(one: templates.Template, *, hangs: bool = False) -> str:
        held.append(FORKING._is_owned())
        return end(one, hangs=hangs)

    monkeypatch.setattr(templates.Template, "end", look_and_end)
    with poolkit.Pool(1) as pool:
        use(pool)
    assert held == [False]


def test_a_template_that_was_stopped_while_idle_is_replaced_and_ends() -> None:
    template = use_new()
    os.kill(template, signal.SIGSTOP)
    os.waitid(os.P_PID, template, os.WSTOPPED | os.WNOWAIT)
    with poolkit.Pool(1) as pool:
        assert use(pool) != template
        assert not support.is_alive(template)
        assert pool.stats().crashed == 0


def test_a_template_that_stops_in_use_serves_no_new_pool(new_gate: Callable[[], Gate]) -> None:
    """But those that have it: it may go on."""
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(1) as first:
        task = first.submit(work.arrive_and_wait, arrived, release, "kept")
        arrived.wait()
        template = template_pid(first)
        stop(template, first)
        with poolkit.Pool(1) as second:
            assert use(second) != template
        os.kill(template, signal.SIGCONT)
        release.signal()
        assert task.result() == "kept"
    assert not support.is_alive(template), "the last pool that had it is gone"


def test_each_pool_is_told_that_a_module_cannot_be_preloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when it can, the next one is told nothing of the past."""
    module = tmp_path / "sometimes_good.py"
    module.write_text("raise ValueError('not yet')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    pools = [poolkit.Pool(2, preload=["sometimes_good"]) for _ in range(3)]
    try:
        tasks = [pool.submit(work.square, 1) for pool in pools]
        for task in tasks:
            error = task.exception()
            assert isinstance(error, poolkit.InitializerFailed)
            assert "not yet" in str(error.__cause__)
    finally:
        began = time.monotonic()
        for pool in pools:
            pool.shutdown(kill=True)
    assert time.monotonic() - began < 5.0, "the end waits for workers that are gone"
    assert support.idle_templates() == []
    module.write_text("good = True", encoding="utf-8")
    with poolkit.Pool(1, preload=["sometimes_good"]) as pool:
        use(pool)


@pytest.mark.parametrize("name", ["edited", "edited_package.module"])
def test_a_preloaded_module_that_was_edited_is_imported_anew(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / (name.replace(".", "/") + ".py")
    module.parent.mkdir(exist_ok=True)
    for value in (1, 20):
        module.write_text(f"value = {value}", encoding="utf-8")
        for _ in range(2):
            with poolkit.Pool(1, preload=[name]) as pool:
                assert pool.submit(eval, f"__import__('sys').modules['{name}'].value").result() == value
    assert len(support.idle_templates()) == 2
    assert name not in sys.modules


def test_the_failure_of_a_module_is_told_to_no_pool_that_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that started the import was never used."""
    monkeypatch.syspath_prepend(tmp_path)
    mended = tmp_path / "mended"
    (tmp_path / "looks_around.py").write_text(f"open({os.fspath(mended)!r})", encoding="utf-8")
    with poolkit.Pool(1, preload=["looks_around"]):
        (template,) = support.idle_templates()
        support.wait_until(lambda: template.word() is not None)
    mended.touch()
    with poolkit.Pool(1, preload=["looks_around"]) as pool:
        assert use(pool) != template.pid
    assert not support.is_alive(template.pid)


def test_an_import_that_hangs_holds_up_neither_later_pools_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_gate: Callable[[], Gate]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    network, arrived = tmp_path / "network", new_gate()
    text = f"""
        import os, signal
        if not os.path.exists({os.fspath(network)!r}):
            open({os.fspath(arrived.path)!r}, "wb").write(b"x")
            signal.pause()
        """
    (tmp_path / "hangs_at_first.py").write_text(textwrap.dedent(text), encoding="utf-8")
    first = poolkit.Pool(1, preload=["hangs_at_first"])
    try:
        task = first.submit(work.square, 1)
        arrived.wait()
        template = template_pid(first)
        monkeypatch.setattr(templates, "PREPARE_GRACE", 0.0)  # now that the first pool has its own
        network.touch()
        with poolkit.Pool(1, preload=["hangs_at_first"]) as second:
            assert use(second) != template
            first.shutdown(kill=True)
            assert task.cancelled()
            assert not support.is_alive(template)
            use(second)
    finally:
        first.shutdown(kill=True)


def test_a_template_that_was_left_while_it_imported_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_gate: Callable[[], Gate]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    arrived = new_gate()
    text = f"import signal\nopen({arrived.path!r}, 'wb').write(b'x')\nsignal.pause()"
    (tmp_path / "hangs.py").write_text(text, encoding="utf-8")
    with poolkit.Pool(1, preload=["hangs"]) as pool:
        pool.submit(work.square, 1)
        arrived.wait()
        template = template_pid(pool)
        pool.shutdown(kill=True)
    assert not support.is_alive(template)


def test_a_template_that_does_not_let_go_of_a_pool_serves_no_new_one(
    monkeypatch: pytest.MonkeyPatch, new_gate: Callable[[], Gate]
) -> None:
    """But those that have it: it may go on."""
    monkeypatch.setattr("poolkit._spawn.templates.END_GRACE", 0.2)
    arrived, release = new_gate(), new_gate()
    first = poolkit.Pool(1, idle_timeout=0.01)
    with poolkit.Pool(1) as second:
        template = use(first)
        support.wait_until(lambda: not first.workers(), "the worker to be let go")
        task = second.submit(work.arrive_and_wait, arrived, release, "kept")
        arrived.wait()
        stop(template, second)
        first.shutdown()
        with poolkit.Pool(1) as third:
            assert use(third) != template
        os.kill(template, signal.SIGCONT)
        release.signal()
        assert task.result() == "kept"
    assert not support.is_alive(template)


@pytest.fixture
def full_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module to preload that leaves so few descriptors in its template that this can have a few workers only."""
    monkeypatch.syspath_prepend(tmp_path)
    text = """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", 0))
        except OSError:
            for fd in taken[-10:]:
                os.close(fd)
        """
    (tmp_path / "takes_descriptors.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return "takes_descriptors"


def test_a_pool_for_which_there_are_no_descriptors_left_costs_the_others_nothing(
    full_template: str, new_gate: Callable[[], Gate]
) -> None:
    """It gets a template of its own."""
    arrived, release = new_gate(), new_gate()
    with contextlib.ExitStack() as pools:
        first = pools.enter_context(poolkit.Pool(1, preload=[full_template]))
        task = first.submit(work.arrive_and_wait, arrived, release, "kept")
        arrived.wait()
        pools.callback(release.signal)
        found = {use(pools.enter_context(poolkit.Pool(1, preload=[full_template]))) for _ in range(6)}
        assert len(found) > 1
        release.signal()
        assert task.result() == "kept"


def test_a_pool_has_workers_of_several_templates_where_one_has_no_descriptors_left(
    full_template: str, new_gate: Callable[[], Gate]
) -> None:
    """Those of the first go on."""
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(8, preload=[full_template]) as pool:
        tasks = [pool.submit(work.arrive_and_wait, arrived, release, number) for number in range(8)]
        arrived.wait(8)
        parents = {Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[3] for pid in worker_pids(pool)}
        assert len(parents) > 1
        release.signal(8)
        assert [task.result() for task in tasks] == list(range(8))
        assert pool.stats().crashed == 0
    for parent in parents - {str(template.pid) for template in support.idle_templates()}:
        support.wait_for_exit(int(parent))


def test_a_forked_child_has_templates_of_its_own() -> None:
    """It neither uses nor ends those of its parent."""
    lines = run(
        """
        import os, sys, warnings
        import poolkit
        from poolkit._spawn import registry

        warnings.simplefilter("ignore", DeprecationWarning)

        def use():
            with poolkit.Pool(1) as pool:
                pool.submit(abs, -1).result()
                return pool._supervisor.workforce._template.pid

        with poolkit.Pool(1) as kept:
            kept.submit(abs, -1).result()
            template = use()
            if os.fork() == 0:
                print(registry._templates == {}, use() != template, flush=True)
                sys.exit(0)
            assert os.wait()[1] == 0
            print(use() == template, kept.submit(abs, -2).result())
        """
    )
    assert lines == ["True True", "True 2"]


@pytest.mark.parametrize("retired", [False, True])
def test_a_copy_of_the_root_in_a_forked_child_keeps_no_template_alive(retired: bool) -> None:
    """The child lives on when its parent is killed."""
    source = f"""
        import os, signal
        import poolkit
        from poolkit._spawn import registry

        pool = poolkit.Pool(1)
        pool.submit(abs, -1).result()
        if {retired}:
            registry._templates.clear()
        else:
            pool.shutdown()
        child = os.fork()
        if child:
            print(child, flush=True)
        signal.pause()
        """
    with running(source) as owner:
        child = int(owner.read_lines(1)[0])
        owner.kill()
        owner.wait_until_gone(child)


@pytest.mark.parametrize("leave", ["os.kill(os.getpid(), 9)", "os._exit(0)", "sys.exit(0)"])
def test_nobody_outlives_an_owner_with_pools_and_idle_templates(leave: str) -> None:
    source = f"""
        import os, sys, time
        import poolkit

        def work():
            os.write(1, b"up\\n")
            time.sleep(0.5)

        with poolkit.Pool(1, env={{"PYTHONHASHSEED": "1"}}) as pool:
            pool.submit(abs, -1).result()
        pools = [poolkit.Pool(1) for _ in range(3)]
        tasks = [pool.submit(work) for pool in pools]
        input()
        {leave}
        """
    with running(source) as owner:
        owner.read_lines(3)
        assert len(owner.family()) == 6  # owner, three workers, two templates
        owner.write_line()
        owner.process.wait(support.WATCHDOG)
        owner.wait_until_gone()


@pytest.mark.long
def test_pools_come_and_go_in_many_threads_while_templates_are_killed(new_gate: Callable[[], Gate]) -> None:
    """Each task gets an outcome, and what is left in the end is idle."""
    over = threading.Event()
    failed: list[BaseException] = []

    def come_and_go() -> None:
        try:
            while not over.is_set():
                with poolkit.Pool(1) as pool:
                    error = pool.options(retries=20).submit(work.square, 3).exception()
                    if error is not None and not isinstance(error, poolkit.WorkerCrashed):
                        raise error
        except BaseException as exc:  # told by the main thread
            failed.append(exc)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        with poolkit.Pool(1) as pool:
            pool.submit(work.square, 2).exception()
            with contextlib.suppress(ProcessLookupError):
                os.kill(template_pid(pool), signal.SIGKILL)
    over.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(support.idle_templates()) <= 1
