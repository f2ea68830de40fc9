"""What the errors of the scheduler say."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from poolkit._core import failures
from poolkit._core.options import CallOptions
from poolkit._core.workforce import BootFailed, Died, Worker
from poolkit.task import Task


def make(**options: Any) -> Task[Any]:
    task: Task[Any] = Task(None, "resize", None, CallOptions(**options))
    task.id, task.attempts = 7, 2
    return task


def test_a_crash_carries_its_evidence() -> None:
    """Signal, pid, worker, memory, stack and a hint, in attributes and in words."""
    worker = Worker(3, None, 0.0, None)
    worker.pid = 42
    death = Died(3, signal="SIGSEGV", pid=41, peak_rss=25_000_000, stack="  File x")
    error = failures.crashed(make(), worker, death)
    assert (error.signal, error.exitcode, error.pid, error.worker_id) == ("SIGSEGV", None, 42, 3)
    assert (error.peak_rss, error.stack) == (25_000_000, "  File x")
    text = str(error)
    assert "worker 3 (pid 42) was killed by SIGSEGV while it ran task 7 (resize, attempt 2)" in text
    assert "25 MB" in text
    assert "C code" in text
    assert "C code" in error.hint
    assert text.endswith("  File x")
    assert pickle.loads(pickle.dumps(error)).signal == "SIGSEGV"


def test_what_a_terminal_would_obey_is_shown_and_not_sent() -> None:
    death = Died(3, exitcode=1, output="50 %\r\x1b[2J\x07gone\tcaf\xe9\x00\n")
    error = failures.crashed(make(), Worker(3, None, 0.0, None), death)
    assert str(error).endswith("printed:\n  50 %\n  \\x1b[2J\\x07gone\tcaf\xe9\\x00")
    assert error.output == death.output


def test_a_crash_is_told_whole() -> None:
    """What happened, to which task, with which figures, what it means, and the evidence behind it, longest last."""
    worker = Worker(3, None, 0.0, None)
    worker.pid = 42
    output = "".join(f"step {number}\n" for number in range(9)) + "x" * 1000 + "\n\n"
    death = Died(
        3,
        signal="SIGABRT",
        peak_rss=900_000_000,
        stack='  File "resize.py", line 8 in scale',
        output=output,
    )
    error = failures.crashed(make(), worker, death)
    assert str(error) == (
        "worker 3 (pid 42) was killed by SIGABRT while it ran task 7 (resize, attempt 2); it used up to 900 MB; "
        "C code called abort(), as assertions and glibc's heap checks do\n"
        "Python stack at the end (most recent call first):\n"
        '  File "resize.py", line 8 in scale\n'
        "the last that it printed:\n"
        "  step 5\n  step 6\n  step 7\n  step 8\n  " + "x" * 300
    )
    assert error.output == output
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


@pytest.mark.parametrize(
    ("death", "words", "hint"),
    [
        (Died(1, exitcode=3), "exited with code 3", "os._exit"),
        (Died(1, signal="SIGKILL"), "was killed by SIGKILL", "out-of-memory"),
        (Died(1, signal="SIGTERM"), "was killed by SIGTERM", "by the task itself, another process or an operator"),
        (Died(1, signal="SIGXCPU"), "was killed by SIGXCPU", "RLIMIT_CPU"),
        (Died(1, signal="SIGXFSZ"), "was killed by SIGXFSZ", "RLIMIT_FSIZE"),
        (Died(1, signal="SIGALRM"), "was killed by SIGALRM", "timer"),
        (Died(1, signal="SIGPIPE"), "was killed by SIGPIPE", "nobody reads"),
        (Died(1, signal="SIGRTMIN"), "was killed by SIGRTMIN", ""),
        (Died(1), "disappeared", ""),
        (Died(1, signal="SIGKILL", hint="because"), "was killed by SIGKILL", "because"),
        (Died(1, signal="SIGRTMIN", hint="because"), "was killed by SIGRTMIN", "because"),
    ],
)
def test_a_death_is_told_in_words(death: Died, words: str, hint: str) -> None:
    """How it ended, and what that most likely means."""
    error = failures.crashed(make(), Worker(1, None, 0.0, None), death)
    assert words in str(error)
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)


@pytest.mark.parametrize(("hint", "stack"), [("", ""), ("no memory", "  File y")])
def test_boots_that_fail_say_where_to_look(hint: str, stack: str) -> None:
    """The last death stands for all of them."""
    error = failures.cannot_boot(Died(9, exitcode=1, pid=5, hint=hint, stack=stack))
    assert "3 workers in a row died before they were ready" in str(error)
    assert hint in str(error)
    assert "look at the initializer" in str(error)
    assert stack in str(error)
    assert (error.worker_id, error.exitcode, error.pid) == (9, 1, 5)


@pytest.mark.parametrize(
    ("death", "told"),
    [
        (Died(9, hint="it could not be started: OSError(24)"), "it could not be started: OSError(24)"),
        (
            Died(9, pid=5, signal="SIGKILL", hint="the kernel's out-of-memory killer ended it", output="loading\n"),
            (
                "the last one (pid 5) was killed by SIGKILL; the kernel's out-of-memory killer ended it; "
                "look at the initializer, "
                "`preload`, `env`, and what importing them does\nthe last that it printed:\n  loading"
            ),
        ),
    ],
)
def test_boots_that_fail_are_told_whole(death: Died, told: str) -> None:
    text = str(failures.cannot_boot(death))
    assert text == f"3 workers in a row died before they were ready; {told}"


def test_a_timeout_tells_its_limit_and_where_it_was() -> None:
    """With the stack when there is one."""
    error = failures.timed_out(make(timeout=1.5), Died(1, stack="  File z"))
    assert error.timeout == 1.5
    assert error.stack == "  File z"
    assert "task 7 (resize, attempt 2) ran longer than its timeout of 1.5 s and was stopped" in str(error)
    assert "File z" in str(error)


def test_a_timeout_says_when_nothing_could_be_stopped() -> None:
    """A process stuck in the kernel, a thread that would not stop."""
    assert "stuck inside the kernel" in str(failures.timed_out(make(timeout=1.0), None))
    assert "given up" in str(failures.timed_out(make(timeout=1.0), Died(1, abandoned=True)))


def test_the_other_limits_tell_theirs() -> None:
    """In seconds, as they were given."""
    task = make(queue_timeout=2.0)
    task.attempts = 0
    text = str(failures.queued_too_long(task))
    assert text == "task 7 (resize) waited in the queue for 2 s, its queue_timeout, and did not begin"
    task = make(deadline=0.5)
    text = "task 7 (resize, attempt 2) was not done within its deadline of 0.5 s"
    assert str(failures.deadline_exceeded(task)) == text
    assert str(failures.deadline_exceeded(task, Died(1, stack="  File z"))) == (
        text + " and was stopped; it was at (most recent call first):\n  File z"
    )
    assert str(failures.deadline_exceeded(task, Died(1, abandoned=True))) == (
        text + "; its thread would not stop and was given up"
    )
    task.attempts = 0
    assert str(failures.deadline_exceeded(task)) == "task 7 (resize) did not begin within its deadline of 0.5 s"


class Hostile(Exception):
    """An exception that cannot be put into words."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("had", "advice"),
    [
        (20_000_000, "give the task less at a time, or raise the limit"),
        (80_000_000, "imported or left by other tasks: raise the limit, or recycle workers"),
        (120_000_000, "the limit is below what any worker needs, with what it imports: raise it"),
    ],
)
def test_a_limit_on_memory_tells_what_was_there_before(had: int, advice: str) -> None:
    worker = Worker(3, None, 0.0, None)
    worker.pid, worker.rss_before = 42, had
    error = failures.grew_too_large(make(memory_limit=100_000_000), worker, 130_000_000, None)
    assert (error.limit, error.used) == (100_000_000, 130_000_000)
    assert f"had grown to 130.0 MB, beyond the task's memory_limit of 100.0 MB; it had {had / 1e6:.1f} MB" in str(error)
    assert str(error).endswith(advice)


def test_an_initializers_error_is_put_into_words_before_it_is_needed() -> None:
    """Its own `__str__` is the user's code: it may raise, and is not called under the pool's lock."""
    good, bad = BootFailed(1, OSError("no disk")), BootFailed(1, Hostile())
    assert good.text == "OSError: no disk"
    assert bad.text == "Hostile (its str() raises too)"
    assert "Hostile" in str(failures.initializer_failed(bad.error, bad.text))


def test_a_failed_initializer_is_chained_anew_for_each_task() -> None:
    """One exception object is never shared by two tasks."""
    cause = OSError("no disk")
    first, second = (failures.initializer_failed(cause, "OSError: no disk") for _ in range(2))
    assert first is not second
    assert first.__cause__ is cause
    assert "OSError: no disk" in str(first)
