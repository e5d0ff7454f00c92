"""A NIC of a VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Nic:
    """A network card. The address is what DHCP gives it, and the only one it may use.

    name: unique among the VM's devices, kept when other NICs are added or removed.
    """

    name: str
    network: str
    mac: str
    address: str | None = None
