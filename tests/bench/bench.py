"""How long things take, in a lab host with tiny guests under TCG, as ratios.

The measure is the machine itself: the floor, Python with click, pydbus and a connection to the bus, which no
command can do without. It is run in turns with all that is measured, and so is libvirt with --compare, since
the speed of a machine differs from minute to minute. Nothing is asserted: a busy machine is not a fault.
The programs in `inside/` do the work in the host.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from chart import chart
from labnet import Network
from labproc import LabError, Process
from labtest import REPOSITORY, LabHost, lab_folder, tiny_options
from report import FLOOR, Report, Row, human, table

HOST = "bench"
INSIDE = "/root/bench"
BUILD = REPOSITORY / "build"

MANY = 1000
LISTED = (0, 100, 1000)
FLEET = 20

# What --only chooses from.
GROUPS = ("list", "status", "power", "define-and-start", "create", "create-by-hand", "reboot")
TITLES = {
    "list": "list",
    "status": "status of one running VM",
    "start": "start until QEMU answers",
    "stop": "stop until the guest is off",
    "define-and-start": "define and start",
    "create": "create from an image until QEMU runs",
    "create-by-hand": "the same by qemu-img and virsh",
}

# Seconds for one call of measure.py.
TIMEOUT = 1800.0
# Seconds between two looks at a host that goes down.
POLL = 0.002


class Bench:
    """One run of the benchmark."""

    def __init__(self, host: LabHost, options: argparse.Namespace) -> None:
        self.host = host
        self.runs: int = options.runs
        self.boots: int = options.boots
        self.only: Sequence[str] = options.only or GROUPS
        self.systems = ("qsysd", "libvirt") if options.compare else ("qsysd",)
        self.started = time.monotonic()
        self.report = Report()

    def say(self, message: str) -> None:
        """Print what is being done, with the minutes since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        print(f"bench: {minutes:2}:{seconds:02} {message}", file=sys.stderr, flush=True)

    def measure(self, *arguments: str | int) -> Any:
        """Run measure.py in the host and return its result."""
        program = ["/usr/bin/python3", "-B", f"{INSIDE}/measure.py", ",".join(self.systems)]
        return json.loads(self.host.run([*program, *map(str, arguments)], timeout=TIMEOUT).stdout)

    def run(self, package: Path) -> Report:
        """Measure everything on a new host."""
        self.say("a new host")
        self.host.down()
        self.host.up("libvirt" if "libvirt" in self.systems else "bookworm")
        self.host.install(package)
        self.host.put(Path(__file__).with_name("inside"), INSIDE)
        self.host.write(f"{INSIDE}/tiny.json", json.dumps(self.tiny()))
        self.report.machine = self.machine(package)
        self.measure("prepare")
        self.report.residents = self.measure("residents")
        self.beside_others()
        if "reboot" in self.only:
            self.reboots()
        return self.report

    def tiny(self) -> dict[str, Any]:
        """Return the tiny guest's options by name."""
        words = [word.removeprefix("--") for word in tiny_options()]
        options = dict(zip(words[::2], words[1::2], strict=True))
        return {**options, "memory_mib": int(options.pop("memory").removesuffix("M"))}

    def machine(self, package: Path) -> dict[str, Any]:
        """Return what the figures were taken on."""
        versions = {
            "systemd": "systemctl --version | sed -n '1s/systemd \\([0-9]*\\).*/\\1/p'",
            "qemu": "qemu-system-x86_64 --version | sed -n '1s/.*version \\([0-9.]*\\).*/\\1/p'",
            "python": "python3 --version | sed 's/Python //'",
        }
        if "libvirt" in self.systems:
            versions["libvirt"] = "virsh --version"
        return {
            "package": package.name,
            "kernel": os.uname().release,
            "processors": os.cpu_count(),
            **{name: self.host.sh(command) for name, command in versions.items()},
            "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def beside_others(self) -> None:
        """Measure the commands beside no other VM, and beside many that do not run."""
        for count in LISTED:
            # Start and create are measured at both ends only.
            groups = [
                group
                for group in GROUPS[:-1]
                if group in self.only and (group in ("list", "status") or count in (0, MANY))
            ]
            if count == MANY:
                groups = [group for group in groups if group not in ("define-and-start", "create-by-hand")]
            if "libvirt" not in self.systems:
                groups = [group for group in groups if group != "create-by-hand"]
            if not groups:
                continue
            self.say(f"{count} other VMs")
            self.measure("others", count)
            for group in groups:
                for what, seconds in self.measure(group, self.runs).items():
                    number = f"{count} VMs" if group == "list" else f"{count} other VMs"
                    self.add(f"{TITLES[what]}, {number}", seconds)
        self.measure("others", 0)

    def add(self, what: str, seconds: dict[str, list[float]]) -> None:
        """Add a row and show it."""
        row = Row(what, seconds)
        self.report.rows.append(row)
        medians = ", ".join(f"{name} {human(row.median(name))}" for name in seconds)
        self.say(f"{what}: {medians}")

    def reboots(self) -> None:
        """Measure the host's way down with running guests, and its way up until all their QEMUs run.

        Each reboot ends with the guests of one system and begins with those of the next.
        """
        self.say(f"{FLEET} VMs are started")
        self.measure("fleet", FLEET)
        down: dict[str, list[float]] = {name: [] for name in (FLOOR, *self.systems)}
        up: dict[str, list[float]] = {name: [] for name in (FLOOR, *self.systems)}
        for number in range(self.boots):
            for index, system in enumerate(self.systems):
                following = self.systems[(index + 1) % len(self.systems)]
                self.say(f"reboot {number + 1} of {self.boots} with {FLEET} guests of {system}")
                self.measure("next", following)
                floor = self.measure("floor", 5)
                down[FLOOR] += floor
                up[FLOOR] += floor
                down[system].append(self.seconds_down(self.host.running()))
                self.host.up()
                up[following].append(self.measure("ready", following))
        self.add(f"host shutdown, {FLEET} running guests", down)
        self.add(f"host boot until {FLEET} QEMUs run", up)

    def seconds_down(self, leader: Process) -> float:
        """Switch the host off and return how long that took, from the command to the end of its PID 1."""
        started = time.perf_counter()
        self.host.run(["systemctl", "--no-block", "poweroff"])
        while leader.alive():
            if time.perf_counter() - started > TIMEOUT:
                raise LabError(f"{HOST} does not power off")
            time.sleep(POLL)
        taken = time.perf_counter() - started
        # What remains is the lab's own: its supervisor ends.
        self.host.wait_until(
            lambda: self.host.supervisor() is None, timeout=60, what="the end of its supervisor"
        )
        return taken


def main() -> int:
    """Run the benchmark and return the exit status."""
    parser = argparse.ArgumentParser(description="Measure qsysd in a lab host (root).")
    parser.add_argument("package", type=Path, help="the qsysd package to measure")
    parser.add_argument(
        "--compare", action="store_true", help="measure libvirt too, in turns, in the same host"
    )
    parser.add_argument("--runs", type=int, default=20, help="runs of each command (%(default)s)")
    parser.add_argument("--boots", type=int, default=3, help="reboots of the host per system (%(default)s)")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure only this; repeatable")
    options = parser.parse_args()
    host = LabHost(lab_folder(), HOST)
    try:
        report = Bench(host, options).run(options.package.resolve())
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        host.down()
        Network(host.lab).down_if_unused()
    BUILD.mkdir(exist_ok=True)
    file = BUILD / ("bench-compare.json" if options.compare else "bench.json")
    file.write_text(report.to_json())
    print(table(report))
    print(f"all figures: {file.relative_to(REPOSITORY)}")
    if options.compare:
        picture = file.with_suffix(".svg")
        picture.write_text(chart(report))
        print(f"the plot: {picture.relative_to(REPOSITORY)}; `make bench-page` writes both into docs/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
