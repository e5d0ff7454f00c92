"""The control group that holds all processes of a host, and nothing else.

Where systemd is the machine's PID 1 it makes the group, as a transient scope with delegation, since
groups there are its own. Elsewhere the lab makes one at the top of the cgroup2 hierarchy. Without a
group of their own two hosts would share one, and each systemd would take the other's units for its own.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from labproc import LabError, run, wait_until

SLICE = "machine.slice"


def hierarchy() -> Path:
    """Return where the machine has mounted the cgroup2 hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise LabError("no cgroup2 hierarchy is mounted on this machine, so systemd cannot run in a container")


def of_process(pid: int) -> Path:
    """Return the group of a process in the cgroup2 hierarchy."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return hierarchy() / line.removeprefix("0::").lstrip("/")
    raise LabError(f"process {pid} is in no group of the cgroup2 hierarchy")


class Cgroup:
    """The control group called `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope = Path("/run/systemd/system").is_dir()

    @property
    def path(self) -> Path:
        """Return the group's directory, there or not."""
        return self.parent() / (f"{self.name}.scope" if self.scope else self.name)

    def parent(self) -> Path:
        """Return the directory that holds the groups of all hosts."""
        return hierarchy() / SLICE if self.scope else hierarchy()

    def siblings(self, prefix: str) -> list[str]:
        """Return the names of the groups there whose names begin with `prefix`."""
        return [
            path.name.removesuffix(".scope") for path in self.parent().glob(f"{prefix}*") if path.is_dir()
        ]

    def launcher(self) -> list[str]:
        """Return what to put before a command so that it runs in the group; none where it has to `enter`."""
        if not self.scope:
            return []
        settings = ["--quiet", "--collect", "--property=Delegate=yes", f"--slice={SLICE}"]
        return ["systemd-run", "--scope", *settings, f"--unit={self.name}.scope"]

    def enter(self) -> None:
        """Move the calling process into the group, made if it is not there."""
        if not self.path.is_dir():
            self.path.mkdir()
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def processes(self) -> list[int]:
        """Return the ids of all processes in the group and the groups below it."""
        found: list[int] = []
        for group in self.groups():
            try:
                found += [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
            except (FileNotFoundError, OSError):
                # The group went away between the listing and the reading: so did its processes.
                continue
        return found

    def groups(self) -> list[Path]:
        """Return the group's directory and all below it, the deepest first."""
        return [Path(folder) for folder, _, _ in os.walk(self.path, topdown=False)]

    def kill(self) -> None:
        """End every process in the group at once, and remove the group."""
        if self.processes():
            (self.path / "cgroup.kill").write_text("1")
            wait_until(lambda: not self.processes(), timeout=30, what=f"ending the processes of {self.name}")
        if self.scope:
            run(["systemctl", "stop", f"{self.name}.scope"], check=False)
            return
        wait_until(self.remove, timeout=30, what=f"removing the control group of {self.name}")

    def remove(self) -> bool:
        """Remove the group and those below it; return whether they are gone.

        A process that has just ended is listed no more, but holds its group for a moment yet.
        """
        try:
            for group in self.groups():
                group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True
