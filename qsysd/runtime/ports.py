"""A NIC's place on the host, as the unit's environment file and a TAP's alias describe it.

The text is checked as untrusted: it ends up in commands that root runs.
"""

from __future__ import annotations

from qsysd import paths
from qsysd.errors import InvalidError
from qsysd.runtime import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ALIAS_PREFIX = "qsysd:"

_HEXADECIMAL = frozenset("0123456789abcdef")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_INTERFACE = _WORD | frozenset(".-")


class Port:
    """One NIC's place on the host. `address`: the IPv4 address that it may use; None: any."""

    __slots__ = ("address", "bridge", "mac", "network", "tap")

    def __init__(self, tap: str, mac: str, bridge: str, network: str, address: str | None = None) -> None:
        self.tap = tap
        self.mac = mac
        self.bridge = bridge
        self.network = network
        self.address = address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Port) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return ",".join((self.tap, self.mac, self.bridge, self.network, self.address or "-"))

    __repr__ = __str__


def is_tap(text: str) -> bool:
    """Return whether `text` can name a TAP: `qv-` or `qv_`, and 1 to 12 characters of a name."""
    return (
        text.startswith(paths.TAP_PREFIXES)
        and 3 < len(text) <= paths.INTERFACE_NAME_MAX
        and _NAME.issuperset(text[3:])
    )


def is_mac(text: str) -> bool:
    """Return whether `text` is a MAC of one machine (no multicast), in small letters with colons."""
    parts = text.split(":")
    return (
        len(parts) == 6
        and all(len(part) == 2 and _HEXADECIMAL.issuperset(part) for part in parts)
        and parts[0][1] in "02468ace"
    )


def is_interface(text: str) -> bool:
    """Return whether `text` can name an interface, also an administrator's; an option or a path cannot."""
    return 0 < len(text) <= paths.INTERFACE_NAME_MAX and text[0] in _WORD and _INTERFACE.issuperset(text)


def is_address(text: str) -> bool:
    """Return whether `text` is an IPv4 address in the usual form, without leading zeros."""
    parts = text.split(".")
    return len(parts) == 4 and all(
        len(part) <= 3 and part.isascii() and part.isdigit() and str(int(part)) == part and int(part) < 256
        for part in parts
    )


def parse_ports(text: str) -> list[Port]:
    """Return the ports that QSYSD_NICS describes: `tap,mac,bridge,network,address;…`, `-` for no address.

    Raise InvalidError on anything that `format_ports` does not write.
    """
    ports = [_parse_port(part) for part in text.split(";")] if text else []
    names = [port.tap for port in ports]
    if len(set(names)) != len(names):
        raise InvalidError("QSYSD_NICS: two NICs have the same TAP")
    return ports


def _parse_port(text: str) -> Port:
    """Return the port that one part of QSYSD_NICS describes; raise InvalidError."""
    fields = text.split(",")
    if len(fields) != 5:
        raise InvalidError(f"QSYSD_NICS: not tap,mac,bridge,network,address: {text!r}")
    tap, mac, bridge, network, address = fields
    for what, is_one, value in (
        ("TAP", is_tap, tap),
        ("MAC", is_mac, mac),
        ("bridge", is_interface, bridge),
        ("network", paths.is_name, network),
    ):
        if not is_one(value):
            raise InvalidError(f"QSYSD_NICS: not a {what}: {value!r}")
    if address != "-" and not is_address(address):
        raise InvalidError(f"QSYSD_NICS: not an IPv4 address: {address!r}")
    return Port(tap, mac, bridge, network, None if address == "-" else address)


def format_ports(ports: Iterable[Port]) -> str:
    """Return the ports as one text, as `parse_ports` reads it."""
    return ";".join(map(str, ports))


def parse_alias(text: str) -> tuple[str, Port] | None:
    """Return the VM and the port that a TAP's alias describes, or None if it is not qsysd's."""
    vm, _, port = text.removeprefix(ALIAS_PREFIX).partition(":")
    if not text.startswith(ALIAS_PREFIX) or not (vm == "" or paths.is_name(vm)):
        return None
    try:
        return vm, _parse_port(port)
    except InvalidError:
        return None
