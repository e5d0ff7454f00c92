"""The cgroup that contains the processes of a host, and no others.

If systemd is the machine's PID 1 and therefore manages the hierarchy, it creates the cgroup as a transient
scope with delegation. Otherwise the lab creates it at the top of the cgroup2 hierarchy. If two hosts were
in the same cgroup, the systemd of one would manage the units of the other.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from labproc import LabError, run, wait_until

SLICE = "machine.slice"


def hierarchy() -> Path:
    """Return the mount point of the cgroup2 hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise LabError("systemd cannot run in a container: the cgroup2 hierarchy is not mounted on this machine")


def of_process(pid: int) -> Path:
    """Return the directory of a process's cgroup."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return hierarchy() / line.removeprefix("0::").lstrip("/")
    raise LabError(f"process {pid} has no cgroup in the cgroup2 hierarchy")


class Cgroup:
    """The cgroup `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope = Path("/run/systemd/system").is_dir()

    @property
    def path(self) -> Path:
        """Return the directory of the cgroup, which need not exist."""
        return self.parent() / (f"{self.name}.scope" if self.scope else self.name)

    def parent(self) -> Path:
        """Return the parent directory of the cgroups of all hosts."""
        return hierarchy() / SLICE if self.scope else hierarchy()

    def siblings(self, prefix: str) -> list[str]:
        """Return the names of cgroups of hosts that begin with `prefix`."""
        return [
            path.name.removesuffix(".scope") for path in self.parent().glob(f"{prefix}*") if path.is_dir()
        ]

    def launcher(self) -> list[str]:
        """Return the prefix of a command that runs in the cgroup; empty if the process must call `enter`."""
        if not self.scope:
            return []
        settings = ["--quiet", "--collect", "--property=Delegate=yes", f"--slice={SLICE}"]
        return ["systemd-run", "--scope", *settings, f"--unit={self.name}.scope"]

    def enter(self) -> None:
        """Move the calling process into the cgroup; create it if it does not exist."""
        if not self.path.is_dir():
            self.path.mkdir()
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def processes(self) -> list[int]:
        """Return the IDs of all processes in the cgroup and its children."""
        found: list[int] = []
        for group in self.groups():
            try:
                found += [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
            except (FileNotFoundError, OSError):
                # The cgroup was removed in the meantime, so it contains no processes.
                continue
        return found

    def groups(self) -> list[Path]:
        """Return the directories of the cgroup and its children, the deepest first."""
        return [Path(folder) for folder, _, _ in os.walk(self.path, topdown=False)]

    def kill(self) -> None:
        """Kill all processes in the cgroup, and remove the cgroup."""
        if self.processes():
            (self.path / "cgroup.kill").write_text("1")
            wait_until(lambda: not self.processes(), timeout=30, what=f"ending the processes of {self.name}")
        if self.scope:
            run(["systemctl", "stop", f"{self.name}.scope"], check=False)
            return
        wait_until(self.remove, timeout=30, what=f"removing the control group of {self.name}")

    def remove(self) -> bool:
        """Remove the cgroup and its children; return whether they were removed.

        A cgroup stays busy for a moment after its last process is no longer listed.
        """
        try:
            for group in self.groups():
                group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True
