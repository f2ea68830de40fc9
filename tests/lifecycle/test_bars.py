"""Bars as users see them: on a terminal, in a pipe, in a notebook, at a Ctrl-C, beside workers that are killed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from dropin import sessions

from lifecycle.scripts import run, running, text_of

pytest.importorskip("tqdm")

pytestmark = pytest.mark.slow

# A terminal of a test has no width until somebody gives it one.
TERMINAL = """
import fcntl, os, signal, struct, sys, termios, threading, time
import poolkit
fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))

def nap(number, seconds=0.005):
    threading.Event().wait(seconds)
    return number
"""
FRAME = re.compile(r"\r([^\r\n]*)")


def lines_of(shown: str) -> list[str]:
    """What a terminal has shown, with all that was written over each other in one."""
    return shown.rstrip("\n").split("\n")


def on_a_terminal(source: str, *args: str) -> str:
    """What a terminal has shown when the script has ended well, after which nobody is left."""
    with running(TERMINAL + text_of(source), *args, terminal=True) as script:
        ended = script.finish()
        assert ended.code == 0, ended.out
        script.wait_until_gone()
    return ended.out


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("reading", ["sync", "async"])
def test_a_bar_is_one_line_and_ends_at_100_percent(kind: str, reading: str) -> None:
    shown = on_a_terminal(
        """
        async def read(pool):
            return [number async for number in pool.map(nap, range(300), progress="napping")]

        with poolkit.Pool(2, kind=sys.argv[1]) as pool:
            if sys.argv[2] == "sync":
                found = list(pool.map(nap, range(300), progress="napping"))
            else:
                import asyncio
                found = asyncio.run(read(pool))
            print(found == list(range(300)), [thread.name for thread in threading.enumerate() if "tqdm" in thread.name])
        """,
        kind,
        reading,
    )
    bar, *after = lines_of(shown)
    assert after == ["True []"]
    frames = FRAME.findall("\r" + bar)
    assert all(frame.startswith("napping: ") and len(frame) <= 100 for frame in frames if frame)
    counts = [int(count) for count in re.findall(r"(\d+)/300", bar)]
    assert counts == sorted(counts)
    assert 5 <= len(set(counts)) <= 60  # it takes 0.75 s or more
    assert "100%" in frames[-1]
    assert counts[-1] == 300


def test_tasks_that_report_fill_the_bar_by_their_fractions() -> None:
    shown = on_a_terminal(
        """
        def steps(count):
            for done in range(count):
                poolkit.current_task().progress(done + 1, count)
                nap(done, 0.05)

        with poolkit.Pool(2) as pool:
            tasks = [pool.submit(steps, 20) for _ in range(3)]
            print(all(task.done() for task in poolkit.progress(tasks, desc="steps")))
        """
    )
    bar, *after = lines_of(shown)
    assert after == ["True"]
    assert bar.rstrip().endswith("]")
    counts = re.findall(r"\| ([\d.]+)/3 ", bar)
    assert counts[-1] == "3"
    assert any("." in count for count in counts)
    assert all(len(count) <= 4 for count in counts)
    assert [float(count) for count in counts] == sorted(map(float, counts))


@pytest.mark.parametrize("how", ["break", "close", "error", "input"])
def test_a_bar_that_is_left_early_is_closed_and_its_line_ended(how: str) -> None:
    shown = on_a_terminal(
        """
        how = sys.argv[1]
        def fail_late(number):
            if how == "error" and number == 100:
                raise KeyError(number)
            return nap(number)
        def numbers():
            yield from range(100)
            if how == "input":
                raise KeyError(100)
            yield from range(100, 200)
        with poolkit.Pool(2) as pool:
            results = pool.map(fail_late, numbers(), progress=True)
            try:
                for number in results:
                    if number == 50 and how == "break":
                        break
                    if number == 50 and how == "close":
                        results.close()
            except KeyError:
                pass
            del results
            print("after", how)
            print(pool.submit(nap, 7).result())
        """,
        how,
    )
    bar, *after = lines_of(shown)
    assert after == [f"after {how}", "7"]
    *_, shown_last = [int(count) for count in re.findall(r"(\d+)it \[", bar)]
    if how == "error":  # the other worker may have done some behind the one that failed
        assert 100 <= shown_last < 200, bar
    elif how == "input":
        assert shown_last == 100, bar


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("what", ["map", "tasks"])
def test_a_ctrl_c_closes_the_bar_and_the_line_stays_readable(kind: str, what: str) -> None:
    source = """
    try:
        with poolkit.Pool(2, kind=sys.argv[1]) as pool:
            if sys.argv[2] == "map":
                for _ in pool.map(nap, range(1_000_000), progress="napping"):
                    pass
            else:
                for _ in poolkit.progress([pool.submit(nap, 1) for _ in range(10_000)], desc="napping"):
                    pass
    except KeyboardInterrupt:
        print("interrupted")
    """
    with running(TERMINAL + text_of(source), kind, what, terminal=True) as script:
        script.wait_for_text("\rnapping: ", 5)
        script.press_ctrl_c()
        ended = script.finish()
        assert ended.code == 0, ended.out
        script.wait_until_gone()
    bar, *after = lines_of(ended.out)
    assert after == ["interrupted"]
    assert "%|" in bar


def test_a_bar_inside_a_bar_has_a_line_of_its_own() -> None:
    shown = on_a_terminal(
        """
        with poolkit.Pool(2) as pool:
            for _ in pool.map(nap, range(3), progress="outer"):
                for _ in pool.map(nap, range(20), progress="inner"):
                    pass
            print("after")
        """
    )
    assert shown.count("outer: 100%") >= 1
    assert shown.count("inner: 100%") >= 3
    assert lines_of(shown)[-1].endswith("after")


def test_what_a_signal_handler_raises_is_raised_and_closes_the_bar() -> None:
    """Also what looks like the end of a wait."""
    shown = on_a_terminal(
        """
        def expire(*_):
            raise TimeoutError("of the alarm")
        signal.signal(signal.SIGALRM, expire)
        with poolkit.Pool(1) as pool:
            for ordered in (True, False):
                signal.setitimer(signal.ITIMER_REAL, 0.35)
                try:
                    list(pool.map(nap, [1], [60.0], ordered=ordered, progress=True))
                except TimeoutError as exc:
                    print("raised", exc)
            pool.shutdown(kill=True)
        """
    )
    assert [line for line in lines_of(shown) if "%|" not in line] == ["raised of the alarm"] * 2


# ===== workers that are killed =====


@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_workers_that_are_killed_at_random_never_freeze_a_bar(start_method: str) -> None:
    """Also those that hold a lock of tqdm's which they share with the owner, as forks of it do."""
    shown = on_a_terminal(
        """
        import random
        from tqdm import tqdm

        def die_with_the_lock(number):
            if random.Random(number).random() < 0.05:
                tqdm.get_lock().acquire(False)  # the first that dies has it for ever, for all forks
                os.kill(os.getpid(), signal.SIGKILL)
            return number

        tqdm.get_lock()  # made before the fork, it is shared
        with poolkit.Pool(2, start_method=sys.argv[1]) as pool:
            tasks = [pool.submit(die_with_the_lock, number) for number in range(60)]
            done = list(poolkit.progress(tasks, desc="dying"))
            died = sum(isinstance(task.exception(), poolkit.WorkerCrashed) for task in done)
            print(len(done), died > 0)
            for _ in range(3):
                try:
                    list(pool.map(die_with_the_lock, range(60), progress="mapped"))
                except poolkit.WorkerCrashed:
                    print("crashed")
        """,
        start_method,
    )
    lines = [line for line in lines_of(shown) if "%|" not in line]
    assert lines == ["60 True", "crashed", "crashed", "crashed"]


# ===== where there is no terminal =====


def test_into_a_pipe_nothing_is_written_and_plain_maps_import_nothing() -> None:
    """`run` looks at standard error."""
    lines = run(
        """
        import sys
        import poolkit
        with poolkit.Pool(1) as pool:
            print(list(pool.map(str, range(3))), [name for name in ("poolkit.bars", "tqdm") if name in sys.modules])
            print(list(pool.map(str, range(3), progress=True)), "tqdm" in sys.modules)
            print(list(pool.map(str, range(3), progress="three")))
            print([task.result() for task in poolkit.progress([pool.submit(str, 1)])])
            sys.stderr = None
            print(list(pool.map(str, range(3), progress=True)))
        """
    )
    assert lines == ["['0', '1', '2'] []", "['0', '1', '2'] False", "['0', '1', '2']", "['1']", "['0', '1', '2']"]


def test_without_tqdm_map_itself_says_what_to_install() -> None:
    lines = run(
        """
        import sys
        sys.modules["tqdm"] = None
        import poolkit
        from poolkit.testing import FakePool

        class Bar:
            def __init__(self, total, desc): print("a bar of", total)
            def update(self, step): pass
            def close(self): print("closed")

        with poolkit.Pool(1) as pool:
            task = pool.submit(str, 1)
            for ask in (lambda: pool.map(str, range(3), progress=True), lambda: poolkit.progress(task)):
                try:
                    ask()
                except ModuleNotFoundError as exc:
                    print(exc, exc.name)
            print(list(pool.map(str, range(3), progress=Bar)))
        with FakePool() as pool:
            print(list(pool.map(str, range(3), progress=True)), [*poolkit.progress(pool.submit(str, 1))])
        """
    )
    said = "progress bars need tqdm: pip install 'poolkit[progress]', or give what makes a bar of another kind tqdm"
    fake = "['0', '1', '2'] [<poolkit.Task 4 'str' succeeded>]"
    assert lines == [said, said, "a bar of 3", "closed", "['0', '1', '2']", fake]


# ===== notebooks =====

_NOTEBOOK = """
import json, sys, nbclient, nbformat.v4 as v4
notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in json.load(open("cells.json"))])
nbclient.NotebookClient(notebook, kernel_name="python3", timeout=None).execute()
print(json.dumps([cell.outputs for cell in notebook.cells]))
"""


@pytest.mark.parametrize("widgets", [True, False])
def test_in_a_notebook_it_is_a_widget_where_there_are_widgets_and_text_elsewhere(tmp_path: Path, widgets: bool) -> None:
    pytest.importorskip("nbclient")
    if widgets:
        pytest.importorskip("ipywidgets")
    cells = [
        "import sys\nimport poolkit" + ("" if widgets else "\nsys.modules['ipywidgets'] = None"),
        "with poolkit.Pool(1) as pool:\n    print(list(pool.map(str, range(3), progress='three')))",
        "with poolkit.Pool(1) as pool:\n    for task in poolkit.progress(pool.submit(str, 1)): print(task.result())",
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    (tmp_path / "run.py").write_text(_NOTEBOOK)
    outputs = json.loads(sessions.start(["run.py"], tmp_path))
    printed = ["".join(each["text"] for each in found if each.get("name") == "stdout") for found in outputs]
    assert printed == ["", "['0', '1', '2']\n", "1\n"]
    text = ["".join(each["text"] for each in found if each.get("name") == "stderr") for found in outputs]
    shown = [[each["data"] for each in found if "data" in each] for found in outputs]
    if widgets:
        assert text == ["", "", ""]
        assert all("application/vnd.jupyter.widget-view+json" in data for found in shown[1:] for data in found)
        assert [len(found) for found in shown] == [0, 1, 1]
    else:
        assert shown == [[], [], []]
        assert "three: 100%" in text[1]
        assert "1/1" in text[2]
