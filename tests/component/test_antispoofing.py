"""What a guest sends, and whether another guest on the network receives it."""

from __future__ import annotations

import contextlib

import pytest
import wire
from network_host import (
    BRIDGE_NETFILTER,
    GATEWAY,
    KNOCK,
    MAC,
    MINE,
    OTHER,
    THEIRS,
    WEB1,
    WEB2,
    NetworkHost,
    datagram,
)
from wire import (
    BROADCAST,
    IPV4,
    IPV6,
    arp,
    dhcp_message,
    ether,
    ipv4,
    run,
    udp,
    udp_payload,
)

from qsysd.runtime.ports import Port

pytestmark = pytest.mark.needs_root


ROUTER_ADVERTISEMENT = b"\x60\0\0\0\0\x10\x3a\xff" + bytes(32) + b"\x86\0\0\0\x40\0\7\x08" + bytes(8)
BPDU = bytes.fromhex("0026424203000000000080001234567890ab0000000080001234567890ab8001000014000200")


def tagged(frame: bytes, kind: int = wire.VLAN) -> bytes:
    """Return the frame with a VLAN tag."""
    return frame[:12] + kind.to_bytes(2, "big") + b"\0\5" + frame[12:]


def fragment(payload: bytes, place: int) -> bytes:
    """Return a broadcast frame with a fragment of a datagram: its place, and MORE_FRAGMENTS."""
    return ether(MAC, BROADCAST, IPV4, ipv4(MINE, "255.255.255.255", wire.UDP, payload, fragment=place))


# What a rogue DHCP server sends, which clients take from any source port.
OFFERED = dhcp_message("52:54:00:00:00:09", wire.OFFER, b"\3\4\x0a\x53\0\x0a", head=b"\2\1\6\0")
ROGUE = udp_payload(1067, 68, OFFERED)
DHCP_ANSWERS = {
    "DHCP answer": datagram(MINE, 67, 68),
    "DHCP answer as the gateway": datagram(GATEWAY, 67, 68),
    "DHCP answer from another port": ether(
        MAC, BROADCAST, IPV4, ipv4(MINE, "255.255.255.255", wire.UDP, ROGUE)
    ),
    "DHCP answer to one machine": ether(MAC, OTHER, IPV4, ipv4(MINE, THEIRS, wire.UDP, ROGUE)),
    "DHCP answer behind options": ether(
        MAC, BROADCAST, IPV4, ipv4(MINE, THEIRS, wire.UDP, ROGUE, options=b"\1" * 8)
    ),
    "DHCP answer longer than the frame": ether(
        MAC, BROADCAST, IPV4, ipv4(MINE, THEIRS, wire.UDP, ROGUE, length=900)
    ),
    "DHCP answer's first fragment": fragment(ROGUE[:48], wire.MORE_FRAGMENTS),
    "DHCP answer's least first fragment": fragment(ROGUE[:8], wire.MORE_FRAGMENTS),
    "DHCP answer's ports in a fragment that is sent again": fragment(
        udp_payload(9, 68, b""), wire.MORE_FRAGMENTS
    ),
}
PASSES = {
    "own address": datagram(MINE, 4000, 4000),
    "own ARP": arp(MAC, MAC, MINE, GATEWAY),
    "ARP probe": arp(MAC, MAC, "0.0.0.0", MINE),
    "later fragment": ether(MAC, BROADCAST, IPV4, ipv4(MINE, THEIRS, wire.UDP, b"the rest", fragment=4)),
}
REQUEST = udp("0.0.0.0", 68, "255.255.255.255", 67, dhcp_message(MAC, wire.DISCOVER))
HELD_BACK = {
    "another's MAC": datagram(MINE, 4000, 4000, mac=OTHER),
    "another's address": datagram(THEIRS, 4000, 4000),
    "the gateway's address": datagram(GATEWAY, 4000, 4000),
    "no address": datagram("0.0.0.0", 4000, 4000),
    "DHCP request": ether(MAC, BROADCAST, IPV4, REQUEST),
    "DHCP request to another guest": ether(MAC, OTHER, IPV4, REQUEST),
    "DHCP request to one machine": datagram("0.0.0.0", 68, 67, destination=THEIRS),
    "ARP with another's address": arp(MAC, MAC, GATEWAY, THEIRS),
    "ARP answer with another's address": arp(MAC, MAC, GATEWAY, THEIRS, operation=2),
    "ARP with another's MAC inside": arp(MAC, OTHER, MINE, THEIRS),
    "ARP from another's MAC": arp(OTHER, OTHER, MINE, THEIRS),
    "ARP probe for another's address": arp(MAC, MAC, "0.0.0.0", THEIRS),
    "router advertisement": ether(MAC, "33:33:00:00:00:01", IPV6, ROUTER_ADVERTISEMENT),
    "VLAN": tagged(datagram(MINE, 4000, 4000)),
    "VLAN, provider's": tagged(datagram(MINE, 4000, 4000), 0x88A8),
    "VLAN, twice": tagged(tagged(datagram(MINE, 4000, 4000))),
    "VLAN around ARP": tagged(arp(MAC, MAC, MINE, GATEWAY)),
    "spanning tree": ether(MAC, "01:80:c2:00:00:00", len(BPDU), BPDU),
    "unknown protocol": ether(MAC, BROADCAST, 0x88B5, b"hello"),
    **DHCP_ANSWERS,
}
# Without an address that is its own, a guest is held to its MAC and to a client's part.
FREE_HELD_BACK = {
    "another's MAC", "ARP from another's MAC", "spanning tree", "router advertisement", "DHCP request",
    "DHCP request to another guest", "DHCP request to one machine", *DHCP_ANSWERS,
} | {name for name in HELD_BACK if name.startswith("VLAN")}  # fmt: skip


def passing(net: NetworkHost, port: Port, frames: dict[str, bytes]) -> set[str]:
    """Send the frames as the guest at `port` and return the names of those that another guest receives."""
    sender, listener = net.plug(port), net.plug(WEB2)
    assert sender.gateway_mac(GATEWAY) == listener.gateway_mac(GATEWAY)
    # Where the kernel has br_netfilter, it would keep a lone fragment to itself.
    with contextlib.suppress(FileNotFoundError), open(BRIDGE_NETFILTER, "w", encoding="ascii") as file:
        file.write("0")
    end = datagram(MINE, 9, 9)
    for frame in [*frames.values(), end]:
        sender.send(frame)
    heard = set()
    for frame in listener.frames(2.0):
        if frame.ljust(60, b"\0") == end:
            return {name for name, sent in frames.items() if sent in heard}
        heard.add(frame.ljust(60, b"\0"))
    raise AssertionError("not even an honest frame came through")


def test_a_guest_can_send_only_from_its_address(net: NetworkHost) -> None:
    assert passing(net, WEB1, PASSES | HELD_BACK) == set(PASSES)


def test_a_guest_cannot_redirect_the_frames_of_another(net: NetworkHost) -> None:
    # The bridge takes in frames that are for itself on a way of their own, and learns from them.
    guest, other = net.plug(WEB1), net.plug(WEB2)
    assert other.gateway_mac(GATEWAY) == guest.gateway_mac(GATEWAY)
    for last in range(16):
        guest.send(ether(OTHER, f"01:80:c2:00:00:{last:02x}", 0x88CC, b"LLDP"))
        guest.send(ether(OTHER, BROADCAST, 0x88CC, b"hello"))
        assert guest.gateway_mac(GATEWAY)
        known = run("bridge", "fdb", "show", "dynamic")
        assert f"{OTHER} dev {WEB2.tap}" in known and f"{OTHER} dev {WEB1.tap}" not in known


def test_a_guest_without_address_can_send_only_from_its_mac(net: NetworkHost) -> None:
    port = Port(WEB1.tap, WEB1.mac, "qb-default", "default")
    assert passing(net, port, PASSES | HELD_BACK) == (set(PASSES) | set(HELD_BACK)) - FREE_HELD_BACK


def test_a_guest_receives_only_frames_for_its_own_mac(net: NetworkHost) -> None:
    guest, other = net.plug(WEB1), net.plug(WEB2)
    assert other.gateway_mac(GATEWAY) == guest.gateway_mac(GATEWAY)
    # The bridge floods what is for a MAC that it does not know (any more).
    run("bridge", "fdb", "del", OTHER, "dev", WEB2.tap, "master")
    run("ip", "neigh", "replace", THEIRS, "lladdr", OTHER, "dev", "qb-default")
    run("/usr/bin/python3", "-c", KNOCK.format(address=THEIRS))
    assert other.receives(b"knock")
    assert not guest.receives(b"knock", timeout=0.2)
