"""qsysd resume."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "resume",
    """Resume the processors of paused VMs.

    QEMU pauses a VM at an I/O error, for example when a disk of this host is full; the request is repeated.

    \b
    Example:
      qsysd resume web1 web2
    """,
)
