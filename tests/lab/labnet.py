"""The network of the lab: a bridge in a separate namespace, and a link from it to the machine.

    machine ── qlabN ═══ uplink ── lab0 ─┬─ vb-host1 ═══ host0 in host1
             10.213.N.1      (namespace) └─ vb-host2 ═══ host0 in host2

On the machine the lab creates the interface qlabN and an nftables table that masquerades the subnet of
the lab, and enables forwarding on the uplink. The uplinks on which forwarding was disabled before are
recorded in the alias of qlabN, so that the record exists as long as the interface.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labproc import LabError, locked, run, say

BRIDGE = "lab0"
UPLINK = "uplink"
INTERFACE_PREFIX = "qlab"
ALIAS_PREFIX = "qsysd-lab-"

# Lock for changes to the machine, shared by all labs. A directory can be locked like a file.
MACHINE_LOCK = Path("/run")


@dataclass(frozen=True)
class Link:
    """The interface of a lab on the machine: its number N, its lab, and uplinks without forwarding before."""

    number: int
    owner: str
    restore: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of the interface."""
        return f"{INTERFACE_PREFIX}{self.number}"

    @property
    def alias(self) -> str:
        """Return the alias of the interface."""
        return " ".join((self.owner, *self.restore))


class Network:
    """The network of the lab with the work directory `directory`."""

    def __init__(self, directory: Path) -> None:
        self.file = directory.resolve() / "netns"
        digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]
        self.owner = f"{ALIAS_PREFIX}{digest}"
        self.table = f"qsysd_lab_{digest}"

    def exists(self) -> bool:
        """Return whether the namespace exists: its file is then on the kernel's nsfs."""
        return self.file.exists() and self.file.stat().st_dev == os.stat("/proc/self/ns/net").st_dev

    def inside(self) -> list[str]:
        """Return the prefix of commands that run in the namespace."""
        return ["nsenter", f"--net={self.file}"]

    def up(self) -> ipaddress.IPv4Network:
        """Create missing parts of the network and return its subnet; hosts may use the other parts."""
        with locked(MACHINE_LOCK, "another lab's network"):
            if not self.exists():
                # Not `ip netns add`, which leaves a mount on /run/netns.
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.touch()
                run(["unshare", f"--net={self.file}", "true"])
            self.make_bridge()
            link = self.link() or self.make_link()
            run([*self.inside(), "ip", "link", "set", UPLINK, "master", BRIDGE, "up"])
            net = subnet(link.number)
            # Forwarding is a setting of the incoming interface; ip_forward is not needed.
            for name in (link.name, *link.restore):
                set_forwarding(name, True)
            if run(["nft", "list", "table", "ip", self.table], check=False).returncode != 0:
                run(["nft", "-f", "-"], stdin=rules(self.table, link.name, net))
                warn_of_dropped_forwarding()
            return net

    def down(self) -> None:
        """Remove the network, and restore the settings of the machine."""
        with locked(MACHINE_LOCK, "another lab's network"):
            self.remove(self.link())

    def down_if_unused(self) -> None:
        """Remove the network if the lab has no hosts."""
        with locked(self.file.with_name("lock"), "another lab command"):
            if not any(self.file.parent.glob("hosts/*/host.json")):
                self.down()

    def link(self) -> Link | None:
        """Return the interface of this lab on the machine, None if it does not exist."""
        return next((link for link in links() if link.owner == self.owner), None)

    def make_bridge(self) -> None:
        """Create the bridge in the namespace, if it does not exist."""
        inside = [*self.inside(), "ip"]
        if run([*inside, "link", "show", BRIDGE], check=False).returncode != 0:
            run([*inside, "link", "add", BRIDGE, "type", "bridge"])
        run([*inside, "link", "set", BRIDGE, "up"])
        run([*inside, "link", "set", "lo", "up"])

    def make_link(self) -> Link:
        """Create the link between the machine and the namespace."""
        uplinks = default_interfaces()
        if not uplinks:
            say("the machine has no default route, so hosts cannot reach other networks")
        closed = tuple(name for name in uplinks if not forwarding(name))
        link = Link(self.free_number(), self.owner, closed)
        net = subnet(link.number)
        run([*self.inside(), "ip", "link", "delete", UPLINK], check=False)
        # The alias is set before the interface is moved to the machine, so that it always has an owner.
        batch = (
            f"link add {UPLINK} type veth peer name {link.name}\n"
            f'link set {link.name} alias "{link.alias}"\n'
            f"link set {link.name} netns {os.getpid()}\n"
        )
        run([*self.inside(), "ip", "-batch", "-"], stdin=batch)
        run(["ip", "link", "set", link.name, "up"])
        run(["ip", "address", "add", f"{gateway(net)}/{net.prefixlen}", "dev", link.name])
        return link

    def remove(self, link: Link | None) -> None:
        """Remove the network; with `link`, restore the settings that are recorded in it."""
        if link:
            others = [other for other in links() if other.owner != self.owner]
            if others:
                # Another lab still needs forwarding, and disables it when it is removed.
                restore = dict.fromkeys((*others[0].restore, *link.restore))
                heir = Link(others[0].number, others[0].owner, tuple(restore))
                run(["ip", "link", "set", heir.name, "alias", heir.alias])
            else:
                for name in link.restore:
                    set_forwarding(name, False)
            run(["ip", "link", "delete", link.name])
        run(["nft", "-f", "-"], stdin=f"table ip {self.table}\ndelete table ip {self.table}\n")
        if self.exists():
            run(["umount", str(self.file)])
        self.file.unlink(missing_ok=True)

    def free_number(self) -> int:
        """Return an N such that the machine does not use 10.213.N.0/24."""
        listed = query(["ip", "-j", "-4", "route", "show", "table", "all"])
        known = [ipaddress.ip_network(route["dst"], strict=False) for route in listed if "." in route["dst"]]
        taken = {link.number for link in links()}
        first = int(self.owner.removeprefix(ALIAS_PREFIX), 16)
        for step in range(256):
            number = (first + step) % 256
            if number not in taken and not any(subnet(number).overlaps(net) for net in known):
                return number
        raise LabError("no free subnet in 10.213.0.0/16")


def subnet(number: int) -> ipaddress.IPv4Network:
    """Return the subnet of the lab with this number."""
    return ipaddress.IPv4Network(f"10.213.{number}.0/24")


def gateway(net: ipaddress.IPv4Network) -> ipaddress.IPv4Address:
    """Return the address of the machine in a lab's subnet."""
    return net[1]


def query(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Return the output of `ip -j`, an empty list if it found nothing."""
    text = run(argv, check=False).stdout.strip()
    found: list[dict[str, Any]] = json.loads(text) if text else []
    return [entry for entry in found if entry]


def links() -> list[Link]:
    """Return the interfaces of all labs on this machine."""
    found = []
    for entry in query(["ip", "-j", "link", "show"]):
        owner, *restore = entry.get("ifalias", "").split() or [""]
        number = entry["ifname"].removeprefix(INTERFACE_PREFIX)
        if owner.startswith(ALIAS_PREFIX) and number.isdigit():
            found.append(Link(int(number), owner, tuple(restore)))
    return found


def default_interfaces() -> list[str]:
    """Return the interfaces of the machine's default routes."""
    routes = query(["ip", "-j", "-4", "route", "show", "default"])
    return list(dict.fromkeys(route["dev"] for route in routes if "dev" in route))


def forwarding(interface: str) -> bool:
    """Return whether the machine forwards packets from an interface."""
    path = Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding")
    return path.exists() and path.read_text().strip() == "1"


def set_forwarding(interface: str, enabled: bool) -> None:
    """Enable or disable forwarding of packets from an interface, if it exists."""
    path = Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding")
    if path.exists():
        path.write_text("1" if enabled else "0")


def rules(table: str, interface: str, net: ipaddress.IPv4Network) -> str:
    """Return nft commands that create the lab's table, or replace it."""
    return f"""\
table ip {table}
delete table ip {table}
table ip {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        ip saddr {net} ip daddr != {net} masquerade
    }}
    chain forward {{
        type filter hook forward priority mangle;
        # The MTU of the machine's uplink may be smaller than that of the lab's bridge.
        iifname "{interface}" tcp flags syn tcp option maxseg size set rt mtu
        oifname "{interface}" tcp flags syn tcp option maxseg size set rt mtu
    }}
}}
"""


def warn_of_dropped_forwarding() -> None:
    """Warn if another nftables table drops forwarded packets, which the lab cannot override."""
    for family in ("ip", "inet"):
        chain = run(["nft", "list", "chain", family, "filter", "FORWARD"], check=False).stdout
        if "policy drop" in chain:
            say(f"the machine's table {family} filter drops forwarded packets (Docker does this):")
            say("hosts cannot reach other networks until its FORWARD chain accepts 10.213.0.0/16")
