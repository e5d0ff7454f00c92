"""DHCP and DNS for guests."""

from __future__ import annotations

import socket
import time

import pytest
import wire
from network_host import (
    FREE,
    GATEWAY,
    MAC,
    MINE,
    OTHER,
    OWNER,
    THEIRS,
    WEB1,
    WEB2,
    NetworkHost,
    wait_for,
)
from wire import (
    IPV4,
    Guest,
    dhcp_message,
    ether,
    ipv4,
    run,
    udp,
    udp_payload,
)

from qsysd import network
from qsysd.runtime import bridges, taps
from qsysd.runtime.ports import Port

pytestmark = pytest.mark.needs_root


def test_a_guest_gets_its_address_and_name(net: NetworkHost) -> None:
    net.serve()
    assert network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE)]) is False
    guest = net.plug(WEB1)
    assert guest.dhcp() == MINE
    (lease,) = network.leases(net.scope, "default")
    assert (lease.mac, lease.address, lease.name) == (WEB1.mac, MINE, "web1")
    assert guest.lookup("web1", GATEWAY) == MINE
    assert guest.lookup("web1.default.internal", GATEWAY) == MINE
    assert guest.lookup("web2.default.internal", GATEWAY) is None
    # Another system on the same disk has another client identifier, and gets the same address.
    assert guest.dhcp(client_id=b"\xff\1\2\3\4") == MINE


def test_a_guest_renews_and_releases_its_own_lease(net: NetworkHost) -> None:
    network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE)])
    net.serve()
    guest = net.plug(WEB1)
    assert guest.dhcp() == MINE
    gateway = guest.gateway_mac(GATEWAY)
    renewal = dhcp_message(MAC, wire.REQUEST, client=MINE)
    guest.send(ether(MAC, gateway, IPV4, udp(MINE, 68, GATEWAY, 67, renewal)))
    assert guest.receives(bytes((53, 1, wire.ACK)))
    release = dhcp_message(MAC, wire.RELEASE, bytes((54, 4)) + socket.inet_aton(GATEWAY), client=MINE)
    guest.send(ether(MAC, gateway, IPV4, udp(MINE, 68, GATEWAY, 67, release)))
    wait_for(lambda: network.leases(net.scope, "default") == [])


def test_each_nic_of_a_vm_gets_its_address(net: NetworkHost) -> None:
    net.serve()
    network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE), (WEB2.mac, THEIRS)])
    assert network.hosts(net.scope, "default", "web1") == [(WEB1.mac, MINE), (WEB2.mac, THEIRS)]
    first, second = net.plug(WEB1), net.plug(WEB2)
    assert (first.dhcp(), second.dhcp()) == (MINE, THEIRS)
    assert first.lookup("web1", GATEWAY) == MINE


def test_names_are_those_of_the_definitions(net: NetworkHost) -> None:
    second = Port("qv-web1-1", FREE.mac, "qb-default", "default", "10.83.0.12")
    assert second.address
    network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE), (second.mac, second.address)])
    network.write_hosts(net.scope, "default", "web2", [(WEB2.mac, THEIRS)])
    net.serve()
    assert net.plug(WEB2).dhcp() == THEIRS
    taps.plug(net.scope, [WEB1, second], OWNER, "web1")
    first, nameless = (Guest(port.tap, port.mac) for port in (WEB1, second))
    net.guests += [first, nameless]
    for hostname in (b"wpad", b"localhost", b"web2"):
        assert (first.dhcp(hostname=hostname), nameless.dhcp(hostname=hostname)) == (MINE, second.address)
    assert {lease.name for lease in network.leases(net.scope, "default")} == {"web1", "web2", "*"}
    names = ("web1", "web2", "wpad", "wpad.default.internal", "localhost.default.internal")
    assert [first.lookup(name, GATEWAY) for name in names] == [MINE, THEIRS, None, None, None]


# What dnsmasq(8) reads as a keyword, a tag or a lease time in the place of a name, and what looks like it.
@pytest.mark.parametrize("vm", ["ignore", "infinite", "deprecated", "set", "net", "id", "d", "a12h", "w4m"])
def test_a_vm_may_have_a_name_that_dnsmasq_could_misread(net: NetworkHost, vm: str) -> None:
    network.write_hosts(net.scope, "default", vm, [(WEB1.mac, MINE)])
    net.serve()
    guest = net.plug(WEB1)
    assert guest.dhcp() == MINE
    assert guest.lookup(vm, GATEWAY) == guest.lookup(f"{vm}.default.internal", GATEWAY) == MINE
    (lease,) = network.leases(net.scope, "default")
    assert (lease.name, 0 < lease.expires - time.time() <= 12 * 3600) == (vm, True)


def test_an_unknown_mac_gets_no_address(net: NetworkHost) -> None:
    net.serve()
    assert net.plug(WEB2).dhcp(retries=2) is None


def test_a_guest_can_send_dhcp_requests_only_for_its_mac(net: NetworkHost) -> None:
    for vm, port in (("web1", WEB1), ("web2", WEB2)):
        assert port.address
        network.write_hosts(net.scope, "default", vm, [(port.mac, port.address)])
    net.serve()
    attacker, victim = net.plug(WEB1), net.plug(WEB2)
    assert (attacker.dhcp(), victim.dhcp()) == (MINE, THEIRS)
    gateway = attacker.gateway_mac(GATEWAY)
    server, theirs = (bytes((code, 4)) + socket.inet_aton(ip) for code, ip in ((54, GATEWAY), (50, THEIRS)))
    attacks = [
        dhcp_message(OTHER, wire.RELEASE, server, client=THEIRS),
        dhcp_message(OTHER, wire.DECLINE, server + theirs),
        dhcp_message(MAC, wire.RELEASE, server, client=THEIRS),
        dhcp_message(MAC, wire.DISCOVER, relay=THEIRS),
    ]
    for message in attacks:
        whole = udp_payload(68, 67, message)
        for packet in (
            udp("0.0.0.0", 68, "255.255.255.255", 67, message),
            udp(MINE, 68, GATEWAY, 67, message),
            udp(MINE, 1068, GATEWAY, 67, message),
            ipv4(MINE, GATEWAY, wire.UDP, whole, options=b"\1" * 8),
        ):
            attacker.send(ether(MAC, gateway, IPV4, packet))
        # the MAC is in the second fragment
        for at, more in ((0, wire.MORE_FRAGMENTS), (32, 0)):
            part = whole[at : 32 if more else None]
            packet = ipv4(MINE, GATEWAY, wire.UDP, part, fragment=at // 8 | more)
            attacker.send(ether(MAC, gateway, IPV4, packet))
    # Once dnsmasq has answered this, it has read all of them.
    assert attacker.dhcp() == MINE
    assert {lease.address for lease in network.leases(net.scope, "default")} == {MINE, THEIRS}
    assert victim.dhcp() == THEIRS


def test_leases_survive_a_crash_and_a_reload(net: NetworkHost) -> None:
    network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE)])
    net.serve()
    guest = net.plug(WEB1)
    assert guest.dhcp() == MINE
    net.reload()
    assert guest.lookup("web1", GATEWAY) == MINE
    net.stop_dnsmasq()
    net.serve()
    assert guest.lookup("web1", GATEWAY) == MINE
    assert guest.dhcp() == MINE


def test_dhcp_works_on_a_bridge_that_was_created_again(net: NetworkHost) -> None:
    network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE)])
    bridges.down(net.scope, net.environment)
    net.serve()
    bridges.up(net.scope, net.environment)
    guest = net.plug(WEB1)
    assert guest.dhcp() == MINE
    run("ip", "link", "delete", "qb-default")
    bridges.up(net.scope, net.environment)
    assert guest.dhcp() == MINE


@pytest.mark.parametrize("running", [True, False])
def test_a_vm_that_was_created_again_gets_its_address_at_once(net: NetworkHost, running: bool) -> None:
    network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE)])
    net.serve()
    guest = net.plug(WEB1)
    assert guest.dhcp() == MINE
    # delete
    taps.unplug(net.scope, [WEB1], "web1")
    if not running:
        net.stop_dnsmasq()
    assert network.remove_host(net.scope, "default", "web1") is True
    assert network.remove_host(net.scope, "default", "web1") is False
    if running:
        net.reload()
    network.release(net.scope, "default", MINE, WEB1.mac, running=running)
    assert network.leases(net.scope, "default") == []
    network.release(net.scope, "default", MINE, WEB1.mac, running=running)
    # create: the same name and address, another MAC
    network.write_hosts(net.scope, "default", "web1", [(WEB2.mac, MINE)])
    if not running:
        net.serve()
    again = net.plug(Port(WEB1.tap, WEB2.mac, "qb-default", "default", MINE))
    assert again.dhcp() == MINE
    assert again.lookup("web1", GATEWAY) == MINE


def test_a_changed_entry_takes_effect_after_a_reload(net: NetworkHost) -> None:
    network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE)])
    net.serve()
    assert network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, MINE)]) is False
    assert network.write_hosts(net.scope, "default", "web1", [(WEB1.mac, THEIRS)]) is True
    net.reload()
    guest = net.plug(Port(WEB1.tap, WEB1.mac, "qb-default", "default", THEIRS))
    assert guest.dhcp() == THEIRS
