"""TAPs that their QEMU changed: detected from sysfs alone, and repaired.

The holder of a TAP's descriptor can change the MAC and the owner of the TAP itself without privileges
(SIOCSIFHWADDR and TUNSETOWNER of drivers/net/tun.c). QEMU never does; a compromised QEMU can:

MAC     The bridge delivers frames for the MAC of a port to the host. With another guest's MAC, that guest
        receives nothing. (Anti-spoofing does not deliver its frames to the wrong TAP.)
owner   Another local user could open the TAP after QEMU has closed it, and send as this VM.

Both follow from the TAP's alias, which only root can change, and the owner of the VM's sockets. The
repairs are counted in the TAP's device group (ip-link(8)): after some, it is taken off its bridge.
"""

from __future__ import annotations

import fcntl
import os

from qsysd.errors import QsysdError
from qsysd.paths import Scope
from qsysd.runtime import TYPE_CHECKING, iproute, sysfs, taps
from qsysd.runtime.ports import Port, parse_alias

if TYPE_CHECKING:
    from collections.abc import Iterator

TUNGETIFF = 0x800454D2
# The number is the same on all architectures (asm-generic/unistd.h).
SYS_PIDFD_GETFD = 438
# NET_ADDR_RANDOM of sysfs-class-net: the MAC was never set, as in a TAP of an older qsysd.
RANDOM = "1"


class Change:
    """A TAP that was changed. `mac`, `owner`: the present values, None where unchanged."""

    __slots__ = ("expected_owner", "mac", "owner", "port", "vm")

    def __init__(self, vm: str, port: Port) -> None:
        self.vm = vm
        self.port = port
        self.mac: str | None = None
        self.owner: int | None = None
        self.expected_owner = -1

    def __str__(self) -> str:
        changes = [f"MAC {self.mac}"] if self.mac else []
        if self.owner is not None:
            changes.append(f"owner {self.owner}")
        return f"{self.port.tap}: the QEMU of {self.vm} set the {' and the '.join(changes)}"


def check(scope: Scope) -> Iterator[str]:
    """Restore TAPs that QEMU changed, and rules that somebody flushed; yield a line for each."""
    restored = taps.restore_missing_rules(scope)
    if restored:
        yield f"restored the missing anti-spoofing rules of {', '.join(restored)}"
    yield from repair(scope)


def find(scope: Scope) -> list[Change]:
    """Return the TAPs on this host that were changed."""
    found = []
    for tap, alias in taps.existing_taps().items():
        known = parse_alias(alias)
        if not known:
            continue
        change = Change(*known)
        mac = sysfs.attribute(tap, "address")
        if (
            mac not in ("", taps.tap_mac(change.port.mac))
            and sysfs.attribute(tap, "addr_assign_type") != RANDOM
        ):
            change.mac = mac
        owner = sysfs.attribute(tap, "owner")
        try:
            change.expected_owner = os.stat(scope.runtime(change.vm)).st_uid
        except FileNotFoundError:
            owner = ""  # the VM has just stopped
        if owner and int(owner) != change.expected_owner:
            change.owner = int(owner)
        if change.mac or change.owner is not None:
            found.append(change)
    return found


def repaired() -> list[tuple[str, str]]:
    """Return the VMs and TAPs that were repaired since they were started."""
    known = ((parse_alias(alias), tap) for tap, alias in taps.existing_taps().items())
    return [(found[0], tap) for found, tap in known if found and taps.repairs(tap)]


def repair(scope: Scope) -> Iterator[str]:
    """Restore the TAPs that were changed; yield a line about each, for the journal."""
    if not find(scope):
        return
    # Not during a start or a stop, which create and remove TAPs in several steps.
    with taps.Lock(scope, exclusive=True):
        for change in find(scope):
            try:
                yield f"{change}; {_repair(change)}"
            except (QsysdError, OSError) as error:  # the TAPs of the other VMs are repaired
                yield f"{change}; it could not be repaired: {error}"


def _repair(change: Change) -> str:
    """Restore one TAP; return what was done. Raise HostError."""
    tap = change.port.tap
    restored = change.owner is None or _restore_owner(change)
    count = taps.repairs(tap) + 1 if restored else taps.REPAIRS_MAX + 1
    # The bridge's own entry for the port follows its MAC.
    commands = [f"link set dev {tap} address {taps.tap_mac(change.port.mac)} group {count}"]
    cut_off = count > taps.REPAIRS_MAX
    if cut_off:
        commands.append(f"link set dev {tap} nomaster")
    iproute.batch(commands)
    if change.mac:
        _restore_entry(change.mac)
    if cut_off:
        return f"it was taken off the network {change.port.network} until the VM is started again"
    return "both were restored" if change.mac and change.owner is not None else "it was restored"


def _restore_entry(mac: str) -> None:
    """Set the bridge's entry for a guest's MAC, which it otherwise learns from the guest's next frame."""
    for alias in taps.existing_taps().values():
        known = parse_alias(alias)
        if known and known[1].mac == mac:
            iproute.set_bridge_entry(mac, known[1].tap)


def _restore_owner(change: Change) -> bool:
    """Restore the TAP's owner through a copy of QEMU's descriptor: nobody else can attach to the TAP.

    Return False where no process of the VM has it open.
    """
    for pid in _processes(change.vm):
        for number in _descriptors(pid):
            tun = _copy(pid, number)
            if tun is not None:
                try:
                    _set_owner(tun, change.port.tap, change.expected_owner)
                finally:
                    os.close(tun)
    return sysfs.attribute(change.port.tap, "owner") == str(change.expected_owner)


def _set_owner(tun: int, tap: str, owner: int) -> None:
    """Set the owner of a TAP if the descriptor is one of that TAP."""
    request = bytearray(40)
    try:
        fcntl.ioctl(tun, TUNGETIFF, request)
    except OSError:
        return  # QEMU may have opened the device without attaching to a TAP, or its path only (O_PATH)
    if request[:16].rstrip(b"\0") == tap.encode():
        fcntl.ioctl(tun, taps.TUNSETOWNER, owner)


def _processes(vm: str) -> Iterator[int]:
    """Yield the processes in the control group of a VM's unit, in whichever slice it is.

    A container may run a VM of the same name, in another network namespace.
    """
    here = os.readlink("/proc/thread-self/ns/net")
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cgroup", encoding="utf-8", errors="replace") as file:
                groups = file.read().split("\n")
            mine = any(f"/qemu-vm@{vm}.service/" in f"{group}/" for group in groups)
            if not mine or os.readlink(f"/proc/{entry}/ns/net") != here:
                continue
        except OSError:
            continue  # it has exited
        yield int(entry)


def _descriptors(pid: int) -> Iterator[int]:
    """Yield the descriptors of a process that were opened from /dev/net/tun."""
    device = os.stat(taps.TUN_DEVICE).st_rdev
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return  # it has exited
    for entry in entries:
        try:
            if os.stat(f"/proc/{pid}/fd/{entry}").st_rdev == device:
                yield int(entry)
        except OSError:
            continue  # it was closed


def _copy(pid: int, number: int) -> int | None:
    """Return a copy of another process's descriptor (pidfd_getfd(2)), or None if it was closed."""
    import ctypes

    try:
        process_descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        copy: int = libc.syscall(SYS_PIDFD_GETFD, process_descriptor, number, 0)
        return copy if copy >= 0 else None
    finally:
        os.close(process_descriptor)
