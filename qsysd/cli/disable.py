"""qsysd disable."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "disable",
    """Do not start VMs at host boot. Does not stop running VMs.

    \b
    Example:
      qsysd disable web1
    """,
)
