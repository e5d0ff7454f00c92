"""Ports as text, anti-spoofing as nftables rules, and the checks of what comes from the environment file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qsysd.errors import HostError, InvalidError
from qsysd.paths import Scope
from qsysd.runtime import antispoof, bridges, iproute, nftables, taps
from qsysd.runtime.ports import Port, format_ports, is_mac, parse_alias, parse_ports
from qsysd.runtime.spawn import Done

HELD = Port("qv-web1-0", "52:54:00:12:34:56", "qb-default", "default", "10.83.0.10")
FREE = Port("qv_0123456789-1", "52:54:00:12:34:57", "br0", "lan")
TEXT = "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.10;qv_0123456789-1,52:54:00:12:34:57,br0,lan,-"


def test_ports_as_text_and_back() -> None:
    assert format_ports([HELD, FREE]) == TEXT
    assert parse_ports(TEXT) == [HELD, FREE]
    assert parse_ports("") == parse_ports(format_ports([])) == []
    assert len({HELD, FREE, *parse_ports(TEXT)}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "qv-web1-0",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.10,more",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.10;",
        ";",
        "eth0,52:54:00:12:34:56,qb-default,default,-",
        "qv-much-too-long,52:54:00:12:34:56,qb-default,default,-",
        "qv-../x,52:54:00:12:34:56,qb-default,default,-",
        'qv-"\n-0,52:54:00:12:34:56,qb-default,default,-',
        "qv-web1-0,52:54:00:12:34,qb-default,default,-",
        "qv-web1-0,52:54:00:12:34:5G,qb-default,default,-",
        "qv-web1-0,53:54:00:12:34:56,qb-default,default,-",
        "qv-web1-0,52:54:00:12:34:56,../../etc,default,-",
        "qv-web1-0,52:54:00:12:34:56,..,default,-",
        "qv-web1-0,52:54:00:12:34:56,-force,default,-",
        "qv-web1-0,52:54:00:12:34:56,qb default,default,-",
        "qv-web1-0,52:54:00:12:34:56,qb-default,Default,-",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default\n,-",
        "qv-web1-0,52:54:00:12:34:56,qb-default,,-",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.256",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.010",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0." + "1" * 5000,
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.\u0661",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.1 accept",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,-;qv-web1-0,52:54:00:12:34:57,qb-default,default,-",
    ],
)
def test_odd_ports_are_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="QSYSD_NICS"):
        parse_ports(text)


def test_an_alias_tells_vm_and_port() -> None:
    assert parse_alias(f"qsysd:web1:{HELD}") == ("web1", HELD)
    assert parse_alias(f"qsysd::{FREE}") == ("", FREE)
    for other in ("", "qsysd:default", "qsysd:web1:nonsense", f"libvirt:web1:{HELD}", f"qsysd:../x:{HELD}"):
        assert parse_alias(other) is None


def test_the_longest_alias_fits() -> None:
    # IFALIASZ is 256 with the closing NUL
    port = Port("q" * 15, HELD.mac, "b" * 15, "n" * 28, "255.255.255.255")
    assert len(f"qsysd:{'v' * 28}:{port}") < 256


def test_what_the_sets_hold_for_a_vm() -> None:
    second = Port("qv-web1-1", "52:54:00:12:34:58", "qb-default", "default", "10.83.0.11")
    assert antispoof.elements([HELD, FREE, second]) == {
        "cards": [
            '"qv-web1-0" . 52:54:00:12:34:56',
            '"qv_0123456789-1" . 52:54:00:12:34:57',
            '"qv-web1-1" . 52:54:00:12:34:58',
        ],
        "clients": [
            '"qv-web1-0" . 0x525400123456',
            '"qv_0123456789-1" . 0x525400123457',
            '"qv-web1-1" . 0x525400123458',
        ],
        # Each of the two on one network may use both addresses, with its own MAC.
        "addresses": [
            f'"{port.tap}" . {port.mac} . {address}'
            for port in (HELD, second)
            for address in ("10.83.0.10", "10.83.0.11")
        ],
        "macs": ['"qv_0123456789-1" . 52:54:00:12:34:57'],
    }
    # What is deleted by an old and by a new definition at once must not be named twice.
    moved = Port(HELD.tap, HELD.mac, HELD.bridge, HELD.network, "10.83.0.99")
    for names in antispoof.elements([HELD, moved]).values():
        assert len(set(names)) == len(names)


def test_a_chain_that_is_reached_by_goto_ends_in_drop() -> None:
    # `goto` does not come back: the end of such a chain would be the policy of the hook, accept.
    lines = [line for chain in antispoof.CHAINS.values() for line in chain]
    reached = {line.rpartition(" goto ")[2] for line in lines if " goto " in line} | {"guest"}
    assert reached == {"guest", "guest_arp", "guest_ipv4", "dhcp_request"}
    assert {antispoof.CHAINS[name][-1] for name in reached} == {"drop"}


def test_the_tools_own_words_are_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_: object) -> Done:
        answers = {
            "ip": 'Error: argument "x" is wrong: no such thing\nCommand failed -:2\n',
            "nft": "/dev/stdin:1:1-3: Error: syntax error, unexpected foo\nfoo\n^^^\n",
        }
        return Done(argv, 1, "", answers[argv[0]])

    monkeypatch.setattr("qsysd.runtime.spawn.run", run)
    with pytest.raises(HostError, match=r'^ip link set two: Error: argument "x" is wrong: no such thing$'):
        iproute.batch(["link set one", "link set two"])
    with pytest.raises(HostError, match=r"^nft: /dev/stdin:1:1-3: Error: syntax error, unexpected foo$"):
        nftables.run("foo")


def test_no_nics_need_no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("qsysd.runtime.spawn.run")
    scope = Scope(str(tmp_path))
    taps.plug(scope, [], 0, "web1")
    taps.unplug(scope, [], "web1")


def test_the_start_of_a_vm_imports_little() -> None:
    argv = [sys.executable, "-I", "-S", "-c"]
    top = str(Path(taps.__file__).parents[2])
    program = f"import sys; sys.path.insert(0, {top!r}); import qsysd.runtime.taps; print(*sys.modules)"
    found = subprocess.run([*argv, program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"typing", "dataclasses", "json", "ipaddress", "socket", "hashlib", "inspect"} & set(found)
    assert not {"subprocess", "enum", "re", "collections"} & set(found)


# a network's environment file

NETWORK = {
    "QSYSD_NETWORK": "default",
    "QSYSD_KIND": "nat",
    "QSYSD_BRIDGE": "qb-default",
    "QSYSD_GATEWAY": "10.83.0.1/24",
    "QSYSD_RULES": "/etc/qsysd/networks/default.nft",
}


def test_a_networks_environment() -> None:
    network = bridges.parse(NETWORK)
    assert (network.name, network.kind, network.bridge) == ("default", "nat", "qb-default")
    assert (network.gateway, network.rules) == ("10.83.0.1/24", "/etc/qsysd/networks/default.nft")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((variable, "") for variable in NETWORK),
        ("QSYSD_NETWORK", "a b"),
        ("QSYSD_NETWORK", "x" * 29),
        ("QSYSD_KIND", "routed"),
        ("QSYSD_BRIDGE", "../x"),
        ("QSYSD_GATEWAY", "10.83.0.1"),
        ("QSYSD_GATEWAY", "10.83.0.1/0"),
        ("QSYSD_GATEWAY", "10.83.0.1/31"),
        ("QSYSD_GATEWAY", "10.83.0.999/24"),
        ("QSYSD_GATEWAY", "10.83.0.1/24 dev eth0"),
        ("QSYSD_RULES", "default.nft"),
    ],
)
def test_an_odd_networks_environment_is_refused(variable: str, value: str) -> None:
    with pytest.raises(InvalidError, match=variable):
        bridges.parse({**NETWORK, variable: value})


def test_a_bridges_mac_is_stable_and_unicast() -> None:
    assert bridges.mac("default") == bridges.mac("default") != bridges.mac("other")
    assert is_mac(bridges.mac("default"))
