"""Ports as text, guards as nftables rules, and the checks of what comes from the environment file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qsysd import bridges, taps
from qsysd.errors import HostError, InvalidError
from qsysd.process import Done
from qsysd.taps import Port

HELD = Port("qv-web1-0", "52:54:00:12:34:56", "qb-default", "default", "10.83.0.10")
FREE = Port("qv_0123456789-1", "52:54:00:12:34:57", "br0", "lan")
TEXT = "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.10;qv_0123456789-1,52:54:00:12:34:57,br0,lan,-"


def test_ports_as_text_and_back() -> None:
    assert taps.format_ports([HELD, FREE]) == TEXT
    assert taps.parse_ports(TEXT) == [HELD, FREE]
    assert taps.parse_ports("") == taps.parse_ports(taps.format_ports([])) == []
    assert len({HELD, FREE, *taps.parse_ports(TEXT)}) == 2


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
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.\u0661",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,10.83.0.1 accept",
        "qv-web1-0,52:54:00:12:34:56,qb-default,default,-;qv-web1-0,52:54:00:12:34:57,qb-default,default,-",
    ],
)
def test_odd_ports_are_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="QSYSD_NICS"):
        taps.parse_ports(text)


def test_an_alias_tells_vm_and_port() -> None:
    assert taps.parse_alias(f"qsysd:web1:{HELD}") == ("web1", HELD)
    assert taps.parse_alias(f"qsysd::{FREE}") == ("", FREE)
    for other in ("", "qsysd:default", "qsysd:web1:nonsense", f"libvirt:web1:{HELD}"):
        assert taps.parse_alias(other) is None


def test_the_longest_alias_fits() -> None:
    # IFALIASZ is 256 with the closing NUL
    port = Port("q" * 15, HELD.mac, "b" * 15, "n" * 28, "255.255.255.255")
    assert len(f"qsysd:{'v' * 28}:{port}") < 256


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What nft was told to do."""
    told: list[str] = []

    def nft(text: str) -> str:
        told.append(text)
        return ""

    monkeypatch.setattr(taps, "nft", nft)
    return told


def test_a_guard_is_an_element_that_follows_the_rules(commands: list[str]) -> None:
    taps.guard([HELD, FREE])
    (text,) = commands
    assert text.startswith(taps.guard_rules())
    assert text.removeprefix(taps.guard_rules()).splitlines() == [
        'add element bridge qsysd held { "qv-web1-0" . 52:54:00:12:34:56 . 10.83.0.10,'
        ' "qv-web1-0" . 52:54:00:12:34:56 . 0.0.0.0 }',
        'add element bridge qsysd free { "qv_0123456789-1" . 52:54:00:12:34:57 }',
    ]
    assert taps.guard_rules().splitlines()[-1] == "add rule bridge qsysd guest drop"


def test_where_the_rules_are_gone_they_come_first(commands: list[str]) -> None:
    taps._finish_guard(Done(taps.NFT, 0, "", ""), [HELD])
    assert commands == []
    taps._finish_guard(Done(taps.NFT, 1, "", "Error: No such file or directory"), [HELD])
    assert commands == [taps.guard_rules() + taps._added([HELD])]


def test_the_tools_own_words_are_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_: object) -> Done:
        answers = {
            "ip": 'Error: argument "x" is wrong: no such thing\nCommand failed -:2\n',
            "nft": "/dev/stdin:1:1-3: Error: syntax error, unexpected foo\nfoo\n^^^\n",
        }
        return Done(argv, 1, "", answers[argv[0]])

    monkeypatch.setattr("qsysd.process.run", run)
    with pytest.raises(HostError, match=r'^ip link set two: Error: argument "x" is wrong: no such thing$'):
        taps.ip_batch(["link set one", "link set two"])
    with pytest.raises(HostError, match=r"^nft: /dev/stdin:1:1-3: Error: syntax error, unexpected foo$"):
        taps.nft("foo")


def test_no_nics_need_no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("qsysd.process.run")
    taps.plug([], 0, "web1")
    taps.unplug([])


def test_the_start_of_a_vm_imports_little() -> None:
    argv = [sys.executable, "-I", "-S", "-c"]
    top = os.path.dirname(os.path.dirname(taps.__file__))
    program = f"import sys; sys.path.insert(0, {top!r}); import qsysd.taps; print(*sys.modules)"
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
    assert taps.is_mac(bridges.mac("default"))
