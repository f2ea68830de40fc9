"""Evidence: the Python stack that faulthandler writes about a worker, at a fatal signal or when it is asked.

faulthandler writes in pieces and without an end mark. But the outermost frames of a worker are always poolkit's own,
so a stack is complete once one of those is there, or the mark of a stack that is too deep to be written whole. Frames
of our own may also stand inside those of the user's code, as where that waits for a message.
"""

from __future__ import annotations

_OWN = ("/poolkit/_child/", "/poolkit/_wire/", "/poolkit/_kinds/")
_CALLERS = (" in run_call", " in _outcome", " in serve", " in _work", " in run_worker")  # of the user's code
_FATAL = "Fatal Python error"
_FATAL_SIGNALS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"})


def is_complete(text: str) -> bool:
    """Whether a stack that was asked for has been written to its end."""
    lines = text.split("\n")
    return any(_is_caller(line) or line.startswith("  ...") for line in lines[:-1])


def of_death(signal: str | None, asked: str | None, rest: str) -> str:
    """The stack of a worker that ended: of its fatal signal, or what it wrote since it was asked (None: it was not).

    Anything else is older: somebody sent it the signal that asks, or a process that its tasks left behind crashed.
    """
    if signal in _FATAL_SIGNALS:
        _, found, crash = ((asked or "") + rest).rpartition(_FATAL)
        return tidy(crash) if found else ""
    return "" if asked is None else tidy(asked + rest)


def tidy(text: str) -> str:
    """The frames of the user's code, most recent first, of what faulthandler wrote; "" when there are none."""
    frames = []
    for line in text.splitlines():
        if _is_caller(line):
            break
        if line.startswith(("  File ", "  ...")) and not any(own in line for own in _OWN):
            frames.append(line)
    return "\n".join(frames)


def _is_caller(line: str) -> bool:
    return line.startswith("  File ") and _OWN[0] in line and line.endswith(_CALLERS)
