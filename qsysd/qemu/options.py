"""QEMU's options as data: arguments of a cold start, or commands to a running QEMU, from the same values.

The values have the types of QMP: text, whole numbers, true and false, and mappings of those. As an
argument (qemu-system-x86_64(1)), an option is a list `key=value,…` in which a comma in a value is doubled,
true and false are `on` and `off`, and a nested mapping's keys follow its own key and a dot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Value = str | int | bool | Mapping[str, "Value"]
# Values as the functions below take them: a key with None is left out, so that QEMU's default holds.
Given = Mapping[str, Value | None]


@dataclass(frozen=True)
class Option:
    """An option with its values, in the order of the command line.

    implied: the key that the command line omits; its value comes first. command: the QMP command that takes
    the same values while QEMU runs, "" for an option that only a start has.
    """

    name: str
    values: Mapping[str, Value]
    implied: str = ""
    command: str = ""

    def arguments(self) -> list[str]:
        """Return the option and its value as two arguments."""
        parts = [
            value if key == self.implied else f"{key}={value}" for key, value in _flattened("", self.values)
        ]
        return [self.name, ",".join(parts)]


@dataclass(frozen=True)
class Verbatim:
    """An option whose one value is not a list, so that a comma in it is a comma; None for one without."""

    name: str
    value: str | None = None

    def arguments(self) -> list[str]:
        """Return the option, and its value if it has one."""
        return [self.name] if self.value is None else [self.name, self.value]


def _flattened(prefix: str, values: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    """Yield each key with its value as text; the keys of a nested mapping follow its own key and a dot."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: str | int) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


def _set(values: Given) -> dict[str, Value]:
    return {key: value for key, value in values.items() if value is not None}


def device(driver: str, values: Given) -> Option:
    """Return a device that the guest sees (`-device`, device_add)."""
    return Option("-device", {"driver": driver, **_set(values)}, "driver", "device_add")


def blockdev(driver: str, values: Given) -> Option:
    """Return a block node (`-blockdev`, blockdev-add)."""
    return Option("-blockdev", {"driver": driver, **_set(values)}, "", "blockdev-add")


def netdev(kind: str, values: Given) -> Option:
    """Return the host's side of a NIC (`-netdev`, netdev_add)."""
    return Option("-netdev", {"type": kind, **_set(values)}, "type", "netdev_add")


def qom_object(kind: str, values: Given) -> Option:
    """Return an object that devices refer to (`-object`, object-add)."""
    return Option("-object", {"qom-type": kind, **_set(values)}, "qom-type", "object-add")


def socket_chardev(identifier: str, path: str, values: Given | None = None) -> Option:
    """Return a UNIX socket that QEMU listens on, without waiting for a client (`-chardev socket`)."""
    socket: Given = {"id": identifier, "path": path, "server": True, "wait": False}
    return Option("-chardev", {"backend": "socket", **_set(socket), **_set(values or {})}, "backend")
