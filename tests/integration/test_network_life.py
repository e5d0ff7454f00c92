"""A network's parts come and go, and its VMs notice nothing."""

from __future__ import annotations

from labtest import LabHost

from tests.integration.conftest import VMFactory
from tests.integration.helpers import create, listed, main_pid, wait_ping, wait_ready

NETWORK = "qsysd-network@default.service"
DHCP = "qsysd-dhcp@default.service"


def leases(host: LabHost) -> str:
    """Return the leases of the network default, as dnsmasq keeps them."""
    return host.sh("cat /var/lib/qsysd/networks/default/dhcp/leases")


def test_vm_goes_on_while_its_network_is_restarted(any_host: LabHost, vm: VMFactory) -> None:
    name = vm(on=any_host)
    create(any_host, name)
    wait_ready(any_host, name)
    address, pid = listed(any_host, name)["ip"], main_pid(any_host, name)
    dnsmasq = any_host.property(DHCP, "MainPID")

    any_host.sh(f"kill -9 {dnsmasq}")
    any_host.wait_until(
        lambda: any_host.property(DHCP, "MainPID") not in ("0", dnsmasq) or None,
        timeout=30,
        what="dnsmasq to come back",
    )
    any_host.systemctl("restart", NETWORK)
    any_host.systemctl("restart", DHCP)
    any_host.systemctl("stop", NETWORK, DHCP)
    wait_ping(any_host, address)
    any_host.systemctl("start", NETWORK, DHCP)
    wait_ping(any_host, address)
    assert main_pid(any_host, name) == pid
    assert listed(any_host, name)["guest"] == "running"

    # and a reset guest asks the new dnsmasq for its address, and gets the same
    any_host.qsysd("reset", name)
    wait_ready(any_host, name, times=2)
    wait_ping(any_host, address)
    assert main_pid(any_host, name) == pid


def test_rules_that_were_flushed_come_back(host: LabHost, vm: VMFactory) -> None:
    """firewalld and a careless person flush what is not theirs; the network's restart mends it."""
    name = vm()
    create(host, name)
    host.sh("nft flush ruleset")
    host.systemctl("restart", NETWORK)
    rules = host.sh("nft list ruleset")
    assert "table ip qsysd_default" in rules and "masquerade" in rules
    assert listed(host, name)["ip"] in rules.split("table bridge qsysd")[1]


def test_address_is_free_for_the_next_vm(host: LabHost, vm: VMFactory) -> None:
    """The same address for another MAC, at once: no lease, no entry of the old one is in the way."""
    first, second = vm("first"), vm("second")
    create(host, first)
    wait_ready(host, first)
    address = listed(host, first)["ip"]
    assert address in leases(host)
    host.qsysd("delete", first, "--yes")
    assert address not in leases(host)
    create(host, second)
    assert listed(host, second)["ip"] == address
    wait_ready(host, second)
    wait_ping(host, address)


def test_guests_know_each_other_by_name(host: LabHost, vm: VMFactory) -> None:
    name = vm()
    create(host, name)
    wait_ready(host, name)
    asked = host.sh(
        "python3 - <<'END'\n"
        "import socket, struct\n"
        f"labels = b''.join(bytes([len(part)]) + part for part in b'{name}.default.internal'.split(b'.'))\n"
        "query = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + labels + b'\\0' + struct.pack('>2H', 1, 1)\n"
        "server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "server.settimeout(10)\n"
        "gateway = '10.83.0.1'\n"
        "server.sendto(query, (gateway, 53))\n"
        "print(socket.inet_ntoa(server.recv(512)[-4:]))\n"
        "END"
    )
    assert asked.strip() == listed(host, name)["ip"]
