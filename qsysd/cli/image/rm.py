"""qsysd image rm."""

from __future__ import annotations

import click

from qsysd.cli import complete
from qsysd.cli.common import call, confirm, dry_run_option, make_host, yes_option


@click.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=complete.image)
@yes_option
@dry_run_option
def command(names: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Remove images; refused while a VM uses one.

    \b
    Example:
      qsysd image rm debian12 --yes
    """
    host = make_host()
    for path in [host.images.require(name) for name in names]:
        click.echo(f"{path} {'would be' if dry_run else 'will be'} removed", err=True)
    if dry_run:
        return
    confirm("Remove?", yes=yes)
    call(host, "image.remove", names=names)
    for name in names:
        click.echo(f"{name}: removed")
