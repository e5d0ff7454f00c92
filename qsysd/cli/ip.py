"""qsysd ip."""

from __future__ import annotations

import click

from qsysd.cli.common import json_option, make_host, vm_argument
from qsysd.cli.output import print_json
from qsysd.operations import guest


@click.command("ip")
@vm_argument
@json_option
def command(name: str, as_json: bool) -> None:
    """Show the address of a VM.

    \b
    Example:
      ping $(qsysd ip web1)
    """
    host = make_host()
    if as_json:
        print_json({"name": name, "addresses": guest.addresses(host, name)})
    else:
        click.echo(guest.address(host, name))
