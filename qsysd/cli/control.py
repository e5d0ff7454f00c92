"""start, stop, kill, restart, reset, pause, resume, enable, disable: of one form."""

from __future__ import annotations

from collections.abc import Sequence

import click

from qsysd.cli.common import chosen, make_host, vms_arguments


def _verb(name: str, text: str) -> click.Command:
    """Return the command that calls the operation of the same name."""

    @click.command(name, help=text)
    @vms_arguments
    def command(names: Sequence[str], everything: bool) -> None:
        from qsysd.cli.outcomes import report
        from qsysd.operations import power

        host = make_host()
        report(getattr(power, name)(host, chosen(host, names, everything)))

    return command


start = _verb(
    "start",
    """Start VMs, in parallel, after the VMs that they depend on.

    Returns when each QEMU answers; one that does not start is shown with QEMU's own words.

    \b
    Examples:
      qsysd start web1
      qsysd start --all
    """,
)
stop = _verb(
    "stop",
    """Shut VMs down gracefully, in parallel.

    Presses the power button until the guest is off. A guest that is not off at its stop_timeout is
    switched off: QEMU flushes its disks and quits. The same happens with systemctl stop, and when the
    host shuts down.

    \b
    Examples:
      qsysd stop web1 web2
      qsysd stop --all
    """,
)
kill = _verb(
    "kill",
    """Switch VMs off at once, without a shutdown of the guest.

    Also ends a stop that waits for a guest which ignores the power button.

    \b
    Example:
      qsysd kill web1
    """,
)
restart = _verb(
    "restart",
    """Stop VMs gracefully and start them again, with their current definitions.

    A VM that is off is started.

    \b
    Examples:
      qsysd restart web1
      qsysd restart --all
    """,
)
reset = _verb(
    "reset",
    """Press the reset button: the guest boots again at once, without a shutdown.

    \b
    Example:
      qsysd reset web1
    """,
)
pause = _verb(
    "pause",
    """Stop the processors of VMs; memory and devices are kept.

    \b
    Example:
      qsysd pause web1 web2
    """,
)
resume = _verb(
    "resume",
    """Let the processors of paused VMs run again.

    A VM that an I/O error paused (for example a full disk of this host) repeats the request.

    \b
    Example:
      qsysd resume web1 web2
    """,
)
enable = _verb(
    "enable",
    """Start VMs at host boot from now on; VMs that are off stay off until then.

    \b
    Example:
      qsysd enable web1
    """,
)
disable = _verb(
    "disable",
    """Do not start VMs at host boot from now on; running VMs keep running.

    \b
    Example:
      qsysd disable web1
    """,
)
