"""qsysd logs."""

from __future__ import annotations

import click

from qsysd.cli.common import chosen, make_host, vms_arguments
from qsysd.cli.output import has_colours
from qsysd.host import selection
from qsysd.host.console_log import ConsoleLog
from qsysd.operations import logs


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
    vms = selection.resolve(host, chosen(names, everything))
    for vm in vms:
        host.store.require(vm)
    consoles: dict[str, ConsoleLog] = {}
    cursors: dict[str, str] = {}
    for vm in vms:
        if only != "console":
            if only is None or len(vms) > 1:
                click.echo(f"── {vm}: unit and QEMU (journalctl -u qemu-vm@{vm}) ──")
            text, cursors[vm] = logs.unit_tail(vm, lines, colour=has_colours())
            click.echo(text, nl=False)
        if only != "unit":
            if only is None or len(vms) > 1:
                click.echo(f"── {vm}: the guest's console ──")
            consoles[vm] = ConsoleLog(host.scope.console_log(vm))
            for line in consoles[vm].tail(lines):
                click.echo(line)
    if follow:
        for vm, line in logs.follow(consoles, cursors, colour=has_colours()):
            click.echo(f"{vm}: {line}" if len(vms) > 1 else line)
