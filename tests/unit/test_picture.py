"""The picture of a timeline: well-formed, bounded, and true to what it is given."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET

import pytest

from poolkit.picture import Happening, Load, Run, draw
from support_traces import SVG, parsed, texts_of


def drawn(*args: object) -> ET.Element:
    return parsed(draw("pool", *args))  # type: ignore[arg-type]


def rects(picture: ET.Element, kind: str) -> list[tuple[float, float]]:
    """Where the shapes of a kind begin, and how wide they are."""
    found = picture.findall(f"{SVG}rect[@class='{kind}']")
    return [(float(rect.attrib["x"]), float(rect.attrib["width"])) for rect in found]


def run(worker: int, began: float, ended: float, name: str = "f", error: str | None = None) -> Run:
    return Run(worker, 1, name, 1, began, began, ended, error)


def test_runs_stand_where_they_ran_and_workers_show_how_busy_they_were() -> None:
    runs = [run(1, 10.0, 15.0), run(1, 15.0, 20.0, "g"), run(2, 17.5, 20.0, error="ValueError")]
    started = [Happening(5.0, 1, "started", 11), Happening(15.0, 2, "started", 12)]
    picture = drawn((10.0, 20.0), runs, started, [Load(10.0, 7, 1), Load(20.0, 2, 2)])
    assert rects(picture, "run") == [(90, 400), (490, 400), (690, 200)]
    assert rects(picture, "life") == [(90, 800), (490, 400)]
    assert [text for text in texts_of(picture) if text.endswith("% busy")] == [
        "2 workers, 83% busy",
        "100% busy",
        "50% busy",
    ]
    assert texts_of(picture)[0] == "pool: 3 runs in 10 s, 1 failed"
    assert "at most 6" in texts_of(picture)
    assert "f: 2 runs, 7.5 s" in texts_of(picture)
    assert "g: 1 run, 5 s" in texts_of(picture)
    [failed] = picture.findall(f"{SVG}path[@class='failed']")
    assert failed.attrib["d"].startswith("M890 ")
    assert "f, task 1: failed, ValueError" in (failed.findtext(f"{SVG}title") or "")


@pytest.mark.parametrize("count", [1, 1_200, 1_201, 5_000])
@pytest.mark.parametrize("workers", [1, 64, 500])
def test_no_picture_has_more_than_2000_shapes(count: int, workers: int) -> None:
    rng = random.Random(count)
    runs = []
    for number in range(count):
        began = rng.random() * 10
        error = rng.choice([None, None, "ValueError", "poolkit.errors.WorkerCrashed"])
        runs.append(run(number % workers + 1, began, began + rng.random(), f"f{number % 50}", error))
    happenings = [Happening(0.0, worker + 1, "started", worker) for worker in range(workers)]
    happenings += [Happening(rng.random() * 11, worker + 1, "crashed", "SIGKILL") for worker in range(workers)]
    loads = [Load(rng.random() * 11, rng.randrange(1000), 1) for _ in range(5_000)]
    picture = drawn((0.0, 11.0), runs, happenings, loads)
    shapes = [shape for shape in picture.iter() if shape.tag != f"{SVG}title"]
    assert len(shapes) <= 2_000
    assert texts_of(picture)[0].startswith(f"pool: {count} runs in 11 s")
    rows = sum(text.startswith("worker ") for text in texts_of(picture))
    assert rows == min(workers, 100)


def test_many_runs_show_how_busy_a_worker_was_at_each_time() -> None:
    runs = [run(1, number / 1000, (number + 0.5) / 1000) for number in range(2_000)]
    picture = drawn((0.0, 4.0), runs, [], [])
    found = picture.findall(f"{SVG}rect[@class='run']")
    assert {round(float(rect.attrib["height"])) for rect in found} == {9}, "half of 18 pixels"
    assert max(x + width for x, width in rects(picture, "run")) == pytest.approx(490, abs=1)


@pytest.mark.parametrize("name", ['<script>alert("x")</script>&\'', "\x00\x1b]\ud800\ufffe", "%s {0} $x", "ü" * 500])
def test_no_name_breaks_it(name: str) -> None:
    text = draw(name, (0.0, 1.0), [run(1, 0.0, 1.0, name, name)], [Happening(1, 1, name, name)], [])
    picture = parsed(text.encode().decode())
    if name.isprintable() and len(name) < 100:
        assert any(name in text for text in texts_of(picture))


def test_what_is_outside_of_the_window_is_cut_off() -> None:
    picture = drawn((10.0, 10.0), [run(1, 0.0, 5.0), run(1, 10.0, 99.0)], [], [Load(99.0, 1, 0)])
    assert all(90 <= x <= 890 for x, _ in rects(picture, "run"))


def test_a_dark_page_changes_the_background_and_what_would_vanish_on_it_and_nothing_else_of_the_page() -> None:
    picture = drawn((0.0, 1.0), [run(1, 0.0, 1.0)], [Happening(0.0, 1, "started", 1)], [])
    style = picture.findtext(f"{SVG}style") or ""
    rules = re.findall(r"^  (.*) \{", style, re.MULTILINE)
    selectors = [selector for rule in rules for selector in rule.split(", ")]
    assert all(selector.split()[0] == ".poolkit-timeline" for selector in selectors), "for a notebook, which shows more"
    classes = {selector.split(".")[-1] for selector in selectors}
    of_light = {"#222222", "#ffffff", "#eeeeee", "#dddddd"}
    light = [shape for shape in picture.iter() if {shape.get("fill"), shape.get("stroke")} & of_light]
    assert {shape.attrib["class"] for shape in light} == classes == {"poolkit-timeline", "page", "life", "grid"}
