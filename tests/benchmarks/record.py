"""The record of a run: one JSON file with every sample. `run.py` writes it, `report.py` makes the results of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.catalogue import MEASURES
from benchmarks.contenders import is_installed
from benchmarks.machine import LIMITS
from benchmarks.measure import Measure, Row, Samples

_DIGITS = 5  # that count; more than any figure is worth


@dataclass
class Record:
    """What ran where, and what it yielded."""

    environment: dict[str, str]
    scale: float = 1.0
    samples: dict[str, Samples] = field(default_factory=dict)  # by the name of the measure

    def write(self, path: Path) -> None:
        """Write it as JSON, one line for each round of a measure. All of it or nothing is in the file."""
        units = {name: {row.key: row.unit for row in MEASURES[name].rows} for name in self.samples}
        head = {
            "environment": self.environment,
            "scale": self.scale,
            "units": units | {"machine": {key: limit.unit for key, limit in LIMITS.items()}},
            "failures": {name: samples.failures for name, samples in self.samples.items() if samples.failures},
        }
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rounds = [
            f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(_rounded(found)) for found in samples.rounds) + "]"
            for name, samples in self.samples.items()
        ]
        parts.append('"rounds": {\n' + ",\n".join(rounds) + "}")
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
        unfinished.replace(path)

    def lines(self) -> Iterator[Line]:
        """One for each row of the catalogue, in its order, those that were not measured included."""
        for measure in MEASURES.values():
            samples = self.samples.get(measure.name, Samples())
            yield from (Line(measure, row, samples) for row in measure.rows)


@dataclass(frozen=True)
class Line:
    """One row with its figures."""

    measure: Measure
    row: Row
    samples: Samples

    @property
    def name(self) -> str:
        """What the row is called in tables and pictures: no two have the same name."""
        return f"{self.measure.name}: {self.row.title}"

    @property
    def ours(self) -> str:
        """The contender that the others are compared with."""
        return self.measure.contenders[0]

    @property
    def peers(self) -> tuple[str, ...]:
        """The others; the first is the chief one."""
        return self.measure.contenders[1:]

    @property
    def is_compared(self) -> bool:
        """Whether ratios to the peers mean anything."""
        return bool(self.peers and self.row.words)

    def ratios(self, peer: str) -> list[float]:
        """How many times larger a peer's figure is, round by round; nothing where there is none, or the peer failed."""
        if not self.is_compared or peer in self.samples.failures:
            return []
        return self.samples.ratios(peer, self.ours, self.row.key)


def read(path: Path) -> Record:
    """Read a record from its file."""
    found = json.loads(path.read_text(encoding="utf-8"))
    unknown = found["rounds"].keys() - MEASURES.keys()
    if unknown:
        raise ValueError(f"{path} has measures that the catalogue does not: {', '.join(sorted(unknown))}")
    samples = {name: Samples(rounds, found["failures"].get(name, {})) for name, rounds in found["rounds"].items()}
    return Record(found["environment"], found["scale"], samples)


def environment() -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}, {len(os.sched_getaffinity(0))} CPUs",
        "load": load(),
        "commit": _commit(),
    }
    for peer in ("pebble", "loky", "mpire", "joblib", "trio-parallel", "uvicorn", "gunicorn", "granian", "hypercorn"):
        if is_installed(peer):
            found[peer] = metadata.version(peer)
    return found


def load() -> str:
    """The load averages of the machine."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _commit() -> str:
    """The commit of the poolkit that runs; nothing where it was installed from a wheel."""
    import poolkit

    asked = ["git", "-C", str(Path(poolkit.__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"installed, {metadata.version('poolkit')}"


def _rounded(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        contender: {key: float(f"{figure:.{_DIGITS}g}") for key, figure in figures.items()}
        for contender, figures in found.items()
    }
