"""Tracebacks as plain data, and back into real traceback objects.

A frame travels as five strings and numbers; no locals, no code. The receiver makes tracebacks of them with tblib, so
that debuggers show the remote frames, and formats them: it has the source of what was typed into a notebook.
tblib's own dictionaries are not used: they nest, and a RecursionError has a traceback too deep for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace, TracebackType

from poolkit._typing import Any

FrameRecord = tuple[str, str, int, "str | None", "str | None"]
"""File name, function name, line, and the `__name__` and `__file__` of the module."""

_MAX_FRAMES = 1000
_WORKER_HALF = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_child", "")  # noqa: PTH118, PTH100, PTH120 -- pathlib is not loaded in a worker


def capture(traceback: TracebackType | None) -> list[FrameRecord]:
    """Return the frames of `traceback`, outermost first, without those of the worker half at its outer end.

    Of a very long traceback (endless recursion) the middle is left out.
    """
    frames: list[FrameRecord] = []
    while traceback is not None:
        code, namespace = traceback.tb_frame.f_code, traceback.tb_frame.f_globals
        module, file = namespace.get("__name__"), namespace.get("__file__")
        frames.append(
            (
                code.co_filename,
                code.co_name,
                traceback.tb_lineno or code.co_firstlineno,  # 3.10 on may have no line for an instruction
                module if type(module) is str else None,
                file if type(file) is str else None,
            )
        )
        traceback = traceback.tb_next
    outer = 0
    while outer < len(frames) and frames[outer][0].startswith(_WORKER_HALF):
        outer += 1
    if outer < len(frames):  # else the worker half itself failed, and hiding that would help nobody
        del frames[:outer]
    if len(frames) > _MAX_FRAMES:
        del frames[_MAX_FRAMES // 2 : -(_MAX_FRAMES // 2)]
    return frames


def rebuild(frames: Sequence[FrameRecord]) -> TracebackType | None:
    """Return a traceback that shows `frames`."""
    if not frames:
        return None
    apart = _rebuild_apart(frames)
    traceback = next(apart)
    # The generator stays suspended for as long as its frames are seen: CPython 3.12 would link them to the caller
    # of whoever closes it.
    traceback.tb_frame.f_globals["__suspended__"] = apart
    return traceback


def _rebuild_apart(frames: Sequence[FrameRecord]) -> Iterator[TracebackType]:
    """Rebuild inside a generator, so that the new frames do not lead back to the caller's.

    tblib makes each frame by running a stub, and a frame refers to its caller as long as it lives. Of a suspended
    generator the caller is nobody: the chain ends here, and whoever keeps the exception does not keep the frames (and
    their locals) of the thread that happened to load it.
    """
    import tblib  # noqa: PLC0415 -- only failures need it

    link: Any = None
    for filename, name, line, module, file in reversed(frames):
        namespace = {key: value for key, value in (("__name__", module), ("__file__", file)) if value is not None}
        code = SimpleNamespace(co_filename=filename, co_name=name)
        frame = SimpleNamespace(f_globals=namespace, f_locals={}, f_code=code, f_lineno=line)
        link = SimpleNamespace(tb_frame=frame, tb_lineno=line, tb_next=link)
    made: TracebackType = tblib.Traceback(link).as_traceback()
    yield made


def format_frames(frames: Sequence[FrameRecord], last_line: str) -> str:
    """Return `frames` the way Python prints a traceback, with `last_line` under them."""
    import traceback  # noqa: PLC0415 -- only failures need it

    summary = traceback.StackSummary.from_list([(filename, line, name, None) for filename, name, line, *_ in frames])
    return "".join(["Traceback (most recent call last):\n", *summary.format(), last_line, "\n"])
