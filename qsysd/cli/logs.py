"""logs."""

from __future__ import annotations

import click

from qsysd.cli.common import make_host, vm_argument


@click.command()
@vm_argument
@click.option(
    "--lines", "-n", type=click.IntRange(0), default=30, show_default=True, help="Lines of each source."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes; Ctrl-C ends it.")
@click.option("--unit", "only", flag_value="unit", help="Only the unit and QEMU.")
@click.option("--console", "only", flag_value="console", help="Only the guest's console.")
def logs(name: str, lines: int, follow: bool, only: str | None) -> None:
    """Show what the unit and QEMU said (the journal), and what the guest wrote to its console.

    \b
    Examples:
      qsysd logs web1
      qsysd logs web1 --console --follow
    """
    from qsysd import process
    from qsysd.operations import journal

    host = make_host()
    host.store.require(name)
    if only != "console":
        if only is None:
            click.echo("── unit and QEMU (journalctl -u qemu-vm@" + name + ") ──")
        if follow and only == "unit":
            raise SystemExit(process.foreground(journal.unit_arguments(name, lines=lines, follow=True)))
        process.foreground(journal.unit_arguments(name, lines=lines, follow=False))
    if only != "unit":
        if only is None:
            click.echo("── the guest's console ──")
        for line in journal.console_tail(host, name, lines):
            click.echo(line)
        if follow:
            for line in journal.follow_console(host, name):
                click.echo(line)
