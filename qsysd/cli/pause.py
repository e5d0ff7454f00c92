"""qsysd pause."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "pause",
    """Stop the processors of VMs; memory and devices are kept.

    \b
    Example:
      qsysd pause web1 web2
    """,
)
