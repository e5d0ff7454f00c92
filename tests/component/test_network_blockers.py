"""What doctor finds in the way of a network."""

from __future__ import annotations

import socket

import pytest
from network_host import WEB1, NetworkHost
from wire import run

from qsysd import interface_names, network
from qsysd.runtime import bridges

pytestmark = pytest.mark.needs_root


def test_a_free_subnet_is_chosen(network_namespace: None) -> None:
    run("ip", "link", "add", "d0", "type", "bridge")
    run("ip", "address", "add", "10.83.0.7/24", "dev", "d0")
    run("ip", "link", "set", "d0", "up")
    run("ip", "route", "add", "10.83.1.0/25", "dev", "d0")
    assert network.choose_subnet(["10.83.2.0/24"]) == "10.83.3.0/24"
    run("ip", "route", "add", "10.0.0.0/8", "dev", "d0")
    assert network.choose_subnet() == "172.30.0.0/24"


@pytest.mark.parametrize(
    ("others", "words", "remedy"),
    [
        (
            "ip filter { chain DOCKER-USER { }; chain F { %s hook forward priority 0; policy drop; }; }",
            "Docker blocks the traffic of guests to the outside",
            "iptables -I DOCKER-USER -i qb-default -j ACCEPT",
        ),
        (
            "ip filter { chain ufw-before-input { }; chain I { %s hook input priority 0; policy drop; }; }",
            "ufw blocks DHCP and DNS",
            "ufw allow in on qb-default to any port 53",
        ),
        (
            "inet firewalld { chain filter_FORWARD { %s hook forward priority 10; reject; }; }",
            "firewalld blocks the traffic of guests to the outside",
            "--add-interface=qb-default",
        ),
        (
            "inet own { chain f { %s hook forward priority 0; policy drop; }; }",
            "the firewall table inet own blocks",
            "accept qb-default in its forward chain",
        ),
    ],
)
def test_a_blocking_firewall_is_reported(net: NetworkHost, others: str, words: str, remedy: str) -> None:
    assert network.blockers() == []
    run("nft", "table " + others % "type filter")
    (blocker,) = network.blockers()
    assert words in blocker.message and remedy in blocker.remedy


def test_a_firewall_with_a_rule_for_the_bridge_is_not_reported(net: NetworkHost) -> None:
    chain = 'type filter hook forward priority 0; policy drop; iifname "qb-default" accept;'
    run("nft", f"table ip f {{ chain f {{ {chain} }}; }}")
    assert network.blockers() == []


def test_disabled_forwarding_and_missing_rules_are_reported(net: NetworkHost) -> None:
    net.plug(WEB1)
    with open(bridges.IP_FORWARD, "w", encoding="ascii") as file:
        file.write("0")
    run("nft", "flush", "ruleset")
    assert [blocker.message for blocker in network.blockers()] == [
        "IPv4 forwarding is off",
        f"{WEB1.tap} has no anti-spoofing rules: another program has flushed nftables",
    ]
    bridges.up(net.scope, net.environment)
    assert network.blockers() == []


def test_a_dns_server_on_all_addresses_is_reported(net: NetworkHost) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 53))
        (blocker,) = network.blockers()
    assert "port 53" in blocker.message
    assert interface_names.bridge("default") == "qb-default"
