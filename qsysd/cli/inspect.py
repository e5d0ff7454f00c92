"""list, status, show."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qsysd.cli import complete
from qsysd.cli.common import (
    chosen,
    in_colour,
    json_option,
    make_host,
    print_json,
    print_table,
    vm_argument,
    vms_arguments,
)

if TYPE_CHECKING:
    from qsysd.host.listing import ListedVM
    from qsysd.operations.query import VMStatus


@click.command("list")
@click.argument("names", metavar="[VM]...", nargs=-1, shell_complete=complete.vm)
@json_option
def list_vms(names: Sequence[str], as_json: bool) -> None:
    """Show the VMs of this host: systemd's state of the unit, and QEMU's of the guest.

    \b
    Examples:
      qsysd list
      qsysd list --json | jq '.[] | select(.guest == "running") | .ip'
    """
    from qsysd.operations import query

    host = make_host()
    vms = query.list_vms(host, names)
    if as_json:
        print_json([asdict(vm) for vm in vms])
        return
    if not vms:
        click.echo("no VMs; create one: qsysd create web1 --image debian", err=True)
        return
    print_table(
        ("NAME", "STATE", "GUEST", "BOOT", "IP", "IMAGE", "MEMORY", "CPUS"),
        (
            (
                vm.name,
                _state_and_problem(vm),
                vm.guest or "-",
                "enabled" if vm.enabled else "disabled",
                vm.ip or "-",
                vm.image or "-",
                _with_pending(vm.memory_mib, vm.pending_memory_mib, " MiB"),
                _with_pending(vm.cpus, vm.pending_cpus),
            )
            for vm in vms
        ),
        coloured=("STATE", "GUEST"),
    )
    if sys.stdout.isatty() and not names:
        click.echo(_totals(vms))


def _totals(vms: Sequence[ListedVM]) -> str:
    """Return how many VMs run, and how much of the host's memory they have."""
    from qsysd.values import human_size

    running = [vm for vm in vms if vm.pid]
    memory = sum(vm.memory_mib or 0 for vm in running) * 1024**2
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"\n{len(vms)} {'VM' if len(vms) == 1 else 'VMs'}, {len(running)} running, "
        f"{human_size(memory)} of {human_size(total)} memory"
    )


def _state(vm: ListedVM) -> str:
    """Return systemd's state, with the substate where it says more."""
    return vm.active if vm.sub in ("running", "dead", "failed") else f"{vm.active} ({vm.sub})"


def _state_and_problem(vm: ListedVM) -> str:
    return f"{vm.problem}, {_state(vm)}" if vm.problem else _state(vm)


def _with_pending(value: int | None, pending: int | None, unit: str = "") -> str:
    """Return what is in use, with what the next start brings: `1024 MiB (2048 MiB pending)`."""
    if not value:
        return "-"
    return f"{value}{unit}" + (f" ({pending}{unit} pending)" if pending else "")


@click.command()
@vms_arguments
@json_option
def status(names: Sequence[str], everything: bool, as_json: bool) -> None:
    """Show VMs as systemd and QEMU see them, and what is pending.

    \b
    Examples:
      qsysd status web1
      qsysd status --all --json
    """
    from qsysd.operations import query

    host = make_host()
    found = query.status(host, chosen(host, names, everything))
    if as_json:
        print_json([asdict(vm) for vm in found])
        return
    for index, vm in enumerate(found):
        if index:
            click.echo()
        _print_status(vm)


def _print_status(vm: VMStatus) -> None:
    from qsysd.values import human_duration, human_size

    unit = _state(vm) + (f", {vm.result}" if vm.result != "success" else "")
    if vm.crash_loop:
        unit = f"failed, crash loop: it crashed too often in a row; qsysd start {vm.name} tries again"
    lines = [
        ("unit", f"{vm.unit}: {in_colour(unit)}"),
        ("guest", in_colour(vm.guest or "off")),
        ("host boot", "starts" if vm.enabled else "does not start"),
    ]
    if vm.guest == "io-error":
        lines.append(
            ("", f"paused by an I/O error: free disk space on the host, then qsysd resume {vm.name}")
        )
    if vm.uptime is not None:
        lines.append(("up", human_duration(vm.uptime)))
    if vm.restarts:
        lines.append(("crashes", f"{vm.restarts}, each restarted by systemd"))
    if vm.pid:
        memory = f", {human_size(vm.memory_current)} of memory in use" if vm.memory_current else ""
        lines.append(("QEMU", f"pid {vm.pid}{memory}"))
    lines.append(("IP", vm.ip or "-"))
    lines.append(("image", vm.image or "-"))
    lines.append(("memory", _with_pending(vm.memory_mib, vm.pending_memory_mib, " MiB")))
    lines.append(("CPUs", _with_pending(vm.cpus, vm.pending_cpus)))
    if vm.machine:
        accelerator = f"{vm.accelerator} in use" if vm.accelerator else vm.accel
        lines.append(("machine", f"{vm.machine}, accelerator {accelerator}"))
    for disk in vm.disks:
        size = f" of {human_size(disk['size'])}" if disk["size"] else ""
        lines.append(("disk", f"{disk['path']}: {human_size(disk['used'])}{size}"))
    lines += [("nic", f"{nic['mac']} on {nic['network']}, {nic['tap']}") for nic in vm.nics]
    lines += [("pending", text) for text in vm.pending]
    if vm.problem:
        lines.append(("problem", vm.problem))
    click.echo(vm.name)
    for label, text in lines:
        click.echo(f"  {label:>9}  {text}")


@click.command()
@vm_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the definition of a VM: /etc/qsysd/vms/NAME.yaml.

    \b
    Examples:
      qsysd show web1
      qsysd show web1 >web1.yaml
    """
    from qsysd.operations import query

    host = make_host()
    text = query.show(host, name)
    if as_json:
        from qsysd.config import load

        print_json(load.load_plain(text, name))
    else:
        click.echo(text, nl=False)
