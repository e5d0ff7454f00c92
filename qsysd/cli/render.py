"""qsysd render."""

from __future__ import annotations

import sys

import click

from qsysd.cli.common import chosen, json_option, make_host, vms_arguments
from qsysd.cli.output import print_json
from qsysd.operations import edit


@click.command("render")
@vms_arguments
@click.option("--check", is_flag=True, help="Only show what differs; exit with 1 if anything does.")
@json_option
def command(names: tuple[str, ...], everything: bool, check: bool, as_json: bool) -> None:
    """Write the files that follow from definitions: environment files, drop-ins and seeds.

    Needed after a definition was changed by hand, or restored from a backup. All VMs by default.

    \b
    Examples:
      qsysd render --check
      qsysd render web1
    """
    host = make_host()
    host.require_root()
    vms = chosen(names, everything) if names else None
    differences = (edit.check if check else edit.render_again)(host, vms)
    if as_json:
        print_json(differences)
    else:
        for vm, files in differences.items():
            for path in files:
                click.echo(f"{vm}: {path} {'differs from its definition' if check else 'written'}")
        if not any(differences.values()):
            click.echo("all files match their definitions")
    if check and any(differences.values()):
        sys.exit(1)
