"""The names of the host's interfaces: the TAP of each NIC, the bridge of each network."""

from __future__ import annotations

from qsysd import paths
from qsysd.digests import sha256_digits


def _interface(prefix: str, name: str, suffix: str) -> str:
    """Return prefix-name-suffix, or a digest in the name's place where that is too long."""
    readable = f"{prefix}-{name}{suffix}"
    if len(readable) <= paths.INTERFACE_NAME_MAX:
        return readable
    room = paths.INTERFACE_NAME_MAX - len(prefix) - 1 - len(suffix)
    return f"{prefix}_{sha256_digits(name.encode())[:room]}{suffix}"


def tap(vm: str, nic: str) -> str:
    """Return the name of a NIC's TAP: `qv-web1-0` for net0 of web1, `qv-web1-lan` for its NIC lan.

    Where that is too long: `qv_<digest>-0` for net0, with the digest of the VM's name, and `qv_<digest>` for
    another NIC, with the digest of both names. The name of a NIC has no dash, so no two NICs of a host have
    the same readable name.
    """
    number = nic.removeprefix("net")
    if nic.startswith("net") and len(number) <= 3 and number.isdigit() and str(int(number)) == number:
        return _interface("qv", vm, f"-{number}")
    readable = f"qv-{vm}-{nic}"
    if len(readable) <= paths.INTERFACE_NAME_MAX:
        return readable
    return f"qv_{sha256_digits(f'{vm} {nic}'.encode())[:12]}"


def nic_of_tap(vm: str, interface: str) -> str:
    """Return the name of the NIC of a VM that has this TAP; "" where the TAP's name does not contain it."""
    last = interface.rpartition("-")[2]
    nic = f"net{last}" if last.isdigit() else last
    return nic if tap(vm, nic) == interface else ""


def bridge(network: str) -> str:
    """Return the name of a network's bridge: `qb-default`, or `qb_<digest>` for a long name."""
    return _interface("qb", network, "")
