"""qsysd list."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qsysd.cli import complete
from qsysd.cli.common import call, json_option, make_host
from qsysd.cli.output import print_json, print_table
from qsysd.cli.states import unit_state, with_pending
from qsysd.values import human_size

if TYPE_CHECKING:
    from qsysd.host.listing import ListedVM


@click.command("list")
@click.argument("names", metavar="[VM]...", nargs=-1, shell_complete=complete.vm)
@json_option
def command(names: tuple[str, ...], as_json: bool) -> None:
    """List the VMs of this host, with the state of the unit from systemd and of the guest from QEMU.

    \b
    Examples:
      qsysd list
      qsysd list --json | jq '.[] | select(.guest == "running") | .ip'
    """
    vms: list[ListedVM] = call(make_host(), "vm.list", names=list(names) or None)
    if as_json:
        print_json([asdict(vm) for vm in vms])
        return
    if not vms:
        click.echo("no VMs; create one: qsysd create web1 --image debian", err=True)
        return
    print_table(
        ("NAME", "STATE", "GUEST", "BOOT", "IP", "IMAGE", "MEMORY", "CPUS"),
        map(_row, vms),
        coloured=("STATE", "GUEST"),
    )
    if sys.stdout.isatty() and not names:
        click.echo(_totals(vms))


def _row(vm: ListedVM) -> tuple[str, ...]:
    state = unit_state(vm)
    return (
        vm.name,
        f"{vm.problem}, {state}" if vm.problem else state,
        vm.guest or "-",
        "enabled" if vm.enabled else "disabled",
        vm.ip or "-",
        vm.image or "-",
        with_pending(vm.memory_mib, vm.pending_memory_mib, " MiB"),
        with_pending(vm.cpus, vm.pending_cpus),
    )


def _totals(vms: Sequence[ListedVM]) -> str:
    """Return how many VMs run, and how much of the host's memory they have."""
    running = [vm for vm in vms if vm.pid]
    memory = sum(vm.memory_mib or 0 for vm in running) * 1024**2
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"\n{len(vms)} {'VM' if len(vms) == 1 else 'VMs'}, {len(running)} running, "
        f"{human_size(memory)} of {human_size(total)} memory"
    )
