"""qsysd kill."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "kill",
    """Switch VMs off immediately, without a shutdown of the guest.

    Also ends a stop that waits for a guest which ignores the power button.

    \b
    Example:
      qsysd kill web1
    """,
)
