"""qsysd enable."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "enable",
    """Start VMs at host boot from now on; VMs that are off stay off until then.

    \b
    Example:
      qsysd enable web1
    """,
)
