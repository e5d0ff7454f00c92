"""What runs inside the host of the benchmark: one measurement per call, printed as JSON.

    measure.py SYSTEMS prepare             make the host ready
    measure.py SYSTEMS others COUNT        have COUNT more VMs that do not run
    measure.py SYSTEMS GROUP RUNS          run a group of GROUPS in turns
    measure.py SYSTEMS fleet COUNT         define COUNT VMs in each system; those of the first run
    measure.py SYSTEMS next SYSTEM         choose whose fleet starts with the host
    measure.py SYSTEMS ready SYSTEM        wait for its fleet; print the seconds from PID 1's start
    measure.py SYSTEMS residents           list the processes of each system

SYSTEMS is `qsysd` or `qsysd,libvirt`. A group returns what it measured by row and system, in seconds.
Times are those of a user: from the command to its end, so with the start of the interpreter.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from timing import SETTLE, floor, in_turns, qemu_started, run, timed, wait_ready

PROBE = "probe"
FLEET = "fleet"
FLOOR = "floor"

Seconds = dict[str, dict[str, list[float]]]


def by_turns(
    systems: list[ModuleType], runs: int, action: Callable[[ModuleType], float]
) -> dict[str, list[float]]:
    """Return the seconds of an action in each system, and of the floor, in turns."""
    steps: dict[str, Callable[[], float]] = {FLOOR: lambda: timed(floor)}
    for system in systems:
        steps[system.NAME] = partial(action, system)
    return in_turns(runs, steps)


def lists(systems: list[ModuleType], runs: int) -> Seconds:
    """Measure the list of all VMs."""
    return {"list": by_turns(systems, runs, lambda system: system.list_all())}


def status(systems: list[ModuleType], runs: int) -> Seconds:
    """Measure the status of a VM that runs."""
    for system in systems:
        system.define(PROBE)
        system.start(PROBE)
        wait_ready([system.console_log(PROBE)])
    found = by_turns(systems, runs, lambda system: system.status(PROBE))
    for system in systems:
        system.delete(PROBE)
    return {"status": found}


def power(systems: list[ModuleType], runs: int) -> Seconds:
    """Measure the start, and the stop of a guest that has booted and is idle."""
    stops: dict[str, list[float]] = {}
    for system in systems:
        system.define(PROBE)
        stops[system.NAME] = []

    def start(system: ModuleType) -> float:
        seconds: float = system.start(PROBE)
        wait_ready([system.console_log(PROBE)])
        stops[system.NAME].append(system.stop(PROBE))
        return seconds

    starts = by_turns(systems, runs, start)
    for system in systems:
        system.delete(PROBE)
    return {"start": starts, "stop": {FLOOR: starts[FLOOR], **stops}}


def creation(verb: str) -> Callable[[list[ModuleType], int], Seconds]:
    """Return the measurement of a way to create a VM."""

    def measure(systems: list[ModuleType], runs: int) -> Seconds:
        def once(system: ModuleType) -> float:
            seconds: float = getattr(system, verb)(PROBE)
            system.delete(PROBE)
            time.sleep(SETTLE)
            return seconds

        return {verb.replace("_", "-"): by_turns(systems, runs, once)}

    return measure


GROUPS: dict[str, Callable[[list[ModuleType], int], Seconds]] = {
    "list": lists,
    "status": status,
    "power": power,
    "define-and-start": creation("define_and_start"),
    "create": creation("create"),
    "create-by-hand": creation("create_by_hand"),
}


def prepare(systems: list[ModuleType]) -> None:
    """Make the host ready for each system."""
    image = Path("/root/base.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "1G")
    for system in systems:
        system.prepare(image)


def fleet(systems: list[ModuleType], count: int) -> None:
    """Define VMs in each system; start those of the first one."""
    names = [f"{FLEET}{number}" for number in range(count)]
    for system in systems:
        for name in names:
            system.define(name)
    first = systems[0]
    for name in names:
        first.start(name)
    wait_ready([first.console_log(name) for name in names])


def fleet_names() -> list[str]:
    """Return the names of the fleet, the same in each system."""
    return sorted(path.stem for path in Path("/etc/qsysd/vms").glob(f"{FLEET}*.yaml"))


def after_boot(systems: list[ModuleType], name: str) -> None:
    """Let the fleet of one system start with the host, and that of no other."""
    for system in systems:
        system.at_boot(fleet_names(), enabled=name == system.NAME)


def ready(systems: list[ModuleType], name: str) -> float:
    """Wait for the fleet of a system; return the seconds from PID 1's start to that of the last QEMU."""
    (system,) = (system for system in systems if name == system.NAME)
    seconds = qemu_started(fleet_names())
    wait_ready([system.console_log(vm) for vm in fleet_names()])
    return seconds


def residents() -> list[dict[str, Any]]:
    """Return the processes of qsysd's and libvirt's units: name, unit and resident memory in MiB."""
    found: list[dict[str, Any]] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            unit = (path / "cgroup").read_text().strip().rpartition("/")[2]
            status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):
            continue
        if unit.startswith(("qsysd", "qemu-vm", "libvirt", "virt")) or "qsysd" in status["Name"]:
            resident = int(status["VmRSS"].split()[0]) / 1024
            found.append({"name": status["Name"].strip(), "unit": unit, "rss_mib": round(resident, 1)})
    return found


def main(arguments: list[str]) -> object:
    """Run one measurement."""
    systems = [importlib.import_module(f"{name}_vms") for name in arguments[0].split(",")]
    match arguments[1:]:
        case ["prepare"]:
            prepare(systems)
        case ["others", count]:
            for system in systems:
                system.others(int(count))
        case ["fleet", count]:
            fleet(systems, int(count))
        case ["next", name]:
            after_boot(systems, name)
        case ["ready", name]:
            return ready(systems, name)
        case ["residents"]:
            return residents()
        case ["floor", runs]:
            return [timed(floor) for _ in range(int(runs))]
        case [group, runs] if group in GROUPS:
            return GROUPS[group](systems, int(runs))
        case _:
            raise SystemExit(__doc__)
    return None


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
