"""qsysd enable."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "enable",
    """Start VMs at host boot. Does not start them now.

    \b
    Example:
      qsysd enable web1
    """,
)
