"""The errors that the scheduler gives to tasks, with the facts an operator needs in the message."""

from __future__ import annotations

from poolkit._core.queue import AnyTask
from poolkit._core.workforce import Died, Sentence, Worker
from poolkit.errors import (
    DeadlineExceeded,
    InitializerFailed,
    MemoryLimitExceeded,
    QueueTimeout,
    TaskTimeout,
    WorkerCrashed,
)

_HINTS = {
    "SIGKILL": "killed from outside poolkit: most often the kernel's out-of-memory killer, or somebody's kill -9",
    "SIGSEGV": "a crash in C code: an extension module or ctypes touched memory that is not its own",
    "SIGBUS": "a mapped file or shared memory was cut short under the worker",
    "SIGABRT": "C code called abort(), as assertions and glibc's heap checks do",
    "SIGFPE": "an arithmetic fault in C code",
    "SIGILL": "an instruction that this CPU does not have: a library built for another one",
    "SIGTERM": "terminated from outside poolkit",
}


def _which(task: AnyTask) -> str:
    return f"task {task.id} ({task.name}, attempt {task.attempts})"


def how_it_died(death: Died) -> str:
    """The end of a worker in words: its signal, its exit code, or that neither is known."""
    if death.signal is not None:
        return f"was killed by {death.signal}"
    if death.exitcode is not None:
        return f"exited with code {death.exitcode}"
    return "disappeared"


def hint_for(death: Died) -> str:
    """What most likely happened."""
    if death.hint:
        return death.hint
    if death.signal is not None:
        return _HINTS.get(death.signal, "")
    if death.exitcode is not None:
        return "the task ended its process: os._exit(), or C code that calls exit()"
    return ""


def crashed(task: AnyTask, worker: Worker, death: Died) -> WorkerCrashed:
    """The worker died while it ran `task`."""
    hint = hint_for(death)
    pid = worker.pid or death.pid
    text = f"worker {worker.id} (pid {pid}) {how_it_died(death)} while it ran {_which(task)}"
    if death.peak_rss:
        text += f"; it used up to {death.peak_rss / 1e6:.0f} MB"
    if hint:
        text += f"; {hint}"
    return _worker_crashed(text, death, pid, worker.id, hint)


def cannot_receive(task: AnyTask, worker: Worker, death: Died) -> WorkerCrashed:
    """Worker after worker died that was to begin `task`, and did not."""
    hint = "its arguments most likely need more memory than a worker may use"
    pid = worker.pid or death.pid
    text = (
        f"{task.deaths} workers in a row died while they received task {task.id} ({task.name}), a call of "
        f"{task.nbytes / 1e6:.1f} MB; the last one, worker {worker.id} (pid {pid}), {how_it_died(death)}; {hint}"
    )
    return _worker_crashed(text, death, pid, worker.id, hint)


def cannot_boot(death: Died, failures: int) -> WorkerCrashed:
    """Workers die before they are ready, again and again."""
    hint = death.hint or "look at the initializer, `preload`, `env`, and what importing them does"
    text = (
        f"{failures} workers in a row died before they were ready; the last one (pid {death.pid}) "
        f"{how_it_died(death)}; {hint}"
    )
    return _worker_crashed(text, death, death.pid, death.worker_id, hint)


def _worker_crashed(text: str, death: Died, pid: int | None, worker_id: int, hint: str) -> WorkerCrashed:
    if death.stack:
        text += f"\nPython stack at the end (most recent call first):\n{death.stack}"
    return WorkerCrashed(
        text,
        exitcode=death.exitcode,
        signal=death.signal,
        pid=pid,
        worker_id=worker_id,
        stack=death.stack,
        peak_rss=death.peak_rss,
        hint=hint,
    )


def sentenced(
    task: AnyTask, worker: Worker, sentence: Sentence, death: Died | None
) -> TaskTimeout | DeadlineExceeded | MemoryLimitExceeded:
    """The worker was killed for what `task` did; no `death` yet: it does not die."""
    if sentence.reason == "deadline":
        return deadline_exceeded(task)
    if sentence.reason == "memory":
        return grew_too_large(task, worker, sentence.used)
    return timed_out(task, death)


def grew_too_large(task: AnyTask, worker: Worker, used: int) -> MemoryLimitExceeded:
    """The task's worker had more memory than the task may use, and was stopped."""
    limit = task.options.memory_limit
    text = (
        f"{_which(task)} was stopped: worker {worker.id} (pid {worker.pid}) had grown to {used / 1e6:.1f} MB, beyond "
        f"the task's memory_limit of {limit / 1e6:.1f} MB; it had {worker.had / 1e6:.1f} MB when it was sent the task; "
    )
    if worker.had > limit:
        text += "the limit is below what any worker needs, with what it imports: raise it"
    else:
        text += "give the task less at a time, or raise the limit"
    return MemoryLimitExceeded(text, limit=limit, used=used)


def timed_out(task: AnyTask, death: Died | None) -> TaskTimeout:
    """The task passed its run-time limit and was stopped."""
    limit = task.options.timeout
    stack = death.stack if death is not None else ""
    text = f"{_which(task)} ran longer than its timeout of {limit:g} s and was stopped"
    if death is None:
        text += " (its worker does not die: it is stuck inside the kernel)"
    elif death.abandoned:
        text = f"{_which(task)} ran longer than its timeout of {limit:g} s; its thread would not stop and was given up"
    if stack:
        text += f"; it was at (most recent call first):\n{stack}"
    return TaskTimeout(text, timeout=limit, stack=stack)


def queued_too_long(task: AnyTask) -> QueueTimeout:
    """The task waited too long and never began."""
    limit = task.options.queue_timeout
    return QueueTimeout(f"task {task.id} ({task.name}) waited in the queue for {limit:g} s and did not begin")


def deadline_exceeded(task: AnyTask) -> DeadlineExceeded:
    """The task's deadline passed."""
    limit = task.options.deadline
    return DeadlineExceeded(f"{_which(task)} was not done {limit:g} s after its submit, its deadline")


def initializer_failed(cause: BaseException, text: str) -> InitializerFailed:
    """A new error for each task, chained to what the initializer raised."""
    error = InitializerFailed(f"the pool's initializer raised {text}; the pool has stopped")
    error.__cause__ = cause
    return error
