"""What systemd gives to a step of a unit: variables, the main process, and the journal at standard error."""

from __future__ import annotations

import os
import select
import sys

from qsysd.errors import InvalidError


def log(message: str) -> None:
    """Write a line to the unit's journal."""
    print(message, file=sys.stderr, flush=True)


def variable(name: str, characters: str, lengths: range) -> str:
    """Return a variable of the environment file. characters, lengths: what is allowed.

    Raise InvalidError for any other value.
    """
    value = os.environ.get(name, "")
    if len(value) not in lengths or not set(value) <= set(characters):
        raise InvalidError(f"{name} is {value!r} in the environment file", hint="qsysd render")
    return value


class Process:
    """A process, held by a descriptor (pidfd_open(2)): its number cannot be reused for another."""

    def __init__(self, pid: int) -> None:
        self._descriptor: int | None
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = None

    def has_exited(self, timeout: float = 0) -> bool:
        """Return whether the process has exited, after at most `timeout` seconds."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(max(0, int(timeout * 1000))))


def main_process() -> Process | None:
    """Return QEMU, as systemd names it in MAINPID to ExecStartPost and ExecStop; None after it exited."""
    value = os.environ.get("MAINPID", "")
    return Process(int(value)) if value.isdigit() else None
