"""What runs inside the host of the benchmark: one figure a call, printed as JSON. Standard library only.

    measure.py define COUNT      have COUNT more VMs that do not run, their units loaded in PID 1
    measure.py forget            have none of these any more
    measure.py fleet COUNT       make and start COUNT VMs, and wait until their guests are ready
    measure.py ready             wait until all guests are ready, and print when all QEMUs ran
    measure.py start-stop RUNS   seconds of `qsysd start` and of `qsysd stop` of an idle guest
    measure.py create RUNS       seconds of `qsysd create` with an overlay on an image
    measure.py list RUNS         seconds of `qsysd list`
    measure.py floor RUNS        seconds of Python with click, pydbus and a connection to the bus, and no more
    measure.py residents         what of qsysd's runs

Times are a person's: from the shell to the prompt, so with Python's own start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

TINY = "/var/lib/tiny"
APPEND = "console=ttyS0 quiet nokaslr tsc=reliable no_timer_check"
KERNEL = ("--kernel", f"{TINY}/vmlinuz", "--initrd", f"{TINY}/initrd", "--append", APPEND, "--memory", "160M")

DEFINITIONS = Path("/etc/qsysd/vms")
UNITS = Path("/etc/systemd/system")
WANTS = UNITS / "multi-user.target.wants"

IMAGE = "bench-image"
PROBE = "probe"
IDLE = "idle"
FLEET = "fleet"

READY_TIMEOUT = 300.0
# A guest that has just become ready still has a little to do.
SETTLE = 1.0


def run(*argv: str) -> str:
    """Run a command and return what it printed; end the benchmark with its words if it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def timed(*argv: str) -> float:
    """Return the seconds that a command takes."""
    started = time.perf_counter()
    run(*argv)
    return time.perf_counter() - started


def console_log(name: str) -> Path:
    """Return the file of what a VM's guest has written to its console."""
    return Path(f"/var/lib/qsysd/vms/{name}/console.log")


def wait_ready(*names: str) -> None:
    """Wait until guests are ready; their logs are removed then, so that the next boot begins new ones."""
    deadline = time.monotonic() + READY_TIMEOUT
    for name in names:
        log = console_log(name)
        while not log.exists() or "TINY READY" not in log.read_text(errors="replace"):
            if time.monotonic() > deadline:
                raise SystemExit(f"{name}: its guest is not ready after {READY_TIMEOUT:.0f} s")
            time.sleep(0.05)
    time.sleep(SETTLE)
    for name in names:
        console_log(name).unlink()


def define(count: int) -> int:
    """Write the definitions of VMs without a NIC, enable their units and let PID 1 load them."""
    known = len(list(DEFINITIONS.glob(f"{IDLE}*.yaml")))
    if known == 0:
        run("qsysd", "create", f"{IDLE}0", *KERNEL, "--network", "none", "--no-start")
        known = 1
    model = (DEFINITIONS / f"{IDLE}0.yaml").read_text()
    identity = next(line for line in model.splitlines() if line.startswith("uuid: "))
    for number in range(known, count):
        text = model.replace(f"name: {IDLE}0\n", f"name: {IDLE}{number}\n")
        text = text.replace(identity, f"uuid: {uuid.uuid4()}")
        (DEFINITIONS / f"{IDLE}{number}.yaml").write_text(text)
        Path(f"/var/lib/qsysd/vms/{IDLE}{number}").mkdir(mode=0o700)
        (WANTS / f"qemu-vm@{IDLE}{number}.service").symlink_to(UNITS / "qemu-vm@.service")
    run("qsysd", "render")
    run("systemctl", "daemon-reload")
    loaded = run("systemctl", "list-units", "--all", "--plain", "--no-legend", f"qemu-vm@{IDLE}*")
    return len(loaded.splitlines())


def forget() -> int:
    """Remove what `define` has written; return how many VMs that were."""
    names = [path.stem for path in DEFINITIONS.glob(f"{IDLE}*.yaml")]
    for start in range(0, len(names), 100):
        run("qsysd", "delete", "--yes", *names[start : start + 100])
    return len(names)


def fleet(count: int) -> list[str]:
    """Make and start VMs with an address each; return their names."""
    names = [f"{FLEET}{number}" for number in range(count)]
    for name in names:
        run("qsysd", "create", name, *KERNEL)
    wait_ready(*names)
    return names


def ready() -> float:
    """Return the seconds from PID 1's start until the last VM of the fleet was active: QEMU answers."""
    names = [path.stem for path in DEFINITIONS.glob(f"{FLEET}*.yaml")]
    started = int(run("systemctl", "show", "--value", "--property=UserspaceTimestampMonotonic"))
    last = 0
    for name in names:
        while True:
            shown = run(
                "systemctl", "show", f"qemu-vm@{name}", "--property=ActiveState,ActiveEnterTimestampMonotonic"
            )
            state = dict(line.split("=", 1) for line in shown.splitlines())
            if state["ActiveState"] == "active":
                break
            time.sleep(0.2)
        last = max(last, int(state["ActiveEnterTimestampMonotonic"]))
    wait_ready(*names)
    return (last - started) / 1e6


def start_stop(runs: int) -> dict[str, list[float]]:
    """Return the seconds of starts, and of stops of a guest that has come up and does nothing."""
    run("qsysd", "create", PROBE, *KERNEL, "--no-start")
    found: dict[str, list[float]] = {"start": [], "stop": []}
    for _ in range(runs):
        found["start"].append(timed("qsysd", "start", PROBE))
        wait_ready(PROBE)
        found["stop"].append(timed("qsysd", "stop", PROBE))
        assert (
            run("systemctl", "show", "--value", "--property=Result", f"qemu-vm@{PROBE}").strip() == "success"
        )
    run("qsysd", "delete", "--yes", PROBE)
    return found


def create(runs: int) -> list[float]:
    """Return the seconds of creates: definition, overlay, seed, address, unit, until QMP answers."""
    if not Path(f"/var/lib/qsysd/images/{IMAGE}.qcow2").exists():
        run("qemu-img", "create", "-q", "-f", "qcow2", "/root/base.qcow2", "1G")
        run("qsysd", "image", "import", "/root/base.qcow2", "--name", IMAGE)
    found = []
    for _ in range(runs):
        found.append(timed("qsysd", "create", PROBE, "--image", IMAGE, *KERNEL))
        run("qsysd", "delete", "--yes", PROBE)
        time.sleep(SETTLE)
    return found


def floor(runs: int) -> list[float]:
    """Return what each command takes at least on this machine: the packages that it is made of."""
    program = (
        "import gc, os, sys\n"
        "gc.disable()\n"
        "sys.path.append('/usr/lib/python3/dist-packages')\n"
        "import click, pydbus\n"
        "pydbus.SystemBus()\n"
        "os._exit(0)\n"
    )
    return [timed("/usr/bin/python3", "-I", "-S", "-c", program) for _ in range(runs)]


def residents() -> list[dict[str, object]]:
    """Return the processes of qsysd's units: name, unit and resident memory in MiB."""
    found: list[dict[str, object]] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            group = (path / "cgroup").read_text().strip()
            status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):
            continue
        unit = os.path.basename(group)
        if unit.startswith(("qsysd", "qemu-vm")) or "qsysd" in status["Name"]:
            resident = int(status["VmRSS"].split()[0]) / 1024
            found.append({"name": status["Name"].strip(), "unit": unit, "rss_mib": round(resident, 1)})
    return found


def main(arguments: list[str]) -> object:
    """Run one measurement."""
    match arguments:
        case ["define", count]:
            return define(int(count))
        case ["forget"]:
            return forget()
        case ["fleet", count]:
            return fleet(int(count))
        case ["ready"]:
            return ready()
        case ["start-stop", runs]:
            return start_stop(int(runs))
        case ["create", runs]:
            return create(int(runs))
        case ["list", runs]:
            return [timed("qsysd", "list") for _ in range(int(runs))]
        case ["floor", runs]:
            return floor(int(runs))
        case ["residents"]:
            return residents()
    raise SystemExit(__doc__)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
