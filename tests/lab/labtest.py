"""The interface of the lab for tests: a host with qsysd installed, and operations on it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny_guest
from labhost import Host, cache_folder
from labproc import LabError, T, say, wait_until

REPOSITORY = Path(__file__).parents[2]

TINY = "/var/lib/tiny"

# The guest boots faster without support for real hardware, without self-tests of cryptography, and without
# SMAP, for which the kernel patches code that TCG then has to translate again.
TINY_APPEND = (
    "console=ttyS0 quiet nokaslr tsc=reliable no_timer_check cryptomgr.notests clearcpuid=smap,erms,fsrm"
)

# Options of `qsysd create` for a VM that boots the tiny guest; --append must follow.
TINY_OPTIONS = ("--kernel", f"{TINY}/vmlinux", "--initrd", f"{TINY}/initrd", "--memory", "160M")

CONFIGURATION = "accel: tcg\n"

__all__ = [
    "TINY",
    "TINY_APPEND",
    "TINY_OPTIONS",
    "LabError",
    "LabHost",
    "T",
    "find_package",
    "lab_folder",
    "tiny_options",
    "wait_until",
]


def lab_folder() -> Path:
    """Return the lab's work directory: $QSYSD_LAB_DIR, or build/lab of this repository."""
    return Path(os.environ.get("QSYSD_LAB_DIR") or REPOSITORY / "build/lab").resolve()


def find_package() -> Path:
    """Return the qsysd package to test: $QSYSD_DEB, or the newest in build/."""
    given = os.environ.get("QSYSD_DEB")
    found = [Path(given)] if given else sorted(REPOSITORY.glob("build/qsysd_*_all.deb"), key=modified)
    if not found or not found[-1].is_file():
        raise LabError("no qsysd package found: run `make deb`, or set QSYSD_DEB")
    return found[-1].resolve()


def modified(path: Path) -> float:
    """Return the modification time of a file, in seconds since 1970."""
    return path.stat().st_mtime


def tiny_options(*words: str) -> tuple[str, ...]:
    """Return options of `qsysd create` for the tiny guest. words: as tiny=ignore-button."""
    return (*TINY_OPTIONS, "--append", " ".join((TINY_APPEND, *words)))


class LabHost(Host):
    """A host of the lab with operations for tests. Timeouts are in seconds."""

    def __init__(self, lab: Path, name: str) -> None:
        super().__init__(lab, name)
        self.noted = time.time()

    # setup

    def install(self, package: Path) -> None:
        """Install the qsysd package as a user would, and the tiny guest; set the accelerator to TCG."""
        self.put(package, f"/root/{package.name}")
        # Written first, because the installation of the package reads it.
        self.write("/etc/qsysd/qsysd.yaml", CONFIGURATION)
        argv = ["apt-get", "install", "--yes", "--reinstall", "--allow-downgrades", f"/root/{package.name}"]
        self.run(["env", "DEBIAN_FRONTEND=noninteractive", *argv], timeout=300)
        self.install_tiny_guest()

    def install_tiny_guest(self) -> None:
        """Copy the kernels and the initrd of the tiny guest to /var/lib/tiny, readable by all users."""
        guest = tiny_guest.ensure(cache_folder(self.lab))
        self.run(["mkdir", "-p", TINY])
        for source, name in tiny_guest.files(guest):
            self.put(source, f"{TINY}/{name}")
        self.sh(f"chmod 0644 {TINY}/*")

    # commands

    def sh(self, script: str, *, check: bool = True, timeout: float = 60) -> str:
        """Run a shell script on the host and return its output, without the last line break."""
        return self.run(["/bin/sh", "-ec", script], check=check, timeout=timeout).stdout.rstrip("\n")

    def qsysd(
        self, *arguments: str, check: bool = True, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a qsysd command on the host, as root."""
        return self.run(["qsysd", *arguments], check=check, stdin=stdin, timeout=timeout)

    def qsysd_json(self, *arguments: str, timeout: float = 120) -> Any:
        """Run a qsysd command with --json and return the parsed output."""
        return json.loads(self.qsysd(*arguments, "--json", timeout=timeout).stdout)

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = 180) -> str:
        """Run systemctl on the host and return its output."""
        return self.run(["systemctl", *arguments], check=check, timeout=timeout).stdout.rstrip("\n")

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit as `systemctl show` prints them, all by default."""
        wanted = [f"--property={','.join(names)}"] if names else []
        lines = self.systemctl("show", unit, *wanted).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit, "" if it does not have it."""
        return self.properties(unit, name).get(name, "")

    def journal(self, *arguments: str) -> str:
        """Return output of journalctl on the host."""
        return self.run(["journalctl", "--no-pager", "--quiet", *arguments]).stdout

    def boot_id(self) -> str:
        """Return the boot ID of the host; nspawn generates one for each boot."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    # files

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on the host; create its parent directories."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        self.run(["/bin/sh", "-c", script, "sh", path, f"{mode:o}"], stdin=text)

    def read(self, path: str) -> str:
        """Return the text of a file on the host."""
        return self.run(["cat", path]).stdout

    def exists(self, path: str) -> bool:
        """Return whether a path exists on the host, also as a dangling symbolic link."""
        return self.run(["/bin/sh", "-c", 'test -e "$1" -o -L "$1"', "sh", path], check=False).returncode == 0

    def glob(self, pattern: str) -> list[str]:
        """Return the paths on the host that match a shell pattern, sorted."""
        script = 'for path in $1; do if [ -e "$path" ] || [ -L "$path" ]; then echo "$path"; fi; done'
        return sorted(self.run(["/bin/sh", "-c", script, "sh", pattern]).stdout.splitlines())

    # waiting

    def wait_until(self, condition: Callable[[], T | None], *, timeout: float, what: str) -> T:
        """Return the first true value of a condition, which is checked ten times per second."""
        return wait_until(condition, timeout=timeout, what=f"{what} on {self.name}", poll=0.1)

    def wait_property(self, unit: str, name: str, wanted: str | Sequence[str], *, timeout: float = 30) -> str:
        """Wait until a property of a unit has one of the values, and return it."""
        values = (wanted,) if isinstance(wanted, str) else tuple(wanted)

        def value() -> str | None:
            found = self.property(unit, name)
            return found if found in values else None

        try:
            return self.wait_until(value, timeout=timeout, what=f"{name}={'|'.join(values)} of {unit}")
        except LabError as error:
            state = self.properties(unit, "ActiveState", "SubState", "Result", "MainPID")
            raise LabError(f"{error}; it is {state}") from None

    # reports

    def forget_journal(self) -> None:
        """Start the report of a failed test at this time."""
        self.noted = time.time()

    def report(self) -> str:
        """Return the state of the host and its recent journal, for a failed test."""
        if self.leader() is None:
            return f"{self.name} is off\n{self.console_tail()}"
        since = f"--since=@{self.noted:.3f}"
        units = ("list-units", "--no-pager", "--all", "--plain", "qemu-*", "qsysd*")
        network = "ip -brief address; ip -brief link show type tun; nft list ruleset | head -80"
        try:
            journal = self.journal("--output=short-precise", since, "--lines=150")
            return "\n".join((journal, self.systemctl(*units, check=False), self.sh(network, check=False)))
        except LabError as error:
            return f"{self.name}: no report: {error}"


def remove(host: Host) -> None:
    """Remove a host, unless $QSYSD_LAB_KEEP is set."""
    if os.environ.get("QSYSD_LAB_KEEP"):
        say(f"{host.name} is kept: tests/lab/lab shell {host.name}")
    else:
        host.down()
