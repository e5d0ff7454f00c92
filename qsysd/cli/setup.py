"""qsysd setup."""

from __future__ import annotations

import click

from qsysd.cli.common import call, make_host


@click.command("setup")
def command() -> None:
    """Prepare this host: directories, units, the network `default`. Safe to repeat.

    The package runs it when it is installed; `pip install` does not.

    \b
    Example:
      sudo qsysd setup
    """
    done: list[str] = call(make_host(), "host.setup")
    for line in done:
        click.echo(line)
    if not done:
        click.echo("this host is ready")
