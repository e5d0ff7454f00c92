"""Units of a network are restarted without an effect on its VMs."""

from __future__ import annotations

import json

from labtest import LabHost, tiny_options

from tests.integration.conftest import VMFactory
from tests.integration.helpers import create, listed, main_pid, status, wait_ping, wait_ready

NETWORK = "qsysd-network@default.service"
DHCP = "qsysd-dhcp@default.service"


def leases(host: LabHost) -> str:
    """Return the leases of the network default from dnsmasq's file."""
    return host.sh("cat /var/lib/qsysd/networks/default/dhcp/leases")


def test_vm_stays_connected_while_its_network_is_restarted(any_host: LabHost, vm: VMFactory) -> None:
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

    # a guest that is reset gets the same address from the new dnsmasq
    any_host.qsysd("reset", name)
    wait_ready(any_host, name, times=2)
    wait_ping(any_host, address)
    assert main_pid(any_host, name) == pid


def test_flushed_rules_are_restored(host: LabHost, vm: VMFactory) -> None:
    """firewalld and `nft flush ruleset` flush all tables; a restart of the network adds the rules again."""
    name = vm()
    create(host, name)
    host.sh("nft flush ruleset")
    host.systemctl("restart", NETWORK)
    rules = host.sh("nft list ruleset")
    assert "table ip qsysd_default" in rules and "masquerade" in rules
    assert listed(host, name)["ip"] in rules.split("table bridge qsysd")[1]


def test_address_is_free_for_the_next_vm(host: LabHost, vm: VMFactory) -> None:
    """Another MAC gets the same address at once: the lease and the entry of the old one were removed."""
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


def test_guests_resolve_each_others_names(host: LabHost, vm: VMFactory) -> None:
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


def test_vm_with_two_nics_on_one_network_is_reachable_at_both_addresses(host: LabHost, vm: VMFactory) -> None:
    """As in examples/web-with-database.yaml; the guest answers from the NIC of its first route."""
    name = vm()
    words = tiny_options()
    kernel = {option.removeprefix("--"): value for option, value in zip(words[::2], words[1::2], strict=True)}
    nics = [{"network": "default", "address": "10.83.0.80"}, {"network": "default"}]
    definition = {"name": name, "nics": nics, "stop_timeout": "1s", **kernel}
    host.qsysd("create", "--file", "-", stdin=json.dumps(definition))
    wait_ready(host, name, times=2)
    addresses = [nic["address"] for nic in status(host, name)["nics"]]
    assert addresses[0] == "10.83.0.80"
    rules = "nft list table ip qsysd_default"
    assert "jump guests" in host.sh(rules)
    reach_each(host, addresses)
    # A changed definition of the network takes effect with setup, and the VM keeps its network.
    network = "/etc/qsysd/networks/default.yaml"
    text = host.read(network)
    try:
        host.write(network, text.replace("host_access: false\n", "") + "host_access: true\n")
        host.qsysd("setup")
        assert "jump guests" not in host.sh(rules)
        reach_each(host, addresses)
    finally:
        host.write(network, text)
        host.qsysd("setup")
    assert "jump guests" in host.sh(rules)


def reach_each(host: LabHost, addresses: list[str]) -> None:
    """Fail unless each address answers, with each of the guest's MACs in the host's neighbour table."""
    for address in addresses:
        host.sh("ip neigh flush dev qb-default")
        wait_ping(host, address, timeout=10)
