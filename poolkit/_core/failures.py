"""The errors that the scheduler gives to tasks, with the facts an operator needs in the message."""

from __future__ import annotations

from poolkit import errors
from poolkit._core.policy import BOOT_FAILURES
from poolkit._core.queue import AnyTask
from poolkit._core.workforce import Died, KillReason, Worker
from poolkit.errors import (
    DeadlineExceeded,
    MemoryLimitExceeded,
    PoolClosed,
    QueueTimeout,
    TaskTimeout,
)

_OTHERS = "not by poolkit, but by the task itself, another process or an operator"
_HINTS = {
    "SIGKILL": f"killed {_OTHERS}, or by the kernel's out-of-memory killer",
    "SIGSEGV": "a crash in C code: an extension module or ctypes touched memory that is not its own",
    "SIGBUS": "a mapped file or shared memory was cut short under the worker",
    "SIGABRT": "C code called abort(), as assertions and glibc's heap checks do",
    "SIGFPE": "an arithmetic fault in C code",
    "SIGILL": "an instruction that this CPU does not have: a library built for another one",
    "SIGTERM": f"terminated {_OTHERS}",
    "SIGXCPU": "it used up the CPU time that RLIMIT_CPU allows",
    "SIGXFSZ": "it wrote a file larger than RLIMIT_FSIZE allows",
    "SIGALRM": "a timer that the task set, by alarm() or setitimer(), went off and it has no handler for it",
    "SIGPIPE": "it wrote to a pipe or socket that nobody reads, and the task had set that to be deadly",
}


def _which(task: AnyTask, death: Died | None = None) -> str:
    """Which task; of a command also its arguments, and the number of the program, whose end is given."""
    attempt = f", attempt {task.attempts}" if task.attempts else ""
    text = f"task {task.id} ({task.name}{attempt})"
    if not _is_command(task):
        return text
    pid = "" if death is None or death.pid is None else f" (pid {death.pid})"
    return f"{task.call}{pid}, {text},"


def _is_command(task: AnyTask) -> bool:
    return task.options.grace is not None


def _worker(worker: Worker, death: Died) -> str:
    return f"worker {worker.id} (pid {worker.pid or death.pid})"


def how_it_died(death: Died) -> str:
    """The end of a worker in words: its signal, its exit code, or that neither is known."""
    if death.signal is not None:
        return f"was killed by {death.signal}"
    if death.exitcode is not None:
        return f"exited with code {death.exitcode}"
    return "disappeared"


def hint_for(death: Died) -> str:
    """What most likely happened; of what may have been another process, no more than that."""
    if death.hint:  # the workforce has looked, or knows better
        return death.hint
    if death.signal is not None:
        return _HINTS.get(death.signal, "")
    if death.exitcode is not None:
        return "the task ended its process: by os._exit(), by C code that calls exit(), or by exec of another program"
    return ""


def crashed(task: AnyTask, worker: Worker, death: Died) -> errors.WorkerCrashed:
    """The worker died while it ran `task`."""
    hint = hint_for(death)
    if not worker.is_program:
        text = f"{_worker(worker, death)} {how_it_died(death)} while it ran {_which(task)}"
    elif death.pid is None:
        text = f"{_which(task)} was lost while it was being started"
    else:
        text = f"{_which(task, death)} {how_it_died(death)}"
    if death.peak_rss:
        text += f"; it used up to {death.peak_rss / 1e6:.0f} MB"
    if hint:
        text += f"; {hint}"
    return _worker_crashed(text, death, worker.pid or death.pid, hint)


def cannot_receive(task: AnyTask, worker: Worker, death: Died) -> errors.WorkerCrashed:
    """Worker after worker died that was to begin `task`, and did not."""
    hint = "; ".join(filter(None, ("its arguments most likely need more memory than a worker may use", death.hint)))
    text = (
        f"{task.deaths} workers in a row died while they received task {task.id} ({task.name}), a call of "
        f"{task.nbytes / 1e6:.1f} MB; the last one, {_worker(worker, death)}, {how_it_died(death)}; {hint}"
    )
    return _worker_crashed(text, death, worker.pid or death.pid, hint)


def cannot_boot(death: Died) -> errors.WorkerCrashed:
    """Workers die before they are ready, again and again."""
    look = "look at the initializer, `preload`, `env`, and what importing them does"
    hint = hint_for(death) if death.signal is not None else death.hint
    if death.signal is not None or death.exitcode is not None or not hint:  # else it was not even started
        hint = f"{hint}; {look}" if hint else look
    last = f"the last one (pid {death.pid}) {how_it_died(death)}; " if death.pid is not None else ""
    text = f"{BOOT_FAILURES} workers in a row died before they were ready; {last}{hint}"
    return _worker_crashed(text, death, death.pid, hint)


def _worker_crashed(text: str, death: Died, pid: int | None, hint: str) -> errors.WorkerCrashed:
    if death.stack:
        text += f"\nPython stack at the end (most recent call first):\n{death.stack}"
    if death.output.strip():
        text += f"\nthe last that it printed:\n{_last_lines(death.output)}"
    return errors.WorkerCrashed(
        text,
        exitcode=death.exitcode,
        signal=death.signal,
        pid=pid,
        worker_id=death.worker_id,
        stack=death.stack,
        peak_rss=death.peak_rss,
        output=death.output,
        hint=hint,
    )


def _last_lines(output: str) -> str:
    lines = output.rstrip().splitlines()[-5:]
    return "\n".join("  " + "".join(map(_shown, line[-300:])) for line in lines)


def _shown(char: str) -> str:
    return char if char.isprintable() or char == "\t" else ascii(char)[1:-1]  # terminals obey what is not printable


def killed_for(
    task: AnyTask, worker: Worker, kill_reason: KillReason, death: Died | None
) -> TaskTimeout | DeadlineExceeded | MemoryLimitExceeded:
    """The worker was killed for what `task` did; no `death` yet: it does not die."""
    error: TaskTimeout | DeadlineExceeded | MemoryLimitExceeded
    if kill_reason.reason == "deadline":
        error = deadline_exceeded(task, death)
    elif kill_reason.reason == "memory":
        error = grew_too_large(task, worker, kill_reason.used, death)
    else:
        error = timed_out(task, death)
    if death is None:
        error.hint = "it does not die of SIGKILL, as it is stuck inside the kernel"
    else:
        error.completed = death.completed
    return error


def grew_too_large(task: AnyTask, worker: Worker, used: int, death: Died | None) -> MemoryLimitExceeded:
    """The task's worker had more memory than the task may use, and was stopped."""
    limit = task.options.memory_limit
    if worker.is_program:
        text = (
            f"{_which(task, death)} had grown, with its children, to {used / 1e6:.1f} MB, beyond the memory_limit of "
            f"{limit / 1e6:.1f} MB{_what_was_done(task, death)}"
        )
        return MemoryLimitExceeded(text, limit=limit, used=used)
    text = (
        f"{_which(task)} was stopped: worker {worker.id} (pid {worker.pid}) had grown to {used / 1e6:.1f} MB, beyond "
        f"the task's memory_limit of {limit / 1e6:.1f} MB; it had {worker.rss_before / 1e6:.1f} MB when it "
        "was sent the task; "
    )
    if worker.rss_before > limit:
        text += "the limit is below what any worker needs, with what it imports: raise it"
    elif worker.rss_before > limit / 2:
        text += "most of that was there before, imported or left by other tasks: raise the limit, or recycle workers"
    else:
        text += "give the task less at a time, or raise the limit"
    return MemoryLimitExceeded(text, limit=limit, used=used)


def timed_out(task: AnyTask, death: Died | None) -> TaskTimeout:
    """The task passed its run-time limit and was stopped."""
    limit = task.options.timeout
    text = f"{_which(task, death)} ran longer than its timeout of {limit:g} s{_what_was_done(task, death)}"
    return TaskTimeout(text, timeout=limit, stack="" if death is None else death.stack)


def _what_was_done(task: AnyTask, death: Died | None) -> str:
    if death is None:
        what = "it" if _is_command(task) else "its worker"
        return f" and was stopped ({what} does not die: it is stuck inside the kernel)"
    if _is_command(task):
        lines = death.output and f": {death.output}"
        return f" and was stopped{lines}"
    done = "; its thread would not stop and was given up" if death.abandoned else " and was stopped"
    return f"{done}; it was at (most recent call first):\n{death.stack}" if death.stack else done


def queued_too_long(task: AnyTask) -> QueueTimeout:
    """The task waited too long and never began."""
    limit = task.options.queue_timeout
    return QueueTimeout(f"{_which(task)} waited in the queue for {limit:g} s, its queue_timeout, and did not begin")


def unread_stream(task: AnyTask) -> PoolClosed:
    """A stream was closed by a graceful shutdown, as nobody took its items."""
    return PoolClosed(
        f"stream {task.id} ({task.name}) was closed: its pool is shut down, and nobody took an item for a second"
    )


def deadline_exceeded(task: AnyTask, death: Died | None = None) -> DeadlineExceeded:
    """The task's deadline passed: with the death of its worker if it was running."""
    within = f"within its deadline of {task.options.deadline:g} s"
    if task.attempts == 0:
        return DeadlineExceeded(f"{_which(task)} did not begin {within}")
    done = "" if death is None else _what_was_done(task, death)
    return DeadlineExceeded(f"{_which(task, death)} was not done {within}{done}")


def initializer_failed(cause: BaseException, text: str) -> errors.InitializerFailed:
    """A new error for each task, chained to what the initializer raised."""
    error = errors.InitializerFailed(
        f"the pool's initializer, or the import of its preload, raised {text}; the pool has stopped"
    )
    error.__cause__ = cause
    return error
