"""List, status and show: asked from systemd and QEMU at this moment, never cached."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qsysd import paths
from qsysd.errors import QsysdError
from qsysd.operations import transaction
from qsysd.operations.host import Host
from qsysd.qmp import Monitor, MonitorError
from qsysd.store import read_text
from qsysd.systemd import UnitState

LIST_MONITOR_TIMEOUT = 0.5  # seconds; a hung QEMU shows as such and does not hold up the list
STATUS_MONITOR_TIMEOUT = 2.0


@dataclass(frozen=True)
class ListedVM:
    """A line of the list. active, sub: systemd's; guest: QMP's run state, None when QEMU does not run."""

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


@dataclass(frozen=True)
class VMStatus(ListedVM):
    """A VM's two sides, systemd's and QEMU's. uptime: seconds; crash_loop: systemd restarts it no more."""

    result: str = "success"
    restarts: int = 0
    crash_loop: bool = False
    uptime: float | None = None
    uuid: str = ""
    machine: str = ""
    accel: str = ""
    user: str | None = None
    disks: list[dict[str, Any]] = field(default_factory=list)
    nics: list[dict[str, Any]] = field(default_factory=list)
    memory_current: int | None = None
    pending: list[str] = field(default_factory=list)
    problem: str | None = None


def guest_state(host: Host, name: str, pid: int, timeout: float) -> str:
    """Return QMP's run state: running, paused, io-error, …; `unknown` when QEMU does not answer in time.

    pid: QEMU's. timeout: seconds.
    """
    try:
        with Monitor(host.scope.monitor(name, "cli"), timeout=timeout, peer=pid) as monitor:
            return monitor.run_state()
    except MonitorError:
        return "unknown"


def enabled_names(host: Host) -> set[str]:
    """Return the VMs that start at host boot: systemd's own links tell."""
    try:
        entries = os.listdir(host.scope.wants_dir)
    except FileNotFoundError:
        return set()
    return {paths.vm_of_unit(entry) for entry in entries if entry.startswith("qemu-vm@")}


def list_vms(host: Host, names: Iterable[str] = ()) -> list[ListedVM]:
    """Return the VMs of this host, or those named. Raises NotFoundError for a name that is none."""
    chosen = list(names) or host.store.names()
    for name in chosen:
        if not host.store.exists(name):
            host.store.require(name)
    units = host.systemd.list(paths.UNIT_PATTERN)
    enabled = enabled_names(host)
    return [_listed(host, name, units.get(paths.unit(name)), name in enabled) for name in chosen]


def _listed(
    host: Host, name: str, state: UnitState | None, enabled: bool, timeout: float = LIST_MONITOR_TIMEOUT
) -> ListedVM:
    summary = host.store.summary(name)
    state = state or UnitState(paths.unit(name), "not-loaded", "inactive", "dead", "")
    pid = host.systemd.main_pid(state)
    return ListedVM(
        name=name,
        unit=state.name,
        active=state.active,
        sub=state.sub,
        guest=guest_state(host, name, pid, timeout) if pid else None,
        enabled=enabled,
        pid=pid,
        ip=summary.addresses[0] if summary.addresses else None,
        image=summary.image,
        memory_mib=summary.memory_mib,
        cpus=summary.cpus,
    )


def status(host: Host, names: Sequence[str]) -> list[VMStatus]:
    """Return all that is known of VMs. Raises NotFoundError."""
    units = host.systemd.list(*[paths.unit(name) for name in names])
    enabled = enabled_names(host)
    return [_status(host, name, units.get(paths.unit(name)), name in enabled) for name in names]


# How a QEMU ends that systemd restarts: Restart=on-abnormal in systemd.service(5).
_CRASHES = ("signal", "core-dump", "watchdog")


def _is_crash_loop(active: str, result: str, restarts: int) -> bool:
    """Return whether systemd has given up on a VM that crashed again and again.

    Where the limit ends a series of restarts, the unit keeps the last crash's result; without a
    restart before it, a crash that leaves a unit failed was a stop that did not go well.
    """
    return active == "failed" and (result == "start-limit-hit" or (result in _CRASHES and restarts > 0))


def _status(host: Host, name: str, state: UnitState | None, enabled: bool) -> VMStatus:
    host.store.require(name)
    listed = _listed(host, name, state, enabled, STATUS_MONITOR_TIMEOUT)
    properties = host.systemd.properties(paths.unit(name))
    details: dict[str, Any] = {}
    try:
        spec = host.store.load(name)
    except QsysdError as error:
        details["problem"] = error.message
    else:
        details |= {
            "uuid": spec.uuid,
            "machine": spec.machine,
            "accel": spec.accel.value,
            "user": spec.user,
            "disks": _disks(host, name),
            "nics": [asdict(nic) | {"tap": paths.tap(name, index)} for index, nic in enumerate(spec.nics)],
            "pending": pending(host, name, running=listed.pid is not None),
        }
    started = properties.get("ActiveEnterTimestampMonotonic", 0) / 1e6
    memory = properties.get("MemoryCurrent", 2**64 - 1)
    result, restarts = str(properties.get("Result", "success")), int(properties.get("NRestarts", 0))
    return VMStatus(
        **asdict(listed),
        result=result,
        restarts=restarts,
        crash_loop=_is_crash_loop(listed.active, result, restarts),
        uptime=time.monotonic() - started if listed.active == "active" and started else None,
        memory_current=None if memory >= 2**63 else int(memory),
        **details,
    )


def _disks(host: Host, name: str) -> list[dict[str, Any]]:
    """Return the VM's disk files with what they take on this host, in bytes."""
    found = []
    try:
        entries = sorted(os.scandir(host.scope.vm_dir(name)), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    for entry in entries:
        if paths.is_disk(entry.name) and entry.is_file(follow_symlinks=False):
            found.append({"path": entry.path, "used": entry.stat(follow_symlinks=False).st_blocks * 512})
    return found


def pending(host: Host, name: str, *, running: bool) -> list[str]:
    """Return what is not as the definition says: files to render, and what waits for a restart.

    Raises InvalidError where the definition itself is not valid.
    """
    from qsysd import render

    found = []
    rendered = render.vm(host.store.load(name), host.scope)
    if host.store.differences(name, rendered):
        found.append("render: the definition was changed by hand; qsysd render writes what follows from it")
    noted = read_text(host.scope.note(name))
    if running and noted is not None and noted.strip() != rendered.digest:
        found.append("restart: it runs with an older definition; qsysd restart puts the new one in force")
    found += [
        f"{intent.verb}: a command was killed half-way; the next changing command removes what it left"
        for intent in transaction.pending(host.scope)
        if intent.vm == name
    ]
    return found


def show(host: Host, name: str) -> str:
    """Return a VM's definition as it is on disk. Raises NotFoundError."""
    return host.store.require(name)
