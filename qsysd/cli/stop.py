"""qsysd stop."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "stop",
    """Shut VMs down gracefully, in parallel.

    Presses the power button until the guest is off. A guest that is not off at its stop_timeout is
    switched off: QEMU flushes its disks and quits. The same happens with systemctl stop, and when the
    host shuts down.

    \b
    Examples:
      qsysd stop web1 web2
      qsysd stop --all
    """,
)
