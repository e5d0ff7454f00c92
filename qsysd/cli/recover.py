"""qsysd recover."""

from __future__ import annotations

import sys

import click

from qsysd.cli.common import make_host
from qsysd.host import recovery


@click.command("recover")
def command() -> None:
    """Repair what killed commands left: each VM is whole or removed afterwards.

    Every changing command, and each host boot, begins with it. Exits with 1 if something cannot be
    repaired yet.

    \b
    Example:
      sudo qsysd recover
    """
    host = make_host()
    host.require_root()
    found = recovery.recover(host)
    if not found:
        click.echo("nothing to recover")
    if any(result.error for result in found):
        sys.exit(1)
