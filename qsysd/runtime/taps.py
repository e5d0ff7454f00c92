"""TAPs: a VM's network devices on the host, and their bridge ports.

Each TAP is held to its MAC and addresses by elements of nftables sets (module antispoof). Its alias is
`qsysd:VM:` and its port as in the unit's environment file, so that everything here can be restored
from the TAP alone.

The helper imports this at each start and stop of a VM. So it costs one `ip` and one `nft`, reads
the rest from sysfs, and imports little: `typing` and `dataclasses` alone would cost 2 and 8 ms.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from qsysd import paths
from qsysd.errors import HostError, InvalidError, QsysdError, StateError
from qsysd.runtime import antispoof, spawn

# Read by type checkers only, as in the helper.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qsysd.paths import Scope

SYS_NET = "/sys/class/net"
TUN_DEVICE = "/dev/net/tun"
ALIAS_PREFIX = "qsysd:"

# Seconds; both take a few milliseconds, this only keeps a broken host from hanging a start.
TOOL_TIMEOUT = 20.0

# A TAP that its QEMU changed is repaired so often before it is taken off its bridge.
REPAIRS_MAX = 3

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

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
        text.startswith(paths.TAP_PREFIXES)
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


def own_mac(mac: str) -> str:
    """Return the MAC of the TAP itself, from that of its NIC: with fe in front, as libvirt does it.

    The bridge delivers frames for a port's own MAC to the host, so it must not be a guest's.
    """
    return ("fa" if mac.startswith("fe") else "fe") + mac[2:]


def repairs(tap: str) -> int:
    """Return how often a TAP was repaired since it was created (module tampering): its device group."""
    return int(attribute(tap, "netdev_group") or 0)


def is_cut_off(tap: str) -> bool:
    """Tell whether a TAP was taken off its bridge because QEMU kept on changing it."""
    return repairs(tap) > REPAIRS_MAX


class Lock:
    """Held while TAPs and their anti-spoofing elements change, so that both change together.

    VMs that start and stop share it. It is held exclusively by whoever writes the elements of all TAPs.
    """

    def __init__(self, scope: Scope, *, exclusive: bool = False) -> None:
        os.makedirs(scope.locks_dir, mode=0o700, exist_ok=True)
        self._file = os.open(scope.lock(paths.TAPS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH

    def __enter__(self) -> Lock:
        fcntl.flock(self._file, self._kind)
        return self

    def exclude(self) -> None:
        """Hold it exclusively from now on. Others may have had it in between (flock(2))."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)


def plug(scope: Scope, ports: Sequence[Port], owner_uid: int, vm: str) -> None:
    """Create the VM's TAPs with their anti-spoofing, and put them on their bridges; all of them or none.

    `owner_uid` is the one user who may open them. A TAP that a crash left over is replaced.
    Elements and TAPs are added at once: before this returns, nobody has a TAP open to send anything.
    Raises HostError where a bridge or a tool is missing or the kernel refuses, and StateError where
    the name belongs to an interface that is not qsysd's.
    """
    if not ports:
        return
    leftovers = [port.tap for port in ports if exists(port.tap)]
    for tap in leftovers:
        if not is_ours(tap):
            raise StateError(f"an interface {tap} exists that qsysd did not create")
    if leftovers:
        unplug(scope, ports, vm)
    try:
        with Lock(scope) as lock:
            if not _plug(ports, owner_uid, vm):
                lock.exclude()
                _restore_rules(scope)
    except QsysdError as error:
        _undo(scope, ports, vm)
        raise HostError(f"network {ports[0].network}: {error.message}", hint=error.hint) from error
    except BaseException:
        _undo(scope, ports, vm)
        raise


def _plug(ports: Sequence[Port], owner_uid: int, vm: str) -> bool:
    """Create the TAPs and add their elements; return whether nft had sets for them. Raises HostError."""
    for port in ports:
        if not os.path.isdir(f"{SYS_NET}/{port.bridge}/bridge"):
            raise HostError(
                f"its bridge {port.bridge} does not exist",
                hint=f"systemctl restart qsysd-network@{port.network}",
            )
    adding = antispoof.begin_add(ports)
    try:
        _connect(ports, owner_uid, vm)
    finally:
        done = adding.finish(timeout=TOOL_TIMEOUT, check=False)
    return done.returncode == 0


def restore_flushed(scope: Scope) -> list[str]:
    """Restore what was flushed while VMs run; return their TAPs, none where nothing was. Raises HostError."""
    if not existing_taps() or antispoof.exists():
        return []
    with Lock(scope, exclusive=True):
        return [] if antispoof.exists() else [port.tap for port in _restore_rules(scope)]


def _restore_rules(scope: Scope) -> list[Port]:
    """Restore the anti-spoofing of all TAPs and the rules of their networks; return their ports.

    Some firewalls flush all tables, and so does /etc/nftables.conf when it is loaded by hand. The caller
    holds the lock exclusively. Raises HostError, also where nft failed for another reason than that.
    """
    ports = hold_all()
    for network in sorted({port.network for port in ports}):
        rules = scope.network_rules(network)
        if os.path.exists(rules):
            antispoof.load(rules)
    return ports


def hold_all() -> list[Port]:
    """Put the anti-spoofing of all TAPs on the host in place, and nothing else; return their ports.

    The caller holds the lock exclusively. Raises HostError with nft's own words.
    """
    vms: dict[str, list[Port]] = {}
    for text in existing_taps().values():
        found = parse_alias(text)
        if found:
            vms.setdefault(found[0], []).append(found[1])
    antispoof.replace(vms.values())
    return [port for ports in vms.values() for port in ports]


def _connect(ports: Sequence[Port], owner_uid: int, vm: str) -> None:
    """Create the TAPs and put them on their bridges. Raises HostError."""
    for port in ports:
        _create(port.tap, owner_uid)
    # Two steps: were it one, the kernel would bring the device up before it takes the
    # address mode, and give the host an IPv6 address on the guest's wire.
    ip_batch(
        [
            f"link set dev {port.tap} alias {ALIAS_PREFIX}{vm}:{port} address {own_mac(port.mac)}"
            " addrgenmode none"
            for port in ports
        ]
        + [f"link set dev {port.tap} master {port.bridge} up" for port in ports]
    )


def unplug(scope: Scope, ports: Sequence[Port], vm: str) -> None:
    """Remove the VM's TAPs and their anti-spoofing elements; quiet about what no longer exists.

    It removes all other TAPs of that VM too: its definition may have lost a NIC while it ran. An
    interface that is not qsysd's is left alone. Raises HostError where a tool fails.
    """
    if not ports and not existing_taps():
        return  # the usual case of a VM without NICs
    with Lock(scope):
        taps = {port.tap: "" for port in ports if is_ours(port.tap)}
        known = list(ports)
        for tap, text in existing_taps().items():
            found = parse_alias(text)
            if found and (tap in taps or found[0] == vm):
                # What it may send is what it was plugged in with, whatever its definition says now.
                taps[tap] = text
                known.append(found[1])
        # The kernel takes some 20 ms for each, most of it waiting. Neither is of use without the other.
        removing = antispoof.begin_remove(known)
        try:
            _delete(taps)
        finally:
            if removing:
                antispoof.finish_remove(removing)


def _delete(taps: Iterable[str]) -> None:
    """Delete TAPs, of which some may go by themselves meanwhile. Raises HostError."""
    text = "".join(f"link delete dev {tap}\n" for tap in taps)
    if text:
        # One may go between the look and the command: -force goes on, and the look is repeated.
        spawn.run(["ip", "-force", "-batch", "-"], stdin=text, timeout=TOOL_TIMEOUT, check=False)
    left = [tap for tap in taps if is_ours(tap)]
    if left:
        ip_batch([f"link delete dev {tap}" for tap in left])


def _undo(scope: Scope, ports: Sequence[Port], vm: str) -> None:
    """Remove what a failed `plug` created."""
    try:
        unplug(scope, ports, vm)
    except QsysdError as error:
        print(f"{error}", file=sys.stderr)  # the error under way matters more than this second one


def existing_taps() -> dict[str, str]:
    """Return the TAPs that qsysd created on this host, each with its alias (`` if it was cut short)."""
    # Found by its alias: root can rename it. A name that ip(8) could misread is nobody's whom it concerns.
    names = [name for name in sorted(os.listdir(SYS_NET)) if is_bridge(name) and is_ours(name)]
    return {name: alias(name) for name in names}


def restore_names() -> list[str]:
    """Rename TAPs back that were renamed: their anti-spoofing is by name; return what they were named.

    The caller holds the lock exclusively. Raises HostError.
    """
    renamed = {
        name: found[1].tap
        for name, text in existing_taps().items()
        if (found := parse_alias(text)) and found[1].tap != name and not exists(found[1].tap)
    }
    for name, tap in renamed.items():
        # Older kernels rename only what is down.
        ip_batch([f"link set dev {name} down", f"link set dev {name} name {tap}", f"link set dev {tap} up"])
    return list(renamed)


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
    return attribute(interface, "ifalias")


def attribute(interface: str, name: str) -> str:
    """Return what sysfs shows of an interface, or an empty text (it may have been removed meanwhile)."""
    try:
        with open(f"{SYS_NET}/{interface}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def is_ours(tap: str) -> bool:
    """Tell whether the interface is a TAP that qsysd created.

    One with a name of qsysd's and without any alias is: a kill can come before the alias is set.
    """
    if not os.path.exists(f"{SYS_NET}/{tap}/tun_flags"):
        return False
    text = alias(tap)
    return text.startswith(ALIAS_PREFIX) or (text == "" and is_tap(tap))


def _create(tap: str, owner_uid: int) -> None:
    """Create a persistent TAP that `owner_uid` may open. Raises HostError.

    QEMU asks for the virtio-net header when it opens the TAP, so it is created with it.
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
        why = "it already exists" if error.errno == errno.EBUSY else error.strerror
        raise HostError(f"cannot create the TAP {tap}: {why}") from error
    finally:
        os.close(tun)


def ip_batch(commands: Sequence[str]) -> None:
    """Run ip(8) commands in one process, up to the first that fails.

    Raises HostError with the command and the kernel's answer.
    """
    text = "".join(f"{line}\n" for line in commands)
    done = spawn.run(["ip", "-batch", "-"], stdin=text, timeout=TOOL_TIMEOUT, check=False)
    if done.returncode == 0:
        return
    import re

    # ip ends with "Command failed -:3"; what the kernel said is in the lines before.
    failed = re.search(r"Command failed -:(\d+)", done.stderr)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    words = "; ".join(line for line in lines if not line.startswith("Command failed")) or "no reason given"
    number = int(failed[1]) - 1 if failed else 0
    raise HostError(f"ip {commands[number]}: {words}")
