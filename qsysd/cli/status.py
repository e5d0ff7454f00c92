"""qsysd status."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qsysd.cli.common import call, chosen, json_option, make_host, vms_arguments
from qsysd.cli.output import in_colour, print_json
from qsysd.cli.states import unit_state, with_pending
from qsysd.values import human_duration, human_size

if TYPE_CHECKING:
    from qsysd.operations.query import VMStatus


@click.command("status")
@vms_arguments
@json_option
def command(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Show the status of VMs from systemd and QEMU, and pending changes.

    \b
    Examples:
      qsysd status web1
      qsysd status --all --json
    """
    found: list[VMStatus] = call(make_host(), "vm.status", names=chosen(names, everything))
    if as_json:
        print_json([asdict(vm) for vm in found])
        return
    for index, vm in enumerate(found):
        if index:
            click.echo()
        _print(vm)


def _print(vm: VMStatus) -> None:
    unit = unit_state(vm) + (f", {vm.result}" if vm.result != "success" else "")
    if vm.crash_loop:
        unit = f"failed, crash loop: it crashed too often in a row; qsysd start {vm.name} starts it again"
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
    lines.append(("memory", with_pending(vm.memory_mib, vm.pending_memory_mib, " MiB")))
    lines.append(("CPUs", with_pending(vm.cpus, vm.pending_cpus)))
    if vm.machine:
        accelerator = f"{vm.accelerator} in use" if vm.accelerator else vm.accel
        lines.append(("machine", f"{vm.machine}, accelerator {accelerator}"))
    for disk in vm.disks:
        size = f" of {human_size(disk.size)}" if disk.size else ""
        lines.append(("disk", f"{disk.path}: {human_size(disk.used)}{size}"))
    lines += [("nic", f"{nic.mac} on {nic.network}, {nic.tap}") for nic in vm.nics]
    lines += [("pending", text) for text in vm.pending]
    if vm.problem:
        lines.append(("problem", vm.problem))
    click.echo(vm.name)
    for label, text in lines:
        click.echo(f"  {label:>9}  {text}")
