"""Bridges: created, repaired, removed; and what guests reach through them."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import wire
from network_host import (
    FREE,
    GATEWAY,
    KNOCK,
    MAC,
    MINE,
    OTHER,
    THEIRS,
    WEB1,
    WEB2,
    NetworkHost,
    interfaces,
    rules,
)
from wire import (
    IPV4,
    IPV6,
    echo_request,
    ether,
    run,
    udp,
    udp_payload,
)

from qsysd import render
from qsysd.errors import HostError
from qsysd.runtime import antispoof, bridges, iproute, sysfs, taps

pytestmark = pytest.mark.needs_root


def test_up_repairs_what_is_missing_and_can_be_repeated(net: NetworkHost) -> None:
    index = run("cat", f"{sysfs.DIRECTORY}/qb-default/ifindex")
    guest = net.plug(WEB1)
    run("nft", "flush", "ruleset")
    run("ip", "address", "replace", "10.9.9.1/24", "dev", "qb-default")
    with open(bridges.IP_FORWARD, "w", encoding="ascii") as file:
        file.write("0")
    assert bridges.up(net.scope, net.environment) == [f"restored the anti-spoofing of {WEB1.tap}"]
    assert bridges.up(net.scope, net.environment) == []
    assert run("cat", f"{sysfs.DIRECTORY}/qb-default/ifindex") == index
    assert run("cat", bridges.IP_FORWARD) == "1\n"
    assert iproute.addresses("qb-default") == {f"{GATEWAY}/24"}
    assert "masquerade" in rules() and WEB1.mac in rules()
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_up_restores_a_deleted_bridge_with_its_vms(net: NetworkHost) -> None:
    guest = net.plug(WEB1)
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")
    run("ip", "link", "delete", "qb-default")
    assert f"put {WEB1.tap} back on the bridge" in bridges.up(net.scope, net.environment)
    # The gateway has the MAC that the guest remembers.
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_renamed_bridges_and_taps_are_found_by_alias(net: NetworkHost) -> None:
    before = interfaces()
    net.plug(WEB1)
    run("ip", "link", "set", "dev", WEB1.tap, "down")
    run("ip", "link", "set", "dev", WEB1.tap, "name", "foo")
    taps.unplug(net.scope, [WEB1], "web1")
    assert interfaces() == before
    assert WEB1.tap not in antispoof.protected_taps()
    run("ip", "link", "set", "dev", WEB1.bridge, "down")
    run("ip", "link", "set", "dev", WEB1.bridge, "name", "bar")
    assert bridges.down(net.scope, net.environment) == ["removed the bridge bar"]
    assert not {"bar", WEB1.bridge} & interfaces()


def test_up_renames_bridge_and_taps_back(net: NetworkHost) -> None:
    guest = net.plug(WEB1)
    before = interfaces()
    for name, other in ((WEB1.tap, "foo"), (WEB1.bridge, "bar")):
        run("ip", "link", "set", "dev", name, "down")
        run("ip", "link", "set", "dev", name, "name", other)
    done = bridges.up(net.scope, net.environment)
    assert {"renamed bar back to qb-default", "renamed foo back"} <= set(done)
    assert interfaces() == before
    assert bridges.up(net.scope, net.environment) == []
    assert guest.gateway_mac(GATEWAY) == bridges.mac("default")


def test_the_mac_of_a_bridge_does_not_depend_on_its_ports(net: NetworkHost) -> None:
    def address() -> str:
        return run("cat", f"{sysfs.DIRECTORY}/qb-default/address").strip()

    net.plug(WEB1)
    assert address() == bridges.mac("default")
    net.plug(WEB2)
    taps.unplug(net.scope, [WEB1], "web1")
    assert address() == bridges.mac("default")


def test_down_keeps_the_bridge_of_running_vms(net: NetworkHost) -> None:
    guest = net.plug(WEB1)
    before = rules()
    assert bridges.down(net.scope, net.environment) == [f"left the bridge qb-default in place for {WEB1.tap}"]
    assert rules() == before
    assert guest.gateway_mac(GATEWAY)
    taps.unplug(net.scope, [WEB1], "web1")
    assert bridges.down(net.scope, net.environment) == ["removed the bridge qb-default"]
    assert interfaces() == set() and rules() == ""
    bridges.down(net.scope, net.environment)


def test_a_broken_rules_file_leaves_no_bridge(net: NetworkHost) -> None:
    bridges.down(net.scope, net.environment)
    with open(net.scope.network_rules("default"), "a", encoding="utf-8") as file:
        file.write("nonsense\n")
    with pytest.raises(HostError, match=r"nft: .*syntax error"):
        bridges.up(net.scope, net.environment)
    assert interfaces() == set() and rules() == ""


def test_an_interface_with_the_name_of_the_bridge_is_not_changed(net: NetworkHost) -> None:
    bridges.down(net.scope, net.environment)
    run("ip", "link", "add", "qb-default", "type", "bridge")
    run("ip", "link", "set", "dev", "qb-default", "alias", "a person's own")
    with pytest.raises(HostError, match="not qsysd's"):
        bridges.up(net.scope, net.environment)
    bridges.down(net.scope, net.environment)
    assert interfaces() == {"qb-default"}
    run("ip", "link", "delete", "qb-default")
    run("ip", "link", "add", "qb-default", "type", "veth", "peer", "name", "other")
    with pytest.raises(HostError, match="not a bridge"):
        bridges.up(net.scope, net.environment)


def test_a_guest_reaches_other_networks_but_not_the_reverse(net: NetworkHost) -> None:
    outside = net.outside()
    guest = net.plug(WEB1)
    gateway = guest.gateway_mac(GATEWAY)
    guest.send(ether(MAC, gateway, IPV4, echo_request(MINE, "198.51.100.2")))
    assert guest.receives(b"ping")
    # Nobody out there may begin, not even with a route.
    program = KNOCK.format(address=MINE)
    run("nsenter", "-t", str(outside), "-n", "/usr/bin/python3", "-c", program)
    assert not guest.receives(b"knock", timeout=0.3)
    # The host itself may.
    run("/usr/bin/python3", "-c", program)
    assert guest.receives(b"knock")


def listen(address: str = "", port: int = 5000) -> socket.socket:
    """Return a service of the host on all of its addresses, or on one."""
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind((address, port))
    server.settimeout(0.3)
    return server


def received(server: socket.socket) -> bytes:
    """Return the next datagram of a service, or nothing."""
    try:
        return server.recv(100)
    except TimeoutError:
        return b""


def test_the_host_answers_only_dhcp_dns_and_icmp(net: NetworkHost) -> None:
    net.outside()
    guest = net.plug(WEB1)
    gateway = guest.gateway_mac(GATEWAY)
    with listen() as server:
        for address in (GATEWAY, "198.51.100.1", "255.255.255.255"):
            guest.send(ether(MAC, gateway, IPV4, udp(MINE, 99, address, 5000)))
        guest.send(ether(MAC, gateway, IPV4, udp(MINE, 53, "198.51.100.1", 53)))
        assert received(server) == b""
        # The host may speak to its guests, and gets their answers.
        server.sendto(b"knock", (MINE, 99))
        assert guest.receives(b"knock")
        guest.send(ether(MAC, gateway, IPV4, udp(MINE, 99, GATEWAY, 5000, b"here")))
        assert received(server) == b"here"
    assert guest.answered(GATEWAY, gateway) and guest.answered("198.51.100.1", gateway)

    net.render("host_access: true")
    with listen() as server:
        guest.send(ether(MAC, gateway, IPV4, udp(MINE, 99, GATEWAY, 5000)))
        assert received(server) == b"hello"


def test_guests_do_not_reach_the_host_by_ipv6(net: NetworkHost) -> None:
    guest = net.plug(FREE)
    gateway = guest.gateway_mac(GATEWAY)
    payload = udp_payload(99, 5000)
    addresses = socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(socket.AF_INET6, "ff02::1")
    pseudo_header = addresses + len(payload).to_bytes(4, "big") + b"\0\0\0\x11"
    payload = payload[:6] + wire.checksum(pseudo_header + payload).to_bytes(2, "big") + payload[8:]
    packet = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + b"\x11\1" + addresses + payload
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 5000))
        server.settimeout(0.3)
        for to in (gateway, "33:33:00:00:00:01"):
            guest.send(ether(FREE.mac, to, IPV6, packet))
        assert received(server) == b""


def test_guests_do_not_reach_the_credentials_of_a_cloud_host(net: NetworkHost) -> None:
    outside = net.outside()
    guest = net.plug(WEB1)
    gateway = guest.gateway_mac(GATEWAY)
    for address in ("169.254.169.254", "203.0.113.1"):
        run("nsenter", "-t", str(outside), "-n", "ip", "address", "add", f"{address}/32", "dev", "lo")
        run("ip", "route", "add", address, "via", "198.51.100.2")
    assert guest.answered("203.0.113.1", gateway)
    assert not guest.answered("169.254.169.254", gateway, timeout=0.3)


def test_an_administrators_own_port_forward_reaches_a_guest(net: NetworkHost) -> None:
    outside = net.outside()
    guest = net.plug(WEB1)
    assert guest.gateway_mac(GATEWAY)
    rule = f"ip daddr 198.51.100.1 udp dport 8080 dnat to {MINE}:99"
    run("nft", f"table ip own {{ chain p {{ type nat hook prerouting priority dstnat; {rule}; }}; }}")
    knock = KNOCK.format(address="198.51.100.1").replace("99", "8080")
    run("nsenter", "-t", str(outside), "-n", "/usr/bin/python3", "-c", knock)
    assert guest.receives(b"knock")


def test_an_isolated_network_has_no_way_out(net: NetworkHost) -> None:
    variables: dict[str, Any] = {
        "definition": "",
        "network": "default",
        "bridge": "qb-default",
        "subnet": "10.83.0.0/24",
    }
    variables |= {"gateway": GATEWAY, "host_access": False}
    with open(net.scope.network_rules("default"), "w", encoding="utf-8") as file:
        file.write(render.template("network.nft.j2", kind="isolated", **variables))
    bridges.up(net.scope, net.environment | {"QSYSD_KIND": "isolated"})
    net.outside()
    guest, other = net.plug(WEB1), net.plug(WEB2)
    gateway = guest.gateway_mac(GATEWAY)
    guest.send(ether(MAC, gateway, IPV4, echo_request(MINE, "198.51.100.2")))
    assert not guest.receives(b"\x06\x00\x00ping", timeout=0.3)
    guest.send(ether(MAC, OTHER, IPV4, udp(MINE, 5, THEIRS, 5, b"neighbour")))
    assert other.receives(b"neighbour")


# DHCP and DNS
