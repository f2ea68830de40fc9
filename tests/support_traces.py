"""Chrome trace events, as tests look at them."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

Event = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"


def load_torn(path: Path) -> list[Event]:
    """Read the events of a file whose end may be missing, as speedscope does: only the bracket, and a comma."""
    text = re.sub(r",\s*$", "", path.read_text().strip())
    found: list[Event] = json.loads(text if text.endswith("]") else text + "]")
    return found


def load(path: Path) -> list[Event]:
    """Read the events of a complete file."""
    found: list[Event] = json.loads(path.read_text())
    return found


def runs_of(events: list[Event]) -> list[Event]:
    """The runs, in the order of their ends; on no track do two of them overlap, and each track has a name."""
    runs = [event for event in events if event["ph"] == "X"]
    tracks: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        tracks[run["tid"]].append((run["ts"], run["ts"] + run["dur"]))
    for spans in tracks.values():
        spans.sort()
        for (_, ended), (began, _) in itertools.pairwise(spans):
            assert ended <= began + 0.002, "two runs at once on one track"  # microseconds, as they are rounded
    assert tracks.keys() <= {event["tid"] for event in events if event["name"] == "thread_name"}
    return runs


def outcomes(events: list[Event]) -> Counter[tuple[str, str]]:
    """How often each function ended how."""
    return Counter((run["name"], run["args"]["outcome"]) for run in runs_of(events))


def instants(events: list[Event]) -> Counter[str]:
    """What happened to workers, how often."""
    return Counter(event["name"] for event in events if event["ph"] == "i")


def parsed(picture: str) -> ET.Element:
    """The picture, which is well-formed and has no script."""
    found = ET.fromstring(picture)  # noqa: S314 -- we have just written it
    assert found.tag == f"{SVG}svg"
    assert found.find(f".//{SVG}script") is None
    return found


def texts_of(picture: ET.Element) -> list[str]:
    """What is written in it."""
    return [text.text or "" for text in picture.iter(f"{SVG}text")]
