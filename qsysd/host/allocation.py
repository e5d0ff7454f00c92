"""What a new VM is given once and keeps: UUID, machine type, MACs, addresses, the size of its disk."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from qsysd import network, values
from qsysd.host.context import Host
from qsysd.model.defaults import Defaults
from qsysd.model.nic import Nic
from qsysd.model.vm import VMSpec
from qsysd.qemu import machine_types
from qsysd.runtime.ports import Port
from qsysd.store.claims import Claims


def complete(
    host: Host, spec: VMSpec, defaults: Defaults, others: Sequence[Claims], ssh_keys: Sequence[str] = ()
) -> VMSpec:
    """Return the spec with UUID, machine type, MACs, addresses and disk size."""
    base = host.images.get(spec.image) if spec.image else None
    disks = spec.effective_disks
    if base and not spec.disks:
        disks = (replace(disks[0], size=max(defaults.disk_size, base.virtual_size)),)
    user, seeded = spec.user, spec.seed
    if base:
        user = user or base.default_user
        seeded = spec.seed and base.cloud_init
    return replace(
        spec,
        uuid=spec.uuid or str(uuid.uuid4()),
        machine=pinned(host, spec.machine or "q35"),
        image_digest=(base.sha256 or None) if base else None,
        disks=disks,
        nics=complete_nics(host, spec, others),
        seed=seeded,
        user=user,
        ssh_keys=tuple(dict.fromkeys([*spec.ssh_keys, *(ssh_keys if seeded else ())])),
    )


def pinned(host: Host, machine: str) -> str:
    """Return the versioned machine type, which an upgrade of QEMU does not change."""
    return machine if "-" in machine else machine_types.pinned_machine(host.scope, machine)


def keep_nic_names(old: VMSpec, new: VMSpec, definition: Mapping[str, Any]) -> VMSpec:
    """Return the new spec of a VM; a NIC to which its definition gives no name keeps the name of its MAC.

    Otherwise the NIC behind one that was removed would be numbered as that one, and get its TAP.
    definition: the plain values from which the new spec was read.
    """
    listed = zip(new.nics, definition.get("nics") or [], strict=False)
    given = {nic.name for nic, item in listed if isinstance(item, Mapping) and item.get("name")}
    known = {nic.mac: nic.name for nic in old.nics if nic.name not in given}
    names = [nic.name if nic.name in given else known.get(nic.mac, "") for nic in new.nics]
    taken = {*names, *(disk.name for disk in new.disks)}
    free = (name for number in count() if (name := f"net{number}") not in taken)
    nics = (replace(nic, name=name or next(free)) for nic, name in zip(new.nics, names, strict=True))
    return replace(new, nics=tuple(nics))


def complete_nics(host: Host, spec: VMSpec, others: Sequence[Claims]) -> tuple[Nic, ...]:
    """Return the NICs of a VM, each with a MAC and, if its network has a subnet, an address."""
    known: list[Nic | Port] = [*spec.nics, *(port for other in others for port in other.ports)]
    taken = {(nic.network, nic.address) for nic in known if nic.address}
    macs = {nic.mac for nic in known}
    result = []
    for nic in spec.nics:
        mac = nic.mac
        while not mac or (not nic.mac and mac in macs):
            mac = values.new_mac()
        macs.add(mac)
        address = nic.address
        if address is None:
            subnet = host.store.load_network(nic.network).subnet
            claimed = [used for name, used in taken if name == nic.network and used]
            # dnsmasq does not offer an address that is leased to another MAC.
            leased = [lease.address for lease in network.leases(host.scope, nic.network)]
            address = network.allocate(subnet, [*claimed, *leased])
            taken.add((nic.network, address))
        result.append(replace(nic, mac=mac, address=address))
    return tuple(result)
