"""Checks of a definition against this host and its other VMs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qsysd import network, paths, values
from qsysd.errors import ExistsError, InvalidError, NotFoundError, StateError
from qsysd.host import divergence, unit_states
from qsysd.host.context import Host
from qsysd.model.network import NetworkSpec
from qsysd.model.vm import VMSpec
from qsysd.qemu.nic import ports
from qsysd.store.claims import Claims


def check(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise an error if a VM is not possible on this host; warn of unusual values."""
    check_references(host, spec, others)
    for name in {nic.network for nic in spec.nics}:
        net = host.store.load_network(name)
        if not divergence.has_subnet(host, net):
            raise StateError(
                f"network {name}: the subnet of its definition, {net.subnet}, is not in effect",
                hint="qsysd setup",
            )
    if spec.image:
        host.images.check(spec.image)
        default_user = host.images.get(spec.image).default_user
        if default_user and spec.user != default_user:
            host.progress(
                f"warning: the user {spec.user} is not created in the guest, it is only the login of "
                f"qsysd ssh; the SSH keys are for {default_user}"
            )
    _warn_of_memory(host, spec, others)


def _warn_of_memory(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Warn if the running and enabled VMs together have more memory than this host."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    units = host.systemd.active_units(paths.UNIT_PATTERN)
    running = {paths.vm_of_unit(name) for name, state in units.items() if state.active != "failed"}
    counted = running | unit_states.enabled_names(host)
    memory_mib = spec.memory_mib + sum(other.memory_mib for other in others if other.name in counted)
    if memory_mib * 1024**2 > total:
        host.progress(
            f"warning: with {spec.name}, the running and enabled VMs have "
            f"{values.human_size(memory_mib * 1024**2)} of memory, more than this host's "
            f"{values.human_size(total)}"
        )


def check_references(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise an error if a definition refers to what does not exist, or to what belongs to another VM."""
    for other in spec.depends_on:
        if not host.store.exists(other):
            raise NotFoundError(
                f"{spec.name} depends on {other!r}, which does not exist",
                hint=f"create {other} first, or leave it out of depends_on; qsysd list shows the VMs",
            )
    for path in [spec.kernel.path, spec.kernel.initrd] if spec.kernel else []:
        if path and not os.path.isfile(path):
            raise InvalidError(
                f"file {path} does not exist", hint="kernel and initrd are absolute paths of files"
            )
        if path and not os.stat(path).st_mode & 0o004:
            raise InvalidError(f"{path} cannot be read by the VM's user", hint=f"chmod o+r {path}")
    _check_order(spec, others)
    check_unique(host, spec, others)


def check_unique(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise an error if another VM has the UUID, a MAC, an address or a TAP, or an address is not valid."""
    _check_identity(host, spec, others)
    _check_addresses(host, spec, others)
    _check_taps(spec, others)


def _check_order(spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise InvalidError for a cycle of dependencies, in which systemd would drop one of the jobs."""
    needs = {vm.name: vm.depends_on for vm in others}
    ways: list[tuple[str, ...]] = [(spec.name, need) for need in spec.depends_on]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        if way[-1] == spec.name:
            raise InvalidError(f"{spec.name} depends on itself: {' → '.join(way)}")
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [(*way, need) for need in needs.get(way[-1], ())]


def _check_identity(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise ExistsError if another VM has the same UUID, or a NIC with the same MAC on the same network."""
    nics = {(nic.network, nic.mac) for nic in spec.nics if nic.mac}
    for other in others:
        if spec.uuid == other.uuid != "":
            hint = "leave it out to get a new one"
            if host.store.exists(spec.name):
                hint = f"if {spec.name} is a copy: {divergence.move_definition(host, spec.name)}"
            raise ExistsError(f"the UUID {spec.uuid} belongs to the VM {other.name!r}", hint=hint)
        for nic in other.ports:
            if (nic.network, nic.mac) in nics:
                raise ExistsError(
                    f"{nic.mac} belongs to the VM {other.name!r}", hint="leave the MAC out to get a new one"
                )


def _check_addresses(host: Host, spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise an error if an address is not valid for a VM on its network, or belongs to another VM."""
    claimed = {(nic.network, nic.address): other.name for other in others for nic in other.ports}
    for nic in spec.nics:
        net: NetworkSpec = host.store.load_network(nic.network)
        if nic.address is None:
            continue
        if not network.is_for_a_vm(nic.address, net.subnet):
            raise InvalidError(f"{nic.address} is not valid for a VM on network {net.name} ({net.subnet})")
        if (owner := claimed.get((nic.network, nic.address))) is not None:
            raise ExistsError(
                f"{nic.address} belongs to the VM {owner!r}", hint="leave the address out to get a free one"
            )


def _check_taps(spec: VMSpec, others: Sequence[Claims]) -> None:
    """Raise ExistsError if another VM has a TAP of the same name: long names are replaced by digests."""
    mine = {port.tap for port in ports(spec)}
    for other in others:
        if taken := mine & {port.tap for port in other.ports}:
            raise ExistsError(
                f"the TAP {min(taken)} belongs to the VM {other.name!r}",
                hint=f"give {spec.name} or its NIC another name",
            )
