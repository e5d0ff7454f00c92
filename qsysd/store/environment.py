"""The variables of a VM's environment file, read without YAML: a list reads 100 of these files."""

from __future__ import annotations

from qsysd.files import read_bytes
from qsysd.paths import is_device_name

# int() refuses more than 4300 digits, and a number of QEMU has at most 20.
DIGITS_MAX = 20


def read(path: str) -> dict[str, str]:
    """Return the QSYSD_ variables of an environment file by name; empty if it cannot be read."""
    head = (read_bytes(path) or b"").partition(b"\nQEMU_ARGS=")[0]
    return variables(head.decode("utf-8", "replace"))


def variables(text: str) -> dict[str, str]:
    """Return the QSYSD_ variables that are set in some lines, by name."""
    assignments = (line.partition("=") for line in text.split("\n") if line.startswith("QSYSD_"))
    return {name: value.strip('"') for name, _, value in assignments}


def number(text: str | None) -> int | None:
    """Return the number in a variable; None without one, and for one that no rendering contains."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else None


def disks(text: str | None) -> tuple[str, ...]:
    """Return the names of the disks in QSYSD_DISKS; a number stands for so many named disk0, disk1, ….

    Names that no disk can have are left out.
    """
    if text and text.isascii() and text.isdigit() and len(text) <= 3:
        return tuple(f"disk{index}" for index in range(int(text)))
    return tuple(filter(is_device_name, names(text)))


def names(text: str | None) -> tuple[str, ...]:
    """Return the names in a variable, which colons separate."""
    return tuple(text.split(":")) if text else ()
