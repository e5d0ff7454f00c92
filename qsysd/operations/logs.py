"""The journal of VMs' units (journalctl(1)) and the logs of their guests' consoles, also as they grow."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from qsysd import paths, process, values
from qsysd.errors import QsysdError
from qsysd.files import hint
from qsysd.host.context import Host

POLL_INTERVAL = 0.2  # seconds
LINE_LENGTH = 400  # bytes; console lines are rarely longer
LINE_MAX = 64 * 1024  # bytes without a line break that are shown as a line
READ_MAX = 1024 * 1024  # bytes of a console at once


class ConsoleLog:
    """The log of a guest's console, across restarts of the VM.

    QEMU owns the directory: no link is followed and no pipe waited for.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._inode = -1
        self._position = 0
        self._rest = b""

    def tail(self, count: int) -> list[str]:
        """Return the last lines, at most `count`; `new_lines` continues behind them. Raises QsysdError."""
        file = self._open()
        if file is None:
            return []
        try:
            status = os.fstat(file)
            start = max(0, status.st_size - count * LINE_LENGTH)
            data = os.pread(file, status.st_size - start, start)
        finally:
            os.close(file)
        self._inode, self._position = status.st_ino, start + len(data)
        return _lines(data)[-count:] if count else []

    def new_lines(self) -> list[str]:
        """Return the whole lines that were written since the last call. Raises QsysdError."""
        file = self._open()
        if file is None:
            return []
        try:
            status = os.fstat(file)
            if status.st_ino != self._inode:
                self._inode, self._position, self._rest = status.st_ino, 0, b""
            elif status.st_size < self._position:
                self._position = status.st_size  # trimmed: what it holds has been shown
            data = os.pread(file, READ_MAX, self._position)
        finally:
            os.close(file)
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_MAX:
            whole, self._rest = [*whole, self._rest], b""
        return _lines(b"\n".join(whole)) if whole else []

    def _open(self) -> int | None:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise QsysdError(f"{self.path} cannot be read: {error.strerror}", hint=hint(error)) from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise QsysdError(f"{self.path} is not a regular file")
        return file


def _lines(data: bytes) -> list[str]:
    return [values.printable(line) for line in data.decode("utf-8", "replace").splitlines()]


def console_tail(host: Host, vm: str, lines: int) -> list[str]:
    """Return the last lines that the guest wrote to its console. lines: at most."""
    return ConsoleLog(host.scope.console_log(vm)).tail(lines)


def unit_arguments(vm: str, *, lines: int) -> list[str]:
    """Return the journalctl command that shows a unit's lines, QEMU's among them."""
    return ["journalctl", "-q", "--no-pager", "-n", str(lines), "-u", paths.unit(vm)]


def unit_tail(vm: str, lines: int, *, colour: bool) -> tuple[str, str]:
    """Return a unit's last lines in the journal, and the cursor to follow it from; "" if it has none."""
    done = process.run(
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
