"""qsysd start."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "start",
    """Start VMs, in parallel, after the VMs that they depend on.

    Returns when every QEMU answers QMP. For a VM that does not start, QEMU's own error is printed.

    \b
    Examples:
      qsysd start web1
      qsysd start --all
    """,
)
