"""qsysd render."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, chosen, json_option, make_host, vms_arguments
from qsysd.cli.output import print_error, print_json

if TYPE_CHECKING:
    from qsysd.operations.edit import Rendered


@click.command("render")
@vms_arguments
@click.option("--check", is_flag=True, help="Only show what differs; exit with 1 if a file differs.")
@json_option
def command(names: tuple[str, ...], everything: bool, check: bool, as_json: bool) -> None:
    """Write the files that are rendered from definitions: environment files, drop-ins and seeds.

    Necessary after a definition was changed by hand or restored from a backup. The default is all VMs.

    \b
    Examples:
      qsysd render --check
      qsysd render web1
    """
    done: Rendered = call(
        make_host(), "vm.render", names=chosen(names, everything) if names else None, check=check
    )
    if as_json:
        print_json(done.differences)
    else:
        for vm, files in done.differences.items():
            for path in files:
                click.echo(f"{vm}: {path} {'differs from its definition' if check else 'written'}")
        if not any(done.differences.values()) and not done.failed:
            click.echo("all files match their definitions")
    for error in done.failed.values():
        print_error(error)
    if done.failed:
        sys.exit(next(iter(done.failed.values())).code)
    if check and any(done.differences.values()):
        sys.exit(1)
