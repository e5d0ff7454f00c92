"""TAPs: a VM's network devices on the host, and their bridge ports.

Elements of nftables sets (module antispoof) restrict each TAP to its MAC and addresses. Its alias is
`qsysd:VM:` and its port as in the unit's environment file, so that everything here can be restored
from the TAP alone.

A start and a stop run one `ip` and one `nft` each, at the same time, and read the rest from sysfs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from qsysd import paths
from qsysd.errors import HostError, QsysdError, StateError
from qsysd.paths import Scope
from qsysd.runtime import TYPE_CHECKING, antispoof, iproute, nftables, sysfs
from qsysd.runtime.ports import ALIAS_PREFIX, Port, is_interface, is_tap, parse_alias
from qsysd.runtime.unit import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TUN_DEVICE = "/dev/net/tun"

# A TAP that its QEMU changed is repaired this often, then taken off its bridge.
REPAIRS_MAX = 3

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000


def tap_mac(mac: str) -> str:
    """Return the MAC of the TAP itself: that of its NIC with fe in front, as in libvirt.

    The bridge delivers frames for a port's own MAC to the host, so it must not be a guest's.
    """
    return ("fa" if mac.startswith("fe") else "fe") + mac[2:]


def repairs(tap: str) -> int:
    """Return how often a TAP was repaired since it was created (module tampering): its device group."""
    return int(sysfs.attribute(tap, "netdev_group") or 0)


def is_cut_off(tap: str) -> bool:
    """Return whether a TAP was taken off its bridge because QEMU changed it repeatedly."""
    return repairs(tap) > REPAIRS_MAX


class Lock:
    """The lock for changes of TAPs and their anti-spoofing elements, so that both change together.

    Starts and stops of VMs share it. Writing the elements of all TAPs takes it exclusively.
    """

    def __init__(self, scope: Scope, *, exclusive: bool = False) -> None:
        os.makedirs(scope.locks_dir, mode=0o700, exist_ok=True)
        self._file = os.open(scope.lock(paths.TAPS), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH

    def __enter__(self) -> Lock:
        fcntl.flock(self._file, self._kind)
        return self

    def exclude(self) -> None:
        """Make it exclusive. Another process may have held it in between (flock(2))."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)


def plug(scope: Scope, ports: Sequence[Port], owner_uid: int, vm: str) -> None:
    """Create the VM's TAPs with their anti-spoofing, and put them on their bridges; all of them or none.

    owner_uid: the only user who may open them. A TAP that a crash left is replaced. Elements and TAPs are
    added at the same time: QEMU opens a TAP only after this returns. Raise HostError where a bridge
    or a tool is missing or the kernel refuses, StateError where an interface of that name is not qsysd's.
    """
    if not ports:
        return
    leftovers = [port.tap for port in ports if sysfs.exists(port.tap)]
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
    """Create the TAPs and add their elements; return whether nft had sets for them. Raise HostError."""
    for port in ports:
        if not sysfs.is_bridge(port.bridge):
            raise HostError(
                f"its bridge {port.bridge} does not exist",
                hint=f"systemctl restart qsysd-network@{port.network}",
            )
    adding = nftables.begin(antispoof.additions(ports))
    try:
        _connect(ports, owner_uid, vm)
    finally:
        done = adding.finish(timeout=nftables.TIMEOUT, check=False)
    return done.returncode == 0


def restore_missing_rules(scope: Scope) -> list[str]:
    """Restore rules and elements where TAPs lack them; return those TAPs. Raise HostError.

    Something flushed nftables, or an earlier version started the VM.
    """
    if not _unprotected():
        return []
    with Lock(scope, exclusive=True):
        # Not a TAP that is just being created.
        unprotected = _unprotected()
        if unprotected:
            _restore_rules(scope)
        return unprotected


def _unprotected() -> list[str]:
    """Return the TAPs without anti-spoofing rules or elements. Raise HostError."""
    taps = [found[1].tap for text in existing_taps().values() if (found := parse_alias(text))]
    return sorted(set(taps) - antispoof.protected_taps()) if taps else []


def _restore_rules(scope: Scope) -> list[Port]:
    """Restore the anti-spoofing of all TAPs and the rules of their networks; return their ports.

    Some firewalls flush all tables, and so does loading /etc/nftables.conf. The caller holds the lock
    exclusively. Raise HostError with nft's error.
    """
    ports = restore_antispoofing()
    for network in sorted({port.network for port in ports}):
        rules = scope.network_rules(network)
        if os.path.exists(rules):
            nftables.load(rules)
    return ports


def restore_antispoofing() -> list[Port]:
    """Restore the anti-spoofing rules and the elements of all TAPs on the host; return their ports.

    The caller holds the lock exclusively. Raise HostError with nft's error.
    """
    vms: dict[str, list[Port]] = {}
    for text in existing_taps().values():
        found = parse_alias(text)
        if found:
            vms.setdefault(found[0], []).append(found[1])
    nftables.run(antispoof.replacement(vms.values()))
    return [port for ports in vms.values() for port in ports]


def _connect(ports: Sequence[Port], owner_uid: int, vm: str) -> None:
    """Create the TAPs and put them on their bridges. Raise HostError."""
    for port in ports:
        _create(port.tap, owner_uid)
    # Two steps: in one, the kernel brings the interface up before it sets the address mode, and gives
    # the host an IPv6 address on it.
    iproute.batch(
        [
            f"link set dev {port.tap} alias {ALIAS_PREFIX}{vm}:{port} address {tap_mac(port.mac)}"
            " addrgenmode none"
            for port in ports
        ]
        + [f"link set dev {port.tap} master {port.bridge} up" for port in ports]
    )


def unplug(scope: Scope, ports: Sequence[Port], vm: str) -> None:
    """Remove the VM's TAPs and their anti-spoofing elements, those that still exist.

    All other TAPs of that VM are removed too: its definition may have lost a NIC while it ran. An
    interface that is not qsysd's is left alone. Raise HostError where a tool fails.
    """
    if not ports and not existing_taps():
        return  # the usual case of a VM without NICs
    with Lock(scope) as lock:
        taps = {port.tap: "" for port in ports if is_ours(port.tap)}
        known = list(ports)
        for tap, text in existing_taps().items():
            found = parse_alias(text)
            if found and (tap in taps or found[0] == vm):
                # Its elements are those of the port that it was created for, which the definition may
                # no longer have.
                taps[tap] = text
                known.append(found[1])
        if not known:
            return
        # The kernel takes some 20 ms for each, most of it waiting. Neither is of use without the other.
        removing = nftables.begin(antispoof.removals(known))
        try:
            _delete(taps)
        finally:
            done = removing.finish(timeout=nftables.TIMEOUT, check=False)
        if done.returncode != 0 and antispoof.exists():
            # The table of an earlier version has other sets.
            lock.exclude()
            restore_antispoofing()


def _delete(taps: Iterable[str]) -> None:
    """Delete TAPs, some of which may be deleted by others meanwhile. Raise HostError."""
    iproute.delete_existing(taps)
    left = [tap for tap in taps if is_ours(tap)]
    if left:
        iproute.batch([f"link delete dev {tap}" for tap in left])


def _undo(scope: Scope, ports: Sequence[Port], vm: str) -> None:
    """Remove what a failed `plug` created."""
    try:
        unplug(scope, ports, vm)
    except QsysdError as error:
        log(f"{error}")  # the caller raises the first error


def existing_taps() -> dict[str, str]:
    """Return the TAPs that qsysd created on this host, each with its alias (empty after a kill)."""
    # By alias, since root can rename a TAP. A name that ip(8) could misread is not looked at.
    names = [name for name in sysfs.interfaces() if is_interface(name) and is_ours(name)]
    return {name: sysfs.alias(name) for name in names}


def restore_names() -> list[str]:
    """Rename TAPs back that were renamed, as anti-spoofing is by name; return the names they had.

    The caller holds the lock exclusively. Raise HostError.
    """
    renamed = {
        name: found[1].tap
        for name, text in existing_taps().items()
        if (found := parse_alias(text)) and found[1].tap != name and not sysfs.exists(found[1].tap)
    }
    for name, tap in renamed.items():
        # Older kernels rename only an interface that is down.
        iproute.batch(
            [f"link set dev {name} down", f"link set dev {name} name {tap}", f"link set dev {tap} up"]
        )
    return list(renamed)


def is_ours(tap: str) -> bool:
    """Return whether the interface is a TAP that qsysd created.

    A TAP with a name of qsysd's and no alias counts: a kill can come before the alias is set.
    """
    if not sysfs.is_tun(tap):
        return False
    text = sysfs.alias(tap)
    return text.startswith(ALIAS_PREFIX) or (text == "" and is_tap(tap))


def _create(tap: str, owner_uid: int) -> None:
    """Create a persistent TAP that `owner_uid` may open. Raise HostError.

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
