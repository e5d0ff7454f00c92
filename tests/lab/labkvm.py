"""Whether /dev/kvm truly runs a guest: it can be there, open, make a VM, and still run none.

So the tiny guest is booted with it, once per boot of the machine, with the QEMU of a host's root.
"""

from __future__ import annotations

from pathlib import Path

import tiny_guest
from labproc import LabError, locked, run, write_whole

# In a container no udev makes the node. Newer ones give it to everyone, and the group kvm is no part
# of a bare root.
TMPFILES = "c /dev/kvm 0666 root root - 10:232\n"

# Seconds that a guest may take which is ready in one.
TIMEOUT = 10


def usable(cache: Path, root: Path) -> bool:
    """Say whether a guest runs on /dev/kvm; tried with the QEMU in `root`, and noted in `cache`."""
    if not Path("/dev/kvm").exists():
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache / "kvm"
    with locked(cache / "kvm.lock", "the trial of KVM"):
        if not note.exists() or note.read_text().split()[0] != boot:
            guest = tiny_guest.ensure(cache)
            write_whole(note, f"{boot} {'yes' if runs_guest(guest, root) else 'no'}\n")
        return note.read_text().split()[1] == "yes"


def runs_guest(guest: tiny_guest.Guest, root: Path) -> bool:
    """Boot the tiny guest with KVM in `root`, mounted in a namespace of its own; say whether it ran."""
    script = 'mount --rbind /dev "$1/dev" && mount --bind "$2" "$1/mnt" && shift 2 && exec "$@"'
    qemu = [
        *("qemu-system-x86_64", "-machine", "q35,accel=kvm", "-cpu", "max", "-m", "160"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", "/mnt/vmlinux", "-initrd", "/mnt/initrd"),
        *("-append", "console=ttyS0 quiet tiny=no-network tiny=poweroff-after=0"),
    ]
    limited = ["timeout", "--signal=KILL", str(TIMEOUT), "chroot", str(root), *qemu]
    argv = ["unshare", "--mount", "--propagation=private", "/bin/sh", "-c", script, "sh"]
    try:
        done = run([*argv, str(root), str(guest.kernel.parent), *limited], check=False, timeout=TIMEOUT + 10)
    except LabError:
        return False
    return done.returncode == 0 and "TINY POWEROFF" in done.stdout
