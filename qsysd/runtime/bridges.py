"""A network's bridge, forwarding and firewall rules: the verbs network-up and network-down.

Both can be repeated, and neither disconnects a VM: `up` repairs what is missing and leaves the rest
unchanged, `down` leaves everything in place while a TAP is on the bridge.

The variables of the network's environment file are checked as untrusted.
"""

from __future__ import annotations

import os

from qsysd import paths
from qsysd.digests import sha256_digits
from qsysd.errors import HostError, InvalidError
from qsysd.paths import Scope
from qsysd.runtime import TYPE_CHECKING, antispoof, iproute, nftables, sysfs, taps
from qsysd.runtime.ports import ALIAS_PREFIX, is_address, is_interface

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = ("nat", "isolated")
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
# Ports forward at once, and every port receives multicasts. LLDP frames bypass the anti-spoofing rules, so
# the bridge must not learn from them: a guest could redirect another guest's frames to itself.
BRIDGE_OPTIONS = "stp_state 0 forward_delay 0 mcast_snooping 0 no_linklocal_learn 1"
MACHINE_ID = "/etc/machine-id"


class Network:
    """A network as in its environment file. `gateway`: the bridge's address with prefix length."""

    __slots__ = ("bridge", "gateway", "kind", "name", "rules")

    def __init__(self, name: str, kind: str, bridge: str, gateway: str, rules: str) -> None:
        self.name = name
        self.kind = kind
        self.bridge = bridge
        self.gateway = gateway
        self.rules = rules


def parse(environment: Mapping[str, str]) -> Network:
    """Return the network that QSYSD_NETWORK, _KIND, _BRIDGE, _GATEWAY and _RULES describe.

    Raise InvalidError for any other value: they end up in commands that root runs.
    """

    def value(variable: str) -> str:
        text = environment.get(variable)
        if not text:
            raise InvalidError(f"{variable} is not set")
        return text

    name, kind, bridge = value("QSYSD_NETWORK"), value("QSYSD_KIND"), value("QSYSD_BRIDGE")
    gateway, rules = value("QSYSD_GATEWAY"), value("QSYSD_RULES")
    if not paths.is_name(name):
        raise InvalidError(f"QSYSD_NETWORK: not a network: {name!r}")
    if kind not in KINDS:
        raise InvalidError(f"QSYSD_KIND: not one of {', '.join(KINDS)}: {kind!r}")
    if not is_interface(bridge):
        raise InvalidError(f"QSYSD_BRIDGE: not a bridge: {bridge!r}")
    address, _, prefix = gateway.partition("/")
    if not is_address(address) or prefix not in map(str, range(1, 31)):
        raise InvalidError(f"QSYSD_GATEWAY: not an IPv4 address with a prefix length: {gateway!r}")
    if not os.path.isabs(rules):
        raise InvalidError(f"QSYSD_RULES: not an absolute path: {rules!r}")
    return Network(name, kind, bridge, gateway, rules)


def table(network: str) -> str:
    """Return the name of a network's nftables table (family ip)."""
    return f"qsysd_{network}"


def alias(network: str) -> str:
    """Return the alias that marks a network's bridge as qsysd's."""
    return f"{ALIAS_PREFIX}{network}"


def mac(network: str) -> str:
    """Return the bridge's MAC: constant on this host, different on another.

    Without a configured MAC a bridge takes the lowest of its ports', so guests would lose the MAC of their
    gateway whenever a VM starts or stops.
    """
    try:
        with open(MACHINE_ID, encoding="ascii") as file:
            machine = file.read().strip()
    except OSError:
        machine = ""
    digits = sha256_digits(f"{machine} {network}".encode())
    return "52:54:00:" + ":".join(digits[i : i + 2] for i in (0, 2, 4))


def up(scope: Scope, environment: Mapping[str, str]) -> list[str]:
    """Create the network's bridge and rules, or repair them; return what was done, for the journal.

    Raise InvalidError, and HostError where a tool fails or the name belongs to another interface.
    """
    network = parse(environment)
    bridge = network.bridge
    done = []
    renamed = _renamed(network)
    if renamed:
        iproute.batch([f"link set dev {renamed} down", f"link set dev {renamed} name {bridge}"])
        done.append(f"renamed {renamed} back to {bridge}")
    created = not sysfs.exists(bridge)
    if created:
        iproute.batch([f"link add {bridge} type bridge"])
        done.append(f"created the bridge {bridge}")
    elif not sysfs.is_bridge(bridge):
        raise HostError(f"network {network.name}: {bridge} exists but is not a bridge")
    elif sysfs.alias(bridge) not in ("", alias(network.name)):
        raise HostError(f"network {network.name}: the bridge {bridge} is not qsysd's")
    try:
        _configure(network)
    except BaseException:
        if created and not sysfs.bridge_ports(bridge):
            iproute.batch([f"link delete dev {bridge}"])
        raise
    return done + _repair_ports(scope, network)


def _configure(network: Network) -> None:
    """Configure the bridge, switch on forwarding, and load the network's rules. Raise HostError."""
    bridge = network.bridge
    others = iproute.addresses(bridge) - {network.gateway}
    iproute.batch(
        [
            # No IPv6 address: the network is IPv4, and so are the rules that protect the host.
            f"link set dev {bridge} alias {alias(network.name)} addrgenmode none",
            f"link set dev {bridge} type bridge {BRIDGE_OPTIONS}",
            f"link set dev {bridge} address {mac(network.name)}",
            f"address replace {network.gateway} brd + dev {bridge}",
            *(f"address delete {other} dev {bridge}" for other in others),
            f"link set dev {bridge} up",
        ]
    )
    if network.kind == "nat":
        _enable_forwarding()
    nftables.load(network.rules)


def down(scope: Scope, environment: Mapping[str, str]) -> list[str]:
    """Remove the network's bridge and rules, unless a VM uses them; return what was done, for the journal.

    Raise InvalidError, and HostError where a tool fails.
    """
    network = parse(environment)
    with taps.Lock(scope, exclusive=True):
        bridge = _renamed(network) or network.bridge
        attached = sysfs.bridge_ports(bridge)
        if attached:
            return [f"left the bridge {bridge} in place for {', '.join(attached)}"]
        if sysfs.exists(bridge) and sysfs.alias(bridge) in ("", alias(network.name)):
            iproute.batch([f"link delete dev {bridge}"])
        name = table(network.name)
        nftables.run(f"add table ip {name}\ndelete table ip {name}\n")
        if not any(sysfs.alias(name).startswith(ALIAS_PREFIX) for name in sysfs.interfaces()):
            antispoof.remove()
    return [f"removed the bridge {bridge}"]


def _renamed(network: Network) -> str | None:
    """Return the name of the network's bridge if it was renamed, else None."""
    if sysfs.exists(network.bridge):
        return None
    for name in sysfs.interfaces():
        if is_interface(name) and sysfs.is_bridge(name) and sysfs.alias(name) == alias(network.name):
            return name
    return None


def _enable_forwarding() -> None:
    """Switch IPv4 forwarding on. It stays on, since other programs may rely on it by then."""
    with open(IP_FORWARD, encoding="ascii") as file:
        if file.read().strip() != "0":
            return
    with open(IP_FORWARD, "w", encoding="ascii") as file:
        file.write("1\n")


def _repair_ports(scope: Scope, network: Network) -> list[str]:
    """Restore what running VMs lost: names, anti-spoofing, the bridge; return what was done."""
    with taps.Lock(scope, exclusive=True):
        renamed = taps.restore_names()
        protected = antispoof.protected_taps()
        # Anti-spoofing first: these guests run.
        known = taps.restore_antispoofing()
        attached = sysfs.bridge_ports(network.bridge)
        detached = [
            port
            for port in known
            if port.network == network.name and port.tap not in attached and not taps.is_cut_off(port.tap)
        ]
        if detached:
            iproute.batch([f"link set dev {port.tap} master {network.bridge} up" for port in detached])
    unprotected = sorted({port.tap for port in known} - protected)
    return (
        [f"renamed {tap} back" for tap in renamed]
        + [f"restored the anti-spoofing of {tap}" for tap in unprotected]
        + [f"put {port.tap} back on the bridge" for port in detached]
    )
