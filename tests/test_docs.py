"""The documentation tells the truth: snippets run and print what they say, links lead somewhere, examples work."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import poolkit
from support import WATCHDOG
from support_traces import load, outcomes, parsed, texts_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
SNIPPET_PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "docs/index.md", ROOT / "docs/tutorial.md", *ROOT.glob("docs/guide/*.md")]
    if page.is_file()
]
OUTPUT = re.compile(r"# -> (.*)$", re.MULTILINE)
NAMED_TEST = re.compile(
    r"\[`(?P<test>test_\w+)`\]\((?P<file>[^)#\s]+\.py)\)|`(?P<path>tests/[\w/]+\.py)::(?P<name>\w+)`"
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def script_of(page: str) -> str:
    """Blank out everything but the python blocks, so that line numbers stay those of the page."""
    lines, inside = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines) + "\n"


def anchors_of(page: str) -> set[str]:
    """The anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run(script: Path, *arguments: str, where: Path, seconds: float = WATCHDOG) -> str:
    """Run a script by itself, in the folder `where`; it must succeed without a complaint. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=where,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", SNIPPET_PAGES, ids=lambda page: page.name)
def test_snippets_of_a_page_run_and_print_what_it_says(page: Path, tmp_path: Path) -> None:
    source = script_of(page.read_text())
    script = tmp_path / f"page_{page.stem}.py"  # no name of a module
    script.write_text(source)
    printed = run(script, where=tmp_path)
    assert printed.splitlines() == OUTPUT.findall(source)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for path, anchor in LINK.findall(text):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors_of(target.read_text()), path + anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tests_that_a_page_names_exist(page: Path) -> None:
    """As [`test_name`](../tests/file.py) or `tests/file.py::test_name`."""
    for found in NAMED_TEST.finditer(page.read_text()):
        file = page.parent / found["file"] if found["file"] else ROOT / found["path"]
        name = found["test"] or found["name"]
        assert re.search(rf"^(async )?def {name}\(", file.read_text(), re.MULTILINE), f"{file}::{name}"


def test_each_pain_has_its_test_and_its_line() -> None:
    """Rows 1 to 35: one test each, in order, and a line on the page that compares, with that number and that test."""
    files = (ROOT / f"tests/pains/test_{name}.py" for name in ("hangs", "leaks", "programs"))
    tests = [name for file in files for name in re.findall(r"^def (test_row_\w+)\(", file.read_text(), re.MULTILINE)]
    assert [int(name.split("_")[2]) for name in tests] == list(range(1, 36))
    lines = re.findall(r"^\| (\d+) \|.*\[`(\w+)`\]\(\S+\) \|$", (ROOT / "docs/comparison.md").read_text(), re.MULTILINE)
    assert lines == [(str(number), name) for number, name in enumerate(tests, 1)]


def test_each_error_of_the_page_has_its_test() -> None:
    """In the last column; "the same" is that of the row before, and "none" stands where nothing is raised."""
    lines = re.findall(r"^\| (.*) \|$", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    rows = [[column.strip() for column in line.split(" |")] for line in lines]
    rows = [row for row in rows if row[-1] not in {"test", "---"}]
    assert len(rows) > 50
    for seen, _, todo, test in rows:
        assert NAMED_TEST.match(test) or test in {"the same", "none"}, seen
        assert seen, todo


@pytest.mark.slow
def test_example_scans_files_as_it_would_in_line(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/scan_stdlib.py", "--limit", "12", where=tmp_path)
    assert "12 of 12 files ended as they do in line, 0 were sabotaged" in printed


@pytest.mark.slow
def test_example_of_a_pipeline_writes_its_records_and_its_timeline(tmp_path: Path) -> None:
    options = "json", "logging", "--trace", "run.json", "--picture", "run.svg"
    printed = run(ROOT / "examples/batch_pipeline.py", *options, where=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert f"{len(lines)} records in records.jsonl" in printed
    assert {line["module"] for line in lines} == {"__init__", "config", "decoder", "encoder", "handlers"}
    assert all(line["words"] >= len(line["about"]) for line in lines)
    found = outcomes(load(tmp_path / "run.json"))
    assert found["parse", "succeeded"] == 1
    assert {name for name, _ in found} == {"parse", "map(enrich)"}
    assert {"worker 1", "queued"} <= {*texts_of(parsed((tmp_path / "run.svg").read_text()))}


@pytest.mark.slow
def test_example_of_dedicated_workers_shows_all_five_uses(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/workers.py", "--fibonacci", "21", "--mebibytes", "16", where=tmp_path)
    assert "(a) sums of squares: 285 and 2.5\n    the worker returned 2\n" in printed
    assert re.search(r"\(b\) fibonacci\(21\) = 10946; \d+ ticks meanwhile", printed)
    assert "(c) 16 MiB brightened from 100 to 150; the worker saw 150" in printed
    moved = re.search(r"what was sent of it: a handle of (\d+) bytes", printed)
    assert moved is not None
    assert int(moved[1]) < 10_000
    assert "(d) [0, 1, 2, 3] and [3, 2, 0, -1]\n    'Tokenizer' object has no attribute 'decode'" in printed
    assert "(e) parser died of SIGSEGV, in parse\n" in printed
    assert "on_exit was told: crashed, SIGSEGV, its process" in printed
    assert "its successor, a new process, says 4" in printed


@pytest.mark.slow
def test_example_of_a_long_running_tool_answers_and_is_started_again(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/long_running_tool.py", "--python", "--questions", "20", where=tmp_path)
    assert "answered 20 questions in one process" in printed
    assert re.search(r"started again: .* was killed by SIGKILL", printed)
    assert "it was started 2 times in all\n  it has ended by itself, with code 0" in printed
    assert "was started 20 times" in printed


@pytest.mark.slow
def test_example_of_a_first_cluster_replaces_what_is_killed_and_reloads(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/prefork_hello.py", "--load", where=tmp_path)
    assert re.search(r"^worker (\d) \(pid \d+\) was killed by SIGKILL, replaced after \d+ ms$", printed, re.MULTILINE)
    assert re.search(
        r"^hello from worker \d, generation 1\n(.*\n)*hello from worker \d, generation 2$", printed, re.MULTILINE
    )
    assert printed.endswith("stopped, with code 0\n")
    for pid in re.findall(r"pid=(\d+)", printed):
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.long
@pytest.mark.slow
def test_example_of_a_chat_keeps_its_guests_and_what_they_say(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/chat.py", "--load", "--clients", "200", where=tmp_path)
    assert "WRONG" not in printed
    assert len(re.findall(r"^ok .* each address at its own worker$", printed, re.MULTILINE)) == 4
    assert "ok    a broadcast: all 200 have heard 1 messages" in printed
    assert "ok    what was said meanwhile: all 200 have heard 81 messages" in printed
    assert "ok    0 connections were refused" in printed
    assert "ok    round_robin: 40 connections, by worker: [10, 10, 10, 10]" in printed
    assert len(re.findall(r"^ok .* 40 connections, by worker: ", printed, re.MULTILINE)) == 4


@pytest.mark.long
@pytest.mark.slow
def test_example_of_an_image_service_loses_only_what_was_killed(tmp_path: Path) -> None:
    options = "--load", "--seconds", "2", "--clients", "8"
    printed = run(ROOT / "examples/image_service.py", *options, where=tmp_path)
    assert "WRONG" not in printed
    assert re.search(r"^ok    a limit of 1 ms: <Response \[504 ", printed, re.MULTILINE)
    assert re.search(r"^ok    no picture: <Response \[422 ", printed, re.MULTILINE)
    assert re.search(r"^ok    40 pictures at once: \{.*503: ", printed, re.MULTILINE)
    assert "ok    6 events came, ['5.png'] is none" in printed
    assert "ok    a reload, and all of this: {} failed beside these" in printed
    assert re.search(r"^ok    stopped: of [4-9] processes that were seen, 0 are left$", printed, re.MULTILINE)
    assert re.search(r"^ok    the loops were late by .*; inline by ", printed, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.slow
def test_example_of_a_media_server_serves_and_ends_what_its_clients_leave(tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg: install it, or imageio-ffmpeg")
    printed = run(ROOT / "examples/media_server.py", "--load", where=tmp_path)
    assert "WRONG" not in printed
    found = Counter(line.partition(":")[0] for line in printed.splitlines() if line.startswith("ok "))
    assert found["ok    the eleventh"] == found["ok    no video"] == found["ok    a limit of 0.2 s"] == 1
    assert "at most 2 conversions were seen at a time" in printed
    assert len(re.findall(r"^ok    \.(?:mp4|webm) .*, 100%$", printed, re.MULTILINE)) == 8
    assert len(re.findall(r"^ok    left in a \w+: no ffmpeg is left", printed, re.MULTILINE)) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs Dask")
def test_example_of_a_cluster_tells_what_each_bad_thing_costs(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/many_machines.py", where=tmp_path, seconds=4 * WATCHDOG).splitlines()
    assert {f"  task {number} says hello" for number in range(4)} == {line for line in printed if "hello" in line}
    shown = (ROOT / "docs/guide/many-machines.md").read_text().partition("beside them: ")[2].partition("```")[0]
    assert [line for line in printed if "hello" not in line] == f"beside them: {shown}".splitlines()


@pytest.mark.long
@pytest.mark.slow
def test_example_loses_only_the_sabotaged_files(tmp_path: Path) -> None:
    printed = run(ROOT / "examples/scan_stdlib.py", "--limit", "12", "--sabotage", "--timeout", "2", where=tmp_path)
    assert "9 of 12 files ended as they do in line, 3 were sabotaged" in printed
    assert re.search(r"loop_for_ever\n +TaskTimeout: ", printed)
    assert re.search(r"read_address_zero\n +WorkerCrashed: .*SIGSEGV", printed)
    assert re.search(r"exit_at_once\n +WorkerCrashed: .*3", printed)
    assert list(tmp_path.iterdir()) == [], "a core or a stray file was left behind"


@pytest.mark.long
@pytest.mark.slow
def test_example_filters_pictures_and_shows_them_on_a_sheet(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (320, 200), "red").save(folder / "1-red.png")
    Image.new("RGBA", (100, 300), "lime").save(folder / "2-lime.png")
    Image.linear_gradient("L").save(folder / "3-grey.jpg")
    Image.effect_noise((300, 200), 60).save(folder / "4-noise.webp", lossless=True)
    (folder / "5-broken.webp").write_bytes((folder / "4-noise.webp").read_bytes()[:5_000])
    (folder / "6-words.txt").write_text("not a picture")

    printed = run(ROOT / "examples/image_filter.py", str(folder), "--rounds", "1", "--workers", "2", where=tmp_path)
    assert re.search(r"^left out: .*5-broken\.webp: ", printed, re.MULTILINE)
    assert "4 pictures, 0.2 megapixels" in printed
    for way in ("in line", "concurrent.futures", "poolkit"):
        assert re.search(rf"^{way} +[\d.]+ megapixels a second$", printed, re.MULTILINE)
    assert "4 of 4 pictures are the same in all three ways" in printed
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        colours = sheet.getcolors(sheet.width * sheet.height)
        counts = {colour: count for count, colour in colours or []}
    assert counts[255, 0, 0] == 160 * 100, "the red one, shrunk in proportion"
    assert counts[0, 255, 0] == 53 * 160, "the green one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contact-sheet.png", "pictures"]


def test_the_version_is_the_same_everywhere() -> None:
    (project,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[(.*)\] - \d{4}-\d\d-\d\d$", (ROOT / "docs/changelog.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert poolkit.__version__ == project == newest[1]
