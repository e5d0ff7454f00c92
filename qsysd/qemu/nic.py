"""NICs, and the TAPs that they need on the host."""

from __future__ import annotations

from qsysd import interface_names
from qsysd.model.nic import Nic
from qsysd.model.vm import VMSpec
from qsysd.qemu.options import Option, device, netdev
from qsysd.runtime.ports import Port


def options(spec: VMSpec) -> list[Option]:
    """Return the options of a VM's NICs."""
    return [option for nic in spec.nics for option in _nic(nic, interface_names.tap(spec.name, nic.name))]


def ports(spec: VMSpec) -> list[Port]:
    """Return the ports on the host that a VM's NICs need."""
    return [
        Port(
            tap=interface_names.tap(spec.name, nic.name),
            mac=nic.mac,
            bridge=interface_names.bridge(nic.network),
            network=nic.network,
            address=nic.address,
        )
        for nic in spec.nics
    ]


def _nic(nic: Nic, tap: str) -> list[Option]:
    return [
        netdev("tap", {"id": nic.name, "ifname": tap, "script": "no", "downscript": "no"}),
        # No option ROM: a VM boots from its disk or kernel, and the ROM costs start-up time.
        device(
            "virtio-net-pci",
            {"id": f"{nic.name}-device", "netdev": nic.name, "mac": nic.mac, "romfile": ""},
        ),
    ]
