"""The states of the units of VMs, and the existence of VMs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from qsysd import paths
from qsysd.errors import StateError
from qsysd.host.context import Host
from qsysd.systemd import UnitState, not_loaded

OFF = ("inactive", "failed")


def states(host: Host, names: Sequence[str]) -> dict[str, UnitState]:
    """Return the unit states of VMs by VM name."""
    loaded = host.systemd.states([paths.unit(name) for name in names])
    return {name: loaded.get(paths.unit(name)) or not_loaded(paths.unit(name)) for name in names}


def require(host: Host, names: Iterable[str]) -> None:
    """Raise NotFoundError unless all VMs are defined."""
    for name in names:
        if not host.store.exists(name):
            host.store.require(name)


def has_traces(host: Host, name: str) -> bool:
    """Return whether a VM is defined, or parts of it exist without a definition."""
    return (
        host.store.exists(name)
        or name in host.store.undefined()
        or (paths.is_name(name) and is_running(host, name))
    )


def require_traces(host: Host, name: str) -> None:
    """Raise NotFoundError unless a VM is defined, or parts of it exist without a definition."""
    if not has_traces(host, name):
        host.store.require(name)


def require_running(host: Host, name: str) -> int:
    """Return the process of a running VM's QEMU.

    Raise StateError for a VM that does not run, and NotFoundError for one that does not exist.
    """
    host.store.require(name)
    state = host.systemd.state(paths.unit(name))
    if state.active != "active":
        raise StateError(
            f"{name} is not running: it is {describe(state)}",
            hint=f"qsysd start {name}" if state.active in OFF else f"qsysd status {name}",
        )
    pid = host.systemd.main_pid(state)
    if pid is None:
        raise StateError(f"{name} is stopping", hint=f"qsysd status {name}")
    return pid


def is_running(host: Host, name: str) -> bool:
    """Return whether a VM's unit is not off."""
    return host.systemd.state(paths.unit(name)).active not in OFF


def describe(state: UnitState) -> str:
    """Return the state of a unit as text."""
    if state.sub.startswith("auto-restart"):
        return "between a crash and its restart"
    return {"deactivating": "stopping", "activating": "starting", "inactive": "off"}.get(
        state.active, state.active
    )


def enabled_names(host: Host) -> set[str]:
    """Return the VMs that start at host boot, from systemd's links."""
    try:
        entries = os.listdir(host.scope.wants_dir)
    except OSError:
        return set()
    return {paths.vm_of_unit(entry) for entry in entries if entry.startswith("qemu-vm@")}
