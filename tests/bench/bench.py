"""How long things take, in a host of the lab, with tiny guests under TCG: a table, and build/bench.json.

Times are compared with the project's own targets, shown and never asserted: a busy machine is not a
fault. `measure.py` does the work inside the host.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from labnet import Network
from labproc import LabError, Process
from labtest import REPOSITORY, LabHost, lab_folder

HOST = "bench"
MEASURE = "/root/measure.py"
REPORT = REPOSITORY / "build/bench.json"

FEW, MANY = 10, 1000
DEFINED, RUNNING = 100, 20

# Seconds for one call of measure.py.
TIMEOUT = 1800.0
# Seconds between two looks at a host that goes down.
POLL = 0.002


@dataclass(frozen=True)
class Figure:
    """A figure: what was timed, its target and its runs, in seconds."""

    what: str
    target: float | None
    seconds: list[float]
    median: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "median", statistics.median(self.seconds))

    def row(self) -> tuple[str, ...]:
        """Return the figure's line of the table."""
        limit = "-" if self.target is None else human(self.target)
        verdict = "" if self.target is None else ("ok" if self.median < self.target else "SLOW")
        spread = f"{human(min(self.seconds))} - {human(max(self.seconds))}"
        return (self.what, human(self.median), limit, verdict, spread, str(len(self.seconds)))


@dataclass
class Report:
    """All that was measured, and on what."""

    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    residents: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, target: float | None, seconds: Sequence[float]) -> Figure:
        """Add a figure and show it, so that one sees something while the rest is measured."""
        figure = Figure(what, target, list(seconds))
        self.figures.append(figure)
        say(f"{what}: {human(figure.median)}")
        return figure

    def table(self) -> str:
        """Return the table that a person reads."""
        head = ("what", "median", "target", "", "range", "runs")
        rows = [head, *(figure.row() for figure in self.figures)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        for what, ratio in self.ratios.items():
            lines.append(f"{what} beside {MANY} loaded VM units takes {ratio:.0%} of its time beside {FEW}")
        idle = ", ".join(f"{each['name']} {each['rss_mib']} MiB" for each in self.residents)
        lines.append(f"resident when no VM runs: {idle or 'nothing'}")
        return "\n".join(line.rstrip() for line in lines)


def human(seconds: float) -> str:
    """Return seconds as a person reads them."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def say(words: str) -> None:
    """Tell the person what is going on."""
    print(f"bench: {words}", file=sys.stderr, flush=True)


class Bench:
    """One run of the benchmark."""

    def __init__(self, host: LabHost, runs: int, boots: int) -> None:
        self.host = host
        self.runs = runs
        self.boots = boots

    def measure(self, *arguments: str | int) -> Any:
        """Run a measurement in the host and return its result."""
        argv = ["/usr/bin/python3", MEASURE, *map(str, arguments)]
        return json.loads(self.host.run(argv, timeout=TIMEOUT).stdout)

    def run(self, package: Path) -> Report:
        """Measure everything on a new host."""
        say("a new host")
        self.host.down()
        self.host.up("bookworm")
        self.host.install(package)
        self.host.put(Path(__file__).with_name("measure.py"), MEASURE)
        report = Report(self.machine(package))
        report.add("Python with click, pydbus and the bus alone", None, self.measure("floor", self.runs))
        report.residents = self.measure("residents")
        self.loaded(report)
        self.listing(report)
        self.reboots(report)
        return report

    def machine(self, package: Path) -> dict[str, Any]:
        """Return what the figures were taken on."""
        return {
            "package": package.name,
            "kernel": os.uname().release,
            "processors": os.cpu_count(),
            "systemd": self.host.sh("systemctl --version | head -n 1"),
            "qemu": self.host.sh("qemu-system-x86_64 --version | head -n 1"),
            "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def loaded(self, report: Report) -> None:
        """Measure start, stop and create beside few and beside many loaded units."""
        medians: dict[str, list[float]] = {}
        for count in (FEW, MANY):
            loaded = self.measure("define", count)
            if loaded != count:
                raise LabError(f"{loaded} units are loaded, not {count}")
            say(f"{count} VM units are loaded; start and stop, create")
            found = self.measure("start-stop", self.runs)
            found["create"] = self.measure("create", self.runs)
            for what, target in (("start", 0.25), ("stop", 0.3), ("create", 0.6)):
                figure = report.add(f"{what}, {count} units loaded", target, found[what])
                medians.setdefault(what, []).append(figure.median)
        report.ratios = {what: many / few for what, (few, many) in medians.items()}
        self.measure("forget")

    def listing(self, report: Report) -> None:
        """Measure the list, with VMs that run and others that do not."""
        say(f"{RUNNING} VMs are started")
        self.measure("fleet", RUNNING)
        self.measure("define", DEFINED - RUNNING)
        what = f"list, {DEFINED} VMs, {RUNNING} of them running"
        report.add(what, 0.1, self.measure("list", self.runs))
        self.measure("forget")

    def reboots(self, report: Report) -> None:
        """Measure the host's way down with running guests, and its way up until all their QEMUs run."""
        down, up = [], []
        for number in range(self.boots):
            say(f"reboot {number + 1} of {self.boots} with {RUNNING} guests")
            leader = self.host.running()
            down.append(self.seconds_down(leader))
            self.host.up()
            up.append(self.measure("ready"))
        report.add(f"host shutdown, {RUNNING} live guests", 1.5, down)
        report.add(f"PID 1's start until {RUNNING} QEMUs run", 8.0, up)

    def seconds_down(self, leader: Process) -> float:
        """Switch the host off and return how long that took, from the command to the end of its PID 1."""
        started = time.perf_counter()
        self.host.run(["systemctl", "--no-block", "poweroff"])
        while leader.alive():
            if time.perf_counter() - started > TIMEOUT:
                raise LabError(f"{HOST} does not go off")
            time.sleep(POLL)
        taken = time.perf_counter() - started
        # What is left to do is the lab's own: its supervisor ends.
        self.host.wait_until(lambda: self.host.supervisor() is None, timeout=60, what="the lab to notice")
        return taken


def main() -> int:
    """Run the benchmark and return the exit status."""
    parser = argparse.ArgumentParser(description="Measure qsysd in a host of the lab (root).")
    parser.add_argument("package", type=Path, help="the qsysd package to measure")
    parser.add_argument("--runs", type=int, default=20, help="runs of each command (%(default)s)")
    parser.add_argument("--boots", type=int, default=5, help="reboots of the host (%(default)s)")
    options = parser.parse_args()
    host = LabHost(lab_folder(), HOST)
    try:
        report = Bench(host, options.runs, options.boots).run(options.package.resolve())
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    host.down()
    Network(host.lab).down_if_unused()
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    print(report.table())
    print(f"all of it: {REPORT.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
