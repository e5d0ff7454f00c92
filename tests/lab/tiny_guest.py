"""The tiny guest: a Debian kernel and an initramfs with busybox, which boots within two seconds.

Tests use it if they do not need a complete Debian guest. It gets its address by DHCP, answers ping and
port 22, powers off on the power button, and can simulate faults (see tiny_init.sh). Kernel and busybox
are extracted from Debian's packages, which need not be installed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labproc import LabError, locked, run, say

INIT = Path(__file__).with_name("tiny_init.sh")

# In the order of their dependencies. Modules that a kernel does not have are skipped.
MODULES = (
    "button",
    "evdev",
    "failover",
    "net_failover",
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "dimlib",
    "virtio_net",
)

DHCP_EVENT = """\
#!/bin/sh
# What udhcpc calls with each news of the lease.
case $1 in
deconfig) ip address flush dev "$interface" ;;
bound | renew)
    ip address replace "$ip/$mask" dev "$interface"
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; done
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
    [ "$1" = bound ] && echo "TINY READY $ip" >/dev/ttyS0
    ;;
esac
"""

SSH_BANNER = """\
#!/bin/sh
printf 'SSH-2.0-tiny\\r\\n'
"""

# To be increased when the build changes in other ways than by a text above.
RECIPE_VERSION = 2


@dataclass(frozen=True)
class Guest:
    """The files of a tiny guest, which needs 160 MiB of memory.

    image: the compressed kernel. kernel: the same as an ELF file, which QEMU starts at its PVH entry point:
    without KVM this saves half a second per boot, and six seconds per reboot by the guest.
    """

    kernel: Path
    image: Path
    initrd: Path


def ensure(cache: Path) -> Guest:
    """Return the files of the guest; build them first if they are not in the cache (a few seconds)."""
    parts = (str(RECIPE_VERSION), INIT.read_text(), DHCP_EVENT, SSH_BANNER, *MODULES)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    folder = cache / f"tiny-{digest}"
    if not folder.is_dir():
        with locked(cache / "tiny.lock", "another build of the tiny guest"):
            if not folder.is_dir():
                build(cache, folder)
    return Guest(folder / "vmlinux", folder / "vmlinuz", folder / "initrd")


def build(cache: Path, folder: Path) -> None:
    """Build the files in a temporary directory and rename it; remove older ones."""
    say("building the tiny guest, once")
    for left in cache.glob(".tiny.*"):
        shutil.rmtree(left)
    part = Path(tempfile.mkdtemp(prefix=".tiny.", dir=cache))
    unpacked = part / "unpacked"
    packages = [kernel_package(), "busybox-static", "lz4"]
    for package in download(packages, part):
        run(["dpkg-deb", "--extract", str(package), str(unpacked)])
        package.unlink()
    kernels = sorted(unpacked.glob("boot/vmlinuz-*"))
    places = (unpacked / "bin/busybox", unpacked / "usr/bin/busybox")
    busybox = next((path for path in places if path.exists()), None)
    if not kernels or busybox is None:
        raise LabError(f"the packages {', '.join(packages)} contain no kernel or no busybox")
    shutil.copyfile(kernels[0], part / "vmlinuz")
    (part / "vmlinux").write_bytes(unpack_kernel(kernels[0].read_bytes(), unpacked / "usr/bin/lz4"))
    (part / "initrd").write_bytes(initramfs(unpacked, busybox))
    (part / "packages.json").write_text(json.dumps(packages))
    shutil.rmtree(unpacked)
    for name in ("vmlinux", "vmlinuz", "initrd"):
        (part / name).chmod(0o644)
    part.chmod(0o755)
    part.rename(folder)
    for old in cache.glob("tiny-*"):
        if old != folder:
            shutil.rmtree(old)


def kernel_package() -> str:
    """Return the name of the package with the current cloud kernel."""
    for attempt in range(2):
        text = run(["apt-cache", "depends", "linux-image-cloud-amd64"], check=False).stdout
        for line in text.splitlines():
            name = line.partition("Depends:")[2].strip()
            if name.startswith("linux-image-"):
                return name
        if attempt == 0:
            run(["apt-get", "update"], timeout=300)
    raise LabError("package linux-image-cloud-amd64 not found by apt")


def download(packages: list[str], folder: Path) -> list[Path]:
    """Download packages to a directory with the machine's apt, without installing them."""
    quoted = " ".join(packages)
    # apt-get download writes to its working directory, which apt's unprivileged user _apt cannot write.
    argv = ["env", "-C", str(folder), "apt-get", "-o", "APT::Sandbox::User=root", "download", *packages]
    if run(argv, check=False, timeout=300).returncode != 0:
        run(["apt-get", "update"], timeout=300)
        run(argv, timeout=300)
    found = sorted(folder.glob("*.deb"))
    if len(found) != len(packages):
        raise LabError(f"apt-get download created {len(found)} files for {quoted}")
    return found


def unpack_kernel(image: bytes, lz4: Path) -> bytes:
    """Return the ELF file in a bzImage, or the image itself if its compression is unknown.

    The offsets are described in the kernel's boot.rst. The compressed file is followed by its size (4 bytes).
    """
    sectors = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    packed = image[start : start + length - 4]
    if packed.startswith(b"\x02\x21\x4c\x18"):
        argv = [str(lz4), "-d", "-c"]
        return subprocess.run(argv, input=packed, capture_output=True, check=True).stdout
    if packed.startswith(b"\xfd7zXZ"):
        return lzma.decompress(packed)
    return image


def initramfs(unpacked: Path, busybox: Path) -> bytes:
    """Return the initramfs, not compressed: decompressing takes the guest more time than reading."""
    files: list[tuple[str, int, bytes]] = [
        ("init", 0o755, INIT.read_bytes()),
        ("bin/busybox", 0o755, busybox.read_bytes()),
        ("bin/dhcp-event", 0o755, DHCP_EVENT.encode()),
        ("bin/ssh-banner", 0o755, SSH_BANNER.encode()),
    ]
    order = []
    for name in MODULES:
        module = next(unpacked.glob(f"**/{name}.ko*"), None)
        if module is not None:
            data = module.read_bytes()
            plain = lzma.decompress(data) if module.suffix == ".xz" else data
            files.append((f"modules/{name}.ko", 0o644, plain))
            order.append(f"{name}.ko\n")
    files.append(("modules/order", 0o644, "".join(order).encode()))
    folders = ("bin", "dev", "etc", "modules", "proc", "sys", "tmp")
    archive = [entry(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    # The kernel opens it for PID 1.
    archive.append(entry("dev/console", stat.S_IFCHR | 0o600, b"", device=os.makedev(5, 1)))
    archive += [entry(name, stat.S_IFREG | mode, data) for name, mode, data in files]
    archive.append(entry("TRAILER!!!", 0, b""))
    return b"".join(archive)


def entry(name: str, mode: int, data: bytes, *, device: int = 0) -> bytes:
    """Return a file of an archive in cpio's newc format (buffer-format.rst in the kernel)."""
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, os.major(device), os.minor(device), len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return b"".join(padded(part) for part in (header, data))


def padded(data: bytes) -> bytes:
    """Return data, padded to a multiple of four bytes."""
    return data + b"\0" * (-len(data) % 4)


def files(guest: Guest) -> Iterator[tuple[Path, str]]:
    """Yield each file of the guest, and its name on a host."""
    yield guest.kernel, "vmlinux"
    yield guest.image, "vmlinuz"
    yield guest.initrd, "initrd"
