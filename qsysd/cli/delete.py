"""qsysd delete."""

from __future__ import annotations

import sys

import click

from qsysd.cli.common import chosen, confirm, dry_run_option, make_host, vms_arguments, yes_option
from qsysd.cli.output import print_error
from qsysd.host import selection
from qsysd.operations import delete


@click.command("delete")
@vms_arguments
@yes_option
@dry_run_option
def command(names: tuple[str, ...], everything: bool, yes: bool, dry_run: bool) -> None:
    """Delete VMs with their disks; a running VM is switched off first.

    Shows what will be removed and asks. Drop-ins that are not qsysd's are kept and named.

    \b
    Examples:
      qsysd delete web1
      qsysd delete web1 web2 --yes
      qsysd delete --all --dry-run
    """
    host = make_host()
    host.require_root()
    vms = selection.resolve(host, chosen(names, everything))
    contents = {vm: delete.contents(host, vm) for vm in vms}
    for vm, lines in contents.items():
        click.echo(f"{vm}: this will be removed:" if not yes or dry_run else f"{vm}: removing", err=True)
        for line in lines:
            click.echo(f"  {line}", err=True)
    if dry_run or not vms:
        return
    confirm(f"Remove {'it' if len(vms) == 1 else 'them'}?", yes=yes)
    done = delete.delete(host, vms)
    for vm in vms:
        if vm not in done.failed:
            click.echo(f"{vm}: deleted")
    for path in done.kept:
        click.echo(f"{path} is not qsysd's and was kept")
    for error in done.failed.values():
        print_error(error)
    if done.failed:
        sys.exit(next(iter(done.failed.values())).code)
