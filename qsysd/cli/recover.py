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
    """Repair or remove VMs that killed commands left incomplete.

    Every command that changes a VM does so first, as does every boot of the host. Exits with 1 if a VM
    cannot be repaired.

    \b
    Example:
      sudo qsysd recover
    """
    found: list[Recovered] = call(make_host(), "host.recover")
    if not found:
        click.echo("nothing to recover")
    if any(result.error for result in found):
        sys.exit(1)
