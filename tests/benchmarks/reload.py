"""A reload under load, tenth of a second by tenth of a second: docs/reload.json, and its picture docs/reload.svg.

Usage: python tests/benchmarks/reload.py [--json FILE] [--draw]

Servers of two workers are told to reload while they serve (`servers.py`); of each answer is known when it came,
and from which process. `--draw` measures nothing, and draws what the file has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benchmarks`

from benchmarks.contenders import ENTRIES, is_installed
from benchmarks.picture import framed
from benchmarks.record import environment, load
from benchmarks.servers import Load, Server

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
SERVERS = ("poolkit", "uvicorn-workers", "gunicorn", "granian", "node-cluster")
CLIENTS, OPTIONS = 32, ("--pause", "0.02", "--slow", "0.05")
SECONDS, RELOAD = 12.0, 2.0  # how long, and when
STEP = 0.1
_WARM = 1.0  # seconds of load before the time begins

_COLOURS = ("#3d82d1", "#3f9b5c")  # of the two generations
_FAILED = "#d1242f"
_WIDTH, _LEFT, _RIGHT, _PANEL, _BARS, _TOP = 980, 16, 16, 118, 64, 122


def measured(name: str) -> dict[str, Any]:
    """What clients of a server see: answers in each step by generation, and failures with their time."""
    with Server(name) as server, Load(server, CLIENTS, *OPTIONS, "--each") as clients:
        time.sleep(_WARM)
        clients.forget()
        began = time.monotonic()
        time.sleep(began + RELOAD - time.monotonic())
        server.send("SIGHUP")
        time.sleep(began + SECONDS - time.monotonic())
        found = clients.finish()
    first: dict[int, float] = {}
    for moment, pid in found["each"]:
        first.setdefault(pid, moment - began)
    answers = [[0] * round(SECONDS / STEP) for _ in _COLOURS]
    for moment, pid in found["each"]:
        place = int((moment - began) / STEP)
        if 0 <= place < len(answers[0]):  # those that were in flight at the end come later
            answers[first[pid] > RELOAD][place] += 1
    return {"answers": answers, "failed": [(round(moment - began, 3), kind) for moment, kind, _ in found["failed"]]}


def draw(record: dict[str, Any]) -> str:
    """The picture of a record: a row for each server, a bar for each step, a colour for each generation."""
    servers, found = record["servers"], record["environment"]
    loads = f"Load averages of the machine (1, 5, 15 minutes): {found['load']} before, {found['load after']} after it."
    parts = [
        f'<text class="title" x="{_LEFT}" y="26">{_TITLE}</text>',
        *(
            f'<text class="note" x="{_LEFT}" y="{46 + 18 * line}">{note}</text>'
            for line, note in enumerate((*_NOTES, loads))
        ),
        *_legend(),
    ]
    most = max(sum(step) for found in servers.values() for step in zip(*found["answers"], strict=True))
    for place, (name, found) in enumerate(servers.items()):
        parts += ["<g>", *_row(ENTRIES[name].title, found, _TOP + _PANEL * place, most), "</g>"]
    return framed(_TITLE, _WIDTH, _TOP + _PANEL * len(servers) + 4, parts)


_TITLE = "A reload under load: answers in each tenth of a second"
_NOTES = (
    f"Two workers each; {CLIENTS} clients, which keep their connections. A request in 20 takes a second.",
    "Half of these have a body of 5 MiB. The line is a SIGHUP to the server; node then does what its users write.",
)


def _legend() -> Iterator[str]:
    words = ("by the old workers", "by the new ones", "failed requests")
    x = _LEFT
    for colour, word in zip((*_COLOURS, _FAILED), words, strict=True):
        yield f'<rect x="{x}" y="96" width="10" height="10" rx="2" fill="{colour}"/>'
        yield f'<text x="{x + 15}" y="106">{word}</text>'
        x += 35 + 7 * len(word)


def _row(title: str, found: dict[str, Any], y: int, most: int) -> Iterator[str]:
    answered, failed = sum(map(sum, found["answers"])), len(found["failed"])
    yield f'<text class="strong" x="{_LEFT}" y="{y + 14}">{title}</text>'
    said = f"{failed} of {answered + failed:,} requests failed"
    yield f'<text class="end" x="{_WIDTH - _RIGHT}" y="{y + 14}">{said}</text>'
    base = y + 22 + _BARS
    width = (_WIDTH - _LEFT - _RIGHT) * STEP / SECONDS
    for place, step in enumerate(zip(*found["answers"], strict=True)):
        bottom = float(base)
        for count, colour in zip(step, _COLOURS, strict=True):
            if count:
                bottom -= (height := _BARS * count / most)
                yield (
                    f'<rect x="{_LEFT + place * width:.1f}" y="{bottom:.1f}" width="{width - 1:.1f}" '
                    f'height="{height:.1f}" fill="{colour}"/>'
                )
    yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>'
    x = _x(RELOAD)
    yield f'<line class="even" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 20}" y2="{base + 8}"/>'
    yield f'<text class="note" x="{x + 4:.1f}" y="{base + 14}">reload</text>'
    for moment, kind in found["failed"]:
        yield (
            f'<circle class="dot" cx="{_x(moment):.1f}" cy="{base + 6}" r="4.5" fill="{_FAILED}">'
            f"<title>{kind}</title></circle>"
        )


def _x(seconds: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / SECONDS


def _told(record: dict[str, Any]) -> str:
    """JSON, one line for each generation of a server."""
    servers = []
    for name, found in record["servers"].items():
        answers = ",\n".join(map(json.dumps, found["answers"]))
        servers.append(f'{json.dumps(name)}: {{"failed": {json.dumps(found["failed"])}, "answers": [\n{answers}]}}')
    return f'{{"environment": {json.dumps(record["environment"])},\n"servers": {{\n' + ",\n".join(servers) + "}}\n"


def main() -> None:
    """Measure, write the record and draw it."""
    parser = argparse.ArgumentParser(description="Measure reloads under load, and draw them.")
    parser.add_argument("--json", type=Path, default=DOCS / "reload.json", metavar="FILE")
    parser.add_argument("--draw", action="store_true", help="draw what the file has, and measure nothing")
    asked = parser.parse_args()
    if not asked.draw:
        record: dict[str, Any] = {"environment": environment(), "servers": {}}
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TMPDIR"] = folder
            for name in filter(is_installed, SERVERS):
                record["servers"][name] = measured(name)
        record["environment"]["load after"] = load()
        asked.json.write_text(_told(record), encoding="utf-8")
    picture = draw(json.loads(asked.json.read_text(encoding="utf-8")))
    asked.json.with_suffix(".svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
