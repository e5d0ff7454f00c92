"""NICs of a VM."""

from __future__ import annotations

from dataclasses import dataclass

from qsysd.model import parsers
from qsysd.model.field import field


@dataclass(frozen=True)
class Nic:
    """A NIC, connected to a network by a TAP.

    mac: "" until create has chosen one. address: what DHCP gives to the NIC, and the only one that
    anti-spoofing lets it use; None until create has chosen one.
    """

    name: str = field(
        parsers.device_name(), numbered="net", help="unique among the VM's devices; names the TAP"
    )
    network: str = field(parsers.name(), default="default", bare=True, help="network that the NIC is part of")
    mac: str = field(parsers.mac(), default="", help="MAC address", default_help="chosen at create")
    address: str | None = field(
        parsers.address(),
        default=None,
        help="IPv4 address of the guest, assigned by DHCP; the guest can use no other",
        default_help="chosen at create",
    )
