"""The sockets that QEMU listens on: its monitors and the serial console."""

from __future__ import annotations

from qsysd.model.vm import VMSpec
from qsysd.paths import Scope
from qsysd.qemu.options import Option, Verbatim, socket_chardev

# A monitor's socket serves one client at a time: each purpose has its own, so that none blocks another.
MONITORS = ("cli", "ready", "stop")


def options(spec: VMSpec, scope: Scope) -> list[Option | Verbatim]:
    """Return the options of the monitors and of the serial console, which is also logged to a file."""
    found: list[Option | Verbatim] = []
    for purpose in MONITORS:
        identifier = f"monitor-{purpose}"
        found += [
            socket_chardev(identifier, scope.monitor(spec.name, purpose)),
            Option("-mon", {"chardev": identifier, "mode": "control"}),
        ]
    return [
        *found,
        socket_chardev(
            "console",
            scope.console(spec.name),
            {"logfile": scope.console_log(spec.name), "logappend": True},
        ),
        Verbatim("-serial", "chardev:console"),
    ]
