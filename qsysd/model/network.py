"""A network of this host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qsysd.model import parsers
from qsysd.model.field import Change, field


class NetworkKind(StrEnum):
    """What a network connects its guests to."""

    NAT = "nat"


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network: a bridge, an address pool, DHCP and DNS, a firewall. subnet: CIDR, IPv4."""

    name: str = field(parsers.name(), help="also the name of the file", change=Change.NEVER)
    kind: NetworkKind = field(
        parsers.choice(NetworkKind),
        default=NetworkKind.NAT,
        help="`nat`: guests reach other networks through the host's addresses",
    )
    subnet: str = field(
        parsers.subnet(),
        help="IPv4 subnet, /16 to /28; the bridge has its first address",
        default_help="required; `setup` chooses a free one for the network `default`",
    )
    host_access: bool = field(
        parsers.boolean(),
        default=False,
        help="whether guests reach all services of the host that listen on its addresses",
    )
