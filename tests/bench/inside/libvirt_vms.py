"""The measured work, done by libvirt: its daemon runs in the lab host only."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from timing import POLL, TINY, remove, run, timed, wait_until

NAME = "libvirt"

IDLE = "idle"
FILES = Path("/root/libvirt")
LOGS = Path("/var/log/libvirt/qemu")
IMAGES = Path("/var/lib/libvirt/images")
BASE = IMAGES / "base.qcow2"
GUESTS = "ON_BOOT=ignore\nON_SHUTDOWN=shutdown\nPARALLEL_SHUTDOWN={count}\nSHUTDOWN_TIMEOUT=90\n"

# The devices of a VM of qsysd with the same options.
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{append}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {devices}
    <controller type='usb' model='none'/>
    <serial type='pty'><log file='{log}' append='on'/></serial>
    <rng model='virtio'><backend model='builtin'/></rng>
    <memballoon model='none'/>
  </devices>
</domain>
"""
NIC = "<interface type='network'><source network='default'/><model type='virtio'/></interface>"
DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
    "<target dev='vda' bus='virtio'/></disk>"
)


def prepare(image: Path) -> None:
    """Make the host ready: the network, the base image, and a parallel shutdown of the guests."""
    FILES.mkdir(exist_ok=True)
    run("cp", str(image), str(BASE))
    Path("/etc/default/libvirt-guests").write_text(GUESTS.format(count=100))
    if "default" not in run("virsh", "net-list", "--name"):
        run("virsh", "net-start", "default")
    run("virsh", "net-autostart", "default")


def console_log(name: str) -> Path:
    """Return the file with what a VM's guest has written to its console."""
    return LOGS / f"{name}-console.log"


def xml(name: str, *devices: str) -> Path:
    """Write the definition of a VM; return the file."""
    texts = {key: escape(value) for key, value in TINY.items() if isinstance(value, str)}
    file = FILES / f"{name}.xml"
    file.write_text(
        DOMAIN.format(
            name=name,
            memory_mib=TINY["memory_mib"],
            devices="\n    ".join(devices),
            log=console_log(name),
            **texts,
        )
    )
    return file


def batch(commands: Sequence[str]) -> None:
    """Run commands of virsh in one process."""
    done = subprocess.run(
        ["virsh", "--quiet"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or "error:" in done.stderr:
        raise SystemExit(f"virsh: {done.stderr.strip()}")


def others(count: int) -> None:
    """Have `count` VMs that do not run. None of them has a NIC."""
    known = [name for name in run("virsh", "list", "--all", "--name").split() if name.startswith(IDLE)]
    if count < len(known):
        batch([f"undefine {name}" for name in known])
        known = []
    batch([f"define {xml(f'{IDLE}{number}')}" for number in range(len(known), count)])


def define(name: str) -> None:
    """Define a VM that is off, with a NIC."""
    run("virsh", "define", str(xml(name, NIC)))


def start(name: str) -> float:
    """Return the seconds of a start."""
    return timed(lambda: run("virsh", "start", name))


def stop(name: str) -> float:
    """Return the seconds until the guest is off, by its power button.

    virsh does not wait. When a VM is off, libvirt removes the file of its state.
    """
    state = Path(f"/run/libvirt/qemu/{name}.xml")
    started = time.perf_counter()
    run("virsh", "shutdown", name)
    wait_until(lambda: not state.exists(), f"{name} to be off", poll=POLL)
    return time.perf_counter() - started


def delete(name: str) -> None:
    """Delete a VM, running or not, with its disks."""
    if name in run("virsh", "list", "--name").split():
        run("virsh", "destroy", name)
    run("virsh", "undefine", name)
    remove(IMAGES / f"{name}.qcow2")


def define_and_start(name: str) -> float:
    """Return the seconds from a file with a definition until QEMU runs."""
    file = str(xml(name, NIC))

    def work() -> None:
        run("virsh", "define", file)
        run("virsh", "start", name)

    return timed(work)


def create(name: str) -> float:
    """Return the seconds of a virt-install with an overlay on an image."""
    disk = f"path={IMAGES}/{name}.qcow2,size=1,format=qcow2,backing_store={BASE},backing_format=qcow2"
    boot = f"kernel={TINY['kernel']},initrd={TINY['initrd']},kernel_args={TINY['append'].replace(',', ',,')}"
    options = {
        "--name": name,
        "--memory": str(TINY["memory_mib"]),
        "--vcpus": "1",
        "--virt-type": "qemu",
        "--machine": "q35",
        "--osinfo": "require=off",
        "--disk": disk,
        "--boot": boot,
        "--network": "network=default,model=virtio",
        "--graphics": "none",
        "--rng": "builtin",
    }
    words = [word for option in options.items() for word in option]
    argv = ["virt-install", "--quiet", "--import", "--noautoconsole", "--autostart", *words]
    return timed(lambda: run(*argv))


def create_by_hand(name: str) -> float:
    """Return the seconds of the same work by qemu-img and virsh."""
    path = f"{IMAGES}/{name}.qcow2"
    file = str(xml(name, NIC, DISK.format(path=path)))

    def work() -> None:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(BASE), path, "1G")
        run("virsh", "define", file)
        run("virsh", "autostart", name)
        run("virsh", "start", name)

    return timed(work)


def list_all() -> float:
    """Return the seconds of a list of all VMs."""
    return timed(lambda: run("virsh", "list", "--all"))


def status(name: str) -> float:
    """Return the seconds of the status of one VM."""
    return timed(lambda: run("virsh", "dominfo", name))


def at_boot(names: Sequence[str], *, enabled: bool) -> None:
    """Choose whether VMs start with the host."""
    disable = [] if enabled else ["--disable"]
    for name in names:
        run("virsh", "autostart", name, *disable)
