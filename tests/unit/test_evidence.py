"""Stacks that faulthandler writes: known when complete, and told without poolkit's own frames."""

from __future__ import annotations

import pytest

from poolkit._kinds import evidence

ASKED = """\
Current thread 0x00007f0000000000 (most recent call first):
  File "/home/user/script.py", line 21 in spin
  File "/home/user/script.py", line 30 in outer
  File "/usr/lib/poolkit/_child/loop.py", line 32 in run_call
  File "/usr/lib/poolkit/_child/loop.py", line 120 in _outcome
  File "/usr/lib/poolkit/_child/boot.py", line 60 in run_worker
"""
FATAL = "Fatal Python error: Segmentation fault\n\n" + ASKED + "\nExtension modules: numpy (total: 1)\n"
OTHERS = FATAL.replace("user/script", "other/child")
USERS = '  File "/home/user/script.py", line 21 in spin\n  File "/home/user/script.py", line 30 in outer'


@pytest.mark.parametrize("text", [ASKED, FATAL])
def test_a_stack_is_told_without_our_own_frames(text: str) -> None:
    assert evidence.tidy(text) == USERS


@pytest.mark.parametrize(
    ("signal", "asked", "rest", "stack"),
    [
        ("SIGSEGV", None, FATAL, USERS),
        ("SIGSEGV", None, OTHERS + FATAL, USERS),
        ("SIGSEGV", OTHERS, FATAL, USERS),
        ("SIGSEGV", None, OTHERS.partition("\n\n")[2], ""),
        ("SIGKILL", ASKED[:90], ASKED[90:], USERS),
        ("SIGKILL", None, OTHERS, ""),
        (None, None, OTHERS, ""),
    ],
    ids=["fatal", "fatal after other", "fatal while asked", "asked by others", "asked", "killed", "exited"],
)
def test_only_the_stack_of_this_very_death_is_told(
    signal: str | None, asked: str | None, rest: str, stack: str
) -> None:
    assert evidence.of_death(signal, asked, rest) == stack


@pytest.mark.parametrize("text", ["", "Fatal Python error: Aborted\n", ASKED.split("\n", maxsplit=1)[0] + "\n"])
def test_no_frames_are_no_stack(text: str) -> None:
    assert evidence.tidy(text) == ""


def test_a_stack_that_is_too_deep_says_so() -> None:
    text = '  File "a.py", line 1 in f\n  ...\n'
    assert evidence.tidy(text) == text.rstrip("\n")
    assert evidence.is_complete(text)


def test_a_stack_is_complete_with_its_first_own_frame_and_not_before() -> None:
    """Every beginning of it may be all that was written so far."""
    first = ASKED.index("\n", ASKED.index("/poolkit/_child/")) + 1
    for size in range(len(ASKED) + 1):
        assert evidence.is_complete(ASKED[:size]) == (size >= first)


def test_a_task_that_is_stuck_in_a_print_is_shown_there() -> None:
    """The file that copies what is printed is ours, and stands inside of the user's frames."""
    head, frames = ASKED.split("\n", 1)
    text = head + '\n  File "/usr/lib/poolkit/_child/output.py", line 37 in write\n' + frames
    assert evidence.tidy(text) == USERS
    assert not evidence.is_complete(text[: text.index("/usr/lib/poolkit/_child/loop.py")])
    assert evidence.is_complete(text)


def test_the_users_own_files_are_no_mark() -> None:
    assert not evidence.is_complete('  File "/home/poolkit/_children/x.py", line 1 in f\n')
    assert not evidence.is_complete('  ValueError: "/poolkit/_child/"\n')
