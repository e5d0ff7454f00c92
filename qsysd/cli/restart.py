"""qsysd restart."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "restart",
    """Stop VMs gracefully and start them again, with their current definitions.

    VMs that are off are started.

    \b
    Examples:
      qsysd restart web1
      qsysd restart --all
    """,
)
