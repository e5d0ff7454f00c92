"""ip(8) and bridge(8) of iproute2: the only module that runs them to change interfaces."""

from __future__ import annotations

from qsysd.errors import HostError
from qsysd.runtime import TYPE_CHECKING, spawn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Seconds; a command takes a few milliseconds, this only keeps a broken host from blocking a start.
TIMEOUT = 20.0


def batch(commands: Sequence[str]) -> None:
    """Run ip(8) commands in one process, up to the first that fails.

    Raise HostError with the command and the kernel's error.
    """
    done = spawn.run(["ip", "-batch", "-"], stdin=_lines(commands), timeout=TIMEOUT, check=False)
    if done.returncode == 0:
        return
    import re

    # ip ends with "Command failed -:3"; the kernel's error is in the lines before.
    failed = re.search(r"Command failed -:(\d+)", done.stderr)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = "; ".join(line for line in lines if not line.startswith("Command failed")) or "no reason given"
    number = int(failed[1]) - 1 if failed else 0
    raise HostError(f"ip {commands[number]}: {reason}")


def delete_existing(interfaces: Iterable[str]) -> None:
    """Delete those of the interfaces that still exist; errors are ignored. Raise HostError without ip."""
    text = _lines(f"link delete dev {interface}" for interface in interfaces)
    if text:
        spawn.run(["ip", "-force", "-batch", "-"], stdin=text, timeout=TIMEOUT, check=False)


def addresses(interface: str) -> set[str]:
    """Return the IPv4 addresses of an interface, each with its prefix length."""
    import json

    done = spawn.run(["ip", "-j", "-4", "address", "show", "dev", interface], timeout=TIMEOUT)
    return {
        f"{address['local']}/{address['prefixlen']}"
        for link in json.loads(done.stdout or "[]")
        for address in link.get("addr_info", ())
    }


def set_bridge_entry(mac: str, port: str) -> None:
    """Tell a bridge at which port a MAC is; a later frame may change it (bridge(8), dynamic)."""
    command = ["bridge", "fdb", "replace", mac, "dev", port, "master", "dynamic"]
    spawn.run(command, timeout=TIMEOUT, check=False)


def _lines(commands: Iterable[str]) -> str:
    return "".join(f"{command}\n" for command in commands)
