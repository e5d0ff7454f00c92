"""qsysd image rm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qsysd.cli import complete
from qsysd.cli.common import call, confirm, dry_run_option, make_host, yes_option

if TYPE_CHECKING:
    from qsysd.operations.image import Removed


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
    images = list(dict.fromkeys(names))
    shown: Removed = call(host, "image.remove", names=images, dry_run=True)
    for path in shown.files:
        click.echo(f"{path} {'would be' if dry_run else 'will be'} removed", err=True)
    if dry_run:
        return
    confirm("Remove?", yes=yes)
    call(host, "image.remove", names=images)
    for name in images:
        click.echo(f"{name}: removed")
