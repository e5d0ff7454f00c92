"""TAPs: a VM's network devices on the host, their bridge ports and their guards.

A guard is an nftables table of its own for each TAP (family netdev, hook ingress: nft(8)). It holds
the guest to its MAC and, where the network gave it an address, to that: no frame in another's
name, no DHCP service, no IPv6 router, no VLAN tag reaches the bridge.

A TAP's alias says what it is for, `qsysd:VM:` and its port as in the unit's environment file, so
that everything here can be made good again by somebody who finds only the TAP.

The helper imports this at each start and stop of a VM. So it costs one `ip` and one `nft`, reads
the rest from sysfs, and imports little: `typing` and `dataclasses` alone would cost 2 and 8 ms.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterable, Sequence

from qsysd import process
from qsysd.errors import HostError, InvalidError, QsysdError, StateError

SYS_NET = "/sys/class/net"
TUN_DEVICE = "/dev/net/tun"
ALIAS_PREFIX = "qsysd:"

# Seconds; both take a few milliseconds, this only keeps a broken host from hanging a start.
TOOL_TIMEOUT = 20.0

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

NAME = "[a-z][a-z0-9-]{0,27}"
TAP = re.compile(r"qv[-_][a-z0-9-]{1,12}")
MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
# A bridge may be the administrator's own: any name that is neither an option nor a path.
BRIDGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
NETWORK = re.compile(NAME)
ALIAS = re.compile(rf"{ALIAS_PREFIX}({NAME})?:(.+)")


class Port:
    """One NIC's place on the host: its TAP, MAC, bridge, network, and address if it is held to one."""

    __slots__ = ("address", "bridge", "mac", "network", "tap")

    def __init__(self, tap: str, mac: str, bridge: str, network: str, address: str | None = None) -> None:
        self.tap = tap
        self.mac = mac
        self.bridge = bridge
        self.network = network
        self.address = address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Port) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return ",".join((self.tap, self.mac, self.bridge, self.network, self.address or "-"))

    __repr__ = __str__


def is_address(text: str) -> bool:
    """Tell whether `text` is an IPv4 address in the usual form, without leading zeros."""
    parts = text.split(".")
    return len(parts) == 4 and all(
        part.isascii() and part.isdigit() and str(int(part)) == part and int(part) < 256 for part in parts
    )


def parse_ports(text: str) -> list[Port]:
    """Return the ports that QSYSD_NICS describes: `tap,mac,bridge,network,address;…`, `-` for no address.

    Raises InvalidError on anything that `format_ports` would not have written: the text ends up in
    commands that root runs.
    """
    ports = [_parse_port(part) for part in text.split(";")] if text else []
    names = [port.tap for port in ports]
    if len(set(names)) != len(names):
        raise InvalidError("QSYSD_NICS: two NICs have the same TAP")
    return ports


def _parse_port(text: str) -> Port:
    """Return the port that one part of QSYSD_NICS describes; raise InvalidError."""
    fields = text.split(",")
    if len(fields) != 5:
        raise InvalidError(f"QSYSD_NICS: not tap,mac,bridge,network,address: {text!r}")
    tap, mac, bridge, network, address = fields
    for what, pattern, value in (
        ("TAP", TAP, tap),
        ("MAC", MAC, mac),
        ("bridge", BRIDGE, bridge),
        ("network", NETWORK, network),
    ):
        if not pattern.fullmatch(value):
            raise InvalidError(f"QSYSD_NICS: not a {what}: {value!r}")
    if address != "-" and not is_address(address):
        raise InvalidError(f"QSYSD_NICS: not an IPv4 address: {address!r}")
    return Port(tap, mac, bridge, network, None if address == "-" else address)


def format_ports(ports: Iterable[Port]) -> str:
    """Return the ports as one text, as `parse_ports` reads it."""
    return ";".join(map(str, ports))


def plug(ports: Sequence[Port], owner_uid: int, vm: str = "") -> None:
    """Make the VM's TAPs, guard them, and put them on their bridges; all of them or none.

    `owner_uid` is the one user who may open them. A TAP that a crash left over is replaced.
    A TAP joins its bridge only when its guard is in place.
    Raises HostError where a bridge or a tool is missing or the kernel refuses, and StateError where
    the name belongs to an interface that is not qsysd's.
    """
    if not ports:
        return
    for port in ports:
        if not os.path.isdir(f"{SYS_NET}/{port.bridge}/bridge"):
            raise HostError(
                f"network {port.network}: its bridge {port.bridge} is not there",
                hint=f"systemctl restart qsysd-network@{port.network}",
            )
    leftovers = [port.tap for port in ports if exists(port.tap)]
    for tap in leftovers:
        if not is_ours(tap):
            raise StateError(f"an interface {tap} is there that qsysd did not make")
    if leftovers:
        ip_batch([f"link delete dev {tap}" for tap in leftovers])
    try:
        for port in ports:
            _create(port.tap, owner_uid)
        _guard_new(ports)
        # Two steps: were it one, the kernel would bring the device up before it takes the
        # address mode, and give the host an IPv6 address on the guest's wire.
        ip_batch(
            [f"link set dev {port.tap} alias {ALIAS_PREFIX}{vm}:{port} addrgenmode none" for port in ports]
            + [f"link set dev {port.tap} master {port.bridge} up" for port in ports]
        )
    except QsysdError as error:
        _undo(ports)
        raise HostError(f"network {ports[0].network}: {error.message}", hint=error.hint) from error
    except BaseException:
        _undo(ports)
        raise


def unplug(ports: Sequence[Port]) -> None:
    """Remove the TAPs and their guards; what is not there any more is passed over quietly.

    An interface that is not qsysd's is left alone. Raises HostError where a tool fails.
    """
    if not ports:
        return
    # The TAP goes first: while it lives, it is guarded.
    present = [port.tap for port in ports if is_ours(port.tap)]
    if present:
        # It may go between the look and the command: -force goes on, and the look is repeated.
        process.run(
            ["ip", "-force", "-batch", "-"],
            stdin="".join(f"link delete dev {tap}\n" for tap in present),
            timeout=TOOL_TIMEOUT,
            check=False,
        )
        for tap in present:
            if is_ours(tap):
                ip_batch([f"link delete dev {tap}"])
    nft("".join(_no_guard(port.tap) for port in ports))


def _guard_new(ports: Sequence[Port]) -> None:
    """Guard TAPs that were made just now.

    To replace a guard means to delete one, for which the kernel waits 15 ms longer: so that is left
    for the rare host on which a crash left one.
    """
    try:
        nft("".join(f"create table netdev {guard_table(port.tap)}\n{_guard_table(port)}" for port in ports))
    except HostError:
        nft("".join(guard(port) for port in ports))


def _undo(ports: Sequence[Port]) -> None:
    """Remove what a failed `plug` made; the error under way matters more than a second one."""
    with contextlib.suppress(QsysdError):
        unplug(ports)


def existing_taps() -> dict[str, str]:
    """Return the TAPs that qsysd made on this host, each with its alias (`` if it was cut short)."""
    names = [name for name in sorted(os.listdir(SYS_NET)) if TAP.fullmatch(name)]
    return {name: alias(name) for name in names if is_ours(name)}


def parse_alias(text: str) -> tuple[str, Port] | None:
    """Return the VM and the port that a TAP's alias describes, or None if it is not qsysd's."""
    match = ALIAS.fullmatch(text)
    try:
        return (match[1] or "", _parse_port(match[2])) if match else None
    except InvalidError:
        return None


def exists(interface: str) -> bool:
    """Tell whether the host has this interface."""
    return os.path.exists(f"{SYS_NET}/{interface}")


def alias(interface: str) -> str:
    """Return the interface's alias, or an empty text."""
    try:
        with open(f"{SYS_NET}/{interface}/ifalias", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def is_ours(tap: str) -> bool:
    """Tell whether the interface is a TAP that qsysd made.

    One without any alias is: the name is qsysd's, and a kill can come before the alias is set.
    """
    if not os.path.exists(f"{SYS_NET}/{tap}/tun_flags"):
        return False
    return (alias(tap) or ALIAS_PREFIX).startswith(ALIAS_PREFIX)


def _create(tap: str, owner_uid: int) -> None:
    """Make a persistent TAP that `owner_uid` may open. Raises HostError.

    QEMU asks for the virtio-net header when it opens the TAP, so it is made with it.
    """
    try:
        tun = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {TUN_DEVICE}: {error.strerror}", hint="modprobe tun") from error
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", tap.encode(), flags))
        fcntl.ioctl(tun, TUNSETOWNER, owner_uid)
        fcntl.ioctl(tun, TUNSETPERSIST, 1)
    except OSError as error:
        why = "it is there already" if error.errno == errno.EBUSY else error.strerror
        raise HostError(f"cannot make the TAP {tap}: {why}") from error
    finally:
        os.close(tun)


def guard_table(tap: str) -> str:
    """Return the name of a TAP's nftables table (family netdev)."""
    return f"qsysd_{tap}"


def _no_guard(tap: str) -> str:
    """Return nft commands that remove a TAP's guard, whether it is there or not.

    nft has `destroy` for this only from 1.0.7 on a kernel from 6.3 on. The table is deleted whole:
    a kernel before 6.16 has dropped the chain along with the device, a later one has kept it.
    """
    table = guard_table(tap)
    return f"add table netdev {table}\ndelete table netdev {table}\n"


def guard(port: Port) -> str:
    """Return nft commands that put a port's guard in place, in the stead of an older one."""
    return _no_guard(port.tap) + _guard_table(port)


def _guard_table(port: Port) -> str:
    """Return a port's guard as nft reads it."""
    rules = [
        # Tagged frames first: behind a tag, the kernel would look for the addresses elsewhere.
        "ether type { 8021q, 8021ad } drop",
        f"ether saddr != {port.mac} drop",
    ]
    if port.address is None:
        # Frames for the bridge itself (STP and its kin): a bridge without STP would pass them on.
        rules.append("ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop")
    else:
        rules += [
            # 0.0.0.0 is how a guest asks whether its address is free (RFC 5227).
            f"arp htype 1 arp ptype ip arp saddr ether {port.mac}"
            f" arp saddr ip {{ 0.0.0.0, {port.address} }} accept",
            "ether type ip udp sport 67 drop",
            f"ether type ip ip saddr {port.address} accept",
            "ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        ]
    policy = "accept" if port.address is None else "drop"
    return (
        f"table netdev {guard_table(port.tap)} {{\n"
        + "\tchain ingress {\n"
        + f'\t\ttype filter hook ingress device "{port.tap}" priority -500; policy {policy};\n'
        + "".join(f"\t\t{rule}\n" for rule in rules)
        + "\t}\n}\n"
    )


def guarded() -> set[str]:
    """Return the TAPs that have a guard. Raises HostError where nft fails."""
    done = process.run(["nft", "list", "tables", "netdev"], timeout=TOOL_TIMEOUT, check=False)
    if done.returncode != 0:
        raise HostError(f"nft: {process.last_words(done.stderr)}")
    tables = {line.split()[-1] for line in done.stdout.splitlines() if line.strip()}
    return {name.removeprefix("qsysd_") for name in tables if name.startswith("qsysd_")}


def ip_batch(commands: Sequence[str]) -> None:
    """Run ip(8) commands in one process, up to the first that fails.

    Raises HostError with the command and the kernel's answer.
    """
    text = "".join(f"{line}\n" for line in commands)
    done = process.run(["ip", "-batch", "-"], stdin=text, timeout=TOOL_TIMEOUT, check=False)
    if done.returncode == 0:
        return
    # ip ends with "Command failed -:3"; what the kernel said is in the lines before.
    failed = re.search(r"Command failed -:(\d+)", done.stderr)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    words = "; ".join(line for line in lines if not line.startswith("Command failed")) or "no reason given"
    number = int(failed[1]) - 1 if failed else 0
    raise HostError(f"ip {commands[number]}: {words}")


def nft(commands: str) -> None:
    """Run nft(8) commands as one transaction. Raises HostError with nft's own words."""
    done = process.run(["nft", "-f", "-"], stdin=commands, timeout=TOOL_TIMEOUT, check=False)
    if done.returncode != 0:
        errors = [line.strip() for line in done.stderr.splitlines() if "Error:" in line]
        words = "; ".join(errors) or process.last_words(done.stderr) or f"exit status {done.returncode}"
        raise HostError(f"nft: {words}")
