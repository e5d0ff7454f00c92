"""NICs."""

from __future__ import annotations

from qsysd import paths
from qsysd.model.nic import Nic
from qsysd.model.vm import VMSpec
from qsysd.qemu.options import Option, device, netdev


def options(spec: VMSpec) -> list[Option]:
    """Return the options of a VM's NICs."""
    found: list[Option] = []
    for index, nic in enumerate(spec.nics):
        found += _nic(f"net{index}", paths.tap(spec.name, index), nic)
    return found


def _nic(name: str, tap: str, nic: Nic) -> list[Option]:
    return [
        netdev("tap", {"id": name, "ifname": tap, "script": "no", "downscript": "no"}),
        # No option ROM: a VM boots from its disk or kernel, and the ROM costs start-up time.
        device("virtio-net-pci", {"id": f"{name}-device", "netdev": name, "mac": nic.mac, "romfile": ""}),
    ]
