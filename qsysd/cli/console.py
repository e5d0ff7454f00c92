"""qsysd console."""

from __future__ import annotations

import click

from qsysd.cli.common import make_host, vm_argument
from qsysd.cli.terminal import talk
from qsysd.operations import guest


@click.command("console")
@vm_argument
def command(name: str) -> None:
    """Connect to the serial console of a VM; Ctrl-] disconnects.

    \b
    Example:
      qsysd console web1
    """
    console = guest.console(make_host(), name)
    talk(console.socket, name, peer=console.pid)
