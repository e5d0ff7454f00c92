"""logs: the journal of VMs' units (journalctl(1)), and with it their guests' consoles, as they grow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from qsysd import paths, process
from qsysd.host.console_log import ConsoleLog
from qsysd.runtime import spawn

POLL_INTERVAL = 0.2  # seconds


def unit_arguments(vm: str, *, lines: int) -> list[str]:
    """Return the journalctl command that shows a unit's lines, QEMU's among them."""
    return ["journalctl", "-q", "--no-pager", "-n", str(lines), "-u", paths.unit(vm)]


def unit_tail(vm: str, lines: int, *, colour: bool) -> tuple[str, str]:
    """Return a unit's last lines in the journal, and the cursor to follow it from; "" if it has none."""
    done = spawn.run(
        [*unit_arguments(vm, lines=lines), "--show-cursor"],
        extra_environment={"SYSTEMD_COLORS": "1" if colour else "0"},
    )
    text, mark, cursor = done.stdout.rpartition("-- cursor: ")
    return (text, cursor.strip()) if mark else (done.stdout, "")


def follow(
    consoles: Mapping[str, ConsoleLog], cursors: Mapping[str, str], *, colour: bool
) -> Iterator[tuple[str, str]]:
    """Yield each new line with its VM, until the caller stops.

    consoles: by VM. cursors: by VM, where its unit's journal is followed from.
    """
    environment = {"SYSTEMD_COLORS": "1" if colour else "0"}
    with ExitStack() as stack:
        journals = {
            vm: stack.enter_context(process.Follower(_follow_arguments(vm, cursor), environment))
            for vm, cursor in cursors.items()
        }
        while True:
            found = [(vm, line) for vm, journal in journals.items() for line in journal.arrived()]
            found += [(vm, line) for vm, console in consoles.items() for line in console.new_lines()]
            yield from found
            if not found:
                time.sleep(POLL_INTERVAL)


def _follow_arguments(vm: str, cursor: str) -> Sequence[str]:
    since = ["-n", "all", "--after-cursor", cursor] if cursor else ["-n", "all"]
    return ["journalctl", "-q", "--no-pager", "-f", *since, "-u", paths.unit(vm)]
