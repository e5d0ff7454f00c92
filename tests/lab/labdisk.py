"""File systems of a host in loop files, and their state after a power cut.

Writes that the kernel has not submitted to the loop device are in the page cache only, so a copy of the
file is equivalent to the disk after a power cut. The commit interval of the journal is long, so that the
copy contains little more than what was synced. The files are in memory: a copy takes a few milliseconds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labhost import Host
from labproc import run

SIZE = "48M"
# Seconds after which ext4 commits data that was not synced.
COMMIT = 600
MEMORY = Path("/dev/shm")


class LoopDevice:
    """A loop device of the machine. `close` detaches it, even if the host has crashed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.device = run(["losetup", "--find", "--show", str(file)]).stdout.strip()
        self.number = int(self.device.removeprefix("/dev/loop"))

    def mount(self, host: Host, target: str) -> None:
        """Mount the file system on a host."""
        node = f"/root/lab-loop{self.number}"  # /run is mounted with nodev
        host.run(
            ["sh", "-c", f"[ -e {node} ] || mknod {node} b 7 {self.number}; mkdir -p {target} && "
             f"mount -t ext4 -o commit={COMMIT} {node} {target}"]
        )  # fmt: skip

    def writes(self) -> tuple[int, int]:
        """Return the number of completed writes, and of writes in flight."""
        words = Path(f"/sys/block/loop{self.number}/stat").read_text().split()
        return int(words[4]), int(words[8])

    def close(self) -> None:
        """Detach the device, after its last mount was removed."""
        run(["losetup", "--detach", self.device], check=False)


class Disks:
    """File systems of a host, each in a loop file, for a common power cut."""

    def __init__(self, names: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lab-disks-", dir=MEMORY if MEMORY.is_dir() else None))
        self.names = names
        self.devices: list[LoopDevice] = []
        for name in names:
            file = self.folder / name
            run(["truncate", "--size", SIZE, str(file)])
            run(["mke2fs", "-q", "-t", "ext4", "-J", "size=4", "-E", "lazy_itable_init=0", str(file)])
            self.devices.append(LoopDevice(file))

    def cut(self, label: str) -> Path:
        """Return a directory with the contents of all disks after a power cut at this moment."""
        target = self.folder / label
        target.mkdir()
        while True:
            before = [device.writes() for device in self.devices]
            run(["cp", "--sparse=always", *(str(device.file) for device in self.devices), str(target)])
            if before == [device.writes() for device in self.devices] and not any(busy for _, busy in before):
                return target

    def after(self, cut: Path) -> list[LoopDevice]:
        """Return the disks after a cut; the caller closes them."""
        return [LoopDevice(cut / name) for name in self.names]

    def close(self) -> None:
        """Detach the devices and remove the files."""
        for device in self.devices:
            device.close()
        shutil.rmtree(self.folder)
