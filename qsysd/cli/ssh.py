"""qsysd ssh."""

from __future__ import annotations

import sys

import click

from qsysd import process
from qsysd.cli.common import make_host, vm_argument
from qsysd.operations import guest


@click.command("ssh", context_settings={"ignore_unknown_options": True})
@vm_argument
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--user", "-l", metavar="USER", help="User in the guest; default: the definition's.")
def command(name: str, words: tuple[str, ...], user: str | None) -> None:
    """Log in to a guest by SSH, or run a command in it and exit with its status.

    While the guest boots, waits up to 5 minutes for its SSH server.

    \b
    Examples:
      qsysd ssh web1
      qsysd ssh web1 -- systemctl is-system-running
    """
    sys.exit(process.foreground(guest.ssh(make_host(), name, user=user, command=words)))
