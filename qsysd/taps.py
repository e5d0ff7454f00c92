"""TAPs: a VM's network devices on the host, their bridge ports and their guards.

A guard holds a guest to its MAC and, where the network gave it an address, to that: no frame in
another's name, no DHCP service, no IPv6 router, no VLAN tag gets past its bridge port. All guards are
one nftables table (family bridge: nft(8)): rules that never change, and sets of what each TAP may
say. A TAP that is in no set may say nothing. So to guard one more is to add an element, which
takes the same 4 ms on a host of one VM and of a thousand, and twenty at once get along; a table or
chain for each TAP does not bear that, since nft reads all of them for each change.

A TAP's alias says what it is for, `qsysd:VM:` and its port as in the unit's environment file, so
that everything here can be made good again by somebody who finds only the TAP.

The helper imports this at each start and stop of a VM. So it costs one `ip` and one `nft`, reads
the rest from sysfs, and imports little: `typing` and `dataclasses` alone would cost 2 and 8 ms.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from qsysd import paths, process
from qsysd.errors import HostError, InvalidError, QsysdError, StateError

# Read by type checkers only, as in the helper.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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

TAP_PREFIXES = ("qv-", "qv_")
GUARD_TABLE = "bridge qsysd"
NFT = ("nft", "-f", "-")

# Sets of characters in the place of `re`, which takes longer to import than all that is checked here.
_HEXADECIMAL = frozenset("0123456789abcdef")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_BRIDGE = _WORD | frozenset(".-")


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


def is_tap(text: str) -> bool:
    """Tell whether `text` has the form of a TAP's name: `qv-` or `qv_`, and 1 to 12 characters of a name."""
    return (
        text.startswith(TAP_PREFIXES)
        and 3 < len(text) <= paths.INTERFACE_NAME_MAX
        and _NAME.issuperset(text[3:])
    )


def is_mac(text: str) -> bool:
    """Tell whether `text` is a MAC of one machine (no multicast), in small letters with colons."""
    parts = text.split(":")
    return (
        len(parts) == 6
        and all(len(part) == 2 and _HEXADECIMAL.issuperset(part) for part in parts)
        and parts[0][1] in "02468ace"
    )


def is_bridge(text: str) -> bool:
    """Tell whether `text` can name a bridge: also an administrator's own, but no option and no path."""
    return 0 < len(text) <= paths.INTERFACE_NAME_MAX and text[0] in _WORD and _BRIDGE.issuperset(text)


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
    for what, is_one, value in (
        ("TAP", is_tap, tap),
        ("MAC", is_mac, mac),
        ("bridge", is_bridge, bridge),
        ("network", paths.is_name, network),
    ):
        if not is_one(value):
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
    Guards and TAPs are made at once: before this returns, nobody has a TAP open to send anything.
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
        unplug([port for port in ports if port.tap in leftovers])
    try:
        guarding = _begin_guard(ports)
        try:
            _connect(ports, owner_uid, vm)
        finally:
            done = guarding.finish(timeout=TOOL_TIMEOUT, check=False)
        _finish_guard(done, ports)
    except QsysdError as error:
        _undo(ports)
        raise HostError(f"network {ports[0].network}: {error.message}", hint=error.hint) from error
    except BaseException:
        _undo(ports)
        raise


def _connect(ports: Sequence[Port], owner_uid: int, vm: str) -> None:
    """Make the TAPs and put them on their bridges. Raises HostError."""
    for port in ports:
        _create(port.tap, owner_uid)
    # Two steps: were it one, the kernel would bring the device up before it takes the
    # address mode, and give the host an IPv6 address on the guest's wire.
    ip_batch(
        [f"link set dev {port.tap} alias {ALIAS_PREFIX}{vm}:{port} addrgenmode none" for port in ports]
        + [f"link set dev {port.tap} master {port.bridge} up" for port in ports]
    )


def unplug(ports: Sequence[Port], vm: str = "") -> None:
    """Remove the TAPs and their guards; what is not there any more is passed over quietly.

    With `vm` it removes all other TAPs of that VM too: its definition may have lost a NIC while it
    ran. An interface that is not qsysd's is left alone. Raises HostError where a tool fails.
    """
    taps = {port.tap: "" for port in ports if is_ours(port.tap)}
    known = list(ports)
    for tap, text in existing_taps().items() if vm else ((tap, alias(tap)) for tap in taps):
        found = parse_alias(text)
        if found and (tap in taps or found[0] == vm):
            # What it may say is what it was plugged in with, whatever its definition says now.
            taps[tap] = text
            known.append(found[1])
    # The kernel takes some 20 ms for each, most of it waiting. Neither is of use without the other.
    expelling = _expel(dict.fromkeys(known))
    try:
        _delete(taps)
    finally:
        if expelling:
            _expelled(expelling)


def _delete(taps: Iterable[str]) -> None:
    """Delete TAPs, of which some may go by themselves meanwhile. Raises HostError."""
    text = "".join(f"link delete dev {tap}\n" for tap in taps)
    if text:
        # One may go between the look and the command: -force goes on, and the look is repeated.
        process.run(["ip", "-force", "-batch", "-"], stdin=text, timeout=TOOL_TIMEOUT, check=False)
    left = [tap for tap in taps if is_ours(tap)]
    if left:
        ip_batch([f"link delete dev {tap}" for tap in left])


def _undo(ports: Sequence[Port]) -> None:
    """Remove what a failed `plug` made."""
    try:
        unplug(ports)
    except QsysdError as error:
        print(f"{error}", file=sys.stderr)  # the error under way matters more than this second one


def existing_taps() -> dict[str, str]:
    """Return the TAPs that qsysd made on this host, each with its alias (`` if it was cut short)."""
    names = [name for name in sorted(os.listdir(SYS_NET)) if is_tap(name)]
    return {name: alias(name) for name in names if is_ours(name)}


def parse_alias(text: str) -> tuple[str, Port] | None:
    """Return the VM and the port that a TAP's alias describes, or None if it is not qsysd's."""
    vm, _, port = text.removeprefix(ALIAS_PREFIX).partition(":")
    if not text.startswith(ALIAS_PREFIX) or not (vm == "" or paths.is_name(vm)):
        return None
    try:
        return vm, _parse_port(port)
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


def guard_rules() -> str:
    """Return nft commands that put the rules of all guards in place; who is guarded stays as it is."""
    commands = [
        f"add table {GUARD_TABLE}",
        # What a TAP may say: with which MAC, as whom; 0.0.0.0 is who has no address yet.
        f"add set {GUARD_TABLE} held {{ type ifname . ether_addr . ipv4_addr; }}",
        # Without an address of its network's: anything, with its MAC.
        f"add set {GUARD_TABLE} free {{ type ifname . ether_addr; }}",
        f"add chain {GUARD_TABLE} guest",
        f"add chain {GUARD_TABLE} prerouting {{ type filter hook prerouting priority -300; }}",
        f"flush chain {GUARD_TABLE} guest",
        f"flush chain {GUARD_TABLE} prerouting",
    ]
    commands += [
        f'add rule {GUARD_TABLE} prerouting iifname "{prefix}*" jump guest' for prefix in TAP_PREFIXES
    ]
    rules = [
        # Tagged frames first: behind a tag, the kernel would look for the addresses elsewhere.
        "ether type { 8021q, 8021ad } drop",
        # Spanning tree: a bridge that does not take part in it passes it on.
        "ether daddr 01:80:c2:00:00:00 drop",
        "iifname . ether saddr @free accept",
        # 0.0.0.0 is how a guest asks whether its address is free (RFC 5227).
        "arp htype 1 arp ptype ip iifname . ether saddr . arp saddr ip @held"
        " iifname . arp saddr ether . arp saddr ip @held accept",
        "ether type ip udp sport 67 drop",
        "ether type ip iifname . ether saddr . ip saddr @held ip saddr != 0.0.0.0 accept",
        "ether type ip iifname . ether saddr . ip saddr @held"
        " ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        "drop",
    ]
    return "\n".join(commands + [f"add rule {GUARD_TABLE} guest {rule}" for rule in rules]) + "\n"


def _elements(port: Port) -> str:
    """Return the set of a port's guard and what is in it for that port, as nft reads them."""
    if port.address is None:
        return f'free {{ "{port.tap}" . {port.mac} }}'
    who = f'"{port.tap}" . {port.mac}'
    return f"held {{ {who} . {port.address}, {who} . 0.0.0.0 }}"


def guard(ports: Iterable[Port]) -> None:
    """Let these ports say what is theirs, and nothing else; the rules are made anew with it.

    Raises HostError with nft's own words.
    """
    nft(guard_rules() + _added(ports))


def _added(ports: Iterable[Port]) -> str:
    return "".join(f"add element {GUARD_TABLE} {_elements(port)}\n" for port in ports)


def _begin_guard(ports: Iterable[Port]) -> process.Running:
    """Begin to let these ports say what is theirs. Raises HostError without nft."""
    return process.Running(NFT, stdin=_added(ports))


def _finish_guard(done: process.Done, ports: Iterable[Port]) -> None:
    """See to it that nft, which has ended, did what `_begin_guard` asked for. Raises HostError."""
    if done.returncode != 0:
        # The rules may be gone: some firewalls flush all tables. If not, this fails as well.
        guard(ports)


def _expel(ports: Iterable[Port]) -> process.Running | None:
    """Begin to take from these ports what they may say.

    nft has `destroy` for that only from 1.0.7 on a kernel from 6.3 on, so it is added and deleted.
    """
    text = "".join(
        f"{verb} element {GUARD_TABLE} {_elements(port)}\n" for port in ports for verb in ("add", "delete")
    )
    return process.Running(NFT, stdin=text) if text else None


def _expelled(expelling: process.Running) -> None:
    """Wait until it is done; quiet where there was nothing to take. Raises HostError."""
    try:
        _nft_words(expelling.finish(timeout=TOOL_TIMEOUT, check=False))
    except HostError:
        if guard_is_there():
            raise


def guard_is_there() -> bool:
    """Tell whether the host has the guards' table. Raises HostError where nft fails."""
    return f"table {GUARD_TABLE}" in nft("list tables bridge\n").splitlines()


def guarded() -> set[str]:
    """Return the TAPs that a guard lets say something. Raises HostError where nft fails."""
    import re

    if not guard_is_there():
        return set()
    return set(re.findall(r'"([^"*]+)" \.', nft(f"list table {GUARD_TABLE}\n")))


def remove_guards() -> None:
    """Remove the guards' table, when the last of qsysd's bridges is gone. Raises HostError."""
    nft(f"add table {GUARD_TABLE}\ndelete table {GUARD_TABLE}\n")


def ip_batch(commands: Sequence[str]) -> None:
    """Run ip(8) commands in one process, up to the first that fails.

    Raises HostError with the command and the kernel's answer.
    """
    text = "".join(f"{line}\n" for line in commands)
    done = process.run(["ip", "-batch", "-"], stdin=text, timeout=TOOL_TIMEOUT, check=False)
    if done.returncode == 0:
        return
    import re

    # ip ends with "Command failed -:3"; what the kernel said is in the lines before.
    failed = re.search(r"Command failed -:(\d+)", done.stderr)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    words = "; ".join(line for line in lines if not line.startswith("Command failed")) or "no reason given"
    number = int(failed[1]) - 1 if failed else 0
    raise HostError(f"ip {commands[number]}: {words}")


def nft(commands: str) -> str:
    """Run nft(8) commands as one transaction and return what they list.

    Raises HostError with nft's own words.
    """
    return _nft_words(process.run(NFT, stdin=commands, timeout=TOOL_TIMEOUT, check=False))


def _nft_words(done: process.Done) -> str:
    if done.returncode != 0:
        errors = [line.strip() for line in done.stderr.splitlines() if "Error:" in line]
        words = "; ".join(errors) or process.last_words(done.stderr) or f"exit status {done.returncode}"
        raise HostError(f"nft: {words}")
    return done.stdout
