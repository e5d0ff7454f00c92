"""The root file system of hosts: Debian, installed by mmdebstrap and cached under a digest of its recipe.

A root in the cache is never changed: each host writes to a separate overlay. A root is built under a
temporary name and renamed, so that a build that was killed leaves no incomplete root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from labproc import LabError, Progress, clean_environment, locked, run, say, try_lock

SUITES = ("bookworm", "trixie")

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# To be increased when customise() changes: the key of a cached root must depend on everything in it.
RECIPE_VERSION = 3

# A typical server, the packages that qsysd depends on and recommends, so that it can be installed
# without a network, and tools for interactive use and tests.
PACKAGES = (
    # the system
    "ca-certificates",
    "dbus",
    "dbus-user-session",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libnss-systemd",
    "libpam-systemd",
    "netbase",
    "polkitd",
    "procps",
    "sudo",
    "systemd",
    "systemd-sysv",
    # dependencies of qsysd
    "dnsmasq-base",
    "dnsmasq-utils",
    "genisoimage",
    "nftables",
    "openssh-client",
    "python3",
    "python3-click",
    "python3-gi",
    "python3-jinja2",
    "python3-pydbus",
    "python3-yaml",
    "qemu-system-x86",
    "qemu-utils",
    # for building images
    "debian-archive-keyring",
    "grub-common",
    "grub-pc-bin",
    "mmdebstrap",
    # for interactive use
    "bash-completion",
    "bsdextrautils",
    "curl",
    "fish",
    "iputils-ping",
    "less",
    "netcat-openbsd",
    "psmisc",
    "socat",
    "vim-tiny",
    "zsh",
)


@dataclass(frozen=True)
class Recipe:
    """What a root is made of: Debian's suite, and the packages in addition to PACKAGES."""

    suite: str
    extra: tuple[str, ...] = ()


# The roots by name. `make bench-compare` measures libvirt in the last one.
RECIPES = {suite: Recipe(suite) for suite in SUITES} | {
    "libvirt": Recipe("bookworm", ("libvirt-clients", "libvirt-daemon-system", "virtinst")),
}

# Units that are useless in a container, or would delay tests or hold locks.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "getty@.service",
    "man-db.timer",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-modules-load.service",
    "systemd-networkd-wait-online.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
)

NETWORK_UNIT = """\
# The lab's stand-in for ifupdown: the host's address on its only interface.
[Unit]
Description=Lab host's own address
DefaultDependencies=no
After=systemd-sysctl.service
Before=network.target network-online.target
Wants=network.target
ConditionPathExists=/etc/lab/network.batch

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip -batch /etc/lab/network.batch

[Install]
WantedBy=multi-user.target network-online.target
"""

# Device nodes as the kernel and udev create them on a real host.
DEVICES = "".join(
    (
        "z /dev/net/tun 0666 root root\n",
        "c /dev/loop-control 0660 root disk - 10:237\n",
        *(f"b /dev/loop{number} 0660 root disk - 7:{number}\n" for number in range(32)),
    )
)


@dataclass(frozen=True)
class Mirror:
    """The URLs from which the machine gets packages: Debian's archive and its security archive."""

    archive: str = "http://deb.debian.org/debian"
    security: str = "http://deb.debian.org/debian-security"

    @staticmethod
    def of_machine() -> Mirror:
        """Return the mirror of the machine, Debian's public one if it is not configured in apt's sources."""
        form = "$(REPO_URI) $(RELEASE) $(ORIGIN)"
        listed = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], check=False)
        archive, security = "", ""
        for line in listed.stdout.splitlines():
            address, release, origin = (*line.split(), "", "")[:3]
            # Before the first `apt-get update` the origin is unknown and not expanded.
            if origin not in ("Debian", "", "$(ORIGIN)") or "debian" not in address:
                continue
            if release.endswith("-security"):
                security = security or address.rstrip("/")
            else:
                archive = archive or address.rstrip("/")
        return Mirror(archive or Mirror.archive, security or Mirror.security)

    def sources(self, suite: str) -> str:
        """Return the text of an apt sources.list for a suite."""
        return "".join(
            f"deb [signed-by={KEYRING}] {address} {release} main\n"
            for address, release in (
                (self.archive, suite),
                (self.archive, f"{suite}-updates"),
                (self.security, f"{suite}-security"),
            )
        )


def apt_settings() -> list[str]:
    """Return the machine's settings of apt for its mirror, such as proxies, as lines of apt.conf."""
    wanted = ("Acquire::Check-", "Acquire::http", "Acquire::https", "Acquire::Retries")
    lines = run(["apt-config", "dump"]).stdout.splitlines()
    return [line for line in lines if line.startswith(wanted) and not line.endswith('"";')]


def key(name: str) -> str:
    """Return the key of a root in the cache, which depends on everything in the root."""
    made_of = RECIPES[name]
    packages = (*PACKAGES, *made_of.extra)
    recipe = "\n".join([str(RECIPE_VERSION), made_of.suite, *packages, "", *MASKED, NETWORK_UNIT, DEVICES])
    return f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def ensure(cache: Path, name: str) -> Path:
    """Return a cached root; build it first if it does not exist (about a minute)."""
    if name not in RECIPES:
        raise LabError(f"unknown root {name!r}: it is one of {', '.join(RECIPES)}")
    root = cache / f"root-{key(name)}"
    if root.is_dir():
        return root
    with locked(cache / f"{name}.lock", f"another build of the {name} root") as lock:
        if not root.is_dir():
            build(cache, name, root, lock)
    return root


def build(cache: Path, name: str, root: Path, lock: int) -> None:
    """Build a root under a temporary name and rename it; remove incomplete ones of killed builds first."""
    for left in cache.glob(f".{name}.*"):
        remove_tree(left)
    part = cache / f".{name}.{os.getpid()}"
    log = cache / f"{name}.log"
    say(f"building the {name} root, once; its log is {log}")
    bootstrap(name, part, log, lock)
    customise(part)
    part.rename(root)
    for old in cache.glob(f"root-{name}-*"):
        if old != root and not in_use(old):
            remove_tree(old)


def in_use(root: Path) -> bool:
    """Return whether a host uses this root: a running host locks it, one that is off has a record."""
    notes = root.parent.parent.glob("hosts/*/host.json")
    if any(root.name in note.read_text() for note in notes):
        return True
    descriptor = os.open(root, os.O_RDONLY)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def bootstrap(name: str, target: Path, log: Path, lock: int) -> None:
    """Run mmdebstrap into `target`, with its output in `log`, and report progress.

    It inherits the descriptor `lock`, so that no other build starts before it has exited.
    """
    recipe = RECIPES[name]
    settings = [f"--aptopt={line}" for line in apt_settings()]
    # Without translations the root is a third smaller, and built in less time.
    excluded = ("/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/man/*")
    argv = [
        # When this process exits for any reason, the build is killed and its mounts are removed.
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"),
        "mmdebstrap",
        "--mode=root",
        "--format=directory",
        "--variant=minbase",
        f"--keyring={KEYRING}",
        *settings,
        '--aptopt=Acquire::Retries "3"',
        *(f"--dpkgopt=path-exclude={path}" for path in excluded),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--include={','.join((*PACKAGES, *recipe.extra))}",
        recipe.suite,
        str(target),
        "-",
    ]
    progress = Progress(f"building the {name} root")
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=clean_environment(),
            pass_fds=(lock,),
        )
        assert process.stdin is not None
        process.stdin.write(Mirror.of_machine().sources(recipe.suite).encode())
        process.stdin.close()
        try:
            while process.poll() is None:
                progress.tick(last_line(log))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise LabError(f"mmdebstrap could not build the {name} root:\n{tail}")
    progress.done()


def last_line(log: Path) -> str:
    """Return the last stage in a log of mmdebstrap."""
    stages = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("I: ")]
    return stages[-1].removeprefix("I: ") if stages else ""


def customise(root: Path) -> None:
    """Configure a minimal Debian so that it boots to the state `running` in a container."""
    for leftover in ("etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/apt.conf.d/99mmdebstrap"):
        # Packages that are installed later are complete, with manual pages and documentation.
        (root / leftover).unlink(missing_ok=True)
    units = root / "etc/systemd/system"
    for unit in MASKED:
        link(units / unit, "/dev/null")
    (units / "lab-network.service").write_text(NETWORK_UNIT)
    for target in ("multi-user.target", "network-online.target"):
        link(units / f"{target}.wants/lab-network.service", "/etc/systemd/system/lab-network.service")
    (root / "etc/tmpfiles.d/lab.conf").write_text(DEVICES)
    link(units / "default.target", "/lib/systemd/system/multi-user.target")
    (root / "etc/machine-id").write_text("uninitialized\n")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)


def link(path: Path, target: str) -> None:
    """Create a symbolic link; replace one that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def remove_tree(tree: Path) -> None:
    """Remove a tree; unmount first what a killed build may have mounted in it, such as /dev and /proc."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [point for point in mounts if f"{point}/".startswith(f"{tree.resolve()}/")]
    for point in sorted(inside, reverse=True):
        run(["umount", point])
    if tree.is_dir():
        shutil.rmtree(tree)
    else:
        tree.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit("this is a part of tests/lab/lab")
