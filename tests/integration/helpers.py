"""Operations of tests on VMs of a host, and queries of the state of VM and host."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from typing import Any

from labtest import LabError, LabHost, tiny_options

# Seconds. Guests boot within two seconds on an idle machine, but not on a busy one.
BOOT = 90
SOON = 30

# Options for a VM that uses no CPU time: its CPUs are stopped, and a stop is forced after a second.
FROZEN = ("--qemu-arg=-S", "--stop-timeout=1s")

INSTALL = ("apt-get", "install", "-qq", "--reinstall", "--allow-downgrades")

RUN_MONITOR = """\
import json, sys
from qsysd.qemu.monitor import Monitor
with Monitor(sys.argv[1], timeout=20) as monitor:
    print(json.dumps(monitor.execute(sys.argv[2], json.loads(sys.argv[3]))))
"""

# Places on a host where something of a VM could remain. Lock files are kept, and so are records of the
# host: whether KVM works, and the machine types of its QEMU.
TRACES = {
    "files": "find /etc/systemd /etc/qsysd /var/lib/qsysd /run/qsysd /run/systemd/system"
    " -not -path '/run/qsysd/locks/*' -not -path /run/qsysd/started -not -path /run/qsysd/vms"
    " -not -path /run/qsysd/roots"
    " -not -path '/run/qsysd/acceleration.env*' -not -path /run/qsysd/machines.json"
    " -printf '%p %y %m %u %l\\n' | sort",
    "links": "ip -brief link show | sed 's/ .*//' | sort",
    "aliases": "ip link show | grep -o 'alias .*' | sort || true",
    "rules": "nft list ruleset",
    "leases": "sed 's/^[0-9]* //' /var/lib/qsysd/networks/*/dhcp/leases 2>/dev/null | sort || true",
    "units": "systemctl list-units --all --plain --no-legend 'qemu-vm@*' '*qv-*' | sort",
    "users": "ls /run/systemd/dynamic-uid 2>/dev/null | grep -v '^[0-9]' || true",
    "processes": "ps -eo comm= | grep -c '^qemu-system' || true",
}


def apt(host: LabHost, *argv: str) -> str:
    """Run an apt-get command on the host and return its output."""
    return host.sh(f"DEBIAN_FRONTEND=noninteractive {shlex.join(argv)} 2>&1", timeout=300)


def unit(name: str) -> str:
    """Return the unit of a VM."""
    return f"qemu-vm@{name}.service"


def create(host: LabHost, name: str, *words: str, options: Sequence[str] = ()) -> None:
    """Create a VM with the tiny guest; words are options of the guest, such as tiny=ignore-button."""
    host.qsysd("create", name, *tiny_options(*words), *options)


def create_all(host: LabHost, vms: dict[str, Sequence[str]], *, options: Sequence[str] = ()) -> None:
    """Create several VMs with the tiny guest at once, each with options of the guest."""
    commands = [shlex.join(["qsysd", "create", name, *tiny_options(*vms[name]), *options]) for name in vms]
    at_once(host, *commands)


def at_once(host: LabHost, *commands: str, timeout: float = 120) -> list[tuple[int, str]]:
    """Run shell commands on a host at the same time; return exit status and output of each."""
    script = (
        'd=$(mktemp -d); i=0; for c in "$@"; do i=$((i+1)); (sh -c "$c" >$d/$i 2>&1; echo $? >$d/$i.rc) & '
    )
    script += (
        'done; wait; i=0; for c in "$@"; do i=$((i+1)); cat $d/$i.rc $d/$i; printf "\\0"; done; rm -r $d'
    )
    parts = host.run(["/bin/sh", "-c", script, "sh", *commands], timeout=timeout).stdout.split("\0")[:-1]
    return [(int(part.split("\n", 1)[0]), part.split("\n", 1)[1]) for part in parts]


def edit(host: LabHost, name: str, *changes: tuple[str, str]) -> str:
    """Change a VM's definition by replacing parts of its text; return the output of qsysd."""
    text = host.qsysd("show", name).stdout
    for old, new in changes:
        assert old in text, text
        text = text.replace(old, new)
    return host.qsysd("edit", name, "--file", "-", stdin=text).stdout


def refused(host: LabHost, *arguments: str, status: int, timeout: float = 120) -> str:
    """Run a qsysd command that must fail with an exit status; return its output."""
    done = host.qsysd(*arguments, check=False, timeout=timeout)
    said = done.stderr + done.stdout
    assert done.returncode == status, said
    assert "Traceback" not in said
    return said


# unit and QEMU


def active(host: LabHost, name: str) -> str:
    """Return a unit's state and substate: `active/running`."""
    found = host.properties(unit(name), "ActiveState", "SubState")
    return f"{found['ActiveState']}/{found['SubState']}"


def wait_active(host: LabHost, name: str, wanted: str, *, timeout: float = SOON) -> None:
    """Wait for a unit's ActiveState."""
    host.wait_property(unit(name), "ActiveState", wanted, timeout=timeout)


def main_pid(host: LabHost, name: str) -> int:
    """Return the process ID of a VM's QEMU, 0 without one."""
    return int(host.property(unit(name), "MainPID"))


def arguments_of(host: LabHost, pid: int) -> list[str]:
    """Return the command line of a process on the host."""
    return host.read(f"/proc/{pid}/cmdline").split("\0")[:-1]


def memory_in_force(host: LabHost, name: str) -> str:
    """Return the memory that a VM's QEMU was started with: size=160M."""
    arguments = arguments_of(host, main_pid(host, name))
    return arguments[arguments.index("-m") + 1]


def listed(host: LabHost, name: str) -> dict[str, Any]:
    """Return the entry of a VM in `qsysd list --json`."""
    found: dict[str, Any] = host.qsysd_json("list", name)[0]
    return found


def status(host: LabHost, name: str) -> dict[str, Any]:
    """Return the entry of a VM in `qsysd status --json`."""
    found: dict[str, Any] = host.qsysd_json("status", name)[0]
    return found


def monitor(
    host: LabHost, name: str, command: str, *, purpose: str = "ready", check: bool = True, **arguments: Any
) -> Any:
    """Run a QMP command on a VM. purpose: of the monitor."""
    path = f"/var/lib/qsysd/vms/{name}/qmp-{purpose}.sock"
    done = host.run(["python3", "-c", RUN_MONITOR, path, command, json.dumps(arguments)], check=check)
    return json.loads(done.stdout or "null")


# the guest


def console(host: LabHost, name: str) -> str:
    """Return the console output of a VM's guest."""
    return host.run(["cat", f"/var/lib/qsysd/vms/{name}/console.log"], check=False).stdout


def wait_console(host: LabHost, name: str, words: str, *, times: int = 1, timeout: float = BOOT) -> None:
    """Wait until the guest has written a text to its console `times` times."""

    def seen() -> bool:
        return console(host, name).count(words) >= times

    host.wait_until(seen, timeout=timeout, what=f"{words!r} on the console of {name}")


def wait_ready(host: LabHost, *names: str, times: int = 1) -> None:
    """Wait until guests have got their addresses `times` times (once per boot)."""
    for name in names:
        wait_console(host, name, "TINY READY", times=times)


def wait_ping(host: LabHost, address: str, *, timeout: float = BOOT) -> None:
    """Wait until an address answers pings of the host."""

    def answers() -> bool:
        return host.run(["ping", "-c", "1", "-W", "1", address], check=False).returncode == 0

    host.wait_until(answers, timeout=timeout, what=f"an answer from {address}")


# the journal and the host


def unit_journal(host: LabHost, name: str, *arguments: str) -> str:
    """Return the journal of a VM's unit, by default since the start of the test."""
    when = arguments or (f"--since=@{host.noted:.3f}",)
    return host.journal(f"--unit={unit(name)}", "--output=cat", *when)


def assert_no_force(host: LabHost, name: str, *arguments: str) -> None:
    """Fail if systemd killed a VM, or stopped it at a timeout."""
    journal = unit_journal(host, name, *arguments)
    for words in ("SIGKILL", "SIGTERM", "timed out", "status=9", "code=killed", "Failed with result"):
        assert words not in journal, journal


def moment(host: LabHost, name: str, word: str, boot: str = "--boot") -> float:
    """Return the time of systemd's last `Starting`, `Started`, `Stopping` or `Stopped` of a VM (seconds)."""
    words = (f"--unit={unit(name)}", "--output=short-monotonic", f"--grep=^{word} ")
    lines = host.journal(*words, boot).splitlines()
    assert lines, f"no {word!r} of {name} in the journal"
    return float(lines[-1].partition("]")[0].strip("[ "))


def drop_in(host: LabHost, name: str, *lines: str) -> str:
    """Write a drop-in of the administrator for a VM that does not exist yet; return its directory."""
    folder = f"/etc/systemd/system/{unit(name)}.d"
    host.write(f"{folder}/90-test.conf", "\n".join(lines) + "\n")
    return folder


def traces(host: LabHost) -> dict[str, list[str]]:
    """Return everything of qsysd and its VMs on a host: files, interfaces, rules, leases, units."""
    script = "\n".join(f"echo '== {what}'; {command}" for what, command in TRACES.items())
    found: dict[str, list[str]] = {}
    for line in host.sh(script).splitlines():
        if line.startswith("== "):
            lines = found.setdefault(line.removeprefix("== "), [])
        else:
            lines.append(line)
    return found


def assert_traces(host: LabHost, before: dict[str, list[str]]) -> None:
    """Fail if anything differs from `before`; services may need a moment to remove it."""
    with contextlib.suppress(LabError):
        host.wait_until(lambda: traces(host) == before, timeout=5, what="the traces as before")
    assert traces(host) == before
