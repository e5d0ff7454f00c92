"""qsysd recover."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, make_host

if TYPE_CHECKING:
    from qsysd.operations.recover import Recovered


@click.command("recover")
def command() -> None:
    """Repair what killed commands left: each VM is whole or removed afterwards.

    Every changing command, and each host boot, begins with it. Exits with 1 if something cannot be
    repaired yet.

    \b
    Example:
      sudo qsysd recover
    """
    found: list[Recovered] = call(make_host(), "host.recover")
    if not found:
        click.echo("nothing to recover")
    if any(result.error for result in found):
        sys.exit(1)
