"""logs: the journal of VMs' units (journalctl(1)) and the logs of their guests' consoles."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum

from qsysd import paths, process
from qsysd.errors import QsysdError
from qsysd.host import selection
from qsysd.host.console_log import ConsoleLog, Place
from qsysd.host.context import Host
from qsysd.runtime import spawn

POLL_INTERVAL = 0.2  # seconds


class Source(StrEnum):
    """A log of a VM: that of its unit, with QEMU's messages, or the guest's console."""

    UNIT = "unit"
    CONSOLE = "console"


@dataclass(frozen=True)
class Tail:
    """The last lines of a VM's logs, and where `follow` continues.

    unit: the text of journalctl, and console: lines; None for a log that was not requested. cursor: of the
    journal, "" for a unit without entries. error: why the rest of the logs cannot be read.
    """

    name: str
    unit: str | None = None
    cursor: str = ""
    console: list[str] | None = None
    place: Place | None = None
    error: QsysdError | None = None


def tail(
    host: Host, names: Sequence[str] | None, *, lines: int, only: Source | None = None, colour: bool = False
) -> list[Tail]:
    """Return the last lines of VMs' logs. lines: their number in each log at most. Raise NotFoundError.

    colour: whether journalctl colours its lines.
    """
    vms = selection.resolve(host, names)
    for vm in vms:
        host.store.require(vm)
    return [_tail(host, vm, lines, only, colour) for vm in vms]


def _tail(host: Host, vm: str, lines: int, only: Source | None, colour: bool) -> Tail:
    found = Tail(vm)
    try:
        if only != Source.CONSOLE:
            unit, cursor = _unit_tail(vm, lines, colour)
            found = replace(found, unit=unit, cursor=cursor)
        if only != Source.UNIT:
            console = ConsoleLog(host.scope.console_log(vm))
            found = replace(found, console=console.tail(lines), place=console.place)
    except QsysdError as error:
        return replace(found, error=error)
    return found


def _unit_tail(vm: str, lines: int, colour: bool) -> tuple[str, str]:
    """Return the last lines of a unit in the journal, and the cursor behind them; "" without entries."""
    done = spawn.run(
        ["journalctl", "-q", "--no-pager", "-n", str(lines), "-u", paths.unit(vm), "--show-cursor"],
        extra_environment=_colours(colour),
    )
    text, mark, cursor = done.stdout.rpartition("-- cursor: ")
    return (text, cursor.strip()) if mark else (done.stdout, "")


def follow(host: Host, tails: Sequence[Tail], *, colour: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each new line of the logs with its VM, until the caller stops."""
    consoles = {
        each.name: ConsoleLog(host.scope.console_log(each.name), each.place) for each in tails if each.place
    }
    with ExitStack() as stack:
        journals = {
            each.name: stack.enter_context(
                process.Follower(_follow_arguments(each.name, each.cursor), _colours(colour))
            )
            for each in tails
            if each.unit is not None
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


def _colours(colour: bool) -> dict[str, str]:
    return {"SYSTEMD_COLORS": "1" if colour else "0"}
