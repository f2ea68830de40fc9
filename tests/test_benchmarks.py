"""The benchmarks run and print what the documentation says; how fast anything is, no test asks."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import account, arrays, calls, clusters, reload, showing
from benchmarks.catalogue import MEASURES
from benchmarks.contenders import ENTRIES, Entry, is_installed
from benchmarks.measure import Measure, Row, Samples, run_rounds
from benchmarks.page import filled, pictures
from benchmarks.picture import draw
from benchmarks.record import Record, read
from benchmarks.table import lines_of, number
from support import WATCHDOG

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORD, PICTURE, PAGE = (DOCS / f"performance.{ending}" for ending in ("json", "svg", "md"))
SVG = "{http://www.w3.org/2000/svg}"
RUN = Path(__file__).resolve().parent / "benchmarks/run.py"
BACKENDS = Path(__file__).resolve().parent / "benchmarks/joblib_mod.py"
COMPARE = Path(__file__).resolve().parent / "pains/compare.py"


@pytest.mark.long
@pytest.mark.slow
def test_a_tiny_run_prints_a_table_and_writes_its_samples(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(RUN),
            "latency",
            "--repeat=1",
            "--scale=0.01",
            f"--json={tmp_path / 'samples.json'}",
            "--only",
            "poolkit",
            "ppe-fork",
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["##", "latency:"] in [line[:2] for line in lines]
    told = {line[0].rstrip(","): line for line in lines if line}
    assert "failed" not in done.stdout
    assert {"faster", "slower", "even"} & set(told["ProcessPoolExecutor"])
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert set(samples["rounds"]["latency"][0]) == {"poolkit", "ppe-fork", "machine"}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "measure",
    [
        *arrays.MEASURES,
        *account.MEASURES,
        *showing.MEASURES,
        *(measure for measure in calls.MEASURES if measure.name == "arguments"),
    ],
    ids=lambda measure: measure.name,
)
def test_a_measure_runs_with_tiny_sizes(measure: Measure) -> None:
    samples = run_rounds(measure, ["poolkit"], repeat=1, scale=0.01)
    assert samples.failures == {}
    assert samples.rounds[0]["poolkit"].keys() <= {row.key for row in measure.rows}  # a row may have no figure
    assert samples.rounds[0].get("machine", {}).keys() == set(measure.limits)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("measure", clusters.MEASURES, ids=lambda measure: measure.name)
def test_a_measure_of_clusters_runs_with_tiny_sizes(measure: Measure) -> None:
    pytest.importorskip("uvicorn")
    ours = measure.contenders[:1]
    samples = run_rounds(measure, ours, repeat=1, scale=0.02)
    assert samples.failures == {}
    assert samples.rounds[0][ours[0]].keys() == {row.key for row in measure.rows}
    no_failures = {row.key for row in measure.rows if row.bars.get(ours[0]) == "0"}
    assert {samples.rounds[0][ours[0]][key] for key in no_failures} <= {0}


@pytest.mark.parametrize(
    ("needs", "is_there"),
    [
        ("asyncio", True),
        ("asyncio and nothing_of_that_name", False),
        ("nothing_of_that_name.within", False),
        (f"program {sys.executable}", True),
        ("program nothing-of-that-name", False),
    ],
)
def test_a_contender_takes_part_where_all_is_there_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, needs: str, is_there: bool
) -> None:
    monkeypatch.setitem(ENTRIES, "new", Entry("new", "new", needs, ENTRIES["poolkit"].open))
    assert is_installed("new") == is_there


@pytest.mark.slow
def test_a_contender_that_fails_is_told_and_does_not_run_again() -> None:
    unknown = Measure("unknown", "not in the catalogue", ("poolkit",), (Row("key", "a call", "us"),), lambda *_: {})
    samples = run_rounds(unknown, unknown.contenders, repeat=2, scale=1)
    assert samples.failures == {"poolkit": "KeyError: 'unknown'"}
    assert samples.rounds == [{}, {}]
    assert any(
        line.split() == ["poolkit", "failed", "KeyError:", "'unknown'"]
        for line in lines_of(unknown, ["poolkit"], samples)
    )


@pytest.mark.long
@pytest.mark.slow
def test_the_comparison_of_failures_shows_what_each_pool_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(COMPARE), "nested"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  "))
    assert shown["poolkit"] == "ok"
    assert {"concurrent.futures", "multiprocessing"} <= shown.keys()


@pytest.mark.long
@pytest.mark.slow
def test_the_comparison_of_joblib_s_backends_runs_with_tiny_sizes(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    done = subprocess.run(
        [sys.executable, str(BACKENDS), "tiny", "three_deep", "--repeat=1", "--scale=0.01"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^  (\w+) +[\d.]+ ms", done.stdout, re.MULTILINE)
    assert told == ["poolkit", "loky", "threading"] * 2


def record_of(measure: str, *rounds: dict[str, dict[str, float]]) -> Record:
    """A record of one measure, with these rounds."""
    told = {"python": "CPython", "system": "Linux", "load": "0.00 0.00 0.00", "commit": "none"}
    return Record(told, samples={measure: Samples(list(rounds))})


def parsed(picture: str) -> ET.Element:
    """The elements of a picture."""
    return ET.fromstring(picture)  # noqa: S314 -- we drew it


def bars_of(picture: str) -> dict[str, tuple[float, float]]:
    """Where the bars of a picture begin and end, relative to the line of 1, by the name of their row."""
    root = parsed(picture)
    (even,) = (float(line.attrib["x1"]) for line in root.iter(f"{SVG}line") if line.get("class") == "even")
    bars = {}
    for row in root.iter(f"{SVG}g"):
        bar, name = row.find(f"{SVG}rect"), row.findtext(f"{SVG}text")
        if bar is not None and name:
            start = float(bar.attrib["x"]) - even
            bars[name] = (start, start + float(bar.attrib["width"]))
    return bars


def texts_of(picture: str) -> list[str]:
    """All that is written in a picture."""
    return [text.text or "" for text in parsed(picture).iter(f"{SVG}text")]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = record_of("latency", {"poolkit": {"latency": 1.5}}, {"ppe-fork": {"latency": 3.0}})
    record.samples["latency"].failures["loky"] = "not today"
    record.write(tmp_path / "record.json")
    assert read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_record_with_a_measure_that_is_no_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record_of("latency", {}).write(path)
    path.write_text(path.read_text().replace('"latency"', '"gone"'))
    with pytest.raises(ValueError, match="does not: gone"):
        read(path)


def test_bars_of_a_picture_go_as_far_as_the_ratio_and_to_its_side(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    threads = {
        "poolkit-thread": {"latency": 10.0, "burst": 10.0},
        "threads": {"latency": 100.0, "burst": 1.0},
    }
    record_of("threads", threads).write(path)
    bars = bars_of(draw(list(read(path).lines())))
    assert bars.keys() == {"threads: a call, one after the other", "threads: a call, 10,000 at once"}
    (ahead_start, ahead_end), (behind_start, behind_end) = bars.values()
    assert (ahead_start, behind_end) == pytest.approx((0, 0), abs=0.2)
    assert ahead_end == pytest.approx(-behind_start, abs=0.2), "ten times and a tenth: as far from 1"
    assert ahead_end > 50


def test_a_picture_shows_the_median_of_the_ratios_and_every_other_peer() -> None:
    rounds = [
        {"poolkit": {"latency": 1.0}, "ppe-fork": {"latency": ratio}, "mp-fork": {"latency": 2.0}}
        for ratio in (3.0, 4.0, 50.0)
    ]
    picture = draw(list(record_of("latency", *rounds).lines()))
    assert "4" in texts_of(picture)
    assert len(list(parsed(picture).iter(f"{SVG}circle"))) == 1


def test_a_row_without_a_ratio_is_named_in_the_picture_and_says_why() -> None:
    figures = {"owner": 0.0, "children": 0.0, "grandchildren": 0.0, "cpu": 0.0}
    told = texts_of(draw(list(record_of("idle", {"poolkit": figures, "pebble": {"owner": 60.0}}).lines())))
    assert "no ratio: poolkit has 0" in told
    assert "not measured" in told, "all the other rows"


def test_every_peer_has_a_colour_in_the_picture() -> None:
    for measure in MEASURES.values():
        ours, *peers = measure.contenders
        figures = {row.key: 1.0 for row in measure.rows}
        picture = draw(list(record_of(measure.name, dict.fromkeys(measure.contenders, figures)).lines()))
        compared = peers if any(row.words for row in measure.rows) else []
        assert {ENTRIES[peer].title for peer in compared} <= set(texts_of(picture))
        assert ENTRIES[ours].title not in texts_of(picture), "it is the line of 1"


def test_the_picture_of_the_page_names_every_row_that_is_compared() -> None:
    told = texts_of(PICTURE.read_text())
    for measure in MEASURES.values():
        for row in measure.rows:
            if row.words and len(measure.contenders) > 1:
                name = f"{measure.name}: {row.title}"
                assert name in told
                assert len(name) <= 58, "it fits beside the bars"
    assert "not measured" not in told


def test_the_pictures_and_the_tables_of_the_page_are_those_of_its_record() -> None:
    record = read(RECORD)
    for name, picture in pictures(record).items():
        assert (DOCS / name).read_text() == picture, name
    assert PAGE.read_text() == filled(PAGE.read_text(), record)


def test_the_page_shows_the_picture_and_has_every_row() -> None:
    page = PAGE.read_text()
    assert "](performance.svg)" in page
    for measure in MEASURES.values():
        assert f"| `{measure.name}` | " in page, "what is measured"
        for row in measure.rows:
            assert f"| {measure.name}: {row.title} | {row.unit} | " in page, "results"


def test_the_picture_of_a_call_shows_what_each_part_of_it_costs() -> None:
    told = texts_of((DOCS / "call.svg").read_text())
    for title in ("ProcessPoolExecutor, fork", "multiprocessing.Pool, fork", "poolkit"):
        assert title in told
    parts, page = (
        {key: read(RECORD).samples["account"].of("poolkit", key) for key in ("submit", "total")},
        PAGE.read_text(),
    )
    for figures in parts.values():
        figure = number(statistics.median(figures))
        assert f"{figure} us" in told
        assert f" {figure} " in page


def test_the_picture_of_reloads_shows_every_failure_of_its_record() -> None:
    record = json.loads((DOCS / "reload.json").read_text())
    picture = (DOCS / "reload.svg").read_text()
    assert picture == reload.draw(record)
    told = texts_of(picture)
    for name, found in record["servers"].items():
        answered, failed = sum(map(sum, found["answers"])), len(found["failed"])
        assert ENTRIES[name].title in told
        assert f"{failed} of {answered + failed:,} requests failed" in told
    dots = ET.fromstring(picture).findall(f".//{SVG}circle")  # noqa: S314 -- our own
    assert len(dots) == sum(len(found["failed"]) for found in record["servers"].values())


@pytest.mark.long
@pytest.mark.slow
def test_reloads_are_seen_in_each_tenth_of_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(reload, "SECONDS", 2.0)
    monkeypatch.setattr(reload, "RELOAD", 0.5)
    found = reload.measured("poolkit")
    assert found["failed"] == []
    assert [len(generation) for generation in found["answers"]] == [20, 20]
    assert sum(found["answers"][0][:5]) > 0
    assert sum(found["answers"][1][:5]) == 0, "nobody of the second generation was there before"


@pytest.mark.slow
def test_the_picture_of_accidents_shows_three_workers_that_die(tmp_path: Path) -> None:
    script, picture = Path(__file__).resolve().parent / "benchmarks/accidents.py", tmp_path / "crash.svg"
    done = subprocess.run(
        [sys.executable, str(script), str(picture)], capture_output=True, text=True, timeout=WATCHDOG, check=False
    )
    assert (done.stdout, done.stderr) == ("30 tasks, of which 2 failed: WorkerCrashed, TaskTimeout\n", "")
    for text in (picture.read_text(), (DOCS / "crash.svg").read_text()):
        told = texts_of(text)
        assert any(words.startswith("pictures: 31 runs in ") for words in told)
        assert {f"worker {number}" for number in range(1, 6)} <= set(told), "three were replaced, the last perhaps late"
        assert text.count('class="death"') == 3


def test_a_peer_that_failed_in_a_later_round_has_no_ratio() -> None:
    record = record_of("latency", {"poolkit": {"latency": 1.0}, "ppe-fork": {"latency": 3.0}})
    record.samples["latency"].failures["ppe-fork"] = "no end after 180 s"
    assert "| latency: a call | us | 1 | PPE failed | " in filled(PAGE.read_text(), record)
    assert bars_of(draw(list(record.lines()))) == {}


def test_a_page_gets_the_figures_of_a_record_instead_of_its_own() -> None:
    rounds = [{"poolkit": {"latency": 2.0}, "ppe-fork": {"latency": 2.0 * ratio}} for ratio in (3.0, 4.0, 50.0)]
    record = record_of("latency", *rounds)
    page = filled(PAGE.read_text(), record)
    assert "| latency: a call | us | 2 | PPE 8, 4 times (3 to 50) | PPE: 9, then 12 |" in page
    assert "| burst: a call | us | - |  | " in page
    assert "are no result" not in page
    assert filled(page, record) == page
    record.environment["load"] = "1.90 0.00 0.00"
    assert "are no result" in filled(page, record), "others used the machine"
    with pytest.raises(ValueError, match="the page has no <!-- results"):
        filled(re.sub("<!-- end of results -->", "", page), record)
