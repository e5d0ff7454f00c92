"""qsysd show."""

from __future__ import annotations

import click

from qsysd.cli.common import call, json_option, make_host, vm_argument
from qsysd.cli.output import print_json
from qsysd.config import load


@click.command("show")
@vm_argument
@json_option
def command(name: str, as_json: bool) -> None:
    """Show the definition of a VM: /etc/qsysd/vms/NAME.yaml.

    \b
    Examples:
      qsysd show web1
      qsysd show web1 >web1.yaml
    """
    text: str = call(make_host(), "vm.show", name=name)
    if as_json:
        print_json(load.load_plain(text, name))
    else:
        click.echo(text, nl=False)
