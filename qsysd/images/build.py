"""Build images from recipes. The only recipe is `debian`.

First all that the host needs is checked. Then a raw disk with a partition table and a boot loader is
written as a file (`disk`), and templates/image-debian-build.sh creates the root file system by mmdebstrap,
fills the partition by `mke2fs -d` and converts it to qcow2. The script runs in mount and PID namespaces
that end with this process: even SIGKILL leaves no mount and no program behind, only the staging directory,
which the next command removes.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from qsysd import process
from qsysd.errors import RUN_AS_ROOT, HostError, InvalidError, QsysdError
from qsysd.images import disk, sources
from qsysd.images.progress import BuildProgress, Progress
from qsysd.runtime import spawn

MIB = 1024 * 1024
TEMPLATES = os.path.join(os.path.dirname(os.path.dirname(__file__)), "templates")
BOOT_SECTOR = "/usr/lib/grub/i386-pc/boot.img"
# The modules with which GRUB finds a file system and boots a kernel from it.
GRUB_MODULES = ("biosdisk", "part_gpt", "ext2", "normal", "linux16", "test")

# The tools that a build needs, each with its package. The qsysd package recommends these.
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
# Parts of systemd that are separate packages from trixie on.
MORE_PACKAGES = {"trixie": ("systemd-repart",)}

DISK_SIZE = 2 * 1024 * MIB
DISK_MIN = 1024 * MIB
# The root, its packages and the disk take 1.3 GiB. In memory, a build does not wait for the disk.
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

    Raise InvalidError for an unknown recipe or suite or a size that is too small, HostError with all
    missing tools, QsysdError without root privileges.
    """
    if recipe != "debian":
        raise InvalidError(f"recipe {recipe} does not exist", hint="qsysd image build debian")
    codename = sources.host_codename()
    suite = suite or (codename if codename in SUITES else SUITES[0])
    if suite not in SUITES:
        raise InvalidError(f"no recipe for Debian {suite} exists", hint=f"suites: {', '.join(SUITES)}")
    size = size or DISK_SIZE
    if size < DISK_MIN:
        raise InvalidError(f"a disk of {size // MIB} MiB is too small", hint=f"at least {DISK_MIN // MIB}M")
    check_tools()
    lines = sources.sources_for(suite, codename, sources.host_sources())
    packages = (*PACKAGES, *MORE_PACKAGES.get(suite, ()))
    return Plan(recipe, suite, -(-size // MIB) * MIB, tuple(lines), packages)


def missing() -> list[str]:
    """Return the Debian packages that a build needs and that are not installed."""
    packages = {package for tool, package in TOOLS.items() if spawn.find(tool) is None}
    if not os.path.exists(BOOT_SECTOR):
        packages.add("grub-pc-bin")
    return sorted(packages)


def check_tools() -> None:
    """Raise HostError with all packages that are missing, or QsysdError without root privileges."""
    packages = missing()
    if packages:
        raise HostError(
            f"building an image needs {', '.join(packages)}", hint=f"apt install {' '.join(packages)}"
        )
    if os.geteuid() != 0:
        raise QsysdError("building an image requires root privileges", hint=RUN_AS_ROOT)


def build(plan: Plan, directory: str, target: str, progress: Progress) -> dict[str, object]:
    """Build the qcow2 file `target` in `directory`; return its metadata.

    Raise QsysdError with the error message of the tool that failed.
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
    progress(f"building Debian {plan.suite} with {len(plan.packages)} packages and their dependencies")
    followed = run_script(os.path.join(TEMPLATES, "image-debian-build.sh"), settings, progress)
    return {
        "source": f"built: debian {plan.suite}",
        "recipe": plan.recipe,
        "suite": plan.suite,
        "packages": followed.packages,
        "default_user": "debian",
        "cloud_init": True,
    }


def run_script(script: str, settings: dict[str, str], progress: Progress) -> BuildProgress:
    """Run a build script in separate namespaces; return its progress. Raise QsysdError if it fails."""
    followed = BuildProgress(progress)
    # --kill-child: the whole PID namespace ends with unshare, which ends with this process.
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", script]
    with process.Follower(argv, settings) as child:
        for line in child:
            followed.update(line)
    if child.returncode:
        reason = followed.reason() or f"exit status {child.returncode}"
        raise QsysdError(f"building the image failed: {reason}", hint=followed.tail())
    return followed


def _grub_core(directory: str) -> bytes:
    """Return GRUB's core image, which reads /boot/grub/grub.cfg of the first partition."""
    path = os.path.join(directory, "core.img")
    prefix = "(hd0,gpt1)/boot/grub"
    spawn.run(["grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", path, *GRUB_MODULES], timeout=60)
    return _read(path)


def _apt_config() -> str:
    """Return the host's apt configuration; "" without apt."""
    if spawn.find("apt-config") is None:
        return ""
    return spawn.run(["apt-config", "dump"], check=False, timeout=30).stdout


def _available_memory() -> int:
    """Return the bytes of memory that are available to new programs."""
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
            f"building an image needs {needed // MIB} MiB, "
            f"but {os.path.dirname(directory)} has {free // MIB} MiB free",
            hint="free some space there, or build the image on another host and qsysd image import it",
        )


def _read(path: str) -> bytes:
    """Return the contents of a file."""
    with open(path, "rb") as file:
        return file.read()


def _write(directory: str, name: str, lines: Iterable[str]) -> str:
    """Write lines into a file of the staging directory; return its path."""
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path
