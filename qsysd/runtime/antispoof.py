"""Anti-spoofing: the nftables rules that restrict a guest to its MAC, its addresses, and the role of a
DHCP client.

All TAPs share one table (family bridge: nft(8)): rules that never change, and sets with elements for
each TAP. A TAP without elements can neither send nor receive. Adding elements takes the same 4 ms on
a host of one VM and of a thousand, and the kernel merges concurrent changes; a table or chain per TAP
does not scale, since nft reads all of them for each change.

Every accepting rule matches a set by the TAP's name, so a rule that cannot read a field (a truncated
datagram, a malformed header) accepts nothing: nft ends a rule at a field that does not exist.

An earlier version named the sets `addresses` and `macs` `held` and `free`. After an upgrade with running
VMs the table keeps those, without rules that use them, until the host boots: a stop that the earlier
version has begun removes elements from them.
"""

from __future__ import annotations

from qsysd import paths
from qsysd.errors import HostError
from qsysd.runtime import TYPE_CHECKING, nftables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qsysd.runtime.ports import Port

FAMILY, NAME = "bridge", "qsysd"
TABLE = f"{FAMILY} {NAME}"

SETS = {
    # the MAC of each TAP's NIC
    "cards": "type ifname . ether_addr",
    # the same MAC as chaddr of DHCP: 8 bytes of UDP and 28 of BOOTP lie before it
    "clients": "typeof iifname . @th,288,48",
    # the addresses that each TAP may send from
    "addresses": "type ifname . ether_addr . ipv4_addr",
    # TAPs without an address in their network: restricted to their MAC only
    "macs": "type ifname . ether_addr",
}

# A packet leaves the chains at the first rule that accepts or drops it. `goto` does not come back, so
# each chain that is reached by it ends in drop.
CHAINS = {
    # Frames from a TAP.
    "guest": (
        # Tagged frames first: behind a tag, the kernel would look for the addresses elsewhere.
        "ether type { 8021q, 8021ad } drop",
        # Spanning tree: a bridge that does not take part in it passes it on.
        "ether daddr 01:80:c2:00:00:00 drop",
        # Matches only where the IPv4 header is well-formed; otherwise no rule could read the ports.
        "ether type ip meta l4proto 0-254 goto guest_ipv4",
        "ether type ip drop",
        # Services of a network are the host's: no router advertisement, no DHCPv6 server.
        "icmpv6 type nd-router-advert drop",
        "ether type ip6 udp dport 546 drop",
        "iifname . ether saddr @macs accept",
        "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 goto guest_arp",
        "drop",
    ),
    "guest_arp": (
        "iifname . ether saddr . arp saddr ip @addresses"
        " iifname . arp saddr ether . arp saddr ip @addresses accept",
        # A probe (RFC 5227) has no sender address, and its target is what the guest wants to use.
        "arp saddr ip 0.0.0.0 iifname . ether saddr . arp daddr ip @addresses"
        " iifname . arp saddr ether . arp daddr ip @addresses accept",
        "drop",
    ),
    # IPv4 from a TAP. A later fragment has no ports, but nobody can put it together without the
    # first one, which always holds them: a UDP header fills the least fragment.
    "guest_ipv4": (
        "udp dport 68 drop",
        "udp dport 67 goto dhcp_request",
        "iifname . ether saddr @macs accept",
        "iifname . ether saddr . ip saddr @addresses accept",
        "drop",
    ),
    # To a DHCP server: from a client's port, a BOOTREQUEST with a 6-byte Ethernet address by no relay
    # (op, htype, hlen, hops; giaddr), and with the TAP's own MAC. The server finds leases by that.
    "dhcp_request": (
        "udp sport 68 @th,64,32 0x01010600 @th,256,32 0x0 iifname . @th,288,48 @clients jump dhcp_client",
        "drop",
    ),
    "dhcp_client": (
        "iifname . ether saddr @macs accept",
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 iifname . ether saddr @cards accept",
        "iifname . ether saddr . ip saddr @addresses accept",
    ),
    # Frames to a TAP: nobody else's, also while the bridge does not know where a MAC is, or was misled
    # by the MAC of a TAP itself (module tampering); and no DHCP requests, which are for the host.
    "delivery": (
        "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @cards drop",
        "ether type ip udp dport 67 drop",
    ),
}
# Before br_netfilter, where the host has that.
PRIORITY = -300
# Hook, and what it does with a frame that comes from or goes to a TAP. The host speaks no IPv6 there.
HOOKS = {
    "prerouting": "iifname {tap} jump guest",
    "input": "iifname {tap} ether type ip6 drop",
    "postrouting": "oifname {tap} jump delivery",
}


def rules() -> str:
    """Return nft commands that put sets and rules in place; the sets' elements stay as they are."""
    chains = dict(CHAINS)
    commands = [f"add table {TABLE}"]
    commands += [f"add set {TABLE} {name} {{ {kind}; }}" for name, kind in SETS.items()]
    commands += [f"add chain {TABLE} {name}" for name in CHAINS]
    for hook, rule in HOOKS.items():
        commands.append(
            f"add chain {TABLE} {hook} {{ type filter hook {hook} priority {PRIORITY}; policy accept; }}"
        )
        chains[hook] = tuple(rule.format(tap=f'"{prefix}*"') for prefix in paths.TAP_PREFIXES)
    for name, lines in chains.items():
        commands.append(f"flush chain {TABLE} {name}")
        commands += [f"add rule {TABLE} {name} {line}" for line in lines]
    return "".join(f"{command}\n" for command in commands)


def elements(ports: Sequence[Port]) -> dict[str, list[str]]:
    """Return what each set holds for the ports of one VM.

    A guest with two NICs on one network answers from either for both addresses (the weak host model
    of RFC 1122), so each of its TAPs there may send from all of them, with its own MAC.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in SETS}
    for port in ports:
        card = f'"{port.tap}" . {port.mac}'
        found["cards"][card] = None
        found["clients"][f'"{port.tap}" . 0x{port.mac.replace(":", "")}'] = None
        if port.address is None:
            found["macs"][card] = None
        for other in ports:
            if other.network == port.network and other.address:
                found["addresses"][f"{card} . {other.address}"] = None
    return {name: list(texts) for name, texts in found.items() if texts}


def _changes(verb: str, ports: Sequence[Port]) -> str:
    return "".join(
        f"{verb} element {TABLE} {name} {{ {', '.join(texts)} }}\n" for name, texts in elements(ports).items()
    )


def additions(ports: Sequence[Port]) -> str:
    """Return nft commands that add the elements of one VM's ports."""
    return _changes("add", ports)


def removals(ports: Sequence[Port]) -> str:
    """Return nft commands that remove the elements of one VM's ports, those that exist.

    `destroy` does so only from nft 1.0.7 and Linux 6.3 on; before, deleting what does not exist fails.
    """
    return _changes("add", ports) + _changes("delete", ports)


def replacement(vms: Iterable[Sequence[Port]]) -> str:
    """Return nft commands that put the rules in place, and in the sets exactly these VMs' elements."""
    flushes = "".join(f"flush set {TABLE} {name}\n" for name in SETS)
    return rules() + flushes + "".join(additions(ports) for ports in vms)


def exists() -> bool:
    """Return whether the host has the table. Raise HostError where nft fails."""
    return nftables.has_table(FAMILY, NAME)


def protected_taps() -> set[str]:
    """Return the TAPs with elements, none if the rules are not the current ones. Raise HostError."""
    import re

    try:
        table = nftables.run(f"list table {TABLE}\n")
    except HostError:
        if exists():
            raise
        return set()
    if "@addresses" not in table:
        return set()  # the rules were flushed, or are those of an earlier version
    sets = dict(re.findall(r"^\tset (\w+) \{\n(.*?)^\t\}$", table, re.MULTILINE | re.DOTALL))
    return {tap for name in ("addresses", "macs") for tap in re.findall(r'"([^"]+)" \.', sets.get(name, ""))}


def remove() -> None:
    """Remove the table. Raise HostError."""
    nftables.run(f"add table {TABLE}\ndelete table {TABLE}\n")
