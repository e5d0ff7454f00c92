"""qsysd stop."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "stop",
    """Shut VMs down gracefully, in parallel.

    Presses the power button repeatedly until the guest is off. A guest that is not off after its
    stop_timeout is switched off: QEMU flushes its disks and quits. `systemctl stop` and a shutdown of
    the host do the same.

    \b
    Examples:
      qsysd stop web1 web2
      qsysd stop --all
    """,
)
