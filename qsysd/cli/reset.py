"""qsysd reset."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "reset",
    """Press the reset button: the guest reboots immediately, without a shutdown.

    \b
    Example:
      qsysd reset web1
    """,
)
