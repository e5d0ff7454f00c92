"""The measured work, done by qsysd."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from timing import TINY, run, timed

NAME = "qsysd"

DEFINITIONS = Path("/etc/qsysd/vms")
UNITS = Path("/etc/systemd/system")
WANTS = UNITS / "multi-user.target.wants"

IDLE = "idle"
IMAGE = "bench"
OPTIONS = (
    *("--kernel", TINY["kernel"]),
    *("--initrd", TINY["initrd"]),
    *("--append", TINY["append"]),
    *("--memory", f"{TINY['memory_mib']}M"),
)


def prepare(image: Path) -> None:
    """Make the host ready: an image without cloud-init, so that no seed is created."""
    run("qsysd", "image", "import", str(image), "--name", IMAGE, "--no-cloud-init")


def console_log(name: str) -> Path:
    """Return the file with what a VM's guest has written to its console."""
    return Path(f"/var/lib/qsysd/vms/{name}/console.log")


def others(count: int) -> None:
    """Have `count` VMs that do not run: enabled, their units loaded in PID 1. None of them has a NIC."""
    known = len(list(DEFINITIONS.glob(f"{IDLE}*.yaml")))
    if count < known:
        names = [path.stem for path in DEFINITIONS.glob(f"{IDLE}*.yaml")]
        for start in range(0, known, 100):
            run("qsysd", "delete", "--yes", *names[start : start + 100])
        known = 0
    if count == 0 or count == known:
        return
    if known == 0:
        run("qsysd", "create", f"{IDLE}0", *OPTIONS, "--network", "none", "--no-start")
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
    assert len(loaded.splitlines()) == count, loaded


def define(name: str) -> None:
    """Define a VM that is off, with a NIC."""
    run("qsysd", "create", name, *OPTIONS, "--no-start", "--no-enable")


def start(name: str) -> float:
    """Return the seconds of a start."""
    return timed(lambda: run("qsysd", "start", name))


def stop(name: str) -> float:
    """Return the seconds until the guest is off, by its power button."""
    seconds = timed(lambda: run("qsysd", "stop", name))
    result = run("systemctl", "show", "--value", "--property=Result", f"qemu-vm@{name}").strip()
    assert result == "success", result
    return seconds


def delete(name: str) -> None:
    """Delete a VM, running or not, with its disks."""
    run("qsysd", "delete", "--yes", name)


def define_and_start(name: str) -> float:
    """Return the seconds from a file with a definition until QEMU runs."""
    file = Path(f"/root/{name}.yaml")
    definition = {"name": name, "memory": f"{TINY['memory_mib']}M", "nics": [{"network": "default"}]}
    definition |= {key: TINY[key] for key in ("kernel", "initrd", "append")}
    file.write_text(json.dumps(definition))
    return timed(lambda: run("qsysd", "create", "--file", str(file)))


def create(name: str) -> float:
    """Return the seconds of a create with an overlay on an image."""
    return timed(lambda: run("qsysd", "create", name, "--image", IMAGE, "--disk", "1G", *OPTIONS))


create_by_hand = create


def list_all() -> float:
    """Return the seconds of a list of all VMs."""
    return timed(lambda: run("qsysd", "list"))


def status(name: str) -> float:
    """Return the seconds of the status of one VM."""
    return timed(lambda: run("qsysd", "status", name))


def at_boot(names: Sequence[str], *, enabled: bool) -> None:
    """Choose whether VMs start with the host."""
    run("qsysd", "enable" if enabled else "disable", *names)
