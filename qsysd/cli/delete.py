"""qsysd delete."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, chosen, confirm, dry_run_option, make_host, vms_arguments, yes_option
from qsysd.cli.output import print_error
from qsysd.values import human_size

if TYPE_CHECKING:
    from qsysd.operations.delete import Contents, Deleted, Item


@click.command("delete")
@vms_arguments
@yes_option
@dry_run_option
def command(names: tuple[str, ...], everything: bool, yes: bool, dry_run: bool) -> None:
    """Delete VMs with their disks; a running VM is switched off first.

    Lists what will be removed, and asks for confirmation. Drop-ins that qsysd did not write are kept and
    listed.

    \b
    Examples:
      qsysd delete web1
      qsysd delete web1 web2 --yes
      qsysd delete --all --dry-run
    """
    host = make_host()
    vms = chosen(names, everything)
    contents = call(host, "vm.delete", names=vms, dry_run=True).contents
    for each in contents:
        title = "removing" if yes and not dry_run else "this will be removed:"
        click.echo(f"{each.name}: {title}", err=True)
        for line in contents_lines(each):
            click.echo(f"  {line}", err=True)
    if dry_run or not contents:
        return
    confirm(f"Remove {'it' if len(contents) == 1 else 'them'}?", yes=yes)
    # The VMs that were shown: others may have been created since then.
    done: Deleted = call(host, "vm.delete", names=[each.name for each in contents])
    for vm in done.deleted:
        click.echo(f"{vm}: deleted")
    for path in done.kept:
        click.echo(f"{path} was not written by qsysd and is kept")
    for error in done.failed.values():
        print_error(error)
    if done.failed:
        sys.exit(next(iter(done.failed.values())).code)


def contents_lines(contents: Contents) -> list[str]:
    """Return what deleting a VM removes, one line for each part."""
    lines = []
    if contents.running:
        lines.append(f"{contents.unit} runs: it is switched off, without a shutdown of the guest")
    if contents.needed_by:
        verb = "depends" if len(contents.needed_by) == 1 else "depend"
        lines.append(f"{', '.join(contents.needed_by)} {verb} on it, and will start without it")
    if contents.defined:
        lines.append(f"{contents.definition} and what was rendered from it")
    else:
        lines.append(f"what was rendered from {contents.definition}, which does not exist")
    lines += [f"{item.path} ({_description(item)})" for item in contents.items]
    if contents.more:
        lines.append(f"{contents.directory}: {contents.more} more files and directories")
    return lines


def _description(item: Item) -> str:
    if item.kind == "directory":
        return "a directory, with everything in it"
    if item.kind == "not_a_directory":
        return "not a directory"
    return "removed meanwhile" if item.size is None else human_size(item.size)
