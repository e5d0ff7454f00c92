"""The result of a benchmark: as a table and as JSON. Ratios are medians over the turns."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FLOOR = "floor"


@dataclass(frozen=True)
class Row:
    """What was measured, and the seconds of each run by system, in turns."""

    what: str
    seconds: dict[str, list[float]]

    def median(self, system: str) -> float:
        """Return the median of a system's runs, in seconds."""
        return statistics.median(self.seconds[system])

    def ratio(self, system: str, base: str) -> Ratio:
        """Return a system's time as a multiple of another's, by turns where both have as many runs."""
        ours, theirs = self.seconds[system], self.seconds[base]
        if len(ours) != len(theirs):
            theirs = [self.median(base)] * len(ours)
        return Ratio.of([one / other for one, other in zip(ours, theirs, strict=True)])


@dataclass(frozen=True)
class Ratio:
    """A ratio: median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """Return the ratio that several turns give."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass
class Report:
    """All that was measured, and on what."""

    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    residents: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the report as JSON; times are in seconds."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return a report that was written by `to_json`."""
        found = json.loads(text)
        return cls(found["machine"], [Row(**row) for row in found["rows"]], found["residents"])

    def compares(self) -> bool:
        """Return whether libvirt was measured too."""
        return any("libvirt" in row.seconds for row in self.rows)


def human(seconds: float) -> str:
    """Return seconds in a form to read."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def cells(report: Report) -> list[tuple[str, ...]]:
    """Return the table: its header, the floor, and a line for each row."""
    compares = report.compares()
    floors = [value for row in report.rows for value in row.seconds[FLOOR]]
    floor = ("Python with click, pydbus and the bus", "1.00", human(statistics.median(floors)))
    header = ("what", "qsysd : floor", "qsysd")
    rows = [(row.what, str(row.ratio("qsysd", FLOOR)), human(row.median("qsysd"))) for row in report.rows]
    if not compares:
        return [header, floor, *rows]
    compared = [(str(row.ratio("qsysd", "libvirt")), human(row.median("libvirt"))) for row in report.rows]
    lines = [
        (what, ratio, to_floor, ours, theirs)
        for (what, to_floor, ours), (ratio, theirs) in zip(rows, compared, strict=True)
    ]
    head = ("what", "qsysd : libvirt", "qsysd : floor", "qsysd", "libvirt")
    return [head, (floor[0], "", floor[1], floor[2], ""), *lines]


def idle(report: Report) -> str:
    """Return what is resident while no VM runs."""
    processes = ", ".join(f"{each['name']} {each['rss_mib']} MiB" for each in report.residents)
    return f"resident while no VM runs: {processes or 'nothing'}"


def table(report: Report) -> str:
    """Return the table for a terminal."""
    rows = cells(report)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in [*lines, idle(report)])


def markdown(report: Report) -> str:
    """Return the table for a page, with what it was measured on."""
    header, *rows = cells(report)
    lines = [header, ("---",) * len(header), *rows]
    machine = report.machine
    names = [name for name in ("systemd", "qemu", "libvirt", "python") if name in machine]
    versions = ", ".join(f"{name} {machine[name]}" for name in names)
    return "\n".join(
        [
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            f"Taken {machine['taken'][:10]} with {machine['processors']} processors, TCG, {versions};",
            f"{idle(report)}.",
        ]
    )
