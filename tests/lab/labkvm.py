"""Whether /dev/kvm can run a guest: it can exist and create VMs, and still fail to run one.

Therefore the tiny guest is booted with KVM, once per boot of the machine, with QEMU from a host's root.
"""

from __future__ import annotations

from pathlib import Path

import tiny_guest
from labproc import LabError, locked, run, write_whole

# Containers have no udev, which creates the node. Its mode is 0666 in newer versions, and a minimal root
# has no group kvm.
TMPFILES = "c /dev/kvm 0666 root root - 10:232\n"

# Seconds for a guest that needs one second.
TIMEOUT = 10


def usable(cache: Path, root: Path) -> bool:
    """Return whether a guest runs on /dev/kvm; tried with QEMU from `root`, and recorded in `cache`."""
    if not Path("/dev/kvm").exists():
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache / "kvm"
    with locked(cache / "kvm.lock", "the test of KVM"):
        if not note.exists() or note.read_text().split()[0] != boot:
            guest = tiny_guest.ensure(cache)
            write_whole(note, f"{boot} {'yes' if runs_guest(guest, root) else 'no'}\n")
        return note.read_text().split()[1] == "yes"


def runs_guest(guest: tiny_guest.Guest, root: Path) -> bool:
    """Boot the tiny guest with KVM in `root`, in a separate mount namespace; return whether it ran."""
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
