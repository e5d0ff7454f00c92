"""A file system of a host's in a loop file, and what a power cut leaves of it.

What the host's kernel has not yet submitted to the loop device exists in its page cache only: a copy of
the file is what a disk holds after a power cut at that moment. The journal is committed late, so that a
copy has what was synced and hardly more. The file is in memory: a copy takes a few milliseconds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labhost import Host
from labproc import run

SIZE = "48M"
# Seconds after which ext4 commits by itself what nobody has synced.
COMMIT = 600
MEMORY = Path("/dev/shm")


class LoopDevice:
    """A loop device of the machine's. It is detached by `close`, whatever happened to the host."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.device = run(["losetup", "--find", "--show", str(file)]).stdout.strip()
        self.number = int(self.device.removeprefix("/dev/loop"))

    def mount(self, host: Host, target: str) -> None:
        """Mount the file system in a host."""
        node = f"/root/lab-loop{self.number}"  # /run allows no devices
        host.run(
            ["sh", "-c", f"[ -e {node} ] || mknod {node} b 7 {self.number}; mkdir -p {target} && "
             f"mount -t ext4 -o commit={COMMIT} {node} {target}"]
        )  # fmt: skip

    def writes(self) -> tuple[int, int]:
        """Return the number of writes that are completed, and of those in flight."""
        words = Path(f"/sys/block/loop{self.number}/stat").read_text().split()
        return int(words[4]), int(words[8])

    def close(self) -> None:
        """Detach the device; the kernel does it once nobody has it mounted."""
        run(["losetup", "--detach", self.device], check=False)


class Disks:
    """File systems of a host, each in a loop file, that lose their power together."""

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
        """Return a folder with what the disks hold after a power cut now; all at one moment."""
        target = self.folder / label
        target.mkdir()
        while True:
            before = [device.writes() for device in self.devices]
            run(["cp", "--sparse=always", *(str(device.file) for device in self.devices), str(target)])
            if before == [device.writes() for device in self.devices] and not any(busy for _, busy in before):
                return target

    def after(self, cut: Path) -> list[LoopDevice]:
        """Return the disks as a cut left them; the caller closes them."""
        return [LoopDevice(cut / name) for name in self.names]

    def close(self) -> None:
        """Detach the devices and remove the files."""
        for device in self.devices:
            device.close()
        shutil.rmtree(self.folder)
