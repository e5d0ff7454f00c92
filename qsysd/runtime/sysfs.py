"""Network interfaces as sysfs shows them (Documentation/ABI/testing/sysfs-class-net of Linux)."""

from __future__ import annotations

import os

DIRECTORY = "/sys/class/net"


def interfaces() -> list[str]:
    """Return the names of all interfaces, sorted."""
    return sorted(os.listdir(DIRECTORY))


def exists(interface: str) -> bool:
    """Return whether the host has this interface."""
    return os.path.exists(f"{DIRECTORY}/{interface}")


def is_bridge(interface: str) -> bool:
    """Return whether the interface is a bridge."""
    return os.path.isdir(f"{DIRECTORY}/{interface}/bridge")


def is_tun(interface: str) -> bool:
    """Return whether the interface is a TAP or TUN device."""
    return os.path.exists(f"{DIRECTORY}/{interface}/tun_flags")


def bridge_ports(bridge: str) -> list[str]:
    """Return the interfaces that are on a bridge, sorted; none where the bridge does not exist."""
    try:
        return sorted(os.listdir(f"{DIRECTORY}/{bridge}/brif"))
    except OSError:
        return []


def attribute(interface: str, name: str) -> str:
    """Return an attribute, or an empty string (the interface may have been removed meanwhile)."""
    try:
        with open(f"{DIRECTORY}/{interface}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def alias(interface: str) -> str:
    """Return the interface's alias, or an empty string."""
    return attribute(interface, "ifalias")
