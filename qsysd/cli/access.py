"""ip, ssh, console."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from qsysd.cli.common import json_option, make_host, print_json, vm_argument


@click.command()
@vm_argument
@json_option
def ip(name: str, as_json: bool) -> None:
    """Show the address of a VM.

    \b
    Example:
      ping $(qsysd ip web1)
    """
    from qsysd.operations import guest

    host = make_host()
    if as_json:
        print_json({"name": name, "addresses": guest.addresses(host, name)})
    else:
        click.echo(guest.address(host, name))


@click.command(context_settings={"ignore_unknown_options": True})
@vm_argument
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--user", "-l", metavar="USER", help="User in the guest; default: the definition's.")
def ssh(name: str, words: Sequence[str], user: str | None) -> None:
    """Log in to a guest, or run a command in it; exits with the command's status.

    Waits up to 5 minutes until the SSH server of a guest that boots answers.

    \b
    Examples:
      qsysd ssh web1
      qsysd ssh web1 -- systemctl is-system-running
    """
    from qsysd import process
    from qsysd.operations import guest

    host = make_host()
    guest.require_running(host, name)
    command = guest.ssh_command(host, host.store.load(name), user=user, command=words)
    guest.wait_before_ssh(host, name)
    sys.exit(process.foreground(command))


@click.command()
@vm_argument
def console(name: str) -> None:
    """Open the serial console of a VM; Ctrl-] leaves it.

    \b
    Example:
      qsysd console web1
    """
    from qsysd.cli.terminal import talk
    from qsysd.operations import guest
    from qsysd.runtime.qmp import socket_path

    host = make_host()
    host.require_root()
    peer = guest.require_running(host, name)
    talk(socket_path(host.scope, name, host.scope.console(name)), name, peer=peer)
