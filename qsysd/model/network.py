"""A network of this host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NetworkKind(StrEnum):
    """What a network joins its guests to."""

    NAT = "nat"


@dataclass(frozen=True)
class NetworkSpec:
    """A network: a bridge, an address pool, DHCP and DNS, a firewall.

    subnet: CIDR, IPv4. host_access: whether guests reach the host's own services.
    """

    name: str
    kind: NetworkKind
    subnet: str
    host_access: bool = False
