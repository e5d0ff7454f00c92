"""qsysd resume."""

from __future__ import annotations

from qsysd.cli.common import vms_command

command = vms_command(
    "resume",
    """Let the processors of paused VMs run again.

    A VM that an I/O error paused (for example a full disk of this host) repeats the request.

    \b
    Example:
      qsysd resume web1 web2
    """,
)
