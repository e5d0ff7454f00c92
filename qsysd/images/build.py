"""Build images from recipes; there is one, `debian`.

The order: everything the host must have is checked at once; a raw disk with partition table and boot
loader is written as a file (`disk`); templates/image-debian-build.sh makes the root by mmdebstrap, fills
the partition by `mke2fs -d` and packs it as qcow2. The script runs in mount and PID namespaces that
die with this process, so that not even SIGKILL leaves a mount or a program behind, only the
`.part` directory that the next command removes.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qsysd import process
from qsysd.errors import HostError, InvalidError, QsysdError
from qsysd.images import convert, disk, sources
from qsysd.runtime import spawn

Progress = Callable[[str], None]

MIB = 1024 * 1024
TEMPLATES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "templates")
BOOT_SECTOR = "/usr/lib/grub/i386-pc/boot.img"
# What GRUB needs to find a file system and to read and boot a kernel from it.
GRUB_MODULES = ("biosdisk", "part_gpt", "ext2", "normal", "linux16", "test")

# What is needed, and the package that brings it: these are what the qsysd package recommends.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "grub-mkimage": "grub-common",
    "qemu-img": "qemu-utils",
}

SUITES = ("bookworm", "trixie")
PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-resolved", "udev", "dbus", "linux-image-cloud-amd64"),
    *(
        "initramfs-tools",
        "lz4",
        "zstd",
        "cloud-init",
        "cloud-guest-utils",
        "openssh-server",
        "qemu-guest-agent",
    ),
    *(
        "sudo",
        "netbase",
        "ca-certificates",
        "iproute2",
        "e2fsprogs",
        "procps",
        "less",
        "nano",
        "libnss-myhostname",
    ),
)
# What systemd has in packages of their own from trixie on.
MORE_PACKAGES = {"trixie": ("systemd-repart",)}

DISK_SIZE = 2 * 1024 * MIB
DISK_MIN = 1024 * MIB
# The root, its packages and the disk take 1.3 GiB; a build in memory is spared all waiting for the disk.
TMPFS_SIZE = 3 * 1024 * MIB
MEMORY_NEEDED = 4 * 1024 * MIB
SPACE_NEEDED = {True: 600 * MIB, False: 2500 * MIB}


@dataclass(frozen=True)
class Plan:
    """What to build. size: bytes, virtual; sources: lines of a sources.list."""

    recipe: str
    suite: str
    size: int
    sources: tuple[str, ...]
    packages: tuple[str, ...]


def plan(recipe: str, *, suite: str | None, size: int | None) -> Plan:
    """Return what to build.

    Raises InvalidError for an unknown recipe or suite and a size that cannot be, HostError with all
    missing tools at once, QsysdError without root's rights.
    """
    if recipe != "debian":
        raise InvalidError(f"recipe {recipe} does not exist", hint="qsysd image build debian")
    codename = sources.host_codename()
    suite = suite or (codename if codename in SUITES else SUITES[0])
    if suite not in SUITES:
        raise InvalidError(f"no recipe for Debian {suite}", hint=f"suites: {', '.join(SUITES)}")
    size = size or DISK_SIZE
    if size < DISK_MIN:
        raise InvalidError(f"a disk of {size // MIB} MiB is too small", hint=f"at least {DISK_MIN // MIB}M")
    check_tools()
    lines = sources.sources_for(suite, codename, sources.host_sources())
    packages = (*PACKAGES, *MORE_PACKAGES.get(suite, ()))
    return Plan(recipe, suite, -(-size // MIB) * MIB, tuple(lines), packages)


def missing() -> list[str]:
    """Return the Debian packages that building an image needs and the host lacks."""
    packages = {package for tool, package in TOOLS.items() if spawn.find(tool) is None}
    if not os.path.exists(BOOT_SECTOR):
        packages.add("grub-pc-bin")
    return sorted(packages)


def check_tools() -> None:
    """Raise HostError, naming all that is missing, or QsysdError without root's rights."""
    lacking = missing()
    if lacking:
        raise HostError(
            f"building an image needs {', '.join(lacking)}", hint=f"apt install {' '.join(lacking)}"
        )
    if os.geteuid() != 0:
        raise QsysdError("building an image needs root's rights", hint="run it with sudo")


def build(plan: Plan, directory: str, target: str, progress: Progress) -> dict[str, object]:
    """Build the qcow2 file `target` in `directory`; return what the note beside the image says about it.

    Raises QsysdError, with the failing tool's own words.
    """
    in_memory = _available_memory() >= MEMORY_NEEDED
    _check_space(directory, SPACE_NEEDED[in_memory])
    raw = os.path.join(directory, "disk.raw")
    place = disk.write(raw, plan.size, _read(BOOT_SECTOR), _grub_core(directory))
    work = os.path.join(directory, "work")
    os.mkdir(work)
    settings = {
        "WORK": work,
        "TMPFS": f"{TMPFS_SIZE // MIB}m" if in_memory else "",
        "SUITE": plan.suite,
        "PACKAGES": ",".join(plan.packages),
        "SOURCES": _write(directory, "sources.list", plan.sources),
        "APT_OPTIONS": _write(directory, "apt.conf", sources.proxies(_apt_config())),
        "CUSTOMIZE": os.path.join(TEMPLATES, "image-debian-customize.sh"),
        "DISK": raw,
        "OFFSET": str(place.offset),
        "BLOCKS": str(place.size // 1024),
        "ROOT_UUID": str(uuid.uuid4()),
        "TARGET": target,
        "TMPDIR": work,
    }
    progress(f"building Debian {plan.suite} with {len(plan.packages)} packages and what they need")
    told = run_script(os.path.join(TEMPLATES, "image-debian-build.sh"), settings, progress)
    return {
        "source": f"built: debian {plan.suite}",
        "recipe": plan.recipe,
        "suite": plan.suite,
        "packages": told.packages,
        "default_user": "debian",
        "cloud_init": True,
    }


def run_script(script: str, settings: dict[str, str], progress: Progress) -> Teller:
    """Run a build script in namespaces of its own, with progress; return what was told of it.

    Raises QsysdError with the script's own words when it fails.
    """
    teller = Teller(progress)
    # --kill-child takes the whole PID namespace down with unshare, which dies with us.
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", script]
    with process.Follower(argv, settings) as child:
        for line in child:
            teller.hear(line)
    if child.returncode:
        words = teller.reason() or f"exit status {child.returncode}"
        raise QsysdError(f"building the image failed: {words}", hint=teller.tail())
    return teller


class Teller:
    """Turns what apt, dpkg and the script print into a line of progress every few seconds."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress = progress
        self.clock = clock
        self.started = self.said = clock()
        self.phase = "preparing"
        self.total = 0
        self.done = 0
        self.packages = 0
        self.last: deque[str] = deque(maxlen=200)

    def hear(self, line: str | None) -> None:
        """Take in a line, or None for a second of silence; say something when it is time."""
        before = self.phase
        if line:
            self.last.append(line)
            self._understand(line)
        now = self.clock()
        if self.phase != before or now - self.said >= convert.TICK:
            self.said = now
            self.progress(f"{self.phase}{self.count()} ({now - self.started:.0f} s)")

    def _understand(self, line: str) -> None:
        """Learn from a line which step is under way and how far it is."""
        for start, phase in PHASES:
            if line.startswith(start):
                self.phase, self.total, self.done = phase, 0, 0
        if line.startswith(("Get:", "Unpacking ", "Setting up ")):
            # apt downloads all packages of a step before it unpacks the first.
            if line.startswith("Unpacking ") and self.phase.startswith("downloading"):
                self.phase, self.done = "installing the packages", 0
            self.done += 1
        elif match := re.search(r"(\d+) newly installed", line):
            self.total, self.done = int(match[1]), 0
        elif match := re.fullmatch(r"qsysd: packages (\d+)", line):
            self.packages = int(match[1])

    def count(self) -> str:
        """Return how many packages of the step's are through, in words; nothing where it has none."""
        if not self.total or not self.done:
            return ""
        # A package is installed in two steps: it is unpacked, and set up when what it needs is.
        done = self.done if self.phase.startswith("downloading") else self.done // 2
        return f", {min(done, self.total)} of {self.total}"

    def reason(self) -> str:
        """Return the words that say why it failed: the first error of the last run of errors."""
        errors = [
            line for line in self.last if re.match(r"(E|dpkg|mke2fs|qemu-img|cp|mount|unshare|sh): ", line)
        ]
        return errors[0] if errors else spawn.last_words("\n".join(self.last))

    def tail(self) -> str:
        """Return the last lines that were printed."""
        return "its last lines:\n" + "\n".join(list(self.last)[-8:])


PHASES = (
    ("I: running apt-get update", "reading package lists"),
    ("I: downloading packages", "downloading the base system"),
    ("I: extracting archives", "unpacking the base system"),
    ("I: installing essential packages", "installing the base system"),
    ("I: installing remaining packages", "downloading the packages"),
    ("qsysd: initramfs", "making the initramfs"),
    ("qsysd: file system", "making the file system"),
    ("qsysd: compressing", "packing the image"),
)


def _grub_core(directory: str) -> bytes:
    """Return GRUB's core, which reads /boot/grub/grub.cfg of the first partition."""
    path = os.path.join(directory, "core.img")
    prefix = "(hd0,gpt1)/boot/grub"
    spawn.run(["grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", path, *GRUB_MODULES], timeout=60)
    return _read(path)


def _apt_config() -> str:
    """Return the host's apt configuration; nothing where the host has no apt."""
    if spawn.find("apt-config") is None:
        return ""
    return spawn.run(["apt-config", "dump"], check=False, timeout=30).stdout


def _available_memory() -> int:
    """Return the bytes of memory that can be taken without hurting others."""
    with open("/proc/meminfo", encoding="ascii") as file:
        values = dict(line.split(":", 1) for line in file)
    available = int(values["MemAvailable"].split()[0]) * 1024
    try:
        limit = _read("/sys/fs/cgroup/memory.max").strip()
        used = int(_read("/sys/fs/cgroup/memory.current"))
    except (OSError, ValueError):
        return available
    return available if limit == b"max" else min(available, int(limit) - used)


def _check_space(directory: str, needed: int) -> None:
    """Raise QsysdError when the file system of `directory` has less than `needed` bytes free."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise QsysdError(
            f"building an image takes {needed // MIB} MiB, "
            f"and {os.path.dirname(directory)} has {free // MIB} MiB free",
            hint="make room there, or build it elsewhere and qsysd image import it",
        )


def _read(path: str) -> bytes:
    """Return a file's content."""
    with open(path, "rb") as file:
        return file.read()


def _write(directory: str, name: str, lines: Iterable[str]) -> str:
    """Write lines into a file of the staging directory; return its path."""
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path
