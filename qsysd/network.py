"""Networks as qsysd plans them: free subnets, addresses, DHCP entries, and what blocks them on a host.

The units do the work: `qsysd-network@NAME` (module `bridges`) and `qsysd-dhcp@NAME`, a dnsmasq that
runs by itself. Here is what commands need besides. Manual: dnsmasq(8).
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from qsysd import interface_names, paths
from qsysd.errors import HostError, InvalidError, QsysdError
from qsysd.files import make_directory, read_text, remove, write_atomic
from qsysd.paths import Scope
from qsysd.runtime import antispoof, spawn, sysfs, taps
from qsysd.runtime.ports import is_address, is_mac, parse_alias

# The first address that a VM gets; those below are left for the gateway and for people.
FIRST_HOST = 10
RESOLV_CONF = "/etc/resolv.conf"
# Seconds that dnsmasq has to take in a release before it counts as failed.
RELEASE_TIMEOUT = 2.0
# As in templates/dnsmasq.conf.j2.
LEASE_TIME = "12h"


def choose_subnet(taken: Iterable[str] = ()) -> str:
    """Return a /24 that is free on this host; `taken` are the subnets of other defined networks.

    Free is what neither an address, a route nor a DNS server of this host lies in.
    Raises HostError when there is none.
    """
    used = [ipaddress.IPv4Network(subnet) for subnet in taken] + list(_subnets_in_use())
    for candidate in _candidates():
        if not any(candidate.overlaps(other) for other in used):
            return str(candidate)
    raise HostError("no subnet is free for a network on this host", hint="give the network's definition one")


def _candidates() -> Iterator[ipaddress.IPv4Network]:
    """Yield the subnets to try, the one that collides least first."""
    for prefix, numbers in (("10.83", range(256)), ("172.30", range(256)), ("192.168", range(100, 256))):
        for number in numbers:
            yield ipaddress.IPv4Network(f"{prefix}.{number}.0/24")


def _ip_json(*words: str) -> list[dict[str, Any]]:
    """Return what `ip -j -4` answers."""
    answer: list[dict[str, Any]] = json.loads(spawn.run(["ip", "-j", "-4", *words]).stdout or "[]")
    return answer


def _subnets_in_use() -> Iterator[ipaddress.IPv4Network]:
    """Yield what this host's addresses, routes and DNS servers lie in; the default route is everything's."""
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
    """Return the host's DNS servers as resolv.conf(5) names them."""
    try:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def gateway(subnet: str) -> str:
    """Return the address of the bridge: the subnet's first."""
    return str(ipaddress.IPv4Network(subnet)[1])


def is_for_a_vm(address: str, subnet: str) -> bool:
    """Return whether an address is in a subnet, and is neither the gateway's nor one that nobody can have."""
    block = ipaddress.IPv4Network(subnet)
    number = ipaddress.IPv4Address(address)
    return number in block and number not in (block[0], block[1], block[-1])


def allocate(subnet: str, taken: Iterable[str], name: str = "") -> str:
    """Return the lowest address of the subnet that is not `taken`, for the VM `name`.

    It is written into the definition, and kept from then on. `taken` are the addresses of all
    definitions, and best also of all leases: dnsmasq gives nobody an address that another MAC holds.
    Raises HostError when none is free.
    """
    block = ipaddress.IPv4Network(subnet)
    used = {ipaddress.IPv4Address(address) for address in taken} | {block[1]}
    # A subnet too small for the usual start is used from its beginning.
    first = FIRST_HOST if block.num_addresses > 2 * FIRST_HOST else 2
    for number in range(first, block.num_addresses - 1):
        if block[number] not in used:
            return str(block[number])
    whom = f" for {name}" if name else ""
    raise HostError(f"no address is free in {subnet}{whom}", hint="delete a VM, or use another network")


def _check(vm: str, mac: str, address: str) -> None:
    """Raise InvalidError unless the values are what dnsmasq's files may hold."""
    if not paths.is_name(vm):
        raise InvalidError(f"not a VM's name: {vm!r}")
    if not is_mac(mac):
        raise InvalidError(f"not a MAC: {mac!r}")
    if not is_address(address):
        raise InvalidError(f"not an IPv4 address: {address!r}")


def prepare(scope: Scope, network: str) -> None:
    """Make the directories that a network's DHCP service reads, whatever the caller's umask says.

    dnsmasq does not start without them. They are root's; it writes only in one that its unit makes.
    """
    for path in (scope.network_state_dir, scope.network_dir(network), scope.dhcp_hosts_dir(network)):
        make_directory(path, 0o755)
        os.chmod(path, 0o755)


def write_hosts(scope: Scope, network: str, vm: str, entries: Sequence[tuple[str, str]]) -> bool:
    """Tell a network's DHCP service a VM's MACs with their addresses; return whether it must be reloaded.

    dnsmasq takes in a new file by itself; a changed one replaces nothing until it is reloaded.
    The VM's name goes with the first address. Raises InvalidError on odd values.
    """
    for mac, address in entries:
        _check(vm, mac, address)
    path = scope.dhcp_host(network, vm)
    # With its domain, no name is read as a keyword of dnsmasq: `ignore`, `infinite`. The other NICs' lines
    # end in a lease time where the first one's has the name.
    name = f"{vm}.{paths.domain(network)}"
    text = "".join(
        f"{mac},{address},{LEASE_TIME if number else name}\n" for number, (mac, address) in enumerate(entries)
    )
    before = _read(path)
    if before == text:
        return False
    prepare(scope, network)
    # dnsmasq passes over names that begin with a dot, and reads the file when it gets its name. Its own
    # user reads it, whatever the caller's umask is.
    write_atomic(path, text, 0o644, staging=_staging(path))
    return before is not None


def _staging(path: str) -> str:
    """Return the name of a host entry that is being written."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.part")


def hosts(scope: Scope, network: str, vm: str) -> list[tuple[str, str]]:
    """Return a VM's MACs with their addresses, as its network's DHCP service knows them."""
    fields = [line.split(",") for line in (_read(scope.dhcp_host(network, vm)) or "").splitlines()]
    return [(words[0], words[1]) for words in fields if len(words) > 1]


def _read(path: str) -> str | None:
    """Return a file's text, or None if it does not exist."""
    return read_text(path, errors="replace")


def remove_host(scope: Scope, network: str, vm: str) -> bool:
    """Take a VM out of a network's DHCP service; return whether there was something to remove.

    The service must be reloaded then: until it is, it refuses a new entry with the same address
    ("duplicate dhcp-host IP address"). Who brings a killed removal to its end cannot know whether the
    reload was done, and reloads in any case.
    """
    path = scope.dhcp_host(network, vm)
    remove(_staging(path))  # what a killed write left
    return remove(path)


class Lease(NamedTuple):
    """An address that dnsmasq gave out; `expires` is in seconds since 1970."""

    expires: int
    mac: str
    address: str
    name: str


def leases(scope: Scope, network: str) -> list[Lease]:
    """Return a network's leases, as dnsmasq's lease file has them."""
    lines = (_read(scope.leases(network)) or "").splitlines()
    return [lease for lease in map(_parse_lease, lines) if lease]


def _parse_lease(line: str) -> Lease | None:
    """Return the lease in a line of the lease file: `expires mac address name client-id`."""
    words = line.split()
    if len(words) < 4 or not words[0].isdigit() or not is_address(words[2]):
        return None
    return Lease(int(words[0]), words[1], words[2], words[3])


def release(scope: Scope, network: str, address: str, mac: str, *, running: bool) -> None:
    """End a MAC's lease, so that the address is free for another at once; quiet where it has none.

    `running`: whether the network's dnsmasq runs. It keeps its leases in memory, and has to be told;
    otherwise the lease file is edited. Raises HostError when dnsmasq does not let go, or the file
    cannot be changed.
    """
    _check("x", mac, address)
    if not running:
        if _has_lease(scope, network, address, mac):
            _forget(scope, network, address)
        return
    bridge = interface_names.bridge(network)
    if not sysfs.exists(bridge):
        return  # dnsmasq cannot be reached there; the lease ends by itself, and no VM gets the address before
    # Also without a lease: the guest's last request may be on its way, and dnsmasq takes one after the other.
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
    """Take an address out of the lease file of a dnsmasq that does not run.

    The file is dnsmasq's user's, in a directory of theirs: it is changed in place, and no link is followed.
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


class Blocker(NamedTuple):
    """What cuts guests off from the outside, or leaves them without anti-spoofing; and what to do."""

    message: str
    remedy: str


def blockers(bridge: str = "qb-default") -> list[Blocker]:
    """Return what else on this host blocks the guests on a bridge, or lets them loose; empty is good.

    qsysd's own rules can only refuse: a packet that any other table drops is dropped. Needs root.
    """
    found = []
    if (_read("/proc/sys/net/ipv4/ip_forward") or "").strip() == "0":
        found.append(Blocker("IPv4 forwarding is off", "sysctl -w net.ipv4.ip_forward=1"))
    if _wildcard_dns():
        found.append(
            Blocker(
                "another DNS server holds port 53 on all addresses, so the DHCP service cannot start",
                "let it listen on its own addresses only (dnsmasq: bind-dynamic, bind9: listen-on)",
            )
        )
    try:
        found += _firewalls(bridge)
        found += _bare_taps(bridge)
    except QsysdError as error:
        found.append(Blocker(f"cannot read the firewall: {error.message}", "run this as root"))
    return found


def _bare_taps(bridge: str) -> Iterator[Blocker]:
    """Yield the TAPs on a bridge whose anti-spoofing somebody has flushed."""
    held = antispoof.protected_taps()
    for tap, alias in taps.existing_taps().items():
        known = parse_alias(alias)
        if known and known[1].bridge == bridge and tap not in held:
            unit = paths.network_unit(known[1].network)
            yield Blocker(
                f"{tap} has no anti-spoofing rules: something has flushed nftables",
                f"systemctl restart {unit}",
            )


def _wildcard_dns() -> bool:
    """Tell whether somebody holds UDP port 53 on all addresses; dnsmasq wants one address only."""
    try:
        with open("/proc/net/udp", encoding="ascii") as file:
            return any("00000000:0035" in line.split()[1:2] for line in file)
    except OSError:
        return False


def _firewalls(bridge: str) -> Iterator[Blocker]:
    """Yield the firewalls of others that drop what they do not know, and do not know the bridge."""
    chains = [
        item["chain"]
        for item in json.loads(spawn.run(["nft", "-j", "list", "chains"], timeout=10).stdout)["nftables"]
        if "chain" in item
    ]
    seen = set()
    for chain in chains:
        table, hook = f"{chain['family']} {chain['table']}", chain.get("hook")
        # firewalld's chains accept by policy and refuse in their last rule.
        refuses = chain.get("policy") == "drop" or table == "inet firewalld"
        if not refuses or hook not in ("input", "forward") or chain["family"] not in ("ip", "inet"):
            continue
        if (table, hook) in seen or chain["table"].startswith("qsysd_"):
            continue
        seen.add((table, hook))
        if bridge in spawn.run(["nft", "list", "table", *table.split()], timeout=10).stdout:
            continue
        yield _blocker(table, hook, {other["name"] for other in chains}, bridge)


def _blocker(table: str, hook: str, chains: set[str], bridge: str) -> Blocker:
    """Return what a firewall blocks, and its own way to let the bridge through."""
    what = "the guests' way out" if hook == "forward" else "DHCP and DNS for the guests"
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
    return Blocker(f"the firewall table {table} blocks {what}", f"let {bridge} through in its {hook} chain")
