"""The logs of guests' consoles."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from qsysd import values
from qsysd.errors import QsysdError
from qsysd.files import hint
from qsysd.host.context import Host

LINE_LENGTH = 400  # bytes; console lines are rarely longer
LINE_MAX = 64 * 1024  # bytes without a line break that are shown as a line
READ_MAX = 1024 * 1024  # bytes of a console at once


@dataclass(frozen=True)
class Place:
    """A position in a log. inode: of the file, -1 without one; position: in bytes."""

    inode: int
    position: int


class ConsoleLog:
    """The log of a guest's console, across restarts of the VM.

    QEMU can write to the directory: links are not followed, and opening does not block.
    """

    def __init__(self, path: str, place: Place | None = None) -> None:
        """place: where `new_lines` begins; by default at the start of the file."""
        self.path = path
        self._inode = place.inode if place else -1
        self._position = place.position if place else 0
        self._rest = b""

    @property
    def place(self) -> Place:
        """Return how far the log has been read."""
        return Place(self._inode, self._position)

    def tail(self, count: int) -> list[str]:
        """Return the last lines, at most `count`; `new_lines` continues after them. Raise QsysdError."""
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
        """Return the complete lines that were written since the last call. Raise QsysdError."""
        file = self._open()
        if file is None:
            return []
        try:
            status = os.fstat(file)
            if status.st_ino != self._inode:
                self._inode, self._position, self._rest = status.st_ino, 0, b""
            elif status.st_size < self._position:
                self._position = status.st_size  # trimmed; its lines have been returned
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
    """Return the last lines of the guest's console. lines: their number at most."""
    return ConsoleLog(host.scope.console_log(vm)).tail(lines)
