"""qsysd console."""

from __future__ import annotations

import click

from qsysd.cli.common import make_host, vm_argument
from qsysd.cli.terminal import talk
from qsysd.operations import guest
from qsysd.runtime.qmp import socket_path


@click.command("console")
@vm_argument
def command(name: str) -> None:
    """Open the serial console of a VM; Ctrl-] leaves it.

    \b
    Example:
      qsysd console web1
    """
    host = make_host()
    host.require_root()
    peer = guest.require_running(host, name)
    talk(socket_path(host.scope, name, host.scope.console(name)), name, peer=peer)
