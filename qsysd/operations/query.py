"""status and show."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from qsysd import interface_names
from qsysd.errors import QsysdError
from qsysd.host import intents
from qsysd.host.context import Host
from qsysd.host.listing import ListedVM, with_units
from qsysd.images import formats
from qsysd.store import Started, description
from qsysd.store.description import Description
from qsysd.systemd import UnitState
from qsysd.systemd.bus import SERVICE, UNIT

if TYPE_CHECKING:
    from qsysd.model.nic import Nic

STATUS_MONITOR_TIMEOUT = 2.0
_PROPERTIES = {
    "Result": SERVICE,
    "NRestarts": SERVICE,
    "MemoryCurrent": SERVICE,
    "ActiveEnterTimestampMonotonic": UNIT,
}


@dataclass(frozen=True)
class DiskStatus:
    """A disk's file. used: bytes on this host; size: bytes of the virtual disk, None where not known."""

    path: str
    used: int
    size: int | None


@dataclass(frozen=True)
class NicStatus:
    """A NIC of the definition, with its TAP on the host."""

    name: str
    network: str
    mac: str
    address: str | None
    tap: str


@dataclass(frozen=True)
class VMStatus(ListedVM):
    """The state of a VM in systemd and in QEMU.

    uptime: seconds; crash_loop: whether systemd no longer restarts it; accel: of the definition;
    accelerator: the one in use, "" for a VM that is off.
    """

    result: str = "success"
    restarts: int = 0
    crash_loop: bool = False
    uptime: float | None = None
    uuid: str = ""
    machine: str = ""
    accel: str = ""
    accelerator: str = ""
    user: str | None = None
    disks: list[DiskStatus] = field(default_factory=list)
    nics: list[NicStatus] = field(default_factory=list)
    memory_current: int | None = None
    pending: list[str] = field(default_factory=list)


def status(host: Host, names: Sequence[str] | None) -> list[VMStatus]:
    """Return the status of VMs. Raise NotFoundError."""
    found = with_units(host, names, timeout=STATUS_MONITOR_TIMEOUT)
    inactive = host.systemd.states([vm.unit for vm, state in found if not state])
    return [_status(host, vm, state or inactive.get(vm.unit)) for vm, state in found]


# Results of a service that systemd restarts: Restart=on-abnormal in systemd.service(5).
_CRASHES = ("signal", "core-dump", "watchdog")


def _is_crash_loop(active: str, result: str, restarts: int) -> bool:
    """Return whether a VM crashed more often than the start limit allows.

    The unit then has the result of the last crash. Without a restart before it, the result is that of a stop
    that failed.
    """
    return active == "failed" and (result == "start-limit-hit" or (result in _CRASHES and restarts > 0))


def _status(host: Host, vm: ListedVM, loaded: UnitState | None) -> VMStatus:
    name = vm.name
    properties = host.systemd.selected(loaded, _PROPERTIES) if loaded else {}
    started = host.store.started(name) if vm.pid else None
    details: dict[str, Any] = {}
    try:
        described = description.of_rendered(host.store, name)
        details = _defined(host, name, described)
        details["pending"] = pending(host, name, described, started)
    except QsysdError as error:
        details = {"problem": error.message}
    active_since = properties.get("ActiveEnterTimestampMonotonic", 0) / 1e6
    memory = properties.get("MemoryCurrent", 2**64 - 1)
    result, restarts = str(properties.get("Result", "success")), int(properties.get("NRestarts", 0))
    return VMStatus(
        **{**asdict(vm), **details},
        result=result,
        restarts=restarts,
        crash_loop=_is_crash_loop(vm.active, result, restarts),
        uptime=time.monotonic() - active_since if vm.active == "active" and active_since else None,
        accelerator=started.accelerator if started else "",
        memory_current=None if memory >= 2**63 else int(memory),
    )


def _defined(host: Host, name: str, described: Description | None) -> dict[str, Any]:
    """Return the fields of a VM's status that are in its definition. Raise as `Store.load` does."""
    if described:
        return {
            "uuid": described.uuid,
            "machine": described.machine,
            "accel": described.accel,
            "user": described.user,
            "disks": _disks(host, name, host.store.summary(name).disks),
            "nics": [
                NicStatus(nic, port.network, port.mac, port.address, port.tap) for nic, port in described.nics
            ],
        }
    spec = host.store.load(name)
    return {
        "uuid": spec.uuid,
        "machine": spec.machine,
        "accel": spec.accel.value,
        "user": spec.user,
        "disks": _disks(host, name, [disk.name for disk in spec.disks]),
        "nics": [_nic(name, nic) for nic in spec.nics],
    }


def _nic(vm: str, nic: Nic) -> NicStatus:
    return NicStatus(nic.name, nic.network, nic.mac, nic.address, interface_names.tap(vm, nic.name))


def _disks(host: Host, name: str, disks: Sequence[str]) -> list[DiskStatus]:
    """Return the files of a VM's disks. disks: their names."""
    found = []
    for disk in disks:
        path = host.scope.overlay(name, disk)
        try:
            status = os.lstat(path)
        except OSError:
            continue  # reported as the problem of the VM
        if stat.S_ISREG(status.st_mode):
            found.append(DiskStatus(path, status.st_blocks * 512, _virtual_size(path)))
    return found


def _virtual_size(path: str) -> int | None:
    try:
        return formats.read_header(path).virtual_size
    except (OSError, formats.BrokenImageError):
        return None


def pending(host: Host, name: str, described: Description | None, started: Started | None) -> list[str]:
    """Return what is pending for a VM: rendering, a restart, recovery.

    described: None where the definition must be rendered to find out. started: None for a VM that is off.
    Raise InvalidError if the definition is not valid.
    """
    found = []
    digest, differs = (described.digest, False) if described else _rendering(host, name)
    if differs:
        found.append(f"render: rendered files differ from the definition; qsysd render {name} writes them")
    if started and started.digest != digest:
        found.append(
            f"restart: QEMU runs with an older rendering; the new one takes effect after qsysd restart {name}"
        )
    found += [
        f"{intent.verb}: a command was killed before its end; the next changing command repairs it"
        for intent in intents.pending(host.scope)
        if (intent.kind, intent.name) == ("vm", name)
    ]
    return found


def _rendering(host: Host, name: str) -> tuple[str, bool]:
    """Return the digest of a definition's rendering, and whether files differ from it."""
    # A seam: rendering imports YAML and jinja2.
    from qsysd.host import rendering

    _, rendered = rendering.of_definition(host, name)
    return rendered.digest, bool(host.store.differences(name, rendered))


def show(host: Host, name: str) -> str:
    """Return a VM's definition as it is on disk. Raise NotFoundError."""
    return host.store.require(name)
