"""A NIC of a VM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Nic:
    """A network card. The address is what DHCP gives it, and the only one it may use."""

    network: str
    mac: str
    address: str | None = None
