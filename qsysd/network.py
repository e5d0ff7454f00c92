"""Networks: free subnets and addresses, host entries and leases of DHCP, and what blocks a bridge on a host.

The units `qsysd-network@NAME` (bridge and rules) and `qsysd-dhcp@NAME` (dnsmasq) run without this module,
which contains what commands need. Manual: dnsmasq(8).
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qsysd import interface_names, paths
from qsysd.errors import HostError, InvalidError, QsysdError
from qsysd.files import make_directory, read_text, remove, write_atomic
from qsysd.paths import Scope
from qsysd.runtime import antispoof, spawn, sysfs, taps
from qsysd.runtime.ports import is_address, is_mac, parse_alias

# The first address for a VM; those below are for the gateway and for addresses assigned by hand.
FIRST_HOST = 10
RESOLV_CONF = "/etc/resolv.conf"
# Seconds within which dnsmasq must end a lease after dhcp_release.
RELEASE_TIMEOUT = 2.0
# As in templates/dnsmasq.conf.j2.
LEASE_TIME = "12h"


def choose_subnet(taken: Iterable[str] = ()) -> str:
    """Return a /24 that is free on this host; `taken` are the subnets of other defined networks.

    A subnet is free if no address, route or DNS server of this host is in it. Raise HostError without one.
    """
    used = [ipaddress.IPv4Network(subnet) for subnet in taken] + list(_subnets_in_use())
    for candidate in _candidates():
        if not any(candidate.overlaps(other) for other in used):
            return str(candidate)
    raise HostError(
        "no subnet is free for a network on this host", hint="set subnet in the definition of the network"
    )


def _candidates() -> Iterator[ipaddress.IPv4Network]:
    """Yield the subnets to try, those that are least likely to be used elsewhere first."""
    for prefix, numbers in (("10.83", range(256)), ("172.30", range(256)), ("192.168", range(100, 256))):
        for number in numbers:
            yield ipaddress.IPv4Network(f"{prefix}.{number}.0/24")


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    """Return the output of `ip -j -4`."""
    answer: list[dict[str, Any]] = json.loads(spawn.run(["ip", "-j", "-4", *arguments]).stdout or "[]")
    return answer


def _subnets_in_use() -> Iterator[ipaddress.IPv4Network]:
    """Yield the subnets of this host's addresses, routes (except the default route) and DNS servers."""
    for link in _ip_json("address", "show"):
        for info in link.get("addr_info", ()):
            yield ipaddress.IPv4Network(f"{info['local']}/{info['prefixlen']}", strict=False)
    for route in _ip_json("route", "show", "table", "all"):
        # "default", or a route type before the destination in old versions of ip
        destination = str(route.get("dst", "default"))
        if destination not in ("default", "0.0.0.0/0"):
            yield ipaddress.IPv4Network(destination, strict=False)
    for server in name_servers():
        if is_address(server):
            yield ipaddress.IPv4Network(server)


def name_servers() -> list[str]:
    """Return the DNS servers in resolv.conf(5)."""
    try:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [fields[1] for fields in lines if len(fields) > 1 and fields[0] == "nameserver"]


def gateway(subnet: str) -> str:
    """Return the address of the bridge: the first of the subnet."""
    return str(ipaddress.IPv4Network(subnet)[1])


def is_for_a_vm(address: str, subnet: str) -> bool:
    """Return whether an address is in a subnet, and not its gateway, network or broadcast address."""
    block = ipaddress.IPv4Network(subnet)
    number = ipaddress.IPv4Address(address)
    return number in block and number not in (block[0], block[1], block[-1])


def allocate(subnet: str, taken: Iterable[str], name: str = "") -> str:
    """Return the lowest address of the subnet that is not `taken`, for the VM `name`.

    taken: the addresses of all definitions, and preferably of all leases: dnsmasq does not offer an address
    that is leased to another MAC. Raise HostError if none is free.
    """
    block = ipaddress.IPv4Network(subnet)
    used = {ipaddress.IPv4Address(address) for address in taken} | {block[1]}
    # A small subnet is used from its beginning.
    first = FIRST_HOST if block.num_addresses > 2 * FIRST_HOST else 2
    for number in range(first, block.num_addresses - 1):
        if block[number] not in used:
            return str(block[number])
    purpose = f" for {name}" if name else ""
    raise HostError(f"no address is free in {subnet}{purpose}", hint="delete a VM, or use another network")


def _check(vm: str, mac: str, address: str) -> None:
    """Raise InvalidError unless the values are valid in the files of dnsmasq."""
    if not paths.is_name(vm):
        raise InvalidError(f"not a valid name of a VM: {vm!r}")
    if not is_mac(mac):
        raise InvalidError(f"not a MAC: {mac!r}")
    if not is_address(address):
        raise InvalidError(f"not an IPv4 address: {address!r}")


def prepare(scope: Scope, network: str) -> None:
    """Create the directories that the DHCP service of a network reads, regardless of the umask.

    dnsmasq does not start without them. They belong to root; dnsmasq writes only to a directory of its unit.
    """
    for path in (scope.network_state_dir, scope.network_dir(network), scope.dhcp_hosts_dir(network)):
        make_directory(path, 0o755)
        os.chmod(path, 0o755)


def write_hosts(scope: Scope, network: str, vm: str, entries: Sequence[tuple[str, str]]) -> bool:
    """Write the MACs and addresses of a VM for the DHCP service; return whether it must be reloaded.

    dnsmasq reads a new file by itself, a changed file when it is reloaded. The name of the VM is that of the
    first address. Raise InvalidError for values that are not valid.
    """
    for mac, address in entries:
        _check(vm, mac, address)
    path = scope.dhcp_host(network, vm)
    # With the domain, a name is not a keyword of dnsmasq (`ignore`, `infinite`). The lines of the other NICs
    # have a lease time in place of the name.
    name = f"{vm}.{paths.domain(network)}"
    text = "".join(
        f"{mac},{address},{LEASE_TIME if number else name}\n" for number, (mac, address) in enumerate(entries)
    )
    before = _read(path)
    if before == text:
        return False
    prepare(scope, network)
    # dnsmasq ignores names that begin with a dot, and reads the file when it is renamed. Its user must be
    # able to read it, regardless of the umask.
    write_atomic(path, text, 0o644, staging=_staging(path))
    return before is not None


def _staging(path: str) -> str:
    """Return the name under which a host entry is written first."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.part")


def hosts(scope: Scope, network: str, vm: str) -> list[tuple[str, str]]:
    """Return the MACs and addresses in the host entry of a VM."""
    fields = [line.split(",") for line in (_read(scope.dhcp_host(network, vm)) or "").splitlines()]
    return [(line[0], line[1]) for line in fields if len(line) > 1]


def _read(path: str) -> str | None:
    """Return a file's text, or None if it does not exist."""
    return read_text(path, errors="replace")


def remove_host(scope: Scope, network: str, vm: str) -> bool:
    """Remove the host entry of a VM; return whether it existed.

    The service must be reloaded then: before that, it refuses a new entry with the same address ("duplicate
    dhcp-host IP address"). Recovery of a killed removal reloads in any case.
    """
    path = scope.dhcp_host(network, vm)
    remove(_staging(path))  # left by a killed command
    return remove(path)


@dataclass(frozen=True)
class Lease:
    """A lease of dnsmasq. expires: seconds since 1970."""

    expires: int
    mac: str
    address: str
    name: str


def leases(scope: Scope, network: str) -> list[Lease]:
    """Return the leases in the lease file of a network."""
    lines = (_read(scope.leases(network)) or "").splitlines()
    return [lease for lease in map(_parse_lease, lines) if lease]


def _parse_lease(line: str) -> Lease | None:
    """Return the lease in a line of the lease file: `expires mac address name client-id`."""
    fields = line.split()
    if len(fields) < 4 or not fields[0].isdigit() or not is_address(fields[2]):
        return None
    return Lease(int(fields[0]), fields[1], fields[2], fields[3])


def release(scope: Scope, network: str, address: str, mac: str, *, running: bool) -> None:
    """End the lease of a MAC, if it has one, so that its address is free at once.

    running: whether the network's dnsmasq runs. It keeps the leases in memory, and is sent a DHCPRELEASE;
    otherwise the lease file is edited. Raise HostError if it does not end or the file cannot be changed.
    """
    _check("x", mac, address)
    if not running:
        if _has_lease(scope, network, address, mac):
            _forget(scope, network, address)
        return
    bridge = interface_names.bridge(network)
    if not sysfs.exists(bridge):
        return  # dnsmasq cannot be reached; the lease expires, and no VM gets the address before
    # Also without a lease: dnsmasq handles packets in order, and a last request of the guest may be queued.
    spawn.run(["dhcp_release", bridge, address, mac], timeout=10)
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while _has_lease(scope, network, address, mac):
        if time.monotonic() > deadline:
            raise HostError(
                f"network {network}: the DHCP service keeps the lease of {address}",
                hint=f"systemctl status {paths.dhcp_unit(network)}",
            )
        time.sleep(0.005)


def _has_lease(scope: Scope, network: str, address: str, mac: str) -> bool:
    return any((lease.address, lease.mac) == (address, mac) for lease in leases(scope, network))


def _forget(scope: Scope, network: str, address: str) -> None:
    """Remove an address from the lease file of a dnsmasq that does not run.

    File and directory belong to dnsmasq's user: the file is changed in place, and no link is followed.
    """
    path = scope.leases(network)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot change {path}: {error.strerror}") from error
    with open(descriptor, "r+", encoding="utf-8", errors="surrogateescape") as file:
        lines = file.readlines()
        file.seek(0)
        file.truncate()
        file.writelines(line for line in lines if line.split()[2:3] != [address])


@dataclass(frozen=True)
class Blocker:
    """What blocks the traffic of guests or removes their anti-spoofing. remedy: its correction."""

    message: str
    remedy: str


def blockers(bridge: str = "qb-default") -> list[Blocker]:
    """Return what on this host blocks the guests on a bridge, or removes their anti-spoofing. Requires root.

    A packet that any table drops is dropped, whatever the tables of qsysd accept.
    """
    found = []
    if (_read("/proc/sys/net/ipv4/ip_forward") or "").strip() == "0":
        found.append(Blocker("IPv4 forwarding is off", "sysctl -w net.ipv4.ip_forward=1"))
    if _wildcard_dns():
        found.append(
            Blocker(
                "another DNS server uses port 53 of all addresses, so the DHCP service cannot start",
                "configure it to listen on certain addresses (dnsmasq: bind-dynamic, bind9: listen-on)",
            )
        )
    try:
        found += _firewalls(bridge)
        found += _bare_taps(bridge)
    except QsysdError as error:
        found.append(Blocker(f"cannot read the firewall: {error.message}", "run this command as root"))
    return found


def _bare_taps(bridge: str) -> Iterator[Blocker]:
    """Yield the TAPs on a bridge without anti-spoofing rules."""
    protected = antispoof.protected_taps()
    for tap, alias in taps.existing_taps().items():
        known = parse_alias(alias)
        if known and known[1].bridge == bridge and tap not in protected:
            unit = paths.network_unit(known[1].network)
            yield Blocker(
                f"{tap} has no anti-spoofing rules: another program has flushed nftables",
                f"systemctl restart {unit}",
            )


def _wildcard_dns() -> bool:
    """Return whether a program uses UDP port 53 of all addresses; dnsmasq needs one address."""
    try:
        with open("/proc/net/udp", encoding="ascii") as file:
            return any("00000000:0035" in line.split()[1:2] for line in file)
    except OSError:
        return False


def _firewalls(bridge: str) -> Iterator[Blocker]:
    """Yield the tables of other programs that drop by default and do not mention the bridge."""
    chains = [
        item["chain"]
        for item in json.loads(spawn.run(["nft", "-j", "list", "chains"], timeout=10).stdout)["nftables"]
        if "chain" in item
    ]
    seen = set()
    for chain in chains:
        table, hook = f"{chain['family']} {chain['table']}", chain.get("hook")
        # The chains of firewalld have the policy accept, and reject in their last rule.
        drops = chain.get("policy") == "drop" or table == "inet firewalld"
        if not drops or hook not in ("input", "forward") or chain["family"] not in ("ip", "inet"):
            continue
        if (table, hook) in seen or chain["table"].startswith("qsysd_"):
            continue
        seen.add((table, hook))
        if bridge in spawn.run(["nft", "list", "table", *table.split()], timeout=10).stdout:
            continue
        yield _blocker(table, hook, {other["name"] for other in chains}, bridge)


def _blocker(table: str, hook: str, chains: set[str], bridge: str) -> Blocker:
    """Return what a firewall blocks, and the command of that firewall that accepts the bridge."""
    what = "the traffic of guests to the outside" if hook == "forward" else "DHCP and DNS for the guests"
    if table == "inet firewalld":
        remedy = f"firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload"
        return Blocker(f"firewalld blocks {what}", remedy)
    if f"ufw-before-{hook}" in chains:
        ways = [f"ufw route allow in on {bridge}"] if hook == "forward" else []
        ways = ways or [f"ufw allow in on {bridge} to any port {port}" for port in ("53", "67 proto udp")]
        return Blocker(f"ufw blocks {what}", "; ".join(ways))
    if hook == "forward" and "DOCKER-USER" in chains:
        ways = [f"iptables -I DOCKER-USER {way} {bridge} -j ACCEPT" for way in ("-i", "-o")]
        return Blocker(f"Docker blocks {what}", "; ".join(ways))
    return Blocker(f"the firewall table {table} blocks {what}", f"accept {bridge} in its {hook} chain")
