"""qsysd logs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, chosen, make_host, vms_arguments
from qsysd.cli.output import has_colours, print_error
from qsysd.operations import logs

if TYPE_CHECKING:
    from qsysd.operations.logs import Tail


@click.command("logs")
@vms_arguments
@click.option(
    "--lines",
    "-n",
    metavar="N",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="Lines of each source.",
)
@click.option("--follow", "-f", is_flag=True, help="Continue with new lines; Ctrl-C ends it.")
@click.option("--unit", "only", flag_value="unit", help="Only the unit and QEMU.")
@click.option("--console", "only", flag_value="console", help="Only the guest's console.")
def command(names: tuple[str, ...], everything: bool, lines: int, follow: bool, only: str | None) -> None:
    """Show the journal of the unit, with QEMU's messages, and the log of the guest's console.

    --follow continues across a crash and a restart of the VM.

    \b
    Examples:
      qsysd logs web1
      qsysd logs web1 --console --follow
      qsysd logs web1 web2 --unit
    """
    host = make_host()
    colour = has_colours()
    tails: list[Tail] = call(
        host, "vm.logs", names=chosen(names, everything), lines=lines, only=only, colour=colour
    )
    for tail in tails:
        _print(tail, titles=only is None or len(tails) > 1)
    errors = [tail.error for tail in tails if tail.error]
    for error in errors:
        print_error(error)
    if errors:
        sys.exit(errors[0].code)
    if follow:
        for vm, line in logs.follow(host, tails, colour=colour):
            click.echo(f"{vm}: {line}" if len(tails) > 1 else line)


def _print(tail: Tail, *, titles: bool) -> None:
    if tail.unit is not None:
        if titles:
            click.echo(f"── {tail.name}: unit and QEMU (journalctl -u qemu-vm@{tail.name}) ──")
        click.echo(tail.unit, nl=False)
    if tail.console is not None:
        if titles:
            click.echo(f"── {tail.name}: the guest's console ──")
        for line in tail.console:
            click.echo(line)
