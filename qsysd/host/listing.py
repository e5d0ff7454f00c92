"""The list of VMs, with their states in systemd and QEMU, which are queried each time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from qsysd import paths
from qsysd.host import guest_states, intents, selection, unit_states
from qsysd.host.context import Host
from qsysd.names import in_order
from qsysd.store import Summary
from qsysd.systemd import UnitState, not_loaded

LIST_MONITOR_TIMEOUT = 0.5  # seconds; a QEMU that hangs is shown as `unknown` and does not delay the list
NO_DEFINITION = "no definition"
NO_DISK = "no disk"


@dataclass(frozen=True)
class ListedVM:
    """A VM in the list. active, sub: systemd's; guest: QMP's run state, None if QEMU does not run.

    memory_mib, cpus: the values in use, or those of the next start if the VM is off. pending_memory_mib,
    pending_cpus: the values of the next start of a running VM, if they differ. problem: `no definition` or
    `no disk`, if one of these does not exist.
    """

    name: str
    unit: str
    active: str
    sub: str
    guest: str | None
    enabled: bool
    pid: int | None
    ip: str | None
    image: str | None
    memory_mib: int | None
    cpus: int | None
    pending_memory_mib: int | None = None
    pending_cpus: int | None = None
    problem: str | None = None


def listed(
    host: Host, names: Sequence[str] | None = None, *, timeout: float = LIST_MONITOR_TIMEOUT
) -> list[ListedVM]:
    """Return the named VMs, or all VMs of this host. Raise NotFoundError for an unknown name.

    Remains of a VM without a definition are listed, too. timeout: seconds for the answer of each QEMU.
    """
    return [vm for vm, _ in with_units(host, names, timeout=timeout)]


def with_units(
    host: Host, names: Sequence[str] | None, *, timeout: float
) -> list[tuple[ListedVM, UnitState | None]]:
    """Return the VMs as `listed` does, each with the state of its unit, None for one that is off."""
    named = [] if names is None else selection.resolve(host, names)
    for name in named:
        unit_states.require_traces(host, name)
    chosen = named or host.store.names()
    # QEMU processes answer while systemd is queried.
    with guest_states.queried(host, chosen[: guest_states.QUERIES_MAX], timeout) as queries:
        patterns = map(paths.unit, named) if named else [paths.UNIT_PATTERN]
        units = host.systemd.active_units(*patterns)
        if not named:
            left = {*host.store.undefined(), *filter(paths.is_name, map(paths.vm_of_unit, units))}
            chosen = in_order({*chosen, *left})
        here = [units[unit] for unit in map(paths.unit, chosen) if unit in units]
        pids = {paths.vm_of_unit(unit): pid for unit, pid in host.systemd.main_pids(here).items()}
        guests = dict.fromkeys(pids, "unknown") | guest_states.answers(queries, pids)
    guests |= guest_states.guest_states(
        host, {name: pids[name] for name in pids if name not in queries}, timeout
    )
    enabled = unit_states.enabled_names(host)
    states = {name: units.get(paths.unit(name)) for name in chosen}
    return [
        (_listed(host, name, state, pids.get(name), guests.get(name), name in enabled), state)
        for name, state in states.items()
    ]


def _listed(
    host: Host, name: str, state: UnitState | None, pid: int | None, guest: str | None, enabled: bool
) -> ListedVM:
    summary = host.store.summary(name)
    started = host.store.started(name) if pid else None
    memory_mib = (started and started.memory_mib) or summary.memory_mib
    cpus = (started and started.cpus) or summary.cpus
    state = state or not_loaded(paths.unit(name))
    return ListedVM(
        name=name,
        unit=state.name,
        active=state.active,
        sub=state.sub,
        guest=guest,
        enabled=enabled,
        pid=pid,
        ip=summary.addresses[0] if summary.addresses else None,
        image=summary.image,
        memory_mib=memory_mib,
        cpus=cpus,
        pending_memory_mib=summary.memory_mib if summary.memory_mib != memory_mib else None,
        pending_cpus=summary.cpus if summary.cpus != cpus else None,
        problem=_problem(host, summary),
    )


def _problem(host: Host, summary: Summary) -> str | None:
    """Return which part of a VM does not exist, unless a command is creating or deleting it."""
    name = summary.name
    if not host.store.exists(name):
        return NO_DEFINITION
    disks = (host.scope.overlay(name, disk) for disk in summary.disks)
    if os.path.isdir(host.scope.vm_dir(name)) and all(map(os.path.lexists, disks)):
        return None
    is_pending = any((intent.kind, intent.name) == ("vm", name) for intent in intents.pending(host.scope))
    return None if is_pending else NO_DISK
