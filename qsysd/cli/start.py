"""qsysd start."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "start",
    """Start VMs, in parallel, after the VMs that they depend on.

    Returns when each QEMU answers; one that does not start is shown with QEMU's own words.

    \b
    Examples:
      qsysd start web1
      qsysd start --all
    """,
)
