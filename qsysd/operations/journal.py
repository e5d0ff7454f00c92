"""What the journal has of a VM's unit (journalctl(1)), and what the guest's console has kept."""

from __future__ import annotations

import os
from collections.abc import Iterator

from qsysd import paths, process, values
from qsysd.errors import QsysdError
from qsysd.operations.host import Host

_TIMEOUT = 20.0


def failure(host: Host, unit: str) -> str:
    """Return the words of the last start of a unit that failed: QEMU's own if it said any.

    An empty string when the journal has none.
    """
    properties = host.systemd.properties(unit)
    if properties.get("Result") == "start-limit-hit":
        return "it crashed too often in a row (crash loop), so systemd starts it no more"
    if not properties.get("AssertResult", True):
        return "what its unit needs is not there; qsysd render makes it again"
    invocation = bytes(properties.get("InvocationID", b"")).hex()
    if not invocation:
        return ""
    # Lines on their way to the disk would be missed.
    process.run(["journalctl", "--sync"], check=False, timeout=_TIMEOUT)
    done = process.run(
        ["journalctl", "-q", "-o", "cat", "-n", "50", "--no-pager", f"_SYSTEMD_INVOCATION_ID={invocation}"],
        check=False,
        timeout=_TIMEOUT,
    )
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    qemu = [line for line in lines if line.startswith("qemu-system-") and "warning:" not in line]
    chosen = qemu or [line for line in lines if "own words stand above" not in line]
    return "\n".join(map(values.printable, chosen[-3:]))


def _open_log(path: str) -> int:
    """Open a file in a VM's directory, which QEMU owns: follow no link, wait for no pipe."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def console_tail(host: Host, vm: str, lines: int) -> list[str]:
    """Return the last lines that the guest wrote to its console. lines: at most."""
    path = host.scope.console_log(vm)
    try:
        with open(_open_log(path), "rb") as file:
            file.seek(0, os.SEEK_END)
            # A console line is hardly ever longer than this.
            file.seek(max(0, file.tell() - lines * 400))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise QsysdError(f"{path}: {error.strerror}", hint="run it as root: sudo qsysd …") from error
    return [values.printable(line) for line in text.splitlines()[-lines:]] if lines else []


def unit_arguments(vm: str, *, lines: int, follow: bool) -> list[str]:
    """Return the journalctl command that shows a unit's lines, QEMU's among them."""
    arguments = ["journalctl", "-q", "--no-pager", "-n", str(lines), "-u", paths.unit(vm)]
    return [*arguments, "-f"] if follow else arguments


def follow_console(host: Host, vm: str) -> Iterator[str]:
    """Yield what the guest writes to its console from now on, line by line, until the caller stops."""
    import time

    with open(_open_log(host.scope.console_log(vm)), encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)
        rest = ""
        while True:
            chunk = file.read()
            if not chunk:
                time.sleep(0.2)
                if os.fstat(file.fileno()).st_size < file.tell():
                    file.seek(0)
                continue
            rest += chunk
            *whole, rest = rest.split("\n")
            for line in whole:
                yield values.printable(line)
