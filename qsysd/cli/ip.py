"""qsysd ip."""

from __future__ import annotations

import click

from qsysd.cli.common import call, json_option, make_host, vm_argument
from qsysd.cli.output import print_json


@click.command("ip")
@vm_argument
@json_option
def command(name: str, as_json: bool) -> None:
    """Show the address of a VM.

    \b
    Example:
      ping $(qsysd ip web1)
    """
    if as_json:
        print_json({"name": name, "addresses": call(make_host(), "vm.addresses", name=name)})
    else:
        click.echo(call(make_host(), "vm.address", name=name))
