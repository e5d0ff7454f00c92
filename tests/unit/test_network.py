"""Subnets, addresses, and the files that dnsmasq reads and writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qsysd import network
from qsysd.errors import HostError, InvalidError
from qsysd.paths import Scope
from qsysd.runtime.spawn import Done

MAC = "52:54:00:12:34:56"


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    return Scope(str(tmp_path))


def host_with(
    monkeypatch: pytest.MonkeyPatch,
    *,
    addresses: dict[str, int] | None = None,
    routes: list[str] | None = None,
    resolver: str = "",
) -> None:
    """Let `ip` and resolv.conf tell of a host with these addresses and routes."""
    links = [{"addr_info": [{"local": ip, "prefixlen": size}]} for ip, size in (addresses or {}).items()]

    def run(argv: list[str], **_: object) -> Done:
        answer = links if "address" in argv else [{"dst": route} for route in routes or []]
        return Done(argv, 0, json.dumps(answer), "")

    monkeypatch.setattr("qsysd.runtime.spawn.run", run)
    monkeypatch.setattr(network, "name_servers", lambda: [resolver] if resolver else [])


def test_the_first_free_subnet(monkeypatch: pytest.MonkeyPatch) -> None:
    host_with(monkeypatch)
    assert network.choose_subnet() == "10.83.0.0/24"
    assert network.choose_subnet(["10.83.0.0/24", "10.83.1.128/25"]) == "10.83.2.0/24"


def test_a_subnet_that_the_host_uses_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    host_with(
        monkeypatch,
        addresses={"10.83.0.5": 24},
        routes=["default", "0.0.0.0/0", "10.83.1.7", "192.168.0.0/16"],
        resolver="10.83.2.53",
    )
    assert network.choose_subnet() == "10.83.3.0/24"


def test_a_host_that_uses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    host_with(monkeypatch, routes=["10.0.0.0/8", "192.168.0.0/16"])
    assert network.choose_subnet() == "172.30.0.0/24"
    host_with(monkeypatch, routes=["10.0.0.0/8", "172.16.0.0/12"])
    assert network.choose_subnet() == "192.168.100.0/24"
    host_with(monkeypatch, routes=["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])
    with pytest.raises(HostError, match="no subnet is free"):
        network.choose_subnet()


def test_name_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("search x\nnameserver 9.9.9.9\nnameserver\nnameserver ::1\n")
    monkeypatch.setattr(network, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    assert network.name_servers() == ["9.9.9.9", "::1"]
    monkeypatch.setattr(network, "RESOLV_CONF", str(tmp_path / "none"))
    assert network.name_servers() == []


def test_the_lowest_free_address() -> None:
    assert network.gateway("10.83.0.0/24") == "10.83.0.1"
    assert network.allocate("10.83.0.0/24", []) == "10.83.0.10"
    assert network.allocate("10.83.0.0/24", ["10.83.0.10", "10.83.0.12"]) == "10.83.0.11"
    # another network's addresses do not count
    assert network.allocate("10.83.0.0/24", ["10.83.1.10"]) == "10.83.0.10"
    assert network.allocate("10.83.0.0/28", ["10.83.0.2"]) == "10.83.0.3"


def test_no_free_address() -> None:
    taken = [f"10.83.0.{number}" for number in range(10, 255)]
    assert network.allocate("10.83.0.0/24", taken[:-1]) == "10.83.0.254"
    with pytest.raises(HostError, match=r"no address is free in 10\.83\.0\.0/24 for web1"):
        network.allocate("10.83.0.0/24", taken, "web1")


def test_host_entries(scope: Scope) -> None:
    old = os.umask(0o077)
    try:
        assert network.write_hosts(scope, "default", "web1", [(MAC, "10.83.0.10")]) is False
    finally:
        os.umask(old)
    path = scope.dhcp_host("default", "web1")
    with open(path, encoding="utf-8") as file:
        assert file.read() == f"{MAC},10.83.0.10,web1.default.internal\n"
    # dnsmasq's user reads it
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o755
    assert os.listdir(os.path.dirname(path)) == ["web1"]
    assert network.write_hosts(scope, "default", "web1", [(MAC, "10.83.0.10")]) is False
    assert network.write_hosts(scope, "default", "web1", [(MAC, "10.83.0.11")]) is True
    assert network.hosts(scope, "default", "web1") == [(MAC, "10.83.0.11")]
    (Path(path).parent / ".web1.part").write_text("cut sh")
    assert network.remove_host(scope, "default", "web1") is True
    assert os.listdir(os.path.dirname(path)) == []
    assert network.remove_host(scope, "default", "web1") is False
    assert network.hosts(scope, "default", "web1") == []


@pytest.mark.parametrize(
    ("vm", "mac", "address"),
    [
        ("web1\n52:54:00:12:34:57,10.83.0.1", MAC, "10.83.0.10"),
        ("../web1", MAC, "10.83.0.10"),
        ("web1", f"{MAC},ignore", "10.83.0.10"),
        ("web1", MAC.upper().replace("52", "AA"), "10.83.0.10"),
        ("web1", MAC, "10.83.0.10,web2"),
        ("web1", MAC, "fe80::1"),
    ],
)
def test_odd_host_entries_are_refused(scope: Scope, vm: str, mac: str, address: str) -> None:
    with pytest.raises(InvalidError):
        network.write_hosts(scope, "default", vm, [(mac, address)])
    assert not os.path.exists(scope.dhcp_hosts_dir("default"))


LEASES = f"""\
1795294786 {MAC} 10.83.0.10 web1 *
1795294787 52:54:00:12:34:57 10.83.0.11 * 01:52:54:00:12:34:57
duid 00:01
"""


def test_leases(scope: Scope) -> None:
    assert network.leases(scope, "default") == []
    os.makedirs(os.path.dirname(scope.leases("default")))
    Path(scope.leases("default")).write_text(LEASES)
    assert network.leases(scope, "default") == [
        network.Lease(1795294786, MAC, "10.83.0.10", "web1"),
        network.Lease(1795294787, "52:54:00:12:34:57", "10.83.0.11", "*"),
    ]


def test_a_lease_is_edited_away_where_dnsmasq_does_not_run(scope: Scope) -> None:
    os.makedirs(os.path.dirname(scope.leases("default")))
    path = Path(scope.leases("default"))
    path.write_text(LEASES)
    node = path.stat().st_ino
    network.release(scope, "default", "10.83.0.10", MAC, running=False)
    assert path.read_text().splitlines() == LEASES.splitlines()[1:]
    # the same file, with the same owner
    assert path.stat().st_ino == node


def test_an_edited_lease_file_is_no_link(scope: Scope, tmp_path: Path) -> None:
    # The directory is dnsmasq's user's, and root must not be led astray in it.
    os.makedirs(os.path.dirname(scope.leases("default")))
    (tmp_path / "precious").write_text(LEASES)
    os.symlink(tmp_path / "precious", scope.leases("default"))
    with pytest.raises(HostError):
        network.release(scope, "default", "10.83.0.10", MAC, running=False)
    assert (tmp_path / "precious").read_text() == LEASES


def test_a_lease_that_dnsmasq_keeps_is_an_error(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    os.makedirs(os.path.dirname(scope.leases("default")))
    Path(scope.leases("default")).write_text(LEASES)
    asked = []
    monkeypatch.setattr("qsysd.runtime.sysfs.exists", lambda bridge: True)
    monkeypatch.setattr("qsysd.runtime.spawn.run", lambda argv, **_: asked.append(argv))
    monkeypatch.setattr(network, "RELEASE_TIMEOUT", 0.0)
    with pytest.raises(HostError, match=r"keeps the lease of 10\.83\.0\.10"):
        network.release(scope, "default", "10.83.0.10", MAC, running=True)
    assert asked == [["dhcp_release", "qb-default", "10.83.0.10", MAC]]


def test_dnsmasq_is_asked_even_before_it_has_the_lease(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("qsysd.runtime.sysfs.exists", lambda bridge: True)
    monkeypatch.setattr("qsysd.runtime.spawn.run", lambda argv, **_: asked.append(argv))
    network.release(scope, "default", "10.83.0.10", MAC, running=True)
    assert asked == [["dhcp_release", "qb-default", "10.83.0.10", MAC]]
    network.release(scope, "default", "10.83.0.10", MAC, running=False)
    assert len(asked) == 1


def test_the_lease_of_another_mac_is_left_to_it(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    os.makedirs(os.path.dirname(scope.leases("default")))
    path = Path(scope.leases("default"))
    path.write_text(LEASES)
    monkeypatch.setattr("qsysd.runtime.spawn.run", lambda argv, **_: argv)
    monkeypatch.setattr("qsysd.runtime.sysfs.exists", lambda bridge: True)
    for running in (True, False):
        network.release(scope, "default", "10.83.0.11", MAC, running=running)
    assert path.read_text() == LEASES


def test_without_the_bridge_nobody_is_asked(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    os.makedirs(os.path.dirname(scope.leases("default")))
    Path(scope.leases("default")).write_text(LEASES)
    monkeypatch.setattr("qsysd.runtime.sysfs.exists", lambda bridge: False)
    monkeypatch.delattr("qsysd.runtime.spawn.run")
    network.release(scope, "default", "10.83.0.10", MAC, running=True)
