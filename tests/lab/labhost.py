"""A host of the lab: an overlay on a cached root, booted by systemd-nspawn.

`lab up` starts a *supervisor* process, which continues after the command has exited. In a private mount
namespace it mounts the overlay and runs *nspawn*, again whenever the host reboots. The only child of
nspawn is the *leader*, the host's PID 1. When the last of these processes exits, the kernel removes the
mounts, and with the network namespace the interfaces.

All processes of a host are in a dedicated cgroup, so that `down` kills all of them, and no others, even
if the supervisor does not exist any more.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import labcgroup
import labenter
import labkvm
import labroot
import labsupervise
from labnet import Network, gateway
from labproc import LabError, Process, Progress, clean_environment, locked, run, say, wait_until, write_whole

# Seconds in which a host boots or shuts down on a busy machine without KVM.
BOOT_TIMEOUT = 180

# The name of an interface has at most 15 bytes, and nspawn adds the prefix "vb-".
NAME = re.compile("[a-z][a-z0-9-]{0,11}")


@dataclass(frozen=True)
class Note:
    """The record of a host on disk, host.json."""

    name: str
    suite: str
    root: str
    number: int
    machine_id: str
    overlay: bool


class Host:
    """The host `name` of the lab with the work directory `lab`."""

    def __init__(self, lab: Path, name: str) -> None:
        if not NAME.fullmatch(name):
            raise LabError(f"{name!r} is not a valid host name: it must match {NAME.pattern}")
        self.lab = lab
        self.name = name
        self.directory = lab / "hosts" / name
        self.console = self.directory / "console.log"
        self.network = Network(lab)
        self.cgroup = labcgroup.Cgroup(f"{self.network.owner}-{name}")

    # records and processes

    def note(self) -> Note | None:
        """Return the record of the host, None if the host does not exist."""
        try:
            return Note(**json.loads((self.directory / "host.json").read_text()))
        except FileNotFoundError:
            return None

    def supervisor(self) -> Process | None:
        """Return the supervisor of the host, None if it does not run."""
        try:
            process = Process(**json.loads((self.directory / "supervisor.json").read_text()))
        except FileNotFoundError:
            return None
        return process if process.alive() and "supervise" in process.command_line() else None

    def leader(self) -> Process | None:
        """Return the host's PID 1 as a process of the machine, None if it does not run."""
        supervisor = self.supervisor()
        for nspawn in supervisor.children() if supervisor else []:
            for child in nspawn.children():
                if is_first_process(child.pid):
                    return child
        return None

    def address(self) -> ipaddress.IPv4Address:
        """Return the host's address on the lab's bridge."""
        note, link = self.note(), self.network.link()
        if note is None or link is None:
            raise LabError(f"{self.name} is not up: run `tests/lab/lab up {self.name}`")
        return ipaddress.IPv4Address(f"10.213.{link.number}.{note.number}")

    def running(self) -> Process:
        """Return the host's PID 1; raise LabError if the host is not up."""
        leader = self.leader()
        if leader is None:
            raise LabError(f"{self.name} is not up: run `tests/lab/lab up {self.name}`")
        return leader

    # up and down

    def up(self, suite: str | None = None, *, timeout: float = BOOT_TIMEOUT) -> None:
        """Create the host if it does not exist, boot it if it is off, and wait until it has booted."""
        with self.lock():
            note = self.prepare(suite)
            if self.leader() is None or self.supervisor() is None:
                self.end_leftovers()
                net = self.network.up()
                self.write_files(note, net)
                self.start_supervisor()
            self.wait_running(timeout=timeout)

    def prepare(self, suite: str | None) -> Note:
        """Return the record of the host; create it with an empty overlay if the host does not exist."""
        note = self.note()
        if note and suite and note.suite != suite:
            raise LabError(f"{self.name} is a {note.suite} host: `tests/lab/lab down {self.name}` first")
        if note and note.overlay and not (cache_folder(self.lab) / note.root).is_dir():
            raise LabError(
                f"the root of {self.name} was removed from the cache: `tests/lab/lab down {self.name}` first"
            )
        if note:
            return note
        root = labroot.ensure(cache_folder(self.lab), suite or labroot.SUITES[0])
        with locked(self.lab / "lock", "another lab command"):
            shutil.rmtree(self.directory, ignore_errors=True)
            for folder in ("upper", "work", "root"):
                (self.directory / folder).mkdir(parents=True)
            taken = {other.number for other in all_notes(self.lab)}
            number = next(number for number in range(10, 250) if number not in taken)
            overlay = self.overlay_works(root)
            if not overlay:
                say(f"an overlay cannot be mounted in {self.lab}: copying the root")
                run(["cp", "-a", "--reflink=auto", f"{root}/.", f"{self.directory}/root"], timeout=600)
            note = Note(
                name=self.name,
                suite=suite or labroot.SUITES[0],
                root=root.name,
                number=number,
                machine_id=uuid.uuid4().hex,
                overlay=overlay,
            )
            write_whole(self.directory / "host.json", json.dumps(dataclasses.asdict(note)))
        return note

    def overlay_works(self, root: Path) -> bool:
        """Return whether the overlay can be mounted; tried in a separate mount namespace."""
        mount = labsupervise.overlay_argv(self.name, self.directory, root)
        argv = ["unshare", "--mount", "--propagation=private", *mount]
        return run(argv, check=False).returncode == 0

    def write_files(self, note: Note, net: ipaddress.IPv4Network) -> None:
        """Write the files with the identity of the host, which must be off."""
        layer = self.directory / ("upper" if note.overlay else "root")

        def write(path: str, text: str) -> None:
            write_whole(layer / path.lstrip("/"), text)

        address = net[note.number]
        batch = (
            "link set lo up\n"
            "link set host0 up\n"
            f"address replace {address}/{net.prefixlen} dev host0\n"
            f"route replace default via {gateway(net)}\n"
        )
        write("/etc/machine-id", f"{note.machine_id}\n")
        write("/etc/hostname", f"{self.name}\n")
        write("/etc/hosts", f"127.0.0.1 localhost\n{address} {self.name}\n::1 localhost\n")
        write("/etc/lab/network.batch", batch)
        write("/etc/resolv.conf", resolv_conf())
        write("/etc/apt/sources.list", labroot.Mirror.of_machine().sources(labroot.RECIPES[note.suite].suite))
        write("/etc/apt/apt.conf.d/90lab", "".join(f"{line}\n" for line in labroot.apt_settings()))
        cache = cache_folder(self.lab)
        kvm = labkvm.usable(cache, cache / note.root)
        write("/etc/tmpfiles.d/lab-kvm.conf", labkvm.TMPFILES if kvm else "")

    def start_supervisor(self) -> None:
        """Start the supervisor, detached from this command and its terminal, and wait for the leader."""
        argv = [
            *self.cgroup.launcher(),
            *self.network.inside(),
            "unshare",
            "--mount",
            # Unmounts on the machine are propagated, so that the host does not keep file systems busy.
            "--propagation=slave",
            "/usr/bin/python3",
            str(Path(__file__).with_name("lab").resolve()),
            f"--lab-dir={self.lab}",
            "supervise",
            self.name,
        ]
        with self.console.open("ab") as console:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd="/",
                env=clean_environment(),
                start_new_session=True,
            )

        def leader() -> Process | None:
            if process.poll() is not None:
                raise LabError(f"{self.name} did not start:\n{self.console_tail()}")
            return self.leader()

        wait_until(leader, timeout=60, what=f"starting {self.name}")

    def wait_running(self, *, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the host has booted; report failed units."""
        progress = Progress(f"booting {self.name}")
        deadline = time.monotonic() + timeout
        state = "no answer"
        while time.monotonic() < deadline:
            if self.supervisor() is None:
                raise LabError(f"{self.name} exited during boot:\n{self.console_tail()}")
            if self.leader():
                done = self.run(["systemctl", "is-system-running"], check=False)
                state = done.stdout.strip() or done.stderr.strip() or state
            if state == "running":
                progress.done()
                return
            if state in ("degraded", "maintenance"):
                progress.done()
                failed = self.run(["systemctl", "--failed", "--plain", "--no-legend"], check=False).stdout
                say(f"{self.name} is {state}: {failed.strip() or 'no failed unit'}")
                return
            progress.tick(state)
            time.sleep(0.1)
        raise LabError(f"{self.name} is still {state!r} after {timeout:.0f} s:\n{self.console_tail()}")

    def reboot(self, *, timeout: float = BOOT_TIMEOUT) -> None:
        """Reboot the host, and wait until it has booted."""
        with self.lock():
            before = self.running()
            self.run(["systemctl", "--no-block", "reboot"], check=False)
            self.wait_gone(before, timeout=timeout)
            wait_until(self.leader, timeout=60, what=f"{self.name} booting again")
            self.wait_running(timeout=timeout)

    def crash(self, *, timeout: float = BOOT_TIMEOUT, boot: bool = True) -> None:
        """Cut the power of the host; with `boot`, boot it again and wait until it has booted."""
        with self.lock():
            self.running().signal(signal.SIGKILL)
            wait_until(lambda: not self.cgroup.processes(), timeout=30, what=f"{self.name} losing its power")
        if boot:
            self.up(timeout=timeout)

    def power_off(self, *, timeout: float = BOOT_TIMEOUT) -> None:
        """Shut the host down; `up` boots it again."""
        with self.lock():
            before = self.running()
            self.run(["systemctl", "--no-block", "poweroff"], check=False)
            self.wait_gone(before, timeout=timeout)
            wait_until(lambda: not self.cgroup.processes(), timeout=30, what=f"{self.name} going off")

    def wait_gone(self, leader: Process, *, timeout: float) -> None:
        """Wait until this PID 1 of the host has exited."""
        wait_until(lambda: not leader.alive(), timeout=timeout, what=f"{self.name} going down")

    def down(self) -> None:
        """Kill all processes of the host, and remove all its files."""
        with self.lock():
            self.end_leftovers()
            labroot.remove_tree(self.directory)

    def end_leftovers(self) -> None:
        """Kill the remaining processes of the host, whether or not its supervisor runs."""
        self.cgroup.kill()
        if self.network.exists():
            run([*self.network.inside(), "ip", "link", "delete", f"vb-{self.name}"], check=False)

    def lock(self) -> AbstractContextManager[int]:
        """Lock the host against other lab commands."""
        return locked(self.lab / "locks" / self.name, f"another command on {self.name}")

    def console_tail(self) -> str:
        """Return the last lines of the host's console."""
        if not self.console.exists():
            return ""
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-20:])

    # commands on the host

    def run(
        self, argv: Sequence[str], *, stdin: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and return its output. timeout: seconds."""
        command = labenter.entry(self.running().pid, argv)
        shown = f"{shlex.join(argv)} on {self.name}"
        done = run(command, stdin=stdin, check=check, timeout=timeout, shown=shown)
        return subprocess.CompletedProcess(list(argv), done.returncode, done.stdout, done.stderr)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on the host and return the process; options are those of subprocess.Popen."""
        command = labenter.entry(self.running().pid, argv)
        return subprocess.Popen(command, env=clean_environment(), text=True, **options)

    def become(self, argv: Sequence[str]) -> NoReturn:
        """Replace this process by a command on the host."""
        if all(os.isatty(descriptor) for descriptor in (0, 1)):
            argv = labenter.with_terminal(argv)
        command = labenter.entry(self.running().pid, argv)
        sys.stdout.flush()
        os.execvpe(command[0], command, clean_environment())

    def put(self, source: Path, target: str) -> None:
        """Copy a file or directory of the machine to the path `target` on the host."""
        labenter.put(self.running().pid, source, target)

    def get(self, source: str, target: Path) -> None:
        """Copy a file or directory of the host to the path `target` on the machine."""
        labenter.get(self.running().pid, source, target)

    def supervise(self) -> int:
        """Run the host until it shuts down: the calling process becomes its supervisor."""
        note = self.note()
        if note is None:
            raise LabError(f"host {self.name} does not exist")
        root = cache_folder(self.lab) / note.root if note.overlay else None
        return labsupervise.supervise(
            name=self.name,
            directory=self.directory,
            root=root,
            cgroup=self.cgroup,
        )


def cache_folder(lab: Path) -> Path:
    """Return the directory of cached roots and guests."""
    return Path(os.environ.get("QSYSD_LAB_CACHE") or lab / "cache")


def all_notes(lab: Path) -> list[Note]:
    """Return the records of all hosts of a lab, sorted by name."""
    notes = (Host(lab, folder.name).note() for folder in sorted(lab.glob("hosts/*")))
    return [note for note in notes if note]


def all_names(lab: Path) -> list[str]:
    """Return the names of all hosts of which a directory or a process exists."""
    prefix = f"{Network(lab).owner}-"
    groups = labcgroup.Cgroup(prefix).siblings(prefix)
    folders = [folder.name for folder in lab.glob("hosts/*")]
    names = {*folders, *(group.removeprefix(prefix) for group in groups)}
    return sorted(name for name in names if NAME.fullmatch(name))


def is_first_process(pid: int) -> bool:
    """Return whether a process is PID 1 of a child PID namespace."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
    return len(ids) > 1 and ids[-1] == "1"


def resolv_conf() -> str:
    """Return a resolv.conf whose name servers are not on the machine's loopback, which hosts cannot reach."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        text = path.read_text() if path.exists() else ""
        if "nameserver" in text and "nameserver 127." not in text:
            return text
    say("hosts cannot reach the machine's name server, which listens on its loopback interface")
    return Path("/etc/resolv.conf").read_text()
